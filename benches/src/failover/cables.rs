//! The cables between the nodes of a local cluster: a relay in front of each node's peer port, so that a network can be cut
//! without root, and without the nodes noticing anything but silence.
//!
//! ```text
//!   n1 ──┐                      ways 1→2, 2→1
//!        ├──► relay of n2 ═══════════════════════► n2          every node is told the relays' ports as the peers' addresses
//!   n3 ──┘                      ways 3→2, 2→3
//! ```
//!
//! A way that is cut passes nothing on: bytes wait where they are, and the end of a connection stays unknown to the other
//! side, as with a cable that is pulled out and put back in: what TCP has not delivered it delivers late. A new connection
//! needs both ways. Who connects is read from the first frame, the hello (`raft/src/hello.rs`), and passed on unchanged.

use super::dev_cluster::DevNode;
use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

/// What every hello has at its beginning.
const HELLO_MAGIC: &[u8] = b"BEANPEER";
/// The sender's node id, u64 little-endian, so far behind the beginning of the magic: after protocol u32, purpose u8, wanted
/// node u64 and cluster u128.
const HELLO_NODE_AT: usize = 8 + 4 + 1 + 8 + 16;
/// A first frame is given up on when it has not said within so many bytes who sends it.
const HELLO_BYTES_MAX: usize = 256;
/// How long to wait after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// How much is passed on at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Which ways of a node are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It hears nobody, and nobody hears it.
    Both,
    /// It hears nobody; the others hear it.
    Incoming,
    /// Nobody hears it; it hears the others.
    Outgoing,
}

/// Where one node's peers connect, and where that leads.
#[derive(Clone, Debug)]
pub struct CableEnd {
    /// The node's id.
    pub node: u64,
    /// Where its peers are told to connect, HOST:PORT.
    pub relay: String,
    /// Where it listens for them, HOST:PORT.
    pub peers: String,
}

impl CableEnd {
    /// The end at a node of a local cluster; none when its peers connect without a relay.
    pub fn of(node: &DevNode) -> Option<CableEnd> {
        Some(CableEnd { node: node.id, relay: node.relay.clone()?, peers: node.peers.clone() })
    }
}

/// Which nodes are cut off. A way passes nothing on when its sender or its receiver is: two nodes that are cut off do not hear
/// each other before both are whole.
#[derive(Clone, Debug, Default)]
struct CutWays {
    /// Nodes that nobody hears.
    senders: BTreeSet<u64>,
    /// Nodes that hear nobody.
    receivers: BTreeSet<u64>,
}

impl CutWays {
    fn passes(&self, from: u64, to: u64) -> bool {
        !self.senders.contains(&from) && !self.receivers.contains(&to)
    }
}

/// Running relays; they end when this is dropped.
pub struct Cables {
    cut: watch::Sender<CutWays>,
    /// Its end ends the thread.
    stop: Option<oneshot::Sender<()>>,
    /// Runs the relays. None only while it is being dropped.
    thread: Option<JoinHandle<()>>,
}

impl Cables {
    /// Listens at every relay's address, on one thread of its own. No way is cut.
    ///
    /// # Errors
    /// An address cannot be listened at.
    pub fn lay(ends: &[CableEnd]) -> io::Result<Cables> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (cut, ways) = watch::channel(CutWays::default());
        for end in ends {
            let listener = StdListener::bind(&end.relay)?;
            listener.set_nonblocking(true)?;
            let _inside = runtime.enter();
            let relay = Relay { node: end.node, target: end.peers.clone(), ways: ways.clone() };
            runtime.spawn(relay.accept(TcpListener::from_std(listener)?));
        }
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            // The only message is that nobody can send one any more.
            let _stopped = runtime.block_on(stopped);
        };
        let thread = std::thread::Builder::new().name("cables".into()).spawn(run)?;
        Ok(Cables { cut, stop: Some(stop), thread: Some(thread) })
    }

    /// Cuts a node off from all others. What was cut before stays so.
    pub fn cut(&self, node: u64, side: Side) {
        self.cut.send_modify(|cut| {
            if side != Side::Outgoing {
                cut.receivers.insert(node);
            }
            if side != Side::Incoming {
                cut.senders.insert(node);
            }
        });
    }

    /// Makes a node whole. It still does not hear another one that is cut off itself.
    pub fn heal(&self, node: u64) {
        self.cut.send_modify(|cut| {
            cut.senders.remove(&node);
            cut.receivers.remove(&node);
        });
    }
}

