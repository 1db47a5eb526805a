//! More is due than one entry fires: nobody can tell, except by looking at what is not yet fired.

use beanpole::queue::{Effects, Engine, Gateway, JobState, Outcome, SessionId};

use crate::entries::{Cmd, Entry, Offered, Sect};
use crate::model::Model;

const S: u64 = 1_000_000;
const GATEWAY: Gateway = Gateway { node: 1, epoch: 1 };

/// Engine and model side by side.
struct Pair {
    engine: Engine,
    model: Model,
    index: u64,
    sequence: u64,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Pair { engine: Engine::new(), model: Model::new(), index: 0, sequence: 0 };
        let gateway = Gateway { epoch: 0, ..GATEWAY };
        let up = Sect { gateway, sequence: 0, commands: vec![Cmd::Up { nonce: 1 }] };
        pair.apply(Entry { sections: vec![up], ..Entry::default() });
        pair
    }

    fn apply(&mut self, entry: Entry) -> Effects {
        self.index += 1;
        let payload = entry.payload();
        let mut effects = Effects::default();
        self.engine.apply(self.index, &payload, &mut effects);
        assert_eq!(effects, self.model.apply(self.index, &entry, &payload));
        self.model.assert_same(&self.engine);
        effects
    }

    fn at(&mut self, seconds: u64, commands: Vec<Cmd>, offers: Vec<Offered>) -> Effects {
        self.sequence += 1;
        let sections = vec![Sect { gateway: GATEWAY, sequence: self.sequence, commands }];
        self.apply(Entry { stamp: seconds * S, lease: seconds * S, sections, offers })
    }
}

fn put(tube: &str, delay: u32, ttr: u32) -> Cmd {
    Cmd::Put { conn: 1, tube: tube.into(), pri: 9, delay, ttr, bytes: 0 }
}

fn outcomes(effects: &Effects) -> Vec<Outcome> {
    effects.outcomes.iter().map(|(_, outcome)| *outcome).collect()
}

#[test]
fn an_entry_fires_1024_and_the_next_go_on() {
    let mut pair = Pair::new();
    let tubes = ["a", "b", "c"];
    let puts = (0..2500).map(|n| put(tubes[n % 3], 1 + n as u32 % 4, 1)).collect();
    pair.at(1, puts, vec![]);
    assert_eq!(pair.engine.due_now(100 * S, 0), 1024);
    for left in [2500 - 1024, 2500 - 2048, 0] {
        pair.at(100, vec![], vec![]);
        assert_eq!(pair.engine.totals().delayed, left);
    }
    assert_eq!(pair.engine.due_now(100 * S, 0), 0);
}

/// 1,100 delays keep the entry from firing anything else; jobs 1101 to 1110 are reserved or delayed, and
/// overdue.
fn overdue() -> Pair {
    let mut pair = Pair::new();
    pair.at(1, (0..1100).map(|_| put("many", 1, 1)).collect(), vec![]);
    pair.at(1, (0..10).map(|n| put("few", if n < 5 { 0 } else { 2 }, 1)).collect(), vec![]);
    let offer = |want| Offered {
        session: SessionId { node: 1, epoch: 1, conn: 7 },
        want,
        tubes: vec!["few".to_owned()],
    };
    pair.at(1, vec![], (1..=5).map(offer).collect());
    for id in 1101..=1105 {
        assert_eq!(pair.engine.job(id).unwrap().state, JobState::Reserved);
    }
    pair
}

#[test]
fn what_is_due_counts_as_fired() {
    let mut pair = overdue();
    let commands = vec![
        // The holder has lost them.
        Cmd::Touch { conn: 7, id: 1101 },
        Cmd::Release { conn: 7, id: 1101, pri: 1, delay: 1 },
        Cmd::Bury { conn: 7, id: 1102, pri: 1 },
        Cmd::Unreserve { conn: 7, want: 3, id: 1103 },
        // Anybody may have them.
        Cmd::Delete { conn: 1, id: 1101 },
        Cmd::ReserveJob { conn: 2, id: 1104 },
        // These are ready, not delayed.
        Cmd::KickJob { conn: 1, id: 1106 },
        Cmd::Delete { conn: 1, id: 1107 },
        Cmd::ReserveJob { conn: 1, id: 1108 },
    ];
    let effects = pair.at(100, commands, vec![]);
    let expected = [
        Outcome::NotFound,
        Outcome::NotFound,
        Outcome::NotFound,
        Outcome::Deleted,
        Outcome::Reserved { id: 1104, body: pair.engine.job(1104).unwrap().body },
        Outcome::NotFound,
        Outcome::Deleted,
        Outcome::Reserved { id: 1108, body: pair.engine.job(1108).unwrap().body },
    ];
    assert_eq!(outcomes(&effects), expected);
    let job = |id| pair.engine.job(id).unwrap();
    assert_eq!((job(1102).state, job(1102).timeouts), (JobState::Ready, 1));
    assert_eq!((job(1103).reserves, job(1103).timeouts), (1, 1), "taken back too late: it had timed out");
    assert_eq!((job(1104).reserves, job(1104).timeouts), (2, 1));
    assert_eq!(job(1105).state, JobState::Reserved, "nobody asked, so it is not fired yet");
    pair.at(100, vec![], vec![]);
    assert_eq!(pair.engine.job(1105).unwrap().state, JobState::Ready);
}

#[test]
fn an_overdue_job_goes_to_who_waits_before_its_old_holder_deletes_it() {
    let mut pair = overdue();
    let session = SessionId { node: 1, epoch: 1, conn: 3 };
    let commands = vec![Cmd::Delete { conn: 7, id: 1102 }, Cmd::Delete { conn: 7, id: 1101 }];
    let offer = Offered { session, want: 1, tubes: vec!["few".to_owned()] };
    let effects = pair.at(100, commands, vec![offer]);
    assert_eq!(outcomes(&effects), [Outcome::NotFound, Outcome::Deleted]);
    assert_eq!(pair.engine.job(1102).unwrap().holder, Some(session));
}

#[test]
fn a_session_that_goes_has_lost_what_is_overdue() {
    let mut pair = overdue();
    pair.at(100, vec![Cmd::Closed { conn: 7, undelivered: vec![2] }], vec![]);
    for id in 1101..=1105 {
        let job = pair.engine.job(id).unwrap();
        assert_eq!((job.state, job.reserves, job.timeouts), (JobState::Ready, 1, 1), "job {id}");
    }
}
