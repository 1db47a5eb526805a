//! The entry's format: what is written can be read wherever the parts are cut, and what is no entry is
//! refused.

use std::panic::{AssertUnwindSafe, catch_unwind};

use beanpole::queue::{
    BatchBuilder, BulkOrder, BulkVerb, Effects, Engine, Gateway, JobState, Outcome, Policy, States,
};
use beanpole_raft::{BodyAddr, Payload};
use proptest::prelude::*;

use crate::entries::body;

fn up() -> (Engine, Gateway) {
    let mut engine = Engine::new();
    let mut batch = BatchBuilder::new(5, 5);
    batch.section(Gateway { node: 3, epoch: 0 }, 0);
    batch.gateway_up(77);
    let mut effects = Effects::default();
    engine.apply(2, &batch.finish(), &mut effects);
    let epoch = effects.gateways_up[0].epoch;
    assert_eq!(epoch, 2, "an epoch is the index of its entry");
    (engine, Gateway { node: 3, epoch })
}

/// Bodies of all sizes around the one from which they are not copied.
#[test]
fn bodies_are_where_the_jobs_say() {
    let (mut engine, gateway) = up();
    let sizes = [0, 1, 100, 4094, 4095, 4096, 20_000, 3, 70_000, 70_000, 5];
    let mut batch = BatchBuilder::new(9, 9);
    batch.section(gateway, 1);
    for bytes in sizes {
        batch.put(1, b"default", 0, 0, 1, body(bytes));
    }
    assert_eq!(batch.command_count(), sizes.len());
    assert_eq!(batch.body_bytes(), sizes.iter().map(|bytes| bytes + 2).sum::<usize>());
    let payload = batch.finish();
    assert!(payload.parts().len() > 4, "long bodies are not copied");
    let mut effects = Effects::default();
    engine.apply(9, &payload, &mut effects);
    assert_eq!(effects.retained.len(), sizes.len());
    for (id, bytes) in (1..).zip(sizes) {
        let at = engine.job(id).unwrap().body;
        assert_eq!(at.index, 9);
        let stored = payload.slice(at.offset as usize, at.len as usize);
        let expected = body(bytes);
        assert_eq!(stored[..4], crc32fast::hash(&expected[..bytes]).to_le_bytes());
        assert_eq!(stored[4..], expected);
    }
}

#[test]
fn a_small_entry_is_in_one_part() {
    let mut batch = BatchBuilder::new(9, 9);
    batch.section(Gateway { node: 1, epoch: 1 }, 1);
    batch.put(1, b"default", 0, 0, 1, body(256));
    assert_eq!(batch.finish().parts().len(), 1);
}

/// The bytes that this release writes are those that later releases must read.
#[test]
fn version_1_stays_as_it_is() {
    let mut batch = BatchBuilder::new(0x11, 0x22);
    batch.section(Gateway { node: 7, epoch: 8 }, 9);
    batch.put(10, b"tube", 11, 12, 13, b"hi\r\n".to_vec().into());
    batch.release(10, 14, 15, 16);
    batch.session_closed(10, &[17]);
    batch.offer(beanpole::queue::SessionId { node: 7, epoch: 8, conn: 10 }, 18, [b"a".as_slice()]);
    let hex: String = batch.finish().to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = [
        "010000009e000000",                           // version, flags, reserved, head length
        "110000000000000022000000000000007a000000",   // stamp, lease, offers at
        "0100",                                       // sections
        "07000000080000000000000009000000000000",     // node, epoch, sequence
        "0003000000",                                 // commands
        "030a00000000000000",                         // put, conn
        "0b0000000c0000000d0000000200000004",         // pri, delay, ttr, bytes, name length
        "74756265",                                   // tube
        "060a000000000000000e00000000000000",         // release, conn, id
        "0f00000010000000",                           // pri, delay
        "0c0a00000000000000010000001100000000000000", // closed, conn, wants, want
        "01000000",                                   // offers
        "0700000008000000000000000a00000000000000",   // node, epoch, conn
        "120000000000000001000161",                   // want, tubes, tube
        "ac2a93d868690d0a",                           // crc, body
    ];
    assert_eq!(hex, expected.concat());
}

/// A policy with a number of its own for each limit.
fn every_limit() -> Policy {
    Policy {
        max_deliveries: 21,
        dead_tube: Some("d".into()),
        backoff_min_ms: 22,
        backoff_max_ms: 23,
        backoff_jitter: 24,
        max_reserved: 25,
        max_jobs: 26,
        max_bytes: 27,
        max_put_rate: 28,
        max_age_ms: 29,
        alarm_ready_age_ms: 30,
        max_hops: 31,
        pause_input: false,
        pause_output: true,
    }
}