impl Drop for Cables {
    fn drop(&mut self) {
        drop(self.stop.take());
        // With the runtime go the connections, whatever they wait for.
        let _panicked = self.thread.take().map(JoinHandle::join);
    }
}

/// What stands in front of one node.
#[derive(Clone)]
struct Relay {
    node: u64,
    target: String,
    ways: watch::Receiver<CutWays>,
}

impl Relay {
    async fn accept(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(self.clone().serve(stream))),
                // A connection that has gone already, or too many open files: the next may do.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    /// Carries one connection; whatever goes wrong ends it, at both sides.
    async fn serve(self, mut near: TcpStream) {
        let Ok((from, hello)) = read_hello(&mut near).await else { return };
        let there = Way { from, to: self.node, ways: self.ways.clone() };
        let back = Way { from: self.node, to: from, ways: self.ways };
        // A handshake needs both ways. Whoever gives up meanwhile is gone.
        let connected = tokio::select! {
            connected = connect(&there, &back, &self.target) => connected,
            () = gone(&near) => return,
        };
        let Ok(mut far) = connected else { return };
        if near.set_nodelay(true).is_err() || far.write_all(&hello).await.is_err() {
            return;
        }
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        // An error ends both, by dropping them.
        let _ended = tokio::try_join!(
            carry(near_read, far_write, there.clone(), back.clone()),
            carry(far_read, near_write, back, there)
        );
    }
}

