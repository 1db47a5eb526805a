//! The image: complete, independent of slices and of what happens meanwhile, and refused when damaged.

use std::io::ErrorKind;

use beanpole::queue::{Effects, Engine, Gateway, JobState, Policy, Reason, SessionId};

use crate::entries::{Cmd, Entry, Offered, Sect};

/// The whole image, in slices of some size.
pub fn image(engine: &mut Engine, slice: usize) -> Vec<u8> {
    let mut image = Vec::new();
    let mut cursor = engine.begin_snapshot();
    while engine.snapshot_slice_of(&mut cursor, &mut image, slice, &mut |_| {}) {}
    engine.end_snapshot(cursor);
    image
}

pub fn restore(image: &[u8]) -> Engine {
    let mut reader = image;
    Engine::restore(&mut reader).unwrap()
}

const GATEWAY: Gateway = Gateway { node: 1, epoch: 1 };

/// An engine, and the entries it is given.
struct Driver {
    engine: Engine,
    index: u64,
    sequence: u64,
}

impl Driver {
    fn new() -> Self {
        let mut driver = Driver { engine: Engine::new(), index: 0, sequence: 0 };
        let up = Sect {
            gateway: Gateway { epoch: 0, ..GATEWAY },
            sequence: 0,
            commands: vec![Cmd::Up { nonce: 1 }],
        };
        driver.entry(Entry { stamp: 1, lease: 1, sections: vec![up], offers: vec![] });
        driver
    }

    fn entry(&mut self, entry: Entry) {
        self.index += 1;
        self.engine.apply(self.index, &entry.payload(), &mut Effects::default());
    }

    fn commands(&mut self, commands: Vec<Cmd>, offers: Vec<Offered>) {
        self.sequence += 1;
        let now = self.sequence * 1000;
        let sections = vec![Sect { gateway: GATEWAY, sequence: self.sequence, commands }];
        self.entry(Entry { stamp: now, lease: now, sections, offers });
    }

    /// Jobs in all states in many tubes.
    fn fill(&mut self, jobs: u64) {
        let put = |id: u64| Cmd::Put {
            conn: 1,
            tube: format!("t{}", id % 7),
            pri: (id % 3) as u32 * 1000,
            delay: u32::from(id.is_multiple_of(5)) * 100,
            ttr: 60,
            bytes: (id % 200) as usize,
        };
        for first in (0..jobs).step_by(100) {
            self.commands((first..first + 100).map(put).collect(), vec![]);
        }
        let reserve = |id| Cmd::ReserveJob { conn: id % 9, id };
        self.commands((1..jobs).step_by(4).map(reserve).collect(), vec![]);
        let bury = |id| Cmd::Bury { conn: id % 9, id, pri: 5 };
        self.commands((1..jobs).step_by(8).map(bury).collect(), vec![]);
        self.commands(vec![Cmd::Pause { conn: 1, tube: "t3".into(), delay: 50, referenced: true }], vec![]);
    }
}

#[test]
fn slices_do_not_show_in_the_image() {
    let mut driver = Driver::new();
    driver.fill(3000);
    let whole = image(&mut driver.engine, usize::MAX);
    for slice in [1, 7, 100, 4096, 65_536] {
        assert_eq!(image(&mut driver.engine, slice), whole, "slices of {slice} bytes");
    }
    let restored = restore(&whole);
    restored.verify().unwrap();
    assert_eq!(restored.digest(), driver.engine.digest());
    assert_eq!(restored.totals(), driver.engine.totals());
}

#[test]
fn the_image_tells_every_body_that_it_references() {
    let mut driver = Driver::new();
    driver.fill(3000);
    let mut expected = Vec::new();
    driver.engine.for_each_body(&mut |addr| expected.push((addr.index, addr.offset, addr.len)));
    let mut cursor = driver.engine.begin_snapshot();
    let mut told = Vec::new();
    let mut id = 3000;
    let mut tell = |addr: beanpole_raft::BodyAddr| told.push((addr.index, addr.offset, addr.len));
    while driver.engine.snapshot_slice_of(&mut cursor, &mut Vec::new(), 200, &mut tell) {
        // What is deleted before its turn is in the image, and so its body is.
        let commands = (id - 50..=id).map(|id| Cmd::Delete { conn: 1, id }).collect();
        driver.commands(commands, vec![]);
        id -= 51;
        id = id.max(51);
    }
    driver.engine.end_snapshot(cursor);
    expected.sort_unstable();
    told.sort_unstable();
    assert!(told == expected && told.len() > 1000, "{} of {}", told.len(), expected.len());
}

