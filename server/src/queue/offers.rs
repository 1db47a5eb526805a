//! Offers: the waiting reserves that an entry may serve. They are matched in their order, right after each
//! command that makes a job ready, and what is left at the end is matched with anything ready or reported
//! back.
//!
//! ```text
//!   offers:  0: want 7 of A   tubes [x, y]        per tube, in the order of offers:
//!            1: want 3 of B   tubes [y]             x: 0
//!                                                   y: 0 ─► 1
//! ```
//!
//! A tube that gets a job thus finds who waits for it without looking at the others. Nothing of this outlives
//! the entry.

use super::decode::{Batch, DecodeError};
use super::engine::{Engine, Run};
use super::tubes::Now;
use super::types::{Gateway, Handout, SessionId};

/// A tube that an offer names and that does not exist.
const NO_TUBE: u32 = u32::MAX;
/// The end of a tube's list.
const NO_LINK: u32 = u32::MAX;

/// The offers of the entry being applied, and what it notes of tubes.
#[derive(Default)]
pub(super) struct Offers {
    list: Vec<Pending>,
    /// The tubes of all offers, one after the other.
    tubes: Vec<u32>,
    links: Vec<Link>,
    /// Names that no tube had yet: the offer, and its place in `tubes`.
    unknown: Vec<(String, u32, usize)>,
    /// Tubes in which a job became ready.
    pub ready_tubes: Vec<u32>,
    /// Tubes that lost a job, or were made without one.
    pub lost_tubes: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Pending {
    session: SessionId,
    want: u64,
    /// Its part of `tubes`.
    tubes: (usize, usize),
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Served,
    /// Its session cannot hold a job any more.
    Closed,
}

#[derive(Clone, Copy)]
struct Link {
    offer: u32,
    next: u32,
}

impl Pending {
    fn close(&mut self) {
        if self.state == State::Open {
            self.state = State::Closed;
        }
    }
}

impl Offers {
    pub fn clear(&mut self) {
        self.list.clear();
        self.tubes.clear();
        self.links.clear();
        self.unknown.clear();
        self.ready_tubes.clear();
        self.lost_tubes.clear();
    }

    /// The session ended in this entry: its wants are served no more.
    pub fn close_session(&mut self, session: SessionId) {
        for offer in self.list.iter_mut().filter(|offer| offer.session == session) {
            offer.close();
        }
    }

    /// The gateway's life ended in this entry.
    pub fn close_gateway(&mut self, gateway: Gateway) {
        for offer in self.list.iter_mut().filter(|offer| offer.session.gateway() == gateway) {
            offer.close();
        }
    }

    /// Its slot may be given to another tube. No offer names it, or it would not have gone.
    pub fn forget_tube(&mut self, slot: u32) {
        self.ready_tubes.retain(|tube| *tube != slot);
        self.lost_tubes.retain(|tube| *tube != slot);
    }

    /// Puts an offer at the end of a tube's list.
    fn link(&mut self, now: &mut Now, serial: u64, offer: u32) {
        let link = self.links.len() as u32;
        self.links.push(Link { offer, next: NO_LINK });
        if now.offered == serial && now.first_link != NO_LINK {
            self.links[now.last_link as usize].next = link;
        } else {
            now.offered = serial;
            now.first_link = link;
        }
        now.last_link = link;
    }