/// What the sender of a connection says of itself: its node id, and all that was read.
async fn read_hello(stream: &mut TcpStream) -> io::Result<(u64, Vec<u8>)> {
    let mut read = Vec::with_capacity(HELLO_BYTES_MAX);
    loop {
        if let Some(node) = hello_node(&read) {
            return Ok((node, read));
        }
        if read.len() >= HELLO_BYTES_MAX || stream.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

fn hello_node(read: &[u8]) -> Option<u64> {
    let magic = read.windows(HELLO_MAGIC.len()).position(|window| window == HELLO_MAGIC)?;
    let id = read[magic..].get(HELLO_NODE_AT..HELLO_NODE_AT + 8)?;
    Some(u64::from_le_bytes(id.try_into().expect("eight bytes")))
}

/// Waits until the other side has given a connection up.
async fn gone(stream: &TcpStream) {
    if let Ok(1..) = stream.peek(&mut [0]).await {
        // It has more to say; that it goes is noticed when that is passed on.
        std::future::pending().await
    }
}

async fn connect(there: &Way, back: &Way, target: &str) -> io::Result<TcpStream> {
    there.open().await;
    back.open().await;
    let address: SocketAddr = target.parse().map_err(io::Error::other)?;
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One direction between two nodes.
#[derive(Clone)]
struct Way {
    from: u64,
    to: u64,
    ways: watch::Receiver<CutWays>,
}

impl Way {
    /// Waits until it is not cut.
    async fn open(&self) {
        let mut ways = self.ways.clone();
        // An error means that the cables are being taken away, and this task with them.
        let _ending = ways.wait_for(|cut| cut.passes(self.from, self.to)).await;
    }
}

/// Passes on what `from` has to say until its end. `back` is the way on which its errors would be told.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Way, back: Way) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        way.open().await;
        let read = from.read(&mut chunk).await;
        // It may have been cut while this waited for bytes: then they, or the end, have come too late.
        way.open().await;
        match read? {
            0 => return to.shutdown().await,
            n => {
                if let Err(error) = to.write_all(&chunk[..n]).await {
                    back.open().await;
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream as Stream;

    /// Long enough for bytes that pass, short enough for a test that waits for those that must not.
    const SILENCE: Duration = Duration::from_millis(100);
    const PATIENCE: Duration = Duration::from_secs(10);

    fn hello(node: u64) -> Vec<u8> {
        let mut hello = vec![7; 20];
        hello.extend_from_slice(HELLO_MAGIC);
        hello.extend_from_slice(&[0; HELLO_NODE_AT - 8]);
        hello.extend_from_slice(&node.to_le_bytes());
        hello
    }

    fn local() -> StdListener {
        StdListener::bind("127.0.0.1:0").unwrap()
    }

    /// Node 2 behind its relay.
    struct Place {
        cables: Cables,
        relay: String,
        node: StdListener,
    }

    fn place() -> Place {
        let node = local();
        let relay = local().local_addr().unwrap().to_string();
        let peers = node.local_addr().unwrap().to_string();
        let other = CableEnd { node: 1, relay: "127.0.0.1:0".into(), peers: "127.0.0.1:1".into() };
        let end = CableEnd { node: 2, relay: relay.clone(), peers };
        Place { cables: Cables::lay(&[other, end]).unwrap(), relay, node }
    }

    impl Place {
        /// A connection of node 1, and node 2's end of it.
        fn connect(&self) -> (Stream, Stream) {
            let mut near = Stream::connect(&self.relay).unwrap();
            near.write_all(&hello(1)).unwrap();
            let (mut far, _) = self.node.accept().unwrap();
            far.set_read_timeout(Some(PATIENCE)).unwrap();
            near.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut got = vec![0; hello(1).len()];
            far.read_exact(&mut got).unwrap();
            assert_eq!(got, hello(1), "the first frame is passed on unchanged");
            (near, far)
        }
    }

    fn is_silent(stream: &mut Stream) -> bool {
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        let read = stream.read(&mut [0; 1]);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        matches!(read, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }

    fn hears(from: &mut Stream, to: &mut Stream, what: u8) {
        from.write_all(&[what]).unwrap();
        let mut got = [0];
        to.read_exact(&mut got).unwrap();
        assert_eq!(got[0], what);
    }

    #[test]
    fn a_cut_way_is_silent_and_delivers_late() {
        let place = place();
        let (mut near, mut far) = place.connect();
        hears(&mut near, &mut far, 1);
        hears(&mut far, &mut near, 2);
        for (side, near_is_heard, far_is_heard) in
            [(Side::Both, false, false), (Side::Incoming, false, true), (Side::Outgoing, true, false)]
        {
            place.cables.cut(2, side);
            near.write_all(&[3]).unwrap();
            far.write_all(&[4]).unwrap();
            assert_eq!(is_silent(&mut far), !near_is_heard, "{side:?}");
            assert_eq!(is_silent(&mut near), !far_is_heard, "{side:?}");
            place.cables.heal(2);
            let mut late = [0];
            if !near_is_heard {
                far.read_exact(&mut late).unwrap();
                assert_eq!(late[0], 3, "{side:?}");
            }
            if !far_is_heard {
                near.read_exact(&mut late).unwrap();
                assert_eq!(late[0], 4, "{side:?}");
            }
        }
    }

    #[test]
    fn the_end_of_a_connection_does_not_pass_a_cut() {
        let place = place();
        let (near, mut far) = place.connect();
        place.cables.cut(1, Side::Outgoing);
        drop(near);
        assert!(is_silent(&mut far), "nobody has told it");
        place.cables.heal(1);
        assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn two_that_are_cut_off_meet_when_both_are_whole() {
        let place = place();
        let (mut near, mut far) = place.connect();
        place.cables.cut(1, Side::Both);
        place.cables.cut(2, Side::Both);
        near.write_all(&[6]).unwrap();
        place.cables.heal(1);
        assert!(is_silent(&mut far), "node 2 is still cut off");
        place.cables.heal(2);
        let mut late = [0];
        far.read_exact(&mut late).unwrap();
        assert_eq!(late, [6]);
    }

    #[test]
    fn no_connection_is_made_over_half_a_cable() {
        let place = place();
        for side in [Side::Outgoing, Side::Incoming] {
            place.cables.cut(1, side);
            let mut near = Stream::connect(&place.relay).unwrap();
            near.write_all(&hello(1)).unwrap();
            assert!(is_silent(&mut near));
            place.node.set_nonblocking(true).unwrap();
            assert!(place.node.accept().is_err(), "{side:?}");
            place.node.set_nonblocking(false).unwrap();
            place.cables.heal(1);
            let (mut far, _) = place.node.accept().unwrap();
            far.set_read_timeout(Some(PATIENCE)).unwrap();
            far.read_exact(&mut vec![0; hello(1).len()]).unwrap();
            hears(&mut near, &mut far, 5);
        }
    }
}
