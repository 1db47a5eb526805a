//! What the log drives: the state machine's side of the interface.

use crate::bodies::Bodies;
use crate::payload::{BodyAddr, Payload};

/// The replicated state. One task owns it and calls every method; none of them may block on IO or on a page
/// fault, because nothing else is applied meanwhile.
pub trait StateMachine: Send + 'static {
    /// Hands over the means to read and account bodies, once, before anything else is called.
    fn attach(&mut self, bodies: Bodies) {
        drop(bodies);
    }

    /// Says that what is applied from now on belongs to this term: called before the first entry of a term is applied, blank
    /// and membership entries included, and when a snapshot, at the start or later, ends in a term. Terms never fall.
    fn term_began(&mut self, term: u64) {
        let _ = term;
    }

    /// Applies one committed entry. Must be deterministic: state and `payload` decide everything. `index`
    /// rises by one or more from call to call (blank and membership entries take an index too and are not
    /// passed on).
    fn apply(&mut self, index: u64, payload: &Payload);

    /// Called after each run of applies, when no further committed entry is at hand: the place to send
    /// replies. `index` is the highest applied index, blank and membership entries included; every entry
    /// up to it is durable on a quorum.
    fn applied(&mut self, index: u64);

    /// A consistent image of the state as of the last apply. Its slices are taken later while applies go
    /// on; what they change must not show in the image.
    fn snapshot(&mut self) -> Box<dyn SnapshotImage>;

    /// Replaces the state by the image that was taken at `index`. Called at the start, before anything is
    /// applied, and again whenever another node brings this one forward by its snapshot; then it is called on a
    /// thread of the blocking pool, nothing else is called meanwhile, and [`StateMachine::brought_forward`]
    /// follows. An image that was begun before and is being given up is dropped after that.
    ///
    /// # Errors
    /// When the image cannot be read or understood. The node does not start then, or stops.
    fn restore(&mut self, index: u64, image: &mut dyn std::io::Read) -> std::io::Result<()>;

    /// Says that the state was brought forward to `index` at run time, by the snapshot of another node that
    /// [`StateMachine::restore`] was just given: the entries in between were never passed to
    /// [`StateMachine::apply`], and [`StateMachine::applied`] is not called for them. Whoever waits for the
    /// result of anything that was proposed through this node may have missed it and cannot learn it any more:
    /// it is unknown. Called once the snapshot is durable and its bodies can be read. Not called at the start.
    fn brought_forward(&mut self, index: u64) {
        let _ = index;
    }

    /// Passes every body that the state references to `f`, in any order. Called once after each
    /// [`StateMachine::restore`], to rebuild the accounts of live bytes; from then on the state machine
    /// reports changes through [`crate::Bodies::retain`] and [`crate::Bodies::release`], during the apply
    /// that makes them.
    fn for_each_live(&self, f: &mut dyn FnMut(BodyAddr));
}

/// A state image being written out in slices.
pub trait SnapshotImage: Send {
    /// Appends the next slice, about 64 to 256 KiB, to `out`, and passes every body that it references to `live`, in
    /// any order; answers `false` when that was the last. Called off the core thread, between applies or next to
    /// them: implementations take their own short locks.
    fn next_slice(&mut self, out: &mut Vec<u8>, live: &mut dyn FnMut(BodyAddr)) -> bool;

    /// Whether it was given up, because keeping what changes apart from it took too much memory: then what was written is no
    /// image, and there are no more slices.
    fn given_up(&self) -> bool {
        false
    }

    /// Asks it not to be given up, whatever that takes: nobody would try again.
    fn insist(&mut self) {}
}