/// The same for what nodes propose by themselves or for operators, and for puts with a key.
#[test]
fn later_commands_stay_as_they_are() {
    let mut batch = BatchBuilder::new(0x11, 0x22);
    batch.section(Gateway { node: 7, epoch: 8 }, 9);
    batch.body_lost(1, BodyAddr { index: 2, offset: 3, len: 4 });
    batch.raise_level(1);
    let (verb, states) = (BulkVerb::Move, States::only(JobState::Buried));
    batch.bulk(&BulkOrder { nonce: 5, verb, states, older_us: 6, limit: 7, tube: "a", to: "b" });
    batch.set_policy("p", None);
    batch.set_policy("q*", Some(&every_limit()));
    batch.put_once(10, b"key", b"tube", [11, 12, 13], b"hi\r\n".to_vec().into());
    batch.set_once_window(14, 15);
    let hex: String = batch.finish().to_bytes()[50..].iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = [
        "07000000",                           // commands
        "1301000000000000000200000000000000", // body lost, job, entry
        "03000000",                           // offset
        "1401000000",                         // level
        "1505000000000000000204",             // bulk, nonce, verb, states
        "06000000000000000700000000000000",   // older, limit
        "01610162",                           // tube, to
        "16000170",                           // policy, off, pattern
        "160102712a",                         // policy, on, pattern
        "15000000",                           // max deliveries
        "1600000000000000170000000000000018", // backoff
        "1900000000000000",                   // max reserved
        "1a000000000000001b00000000000000",   // max jobs, max bytes
        "1c000000",                           // max put rate
        "1d000000000000001e00000000000000",   // max age, alarm ready age
        "1f020164",                           // max hops, pauses, dead tube
        "170a00000000000000",                 // put with a key, conn
        "0b0000000c0000000d0000000200000004", // pri, delay, ttr, bytes, name length
        "74756265036b6579",                   // tube, key
        "180e000000000000000f00000000000000", // window, keys
        "00000000",                           // offers
        "ac2a93d868690d0a",                   // crc, body
    ];
    assert_eq!(hex, expected.concat());
}

#[test]
fn an_entry_of_another_version_stops_the_node() {
    let (mut engine, gateway) = up();
    let mut batch = BatchBuilder::new(9, 9);
    batch.section(gateway, 1);
    batch.noop(1);
    let mut bytes = batch.finish().to_bytes().to_vec();
    bytes[0] = 2;
    let payload = Payload::from(bytes);
    let stopped = catch_unwind(AssertUnwindSafe(|| engine.apply(3, &payload, &mut Effects::default())));
    let message = *stopped.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("entry 3") && message.contains("upgrade this node"), "{message}");
}

#[test]
fn a_clients_command_outside_any_life_is_no_entry() {
    let (mut engine, _) = up();
    let mut batch = BatchBuilder::new(9, 9);
    batch.section(Gateway { node: 3, epoch: 0 }, 0);
    batch.noop(1);
    let payload = batch.finish();
    let stopped = catch_unwind(AssertUnwindSafe(|| engine.apply(3, &payload, &mut Effects::default())));
    assert!(stopped.is_err());
}

#[test]
fn a_command_taken_back_is_answered_in_its_place() {
    let (mut engine, gateway) = up();
    let mut batch = BatchBuilder::new(9, 9);
    batch.section(gateway, 1);
    batch.delete(4, 1);
    batch.noop(5);
    let mut effects = Effects::default();
    engine.apply(3, &batch.finish(), &mut effects);
    let answers: Vec<_> =
        effects.outcomes.iter().map(|(session, outcome)| (session.conn, *outcome)).collect();
    assert_eq!(answers, [(4, Outcome::NotFound), (5, Outcome::Noop)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Damage never leads to a wild read: either the entry still makes sense, or the node stops with a
    /// reason.
    #[test]
    fn damage_is_found_or_harmless(
        at in any::<prop::sample::Index>(),
        value: u8,
        cut in any::<prop::sample::Index>(),
    ) {
        let (mut engine, gateway) = up();
        let mut batch = BatchBuilder::new(9, 9);
        batch.section(gateway, 1);
        for bytes in [0, 10, 300] {
            batch.put(1, b"tube", 0, 0, 1, body(bytes));
            batch.kick(2, b"other", 7);
            batch.session_closed(3, &[1, 2, 3]);
        }
        batch.offer(
            beanpole::queue::SessionId { node: 3, epoch: 2, conn: 1 }, 1, [b"tube".as_slice(), b"x"]);
        let mut bytes = batch.finish().to_bytes().to_vec();
        let place = at.index(bytes.len());
        bytes[place] = value;
        bytes.truncate(bytes.len() - cut.index(bytes.len()) * usize::from(value % 2));
        let payload = Payload::from(bytes);
        let applied = catch_unwind(AssertUnwindSafe(|| engine.apply(3, &payload, &mut Effects::default())));
        if let Err(panic) = applied {
            let message = panic.downcast::<String>().expect("a reason");
            prop_assert!(message.contains("cannot be applied"), "{}", message);
        }
    }
}
