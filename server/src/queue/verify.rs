//! A check of the state against itself: every order and every sum follows from the records. For tests and
//! offline tools; it walks everything.

use std::collections::BTreeMap;

use super::engine::Engine;
use super::jobs::{Hold, Place};
use super::tubes::{ReadyKey, TimeKey, Tube};
use super::types::{Totals, URGENT_BELOW};

/// What a tube must be, by its jobs' records.
#[derive(Default)]
struct Expected {
    ready: Vec<ReadyKey>,
    delayed: Vec<TimeKey>,
    buried: Vec<TimeKey>,
    reserved: u64,
    urgent: u64,
    bytes: u64,
}

impl Engine {
    /// Whether orders and sums agree with the records.
    ///
    /// # Errors
    /// The first thing that does not.
    pub fn verify(&self) -> Result<(), String> {
        let mut tubes: BTreeMap<u32, Expected> = BTreeMap::new();
        let mut held: Vec<(u64, Hold)> = Vec::new();
        let mut last = 0;
        self.jobs.for_each(&mut |id, slot| {
            last = id;
            let record = self.jobs.record(slot);
            let tube = tubes.entry(record.terms.tube).or_default();
            tube.bytes += u64::from(record.body.len);
            match self.jobs.place(slot) {
                Place::Ready => {
                    tube.ready.push(ReadyKey::new(record.pri, id));
                    tube.urgent += u64::from(record.pri < URGENT_BELOW);
                }
                Place::Delayed(at) => tube.delayed.push(TimeKey { at, id }),
                Place::Buried(at) => tube.buried.push(TimeKey { at, id }),
                Place::Reserved(hold) => {
                    tube.reserved += 1;
                    held.push((id, hold));
                }
            }
        });
        expect(last <= self.last_id, || format!("job {last} is younger than the youngest"))?;
        let mut totals = Totals {
            total_jobs: self.totals.total_jobs,
            timeouts: self.totals.timeouts,
            tubes: self.tubes.len() as u64,
            ..Totals::default()
        };
        let (mut heads, mut pauses) = (Vec::new(), Vec::new());
        for (slot, tube) in self.tubes.born_since(0) {
            let expected = tubes.remove(&slot).unwrap_or_default();
            heads.extend(tube.delayed.first());
            if tube.is_paused() {
                pauses.push(TimeKey { at: tube.pause_until_us, id: tube.born });
            }
            verify_tube(tube, expected, &mut totals)?;
            expect(tube.policy == self.policies.of(&tube.name), || format!("the policy of {}", tube.name))?;
        }
        expect(tubes.is_empty(), || "a job is in a tube that is not there".to_owned())?;
        let (counted, recounted) = self.tubes.order_bytes_recounted();
        expect(counted == recounted, || format!("orders hold {recounted} bytes, not {counted}"))?;
        expect(totals == self.totals, || format!("totals are {:?}, not {totals:?}", self.totals))?;
        same("first delayed jobs", heads, self.delayed.iter())?;
        same("pauses", pauses, self.pauses.iter())?;
        self.verify_held(held)
    }

    fn verify_held(&self, held: Vec<(u64, Hold)>) -> Result<(), String> {
        for (id, hold) in &held {
            let live = self.gateways.of_node(hold.node).is_some_and(|life| life.live);
            expect(live, || format!("job {id} is held by a gateway that is not live"))?;
            let keys = self.reserved.of_session(hold.node, hold.conn);
            let found = keys.filter(|key| key.id() == *id && key.deadline() == hold.deadline).count();
            expect(found == 1, || format!("job {id} is {found} times in its session's order"))?;
        }
        let deadlines = held.iter().map(|(id, hold)| TimeKey { at: hold.deadline, id: *id }).collect();
        same("deadlines", deadlines, self.reserved.by_deadline.iter())?;
        let by_session: usize =
            self.gateways.iter().map(|(node, _)| self.reserved.of_node(node).count()).sum();
        expect(by_session == held.len(), || "a session's order has a job that it does not hold".to_owned())
    }
}

fn verify_tube(tube: &Tube, expected: Expected, totals: &mut Totals) -> Result<(), String> {
    let name = &tube.name;
    expect(tube.urgent == expected.urgent, || format!("urgent count of {name}"))?;
    expect(tube.reserved == expected.reserved, || format!("reserved count of {name}"))?;
    expect(tube.bytes == expected.bytes, || format!("bytes of {name}"))?;
    totals.urgent += expected.urgent;
    totals.reserved += expected.reserved;
    totals.ready += expected.ready.len() as u64;
    totals.delayed += expected.delayed.len() as u64;
    totals.buried += expected.buried.len() as u64;
    same(&format!("ready jobs of {name}"), expected.ready, tube.ready.iter())?;
    same(&format!("delayed jobs of {name}"), expected.delayed, tube.delayed.iter())?;
    same(&format!("buried jobs of {name}"), expected.buried, tube.buried.iter())
}

fn same<K: Ord>(what: &str, mut expected: Vec<K>, actual: impl Iterator<Item = K>) -> Result<(), String> {
    expected.sort_unstable();
    expect(actual.eq(expected), || format!("{what} are not those of the records"))
}

fn expect(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}