#[test]
fn what_changes_meanwhile_does_not_show_in_the_image() {
    let mut driver = Driver::new();
    driver.fill(3000);
    let before = image(&mut driver.engine, usize::MAX);
    let mut cursor = driver.engine.begin_snapshot();
    let mut written = Vec::new();
    // Everything changes before its turn: jobs are deleted, kicked, put; tubes lose all jobs and go.
    let mut id = 3000;
    while driver.engine.snapshot_slice_of(&mut cursor, &mut written, 200, &mut |_| {}) {
        let mut commands = vec![Cmd::Kick { conn: 1, tube: "t1".into(), bound: 3 }];
        for _ in 0..100 {
            commands.push(Cmd::Delete { conn: id % 9, id });
            id = id.saturating_sub(1);
        }
        commands.push(Cmd::Put { conn: 1, tube: "t9".into(), pri: 0, delay: 0, ttr: 1, bytes: 3 });
        commands.extend((0..7).map(|tube| Cmd::TubeGone { tube: format!("t{tube}") }));
        driver.commands(commands, vec![]);
    }
    driver.engine.end_snapshot(cursor);
    assert!(written == before, "the image is that of the moment it was begun");
    assert_eq!(driver.engine.totals().tubes, 2, "default and t9 are left");
    driver.engine.verify().unwrap();
}

/// Apply waits for a slice at most: however many jobs there are, a slice has no more of them than this.
#[test]
fn a_slice_touches_a_bounded_number_of_jobs() {
    const SLICE_JOBS_MAX: usize = 8192;
    for jobs in [10_000, 40_000] {
        let mut driver = Driver::new();
        driver.fill(jobs);
        let mut cursor = driver.engine.begin_snapshot();
        let (mut told, mut slices) = (0, 0);
        let mut more = true;
        while more {
            let mut slice = Vec::new();
            let mut jobs = 0;
            more = driver.engine.snapshot_slice(&mut cursor, &mut slice, &mut |_| jobs += 1);
            assert!(jobs <= SLICE_JOBS_MAX && slice.len() <= 80 << 10, "{jobs} jobs, {} bytes", slice.len());
            told += jobs;
            slices += 1;
        }
        driver.engine.end_snapshot(cursor);
        assert_eq!(told as u64, jobs);
        assert!(slices as u64 >= jobs / SLICE_JOBS_MAX as u64);
    }
}

/// All jobs change while the image is taken, some of them several times, in an order that has nothing to do with that of
/// the image. It is that of the moment it was begun, and what is kept for it takes less than the jobs' own records.
#[test]
fn changes_in_any_order_do_not_show_and_take_little_memory() {
    const JOBS: u64 = 20_000;
    let mut driver = Driver::new();
    driver.fill(JOBS);
    let before = image(&mut driver.engine, usize::MAX);
    let mut cursor = driver.engine.begin_snapshot();
    let mut written = Vec::new();
    let mut most = 0;
    for round in 0..200u64 {
        // 7919 and the number of jobs have no common factor: each has its turn once in all rounds.
        let ids = (round * 100..round * 100 + 100).map(|number| number * 7919 % JOBS + 1);
        let mut commands: Vec<Cmd> = ids.clone().map(|id| Cmd::KickJob { conn: 1, id }).collect();
        commands.extend(ids.clone().map(|id| Cmd::ReserveJob { conn: 3, id }));
        commands.extend(ids.filter(|id| id % 3 == 0).map(|id| Cmd::Delete { conn: 3, id }));
        driver.commands(commands, vec![]);
        most = most.max(driver.engine.saving_bytes());
        if round % 20 == 19 {
            assert!(driver.engine.snapshot_slice_of(&mut cursor, &mut written, 9_000, &mut |_| {}));
        }
    }
    while driver.engine.snapshot_slice_of(&mut cursor, &mut written, 1000, &mut |_| {}) {}
    assert_eq!(driver.engine.saving_bytes(), 0, "what was kept was written");
    driver.engine.end_snapshot(cursor);
    assert!(written == before, "the image is that of the moment it was begun");
    assert!(most > 100_000 && most < 32 * JOBS as usize, "{most} bytes were kept at most");
    driver.engine.verify().unwrap();
}

