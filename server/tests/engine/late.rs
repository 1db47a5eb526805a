//! Tubes with jobs that are ready for too long, as alarms see them.

use beanpole::queue::{Effects, Engine, Gateway, LateTube, Policy};

use crate::entries::{Cmd, Entry, Sect};

const S: u64 = 1_000_000;
const GATEWAY: Gateway = Gateway { node: 1, epoch: 1 };

fn apply(engine: &mut Engine, now: u64, gateway: Gateway, sequence: u64, commands: Vec<Cmd>) {
    let sections = vec![Sect { gateway, sequence, commands }];
    let entry = Entry { stamp: now, lease: now, sections, offers: vec![] };
    engine.apply(engine.applied() + 1, &entry.payload(), &mut Effects::default());
    engine.verify().unwrap();
}

fn put(tube: &str, pri: u32, delay: u32) -> Cmd {
    Cmd::Put { conn: 1, tube: tube.to_owned(), pri, delay, ttr: 60, bytes: 3 }
}

fn late(engine: &Engine, now: u64) -> Vec<(String, u64)> {
    engine.late_tubes(now).into_iter().map(|late| (late.tube, late.age_us / S)).collect()
}

#[test]
fn the_job_that_is_ready_for_the_longest_time_counts_whatever_stands_before_it() {
    let mut engine = Engine::new();
    let policy = Policy { alarm_ready_age_ms: 10_000, ..Policy::default() };
    let setup = vec![
        Cmd::Up { nonce: 1 },
        Cmd::Level { level: 1 },
        Cmd::Policy { pattern: "mails*".into(), policy: Some(policy) },
    ];
    apply(&mut engine, S, Gateway { epoch: 0, ..GATEWAY }, 0, setup);
    let first = vec![put("mails", 900, 0), put("other", 0, 0), put("mails-later", 0, 60)];
    apply(&mut engine, 100 * S, GATEWAY, 1, first);
    let urgent = (0..100).map(|pri| put("mails", pri, 0)).collect();
    apply(&mut engine, 109 * S, GATEWAY, 2, urgent);
    assert_eq!(late(&engine, 110 * S), []);
    let told = engine.late_tubes(111 * S);
    let expected = LateTube { tube: "mails".into(), age_us: 11 * S, limit_ms: 10_000, ready: 101 };
    assert_eq!(told, [expected]);
    // What was delayed is late from when it is ready.
    apply(&mut engine, 161 * S, GATEWAY, 3, vec![]);
    assert_eq!(late(&engine, 170 * S), [("mails".to_owned(), 70)]);
    assert_eq!(late(&engine, 172 * S), [("mails".to_owned(), 72), ("mails-later".to_owned(), 12)]);
    let off = vec![Cmd::Policy { pattern: "mails*".into(), policy: None }];
    apply(&mut engine, 173 * S, GATEWAY, 4, off);
    assert_eq!(late(&engine, 500 * S), []);
}
