//! Operations on more jobs than one slice has: a bounded part with every entry, the same on every node, and on from
//! where it was after a restart.

use beanpole::queue::{BulkCount, BulkVerb, Effects, Engine, Gateway, JobState, States};

use crate::entries::{Bulk, Cmd, Entry, Sect};
use crate::snapshots::{image, restore};

/// Jobs that one entry acts on.
const SLICE: u64 = 512;
const GATEWAY: Gateway = Gateway { node: 1, epoch: 1 };

/// Replicas that apply the same entries.
struct Replicas {
    engines: Vec<Engine>,
    index: u64,
    sequence: u64,
    now: u64,
}

impl Replicas {
    fn new() -> Self {
        let mut replicas =
            Replicas { engines: vec![Engine::new(), Engine::new()], index: 0, sequence: 0, now: 1_000_000 };
        let commands = vec![Cmd::Up { nonce: 1 }, Cmd::Level { level: 1 }];
        replicas.sections(vec![Sect { gateway: Gateway { epoch: 0, ..GATEWAY }, sequence: 0, commands }]);
        replicas
    }

    fn sections(&mut self, sections: Vec<Sect>) -> Effects {
        self.index += 1;
        self.now += 1000;
        let entry = Entry { stamp: self.now, lease: self.now, sections, offers: vec![] };
        let payload = entry.payload();
        let mut all = self.engines.iter_mut().map(|engine| {
            let mut effects = Effects::default();
            engine.apply(self.index, &payload, &mut effects);
            engine.verify().unwrap();
            effects
        });
        let first = all.next().unwrap();
        assert!(all.all(|effects| effects == first), "replicas do the same");
        first
    }

    fn commands(&mut self, commands: Vec<Cmd>) -> Effects {
        self.sequence += 1;
        self.sections(vec![Sect { gateway: GATEWAY, sequence: self.sequence, commands }])
    }

    /// What a leader proposes when something is due and nobody asks for anything.
    fn empty_entry(&mut self) -> Effects {
        self.sections(vec![])
    }

    fn put(&mut self, tube: &str, jobs: u64) {
        let put = |number: u64| Cmd::Put {
            conn: 1,
            tube: tube.to_owned(),
            pri: (number % 5) as u32,
            delay: if number % 10 == 9 { 1000 } else { 0 },
            ttr: 60,
            bytes: 3,
        };
        self.commands((0..jobs).map(put).collect());
    }

    /// Entries until nothing is due; what each of them let go.
    fn finish(&mut self) -> Vec<u64> {
        let mut slices = Vec::new();
        while self.engines[0].next_due().stamp == Some(0) {
            slices.push(self.empty_entry().released.len() as u64);
        }
        slices
    }

    fn assert_equal(&self) {
        assert!(self.engines.windows(2).all(|pair| pair[0].digest() == pair[1].digest()));
        assert!(self.engines.windows(2).all(|pair| pair[0].history() == pair[1].history()));
    }

    fn jobs(&self, tube: &str) -> u64 {
        self.engines[0].tube(tube.as_bytes()).map_or(0, |tube| tube.jobs())
    }
}

#[test]
fn an_entry_does_a_slice_and_a_restart_goes_on_from_there() {
    let mut replicas = Replicas::new();
    replicas.put("q", 3000);
    replicas.put("r", 700);
    let begun = replicas.commands(vec![Cmd::Bulk(Bulk::all(5, BulkVerb::Purge, "q", ""))]);
    assert_eq!(begun.released.len() as u64, SLICE, "its own entry does the first slice");
    assert_eq!(replicas.engines[0].due_now(0, 0), 1);
    // What others do is not held up, and what is put meanwhile stays.
    let effects =
        replicas.commands(vec![Cmd::Put { conn: 1, tube: "q".into(), pri: 9, delay: 0, ttr: 1, bytes: 1 }]);
    assert_eq!((effects.outcomes.len(), effects.released.len() as u64), (1, SLICE));
    let image = image(&mut replicas.engines[0], 777);
    replicas.engines.push(restore(&image));
    let slices = replicas.finish();
    assert_eq!(slices.iter().sum::<u64>(), 3000 - 2 * SLICE);
    assert!(slices.iter().all(|slice| *slice <= SLICE), "{slices:?}");
    replicas.assert_equal();
    assert_eq!((replicas.jobs("q"), replicas.jobs("r")), (1, 700));
    let bulk = replicas.engines[2].bulk(5).unwrap();
    assert_eq!((bulk.done, bulk.total, bulk.running), (3000, 3000, false));
}