/// What policies noted about a job is kept with it when it changes before its turn.
#[test]
fn hops_and_reasons_of_jobs_that_change_stay_in_the_image() {
    const HOLDERS: u64 = 50;
    let mut driver = Driver::new();
    let policy = Policy { max_deliveries: 1, ..Policy::default() };
    let setup = vec![Cmd::Level { level: 1 }, Cmd::Policy { pattern: "w*".into(), policy: Some(policy) }];
    driver.commands(setup, vec![]);
    let put = |conn| Cmd::Put { conn, tube: "work".into(), pri: 9, delay: 0, ttr: 60, bytes: 5 };
    driver.commands((1..=HOLDERS).map(put).collect(), vec![]);
    driver.commands((1..=HOLDERS).map(|id| Cmd::ReserveJob { conn: id, id }).collect(), vec![]);
    driver.commands((1..=HOLDERS).flat_map(|conn| [put(conn), put(99)]).collect(), vec![]);
    driver
        .commands((1..=HOLDERS).map(|id| Cmd::Release { conn: id, id, pri: 9, delay: 0 }).collect(), vec![]);
    let before = image(&mut driver.engine, usize::MAX);
    let restored = restore(&before);
    restored.verify().unwrap();
    let of = |id| restored.job(id).map(|job| (job.state, job.reason, job.hops)).unwrap();
    assert_eq!(of(1), (JobState::Buried, Reason::MaxDeliveries, 0));
    assert_eq!(of(HOLDERS + 1), (JobState::Ready, Reason::None, 1));
    assert_eq!(of(HOLDERS + 2), (JobState::Ready, Reason::None, 0));
    let mut cursor = driver.engine.begin_snapshot();
    let mut written = Vec::new();
    assert!(driver.engine.snapshot_slice_of(&mut cursor, &mut written, 1, &mut |_| {}));
    let kick = (1..=HOLDERS).map(|id| Cmd::KickJob { conn: 1, id });
    driver
        .commands(kick.chain((HOLDERS..3 * HOLDERS).map(|id| Cmd::Delete { conn: 1, id })).collect(), vec![]);
    while driver.engine.snapshot_slice_of(&mut cursor, &mut written, 100, &mut |_| {}) {}
    driver.engine.end_snapshot(cursor);
    assert!(written == before, "the image is that of the moment it was begun");
    assert_eq!(driver.engine.job(1).unwrap().reason, Reason::None, "kicked since");
}

