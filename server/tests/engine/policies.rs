//! Random histories with policies, keys and operations on many jobs: all replicas do the same, whoever of them was
//! restored from an image on the way, an image shows nothing that changes while it is taken, and the state stays sound.
//! What must come of them is told by the scripts.

use beanpole::queue::{BulkVerb, Effects, Engine, Gateway, JobState, Policy, SessionId};
use proptest::prelude::*;

use crate::entries::{Bulk, Cmd, Entry, Offered, Sect};
use crate::snapshots::{image, restore};

const TUBES: [&str; 4] = ["a", "ab", "b", "dead"];
const PATTERNS: [&str; 5] = ["a", "a*", "*", "b", "dead"];
const GATEWAY: Gateway = Gateway { node: 1, epoch: 1 };

/// Numbers that become a command.
type Seed = (u8, u64, usize, u64, u32);

fn policy(small: u32, number: u64) -> Policy {
    Policy {
        max_deliveries: small % 3,
        dead_tube: number.is_multiple_of(2).then(|| TUBES[3].into()),
        backoff_min_ms: u64::from(small) * 700,
        backoff_max_ms: 3000,
        backoff_jitter: 30,
        max_reserved: number % 3,
        max_jobs: number % 5 * 3,
        max_bytes: number % 4 * 50,
        max_put_rate: small % 4,
        max_age_ms: number % 3 * 2500,
        alarm_ready_age_ms: number % 3,
        max_hops: (number % 4) as u8,
        pause_input: number.is_multiple_of(11),
        pause_output: number.is_multiple_of(7),
    }
}

fn command((kind, conn, tube, number, small): Seed, index: u64, engine: &Engine) -> Cmd {
    let (id, name) = (1 + number % 40, TUBES[tube].to_owned());
    let (pri, delay) = (small * 300, small.saturating_sub(3));
    match kind {
        0..=9 => Cmd::Put { conn, tube: name, pri, delay, ttr: 1 + small, bytes: small as usize * 7 },
        10..=12 => Cmd::PutOnce { conn, key: format!("k{}", number % 6), tube: name, bytes: 3 },
        13..=16 => Cmd::ReserveJob { conn, id },
        17..=19 => Cmd::Release { conn, id, pri, delay },
        20..=21 => Cmd::Bury { conn, id, pri },
        22..=23 => Cmd::Delete { conn, id },
        24 => Cmd::Kick { conn, tube: name, bound: small },
        25 => Cmd::Closed { conn, undelivered: vec![] },
        26 => Cmd::TubeGone { tube: name },
        27..=29 => Cmd::Policy {
            pattern: PATTERNS[number as usize % PATTERNS.len()].to_owned(),
            policy: (small > 0).then(|| policy(small, number)),
        },
        30 => Cmd::OnceWindow { window_us: number % 9 * 1_000_000, keys: 1 + number % 5 },
        31 => Cmd::Bulk(Bulk::all(index, BulkVerb::Purge, TUBES[tube], "")),
        32 => Cmd::Bulk(Bulk {
            states: vec![JobState::Ready],
            ..Bulk::all(index, BulkVerb::Move, TUBES[tube], "b")
        }),
        33 => Cmd::Bulk(Bulk::all(index, BulkVerb::Kick, TUBES[tube], "")),
        _ => engine.job(id).map_or(Cmd::Noop { conn }, |job| Cmd::Lost { id, body: job.body }),
    }
}

/// Replicas, the first of which was never restarted.
struct Replicas {
    engines: Vec<Engine>,
    index: u64,
    now: u64,
    wants: u64,
}

impl Replicas {
    fn apply(&mut self, sections: Vec<Sect>, offers: Vec<Offered>) {
        self.index += 1;
        let entry = Entry { stamp: self.now, lease: self.now, sections, offers };
        let payload = entry.payload();
        let mut first = None;
        for engine in &mut self.engines {
            let mut effects = Effects::default();
            engine.apply(self.index, &payload, &mut effects);
            engine.take_derived();
            engine.verify().unwrap();
            let found = (effects, engine.digest(), engine.history(), engine.next_due());
            assert_eq!(*first.get_or_insert_with(|| found.clone()), found, "entry {}: {entry:?}", self.index);
        }
    }

    fn entry(&mut self, seeds: &[Seed], step_ms: u64, waits: &[(u64, usize)]) {
        self.now += step_ms * 1000;
        let commands = seeds.iter().map(|seed| command(*seed, self.index, &self.engines[0])).collect();
        let sequence = self.engines[0].last_sequence(1).unwrap() + 1;
        let offers = waits.iter().map(|(conn, tube)| {
            self.wants += 1;
            let session = SessionId { node: 1, epoch: 1, conn: *conn };
            Offered { session, want: self.wants, tubes: vec![TUBES[*tube].into(), "a".into()] }
        });
        let offers = offers.collect();
        self.apply(vec![Sect { gateway: GATEWAY, sequence, commands }], offers);
        self.assert_within_limits();
    }

    /// What no history may break.
    fn assert_within_limits(&self) {
        let engine = &self.engines[0];
        for tube in TUBES {
            let Some(policy) = engine.policy_of(tube) else { continue };
            let reserved = engine.tube(tube.as_bytes()).map_or(0, |view| view.reserved);
            let is_full = policy.max_reserved > 0 && reserved >= policy.max_reserved;
            if policy.pause_output || is_full {
                assert_eq!(engine.has_ready(tube.as_bytes()), 0, "{tube}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn replicas_stay_equal(
        history in prop::collection::vec(
            (
                prop::collection::vec((0u8..35, 1u64..4, 0..TUBES.len(), any::<u64>(), 0u32..7), 0..8),
                0u64..900,
                prop::collection::vec((1u64..4, 0..TUBES.len()), 0..3),
                0u8..8,
            ),
            1..60,
        )
    ) {
        let mut replicas = Replicas { engines: vec![Engine::new()], index: 0, now: 5_000_000_000, wants: 0 };
        let commands = vec![Cmd::Up { nonce: 1 }, Cmd::Level { level: 1 }];
        replicas.apply(vec![Sect { gateway: Gateway { epoch: 0, ..GATEWAY }, sequence: 0, commands }], vec![]);
        let mut under_way = None;
        for (seeds, step_ms, waits, restart) in &history {
            replicas.entry(seeds, *step_ms, waits);
            under_way = match (under_way.take(), *restart) {
                (None, 0) => {
                    let expected = image(&mut replicas.engines[0], 300);
                    replicas.engines.truncate(1);
                    replicas.engines.push(restore(&expected));
                    Some((replicas.engines[0].begin_snapshot(), Vec::new(), expected))
                }
                (None, _) => None,
                (Some((mut cursor, mut written, expected)), size) => {
                    let (engine, slice) = (&mut replicas.engines[0], usize::from(size) * 20 + 1);
                    if engine.snapshot_slice_of(&mut cursor, &mut written, slice, &mut |_| {}) {
                        Some((cursor, written, expected))
                    } else {
                        engine.end_snapshot(cursor);
                        prop_assert!(written == expected, "what changed meanwhile shows in the image");
                        None
                    }
                }
            };
        }
    }
}
