//! Random histories, applied to the engine and to the model: every effect and the whole state must be the
//! same after every entry. On the way images are taken in random slices while entries go on, restored, and
//! the restored engine must go on exactly as the first.

use beanpole::queue::{BulkVerb, Effects, Engine, Gateway, JobState, SessionId};
use beanpole_raft::BodyAddr;
use proptest::prelude::*;

use crate::entries::{Bulk, Cmd, Entry, Offered, Sect};
use crate::model::Model;
use crate::snapshots::{image, restore};

const TUBES: [&str; 5] = ["default", "a", "b", "c", "d"];

/// Numbers that become a command by the state at hand.
#[derive(Clone, Debug)]
struct Seed {
    kind: u8,
    conn: u64,
    tube: usize,
    pick: usize,
    small: u32,
    other: u32,
}

/// Numbers that become an entry.
#[derive(Clone, Debug)]
struct EntrySeed {
    stamp_step: u64,
    lease_step: u64,
    /// 0 and 1: a section repeated or missing before it.
    sequence: u8,
    node: u32,
    commands: Vec<Seed>,
    offers: Vec<(u64, u32, Vec<usize>)>,
    snapshot: u8,
}

fn seed() -> impl Strategy<Value = Seed> {
    (0u8..66, 1u64..5, 0..TUBES.len(), any::<prop::sample::Index>(), 0u32..5, 0u32..4).prop_map(
        |(kind, conn, tube, pick, small, other)| Seed {
            kind,
            conn,
            tube,
            pick: pick.index(1 << 20),
            small,
            other,
        },
    )
}

fn entry_seed() -> impl Strategy<Value = EntrySeed> {
    (
        prop_oneof![3 => Just(0u64), 3 => 0u64..3_000_000],
        prop_oneof![3 => Just(0u64), 3 => 0u64..3_000_000],
        0u8..16,
        1u32..3,
        prop::collection::vec(seed(), 0..7),
        prop::collection::vec((1u64..5, 1u32..3, prop::collection::vec(0..TUBES.len(), 1..4)), 0..4),
        0u8..6,
    )
        .prop_map(|(stamp_step, lease_step, sequence, node, commands, offers, snapshot)| EntrySeed {
            stamp_step,
            lease_step,
            sequence,
            node,
            commands,
            offers,
            snapshot,
        })
}

/// A history: the engine, the model, and what has been going on.
struct History {
    engine: Engine,
    model: Model,
    index: u64,
    wants: u64,
    handouts: Vec<(SessionId, u64, u64)>,
}

impl History {
    fn new() -> Self {
        History { engine: Engine::new(), model: Model::new(), index: 0, wants: 0, handouts: Vec::new() }
    }

    fn entry(&mut self, seed: &EntrySeed) -> Entry {
        let (stamp, lease) = self.model.clocks();
        let live = self.model.live_gateways();
        let own = live.iter().find(|(gateway, _)| gateway.node == seed.node);
        let (gateway, last) = own.copied().unwrap_or((Gateway { node: seed.node, epoch: 0 }, 0));
        let mut commands: Vec<Cmd> = seed.commands.iter().map(|seed| self.command(seed, gateway)).collect();
        if gateway.epoch == 0 {
            commands.retain(is_nodes_own);
            commands.push(Cmd::Up { nonce: self.index });
            commands.insert(0, Cmd::Level { level: 1 });
        }
        let sequence = match seed.sequence {
            0 => last,
            1 => last + 2,
            _ => last + 1,
        };
        let offers = seed.offers.iter().filter_map(|(conn, node, tubes)| {
            self.wants += 1;
            let (gateway, _) = live.iter().find(|(gateway, _)| gateway.node == *node)?;
            let session = SessionId { node: *node, epoch: gateway.epoch, conn: *conn };
            let mut tubes: Vec<String> = tubes.iter().map(|tube| TUBES[*tube].to_owned()).collect();
            tubes.sort();
            tubes.dedup();
            Some(Offered { session, want: self.wants, tubes })
        });
        Entry {
            stamp: stamp + seed.stamp_step,
            lease: lease + seed.lease_step,
            offers: offers.collect(),
            sections: vec![Sect { gateway, sequence, commands }],
        }
    }