#[test]
fn jobs_that_are_only_looked_at_are_bounded_too() {
    let mut replicas = Replicas::new();
    replicas.put("q", 20_000);
    replicas.now += 5_000_000;
    replicas.put("q", 10);
    let order = Bulk { older_us: 60_000_000, ..Bulk::all(5, BulkVerb::Purge, "q", "") };
    replicas.commands(vec![Cmd::Bulk(order)]);
    let first = replicas.engines[0].bulk(5).unwrap().looked;
    assert!((1..=8192).contains(&first), "{first}");
    assert_eq!(replicas.finish().iter().sum::<u64>(), 0);
    let bulk = replicas.engines[0].bulk(5).unwrap();
    assert_eq!((bulk.done, bulk.looked), (0, 20_010));
}

#[test]
fn moves_and_kicks_go_in_slices_and_one_after_the_other() {
    let mut replicas = Replicas::new();
    replicas.put("q", 2000);
    let moved = Cmd::Bulk(Bulk::all(5, BulkVerb::Move, "q", "r"));
    let kicked = Cmd::Bulk(Bulk::all(6, BulkVerb::Kick, "r", ""));
    replicas.commands(vec![moved, kicked]);
    assert_eq!(replicas.jobs("r"), SLICE);
    assert_eq!(replicas.engines[0].bulk(6).unwrap().done, 0, "it waits");
    replicas.finish();
    replicas.assert_equal();
    let view = replicas.engines[0].tube(b"r").unwrap();
    assert_eq!((view.ready, view.delayed, replicas.jobs("q")), (1800, 200, 0), "r was empty when 6 came");
    replicas.commands(vec![Cmd::Bulk(Bulk::all(7, BulkVerb::Kick, "r", ""))]);
    assert_eq!(replicas.engines[0].tube(b"r").unwrap().ready, 2000);
}

#[test]
fn a_count_finds_what_a_purge_would() {
    let mut replicas = Replicas::new();
    replicas.put("q", 10_000);
    let until = replicas.now;
    replicas.now += 5_000_000;
    replicas.put("q", 100);
    let engine = &replicas.engines[0];
    let count = |states, until| {
        let mut count = BulkCount::new("q", states, until);
        let mut parts = 1;
        while engine.count_some(&mut count) {
            parts += 1;
        }
        assert!(parts > 2, "it goes in parts");
        count.jobs
    };
    assert_eq!(count(States::ALL, u64::MAX), 10_100);
    assert_eq!(count(States::ALL, until), 10_000);
    assert_eq!(count(States::only(JobState::Delayed), until), 1000);
}

#[test]
fn no_more_than_sixteen_wait() {
    let mut replicas = Replicas::new();
    replicas.put("q", 1000);
    let orders = (1..=17).map(|nonce| Cmd::Bulk(Bulk::all(nonce, BulkVerb::Purge, "q", ""))).collect();
    replicas.commands(orders);
    assert!(!replicas.engines[0].bulk(17).unwrap().running, "it is told as done with nothing");
    replicas.finish();
    assert_eq!(replicas.engines[0].bulk(1).unwrap().done, 1000);
    replicas.assert_equal();
}

#[test]
#[should_panic(expected = "upgrade this node")]
fn a_node_that_does_not_know_the_level_stops() {
    let mut replicas = Replicas::new();
    replicas.commands(vec![Cmd::Level { level: 1000 }]);
}