/// Jobs come by id and are ordered by priority: what an image of many jobs of random priorities in several tubes becomes is
/// what they were, and takes no more memory.
#[test]
fn orders_are_restored_whatever_the_priorities() {
    let mut driver = Driver::new();
    let put = |id: u64| Cmd::Put {
        conn: 1,
        tube: format!("t{}", id % 3),
        pri: if id.is_multiple_of(3) { 7 } else { (id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u32 },
        delay: u32::from(id.is_multiple_of(11)) * (1 + id as u32 % 50),
        ttr: 60,
        bytes: 1,
    };
    for first in (0..60_000).step_by(1000) {
        driver.commands((first..first + 1000).map(put).collect(), vec![]);
    }
    driver.commands((1..60_000).step_by(7).map(|id| Cmd::Delete { conn: 1, id }).collect(), vec![]);
    let written = image(&mut driver.engine, 1 << 16);
    let mut restored = restore(&written);
    restored.verify().unwrap();
    assert_eq!(restored.totals(), driver.engine.totals());
    let (bytes, before) = (restored.index_bytes(), driver.engine.index_bytes());
    assert!(bytes <= before, "{bytes} bytes, and {before} before");
    assert!(image(&mut restored, 1 << 16) == written, "and its image is the same");
}

/// An image that an earlier release wrote is read, and the same state is still written as the same bytes: every node of a
/// cluster must write them, whatever its release, while the format's version is the same.
#[test]
fn version_1_stays_as_it_is() {
    let stored = include_bytes!("image-v1.bin").as_slice();
    let mut driver = Driver::new();
    driver.fill(100);
    driver.commands(vec![Cmd::Delete { conn: 1, id: 4 }, Cmd::KickJob { conn: 2, id: 9 }], vec![]);
    assert!(image(&mut driver.engine, 1000) == stored, "the format has changed: it needs another version");
    let mut restored = restore(stored);
    restored.verify().unwrap();
    assert_eq!(restored.digest(), driver.engine.digest());
    assert!(image(&mut restored, 1000) == stored);
}

/// What is kept for an image has a bound: when more changes than fits, there is no image, and nothing is kept any more. One
/// that is insisted on is written.
#[test]
fn an_image_that_would_take_too_much_memory_is_given_up() {
    for insists in [false, true] {
        let mut driver = Driver::new();
        driver.fill(5000);
        let before = image(&mut driver.engine, usize::MAX);
        let mut cursor = driver.engine.begin_snapshot_within(30_000);
        if insists {
            driver.engine.insist_on_snapshot();
        }
        let mut written = Vec::new();
        assert!(driver.engine.snapshot_slice_of(&mut cursor, &mut written, 100, &mut |_| {}));
        let mut most = 0;
        for first in (2000..5000).step_by(100) {
            driver.commands((first..first + 100).map(|id| Cmd::Delete { conn: 1, id }).collect(), vec![]);
            most = most.max(driver.engine.saving_bytes());
        }
        assert_eq!(driver.engine.snapshot_given_up(), !insists);
        while driver.engine.snapshot_slice(&mut cursor, &mut written, &mut |_| {}) {}
        driver.engine.end_snapshot(cursor);
        assert!(!driver.engine.snapshot_given_up());
        if insists {
            assert!(written == before && most > 30_000, "{most} bytes");
        } else {
            assert!(most < 31_000 && driver.engine.saving_bytes() == 0, "{most} bytes");
        }
        let anew = image(&mut driver.engine, 1000);
        assert_eq!(restore(&anew).digest(), driver.engine.digest());
    }
}

#[test]
fn a_snapshot_given_up_leaves_nothing() {
    let mut driver = Driver::new();
    driver.fill(1000);
    let first = driver.engine.begin_snapshot();
    let mut second = driver.engine.begin_snapshot();
    driver.engine.end_snapshot(first);
    let mut written = Vec::new();
    while driver.engine.snapshot_slice(&mut second, &mut written, &mut |_| {}) {}
    driver.engine.end_snapshot(second);
    assert_eq!(written, image(&mut driver.engine, 1000));
}

#[test]
#[should_panic(expected = "given up")]
fn half_an_image_never_passes_for_a_whole_one() {
    let mut engine = Engine::new();
    let mut first = engine.begin_snapshot();
    let _second = engine.begin_snapshot();
    engine.snapshot_slice(&mut first, &mut Vec::new(), &mut |_| {});
}

#[test]
fn holders_and_wants_survive_a_restore() {
    let mut driver = Driver::new();
    let session = SessionId { node: 1, epoch: 1, conn: 5 };
    let put = Cmd::Put { conn: 1, tube: "x".into(), pri: 1, delay: 0, ttr: 60, bytes: 1 };
    driver.commands(vec![put], vec![Offered { session, want: 9, tubes: vec!["x".into()] }]);
    let mut restored = restore(&image(&mut driver.engine, 64));
    assert_eq!(restored.session_deadline(session), Some(60_000_000 + 1000));
    assert_eq!(restored.live_epoch(1), Some(1));
    assert_eq!(restored.last_sequence(1), Some(1));
    // The hand-out was never delivered: the restored engine takes it back by its want.
    let commands = vec![Cmd::Unreserve { conn: 5, want: 9, id: 1 }];
    let sections = vec![Sect { gateway: GATEWAY, sequence: 2, commands }];
    let entry = Entry { stamp: 2000, lease: 2000, sections, offers: vec![] };
    restored.apply(3, &entry.payload(), &mut Effects::default());
    assert_eq!(restored.job(1).unwrap().reserves, 0);
    assert!(!restored.session_holds(session));
}

#[test]
fn a_damaged_image_is_refused() {
    let mut driver = Driver::new();
    driver.fill(300);
    let good = image(&mut driver.engine, usize::MAX);
    let refused = |image: &[u8]| {
        let mut reader = image;
        let error = Engine::restore(&mut reader).err().expect("damage is found");
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    };
    for len in (0..good.len()).step_by(37).chain([good.len() - 1]) {
        refused(&good[..len]);
    }
    for at in (0..good.len()).step_by(29) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        refused(&bad);
    }
    refused(&[good.as_slice(), b"x"].concat());
}

#[test]
fn every_body_is_named() {
    let mut driver = Driver::new();
    driver.fill(500);
    driver.commands((100..200).map(|id| Cmd::Delete { conn: id % 9, id }).collect(), vec![]);
    let mut bodies = Vec::new();
    driver.engine.for_each_body(&mut |body| bodies.push(body));
    let expected: Vec<_> = (1..=500).filter_map(|id| driver.engine.job(id)).map(|job| job.body).collect();
    assert_eq!(bodies, expected);
    assert_eq!(bodies.len(), 400);
}