    fn command(&self, seed: &Seed, gateway: Gateway) -> Cmd {
        let Seed { kind, conn, small, other, .. } = *seed;
        let tube = TUBES[seed.tube].to_owned();
        // Young jobs are the more interesting ones.
        let id = (self.model.last_id + 2).saturating_sub(1 + (seed.pick % 24) as u64);
        let handout = (!self.handouts.is_empty())
            .then(|| self.handouts[self.handouts.len() - 1 - seed.pick % self.handouts.len().min(8)]);
        let (holder, want, held) =
            handout.map_or((conn, 0, id), |(session, want, id)| (session.conn, want, id));
        let (pri, delay) = (small * 400, other.saturating_sub(1));
        let bulk = |verb, states: &[JobState], limit| {
            let to = if verb == BulkVerb::Move { TUBES[seed.pick % TUBES.len()] } else { "" };
            let all = Bulk::all(self.index, verb, TUBES[seed.tube], to);
            let older_us = u64::from(other.saturating_sub(1)) * 1_000_000;
            Cmd::Bulk(Bulk { states: states.to_vec(), older_us, limit, ..all })
        };
        let states = [JobState::Buried, JobState::Delayed, JobState::Ready];
        match kind {
            0..=15 => Cmd::Put { conn, tube, pri, delay, ttr: small, bytes: other as usize * 9 },
            16..=19 => Cmd::ReserveJob { conn, id },
            20..=22 => Cmd::Delete { conn, id },
            23..=27 => Cmd::Delete { conn: holder, id: held },
            28..=33 => Cmd::Release { conn: holder, id: held, pri, delay },
            34..=37 => Cmd::Bury { conn: holder, id: held, pri },
            38..=40 => Cmd::Touch { conn: holder, id: held },
            41..=44 => Cmd::Kick { conn, tube, bound: small },
            45..=47 => Cmd::KickJob { conn, id },
            48..=50 => Cmd::Pause { conn, tube, delay, referenced: small > 2 },
            51..=53 => Cmd::Closed { conn, undelivered: if other > 1 { vec![want, 7] } else { vec![] } },
            54..=56 => Cmd::Unreserve { conn: holder, want, id: held },
            57..=59 => Cmd::TubeGone { tube },
            60 => Cmd::Draining { on: small == 4 },
            62 => bulk(BulkVerb::Purge, &states[small as usize / 2..], u64::MAX),
            63 => bulk(BulkVerb::Move, &states[small as usize / 2..], u64::MAX),
            64 => bulk(BulkVerb::Kick, &states, if other == 0 { u64::MAX } else { u64::from(small) }),
            65 => {
                let body =
                    self.engine.job(id).map_or(BodyAddr { index: 1, offset: 2, len: 3 }, |job| job.body);
                Cmd::Lost { id, body: BodyAddr { offset: body.offset + u32::from(other == 0), ..body } }
            }
            61 if small == 0 => Cmd::Up { nonce: self.index },
            61 if small == 1 => Cmd::Gone { gateway },
            _ => Cmd::Noop { conn },
        }
    }

    fn apply(&mut self, entry: &Entry, follower: &mut Option<Engine>) {
        self.index += 1 + self.index % 2;
        let payload = entry.payload();
        let mut effects = Effects::default();
        self.engine.apply(self.index, &payload, &mut effects);
        assert_eq!(effects, self.model.apply(self.index, entry, &payload), "entry {}: {entry:?}", self.index);
        self.model.assert_same(&self.engine);
        if let Some(follower) = follower {
            let mut same = Effects::default();
            // On replay from the disk a payload is in one part.
            follower.apply(self.index, &payload.to_bytes().into(), &mut same);
            assert_eq!(effects, same);
            assert_eq!(follower.digest(), self.engine.digest());
        }
        self.handouts.extend(effects.handouts.iter().map(|given| (given.session, given.want, given.id)));
    }
}

fn is_nodes_own(command: &Cmd) -> bool {
    let of_gateways = matches!(command, Cmd::Up { .. } | Cmd::Gone { .. });
    of_gateways
        || matches!(
            command,
            Cmd::TubeGone { .. } | Cmd::Draining { .. } | Cmd::Lost { .. } | Cmd::Level { .. } | Cmd::Bulk(_)
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_engine_does_what_the_model_does(seeds in prop::collection::vec(entry_seed(), 1..80)) {
        let mut history = History::new();
        let mut follower = None;
        let mut under_way = None;
        for seed in &seeds {
            let entry = history.entry(seed);
            history.apply(&entry, &mut follower);
            under_way = match (under_way.take(), seed.snapshot) {
                (None, 0) => {
                    let expected = image(&mut history.engine, 1 << 20);
                    let restored = restore(&expected);
                    prop_assert_eq!(restored.digest(), history.engine.digest());
                    history.model.assert_same(&restored);
                    follower = Some(restored);
                    Some((history.engine.begin_snapshot(), Vec::new(), expected))
                }
                (None, _) => None,
                (Some((mut cursor, mut written, expected)), size) => {
                    let slice = usize::from(size) * 20 + 1;
                    if history.engine.snapshot_slice_of(&mut cursor, &mut written, slice, &mut |_| {}) {
                        Some((cursor, written, expected))
                    } else {
                        history.engine.end_snapshot(cursor);
                        prop_assert_eq!(written, expected);
                        None
                    }
                }
            };
        }
    }
}