    /// The first open offer of a tube's list; those before it are dropped from the list.
    fn first_open(&self, now: &mut Now, serial: u64) -> Option<u32> {
        if now.offered != serial {
            return None;
        }
        while now.first_link != NO_LINK {
            let Link { offer, next } = self.links[now.first_link as usize];
            if self.list[offer as usize].state == State::Open {
                return Some(offer);
            }
            now.first_link = next;
        }
        None
    }
}

impl Engine {
    /// Reads the entry's offers. Those of gateways that are not live are never served.
    pub(super) fn take_offers(&mut self, run: &mut Run<'_>, batch: &Batch<'_>) -> Result<(), DecodeError> {
        let offers = &mut run.offers;
        let mut reader = batch.offers;
        for number in 0..batch.offer_count {
            let offer = reader.offer()?;
            let start = offers.tubes.len();
            for _ in 0..offer.tubes {
                let name = reader.tube()?;
                match self.tubes.find(name) {
                    Some(slot) => {
                        offers.link(&mut self.tubes.get_mut(slot).now, self.serial, number);
                        offers.tubes.push(slot);
                    }
                    None => {
                        offers.unknown.push((name.into(), number, offers.tubes.len()));
                        offers.tubes.push(NO_TUBE);
                    }
                }
            }
            let live = self.gateways.is_live(offer.session.gateway());
            let state = if live { State::Open } else { State::Closed };
            let tubes = (start, offers.tubes.len());
            offers.list.push(Pending { session: offer.session, want: offer.want, tubes, state });
        }
        reader.end()
    }

    /// A tube was made: offers that name it wait for it from now on.
    pub(super) fn resolve_offers(&mut self, run: &mut Run<'_>, name: &str, slot: u32) {
        let offers = &mut run.offers;
        let unknown = std::mem::take(&mut offers.unknown);
        let now = &mut self.tubes.get_mut(slot).now;
        offers.unknown = unknown
            .into_iter()
            .filter(|(wanted, offer, place)| {
                let is_it = wanted == name;
                if is_it {
                    offers.link(now, self.serial, *offer);
                    offers.tubes[*place] = slot;
                }
                !is_it
            })
            .collect();
    }

    /// Something became ready in the tube, or its pause ended: serves those who wait for it.
    pub(super) fn became_ready(&mut self, run: &mut Run<'_>, tube: u32) {
        loop {
            let home = self.tubes.get_mut(tube);
            if home.next_ready().is_none() {
                return;
            }
            let Some(offer) = run.offers.first_open(&mut home.now, self.serial) else { break };
            let served = self.serve(run, offer);
            assert!(served, "the tube it waits for has a ready job");
        }
        let home = self.tubes.get_mut(tube);
        if home.now.ready_noted != self.serial {
            home.now.ready_noted = self.serial;
            run.offers.ready_tubes.push(tube);
        }
    }

    /// Matches what is left, and reports what found nothing.
    pub(super) fn end_offers(&mut self, run: &mut Run<'_>) {
        for offer in 0..run.offers.list.len() {
            if run.offers.list[offer].state == State::Open {
                self.serve(run, offer as u32);
            }
            let Pending { session, want, state, .. } = run.offers.list[offer];
            if state != State::Served {
                run.effects.unmatched.push((session, want));
            }
        }
    }

    /// Hands the best job of an offer's tubes to its session: lowest priority, then lowest id.
    fn serve(&mut self, run: &mut Run<'_>, offer: u32) -> bool {
        let Pending { session, want, tubes, state } = &mut run.offers.list[offer as usize];
        let tubes = run.offers.tubes[tubes.0..tubes.1].iter().filter(|tube| **tube != NO_TUBE);
        let best = tubes.filter_map(|tube| Some((self.tubes.get(*tube).next_ready()?, *tube))).min();
        let Some((key, tube)) = best else { return false };
        let id = key.id();
        let slot = self.jobs.find(id).expect("a ready job is there");
        *state = State::Served;
        let (session, want) = (*session, *want);
        self.save_job(id, slot);
        self.tubes.reorder(tube, |home| home.ready.pop_first());
        self.count_ready_out(tube, key.pri);
        self.place_reserved(id, slot, session, want);
        run.effects.handouts.push(Handout { session, want, id, body: self.jobs.record(slot).body });
        true
    }

    /// The tube lost a job, or was made without one.
    pub(super) fn note_lost(&mut self, run: &mut Run<'_>, tube: u32) {
        let now = &mut self.tubes.get_mut(tube).now;
        if now.lost_noted != self.serial {
            now.lost_noted = self.serial;
            run.offers.lost_tubes.push(tube);
        }
    }
}
