//! The gateway driven step by step, without sockets, disk or clock: clients type bytes, batches apply when the test says so.

mod pressure;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use beanpole_protocol::Decoder;
use beanpole_raft::{BodyAddr, BodyError, Payload};
use bytes::BytesMut;
use parking_lot::Mutex;

use super::session::{ConnId, Outlet};
use super::{BodySource, Facts, Gateway, Next};
use crate::clock::{Clocks, TimeSource};
use crate::leader::{About, Clients, Elsewhere, Leader};
use crate::queue::Effects;

/// Time that passes when a test says so.
#[derive(Clone, Default)]
struct Time(Arc<AtomicU64>);

impl TimeSource for Time {
    fn monotonic_us(&self) -> u64 {
        self.0.load(SeqCst)
    }
    fn wall_us(&self) -> u64 {
        1_700_000_000_000_000 + self.0.load(SeqCst)
    }
}

/// The log's entries, with bodies that are cold while `frozen`, on a disk that is full while `full`.
#[derive(Clone, Default)]
struct Entries {
    log: Arc<Mutex<(Vec<Payload>, bool)>>,
    full: Arc<AtomicBool>,
}

impl BodySource for Entries {
    fn read_now(&self, addr: BodyAddr, out: &mut BytesMut) -> Result<bool, BodyError> {
        let entries = self.log.lock();
        if entries.1 {
            return Ok(false);
        }
        let payload = &entries.0[addr.index as usize - 1];
        payload.copy_to(addr.offset as usize, addr.len as usize, out);
        Ok(true)
    }
    fn retain(&self, _addr: BodyAddr) {}
    fn release(&self, _addr: BodyAddr) {}
    fn no_space(&self) -> bool {
        self.full.load(SeqCst)
    }
}

struct NoFacts;

impl Facts for NoFacts {
    fn memory_bytes(&self) -> u64 {
        0
    }
    fn fill<'a>(&'a self, _stats: &mut beanpole_protocol::stats::ServerStats<'a>) {}
}

/// A client's end of its connection: what it received, and how much it takes.
struct Client {
    received: Mutex<Vec<u8>>,
    takes: AtomicU64,
    woken: AtomicU64,
}

impl Outlet for Client {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let n = (self.takes.load(SeqCst) as usize).min(bytes.len());
        if n == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.received.lock().extend_from_slice(&bytes[..n]);
        Ok(n)
    }
    fn wake(&self) {
        self.woken.fetch_add(1, SeqCst);
    }
}

/// A gateway with clients, and the leader on its node. Entries apply in `settle`, or one at a time in `apply_one`.
struct Bench {
    gateway: Gateway,
    leader: Option<Leader>,
    entries: Entries,
    time: Time,
    effects: Effects,
    clients: Vec<(ConnId, Arc<Client>, Decoder, BytesMut)>,
}

impl Bench {
    fn new(clients: usize) -> Self {
        let mut bench = Bench::unannounced();
        bench.announce(42);
        for _ in 0..clients {
            bench.connect();
        }
        bench
    }

    fn unannounced() -> Self {
        let (entries, time) = (Entries::default(), Time::default());
        let clocks = Clocks::new(Box::new(time.clone()));
        let gateway = Gateway::new(1, clocks, Box::new(entries.clone()), Box::new(NoFacts));
        Bench { gateway, leader: None, entries, time, effects: Effects::default(), clients: Vec::new() }
    }

    /// Takes office, and lets the gateway announce itself.
    fn announce(&mut self, nonce: u64) {
        self.take_office(nonce);
        assert!(self.apply_one());
    }

    fn take_office(&mut self, nonce: u64) {
        self.leader = Some(Leader::new(1, 1, &mut self.gateway.ground()));
        self.gateway.begin(nonce);
        self.gateway.connect_leader();
    }

    /// The next entry that the leader would propose.
    fn take_entry(&mut self) -> Option<Payload> {
        let leader = self.leader.as_mut()?;
        while let Some(message) = self.gateway.next_message() {
            leader.message(&mut self.gateway.ground(), 1, message);
        }
        leader.take_entry(&mut self.gateway.ground())
    }

    fn tick(&mut self) {
        self.gateway.tick();
        if let Some(leader) = &mut self.leader {
            leader.tick(&mut self.gateway.ground());
        }
    }

    fn set_alarm(&mut self) -> Option<u64> {
        let due = self.leader.as_ref().and_then(|leader| self.gateway.leader_tick_in_us(leader));
        self.gateway.set_alarm(due)
    }

    fn connect(&mut self) {
        let client = Arc::new(Client {
            received: Mutex::default(),
            takes: AtomicU64::new(u64::MAX),
            woken: AtomicU64::new(0),
        });
        let conn = self.gateway.connect(client.clone(), None);
        self.clients.push((conn, client, Decoder::new(65535), BytesMut::new()));
    }

    fn commit(&mut self, payload: Payload) {
        let index = {
            let mut entries = self.entries.log.lock();
            entries.0.push(payload.clone());
            entries.0.len() as u64
        };
        self.gateway.apply(index, &payload, &mut self.effects);
        if let Some(leader) = &mut self.leader {
            leader.applied(&mut self.gateway.ground(), &self.effects);
        }
        self.gateway.flush(usize::MAX);
    }

    /// Applies the open entry, if there is one.
    fn apply_one(&mut self) -> bool {
        let entry = self.take_entry();
        let some = entry.is_some();
        if let Some(entry) = entry {
            self.commit(entry);
        }
        some
    }

    /// Lets everything that is under way come to its end.
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.decode_all();
            self.tick();
            self.gateway.flush(usize::MAX);
            if !self.apply_one() {
                return;
            }
        }
        panic!("it never settles");
    }

    fn decode_all(&mut self) {
        for (conn, _, decoder, buf) in &mut self.clients {
            while self.gateway.may_take(*conn) {
                if decoder.next(buf, |request| self.gateway.request(*conn, request)).is_none() {
                    break;
                }
            }
        }
        self.gateway.flush(usize::MAX);
    }

    /// A client sends bytes; they are taken as far as the gateway takes them, and nothing is applied.
    fn send(&mut self, client: usize, bytes: &str) {
        self.clients[client].3.extend_from_slice(bytes.as_bytes());
        self.decode_all();
    }

    /// What a client received since the last call.
    fn received(&mut self, client: usize) -> String {
        String::from_utf8(std::mem::take(&mut self.clients[client].1.received.lock())).unwrap()
    }

    /// Sends, settles, and answers what came back.
    fn ask(&mut self, client: usize, bytes: &str) -> String {
        self.send(client, bytes);
        self.settle();
        self.received(client)
    }

    fn pass(&mut self, us: u64) {
        // In steps that the lease clock counts whole, as a running server's timer makes them.
        for _ in 0..us / 100_000 {
            self.time.0.fetch_add(100_000, SeqCst);
            self.tick();
        }
        self.time.0.fetch_add(us % 100_000, SeqCst);
        self.settle();
    }
}

const S: u64 = 1_000_000;

#[test]
fn a_job_goes_round() {
    let mut b = Bench::new(1);
    assert_eq!(b.ask(0, "put 7 0 60 5\r\nhello\r\n"), "INSERTED 1\r\n");
    assert_eq!(b.ask(0, "reserve\r\n"), "RESERVED 1 5\r\nhello\r\n");
    assert_eq!(b.ask(0, "delete 1\r\n"), "DELETED\r\n");
    assert_eq!(b.ask(0, "peek 1\r\n"), "NOT_FOUND\r\n");
}

#[test]
fn commands_sent_before_the_log_is_open_wait_and_are_then_taken() {
    let mut b = Bench::unannounced();
    b.connect();
    b.send(0, "put 0 0 9 1\r\na\r\n");
    assert_eq!(b.clients[0].1.woken.load(SeqCst), 0);
    b.announce(42);
    assert_eq!(b.clients[0].1.woken.load(SeqCst), 1, "its task looks again");
    b.settle();
    assert_eq!(b.received(0), "INSERTED 1\r\n");
}

#[test]
fn the_announcement_of_an_earlier_life_opens_nothing() {
    let mut before = Bench::unannounced();
    before.take_office(41);
    let old = before.take_entry().unwrap();
    let mut b = Bench::unannounced();
    b.connect();
    b.commit(old);
    assert!(!b.gateway.is_serving(), "the log is still being replayed");
    b.announce(42);
    assert!(b.gateway.is_serving());
}

#[test]
fn a_gateway_whose_announcement_a_snapshot_has_skipped_announces_itself_again() {
    let mut b = Bench::unannounced();
    b.take_office(42);
    let skipped = b.take_entry().unwrap();
    // The leader is another node's; here only the snapshot arrives, with the announcement in it.
    b.gateway.engine_mut().apply(1, &skipped, &mut Effects::default());
    b.entries.log.lock().0.push(skipped);
    b.gateway.brought_forward();
    assert!(!b.gateway.is_serving());
    b.settle();
    assert!(b.gateway.is_serving());
    assert_eq!(b.gateway.engine().live_epoch(1), Some(1), "it is the life that it began before");
}

#[test]
fn nothing_is_acknowledged_before_its_batch_applied() {
    let mut b = Bench::new(1);
    b.send(0, "put 0 0 1 1\r\na\r\n");
    let batch = b.take_entry().unwrap();
    b.gateway.flush(usize::MAX);
    assert_eq!(b.received(0), "");
    b.commit(batch);
    assert_eq!(b.received(0), "INSERTED 1\r\n");
}

#[test]
fn replies_keep_the_order_of_commands_however_they_are_answered() {
    let mut b = Bench::new(1);
    let replies = b.ask(
        0,
        "put 0 0 9 1\r\na\r\nuse x\r\nput 0 0 9 1\r\nb\r\nlist-tube-used\r\nbogus\r\npeek 1\r\nreserve-with-timeout 0\r\n\
         stats-job 9\r\nwatch x\r\nreserve\r\n",
    );
    assert_eq!(
        replies,
        "INSERTED 1\r\nUSING x\r\nINSERTED 2\r\nUSING x\r\nUNKNOWN_COMMAND\r\nFOUND 1 1\r\na\r\nRESERVED 1 1\r\na\r\n\
         NOT_FOUND\r\nWATCHING 2\r\nRESERVED 2 1\r\nb\r\n"
    );
}

#[test]
fn a_put_and_its_hand_out_to_a_waiting_worker_take_one_batch() {
    let mut b = Bench::new(2);
    assert_eq!(b.ask(1, "reserve\r\n"), "");
    b.send(0, "put 0 0 9 1\r\na\r\n");
    assert!(b.apply_one());
    assert_eq!(b.received(1), "RESERVED 1 1\r\na\r\n");
    assert!(!b.apply_one(), "nothing more is proposed");
}

#[test]
fn who_waits_longest_is_served_first_and_nobody_twice() {
    let mut b = Bench::new(4);
    for worker in 1..4 {
        assert_eq!(b.ask(worker, "reserve\r\n"), "");
    }
    b.ask(0, "put 0 0 9 1\r\na\r\nput 0 0 9 1\r\nb\r\n");
    assert_eq!(b.received(1), "RESERVED 1 1\r\na\r\n");
    assert_eq!(b.received(2), "RESERVED 2 1\r\nb\r\n");
    assert_eq!(b.received(3), "");
}

#[test]
fn an_idle_poll_costs_no_entry() {
    let mut b = Bench::new(1);
    b.send(0, "reserve-with-timeout 0\r\nwatch a\r\nignore a\r\nlist-tubes-watched\r\nstats\r\n");
    assert!(b.take_entry().is_none());
    assert!(b.received(0).starts_with("TIMED_OUT\r\nWATCHING 2\r\nWATCHING 1\r\nOK "));
}

#[test]
fn a_poll_waits_for_a_batch_that_may_serve_it() {
    let mut b = Bench::new(2);
    b.send(0, "put 0 0 9 1\r\na\r\n");
    b.send(1, "reserve-with-timeout 0\r\n");
    assert_eq!(b.received(1), "");
    b.settle();
    assert_eq!(b.received(1), "RESERVED 1 1\r\na\r\n");
}

#[test]
fn a_reserve_times_out_by_the_clock() {
    let mut b = Bench::new(1);
    assert_eq!(b.ask(0, "reserve-with-timeout 2\r\n"), "");
    b.pass(2 * S - 1);
    assert_eq!(b.received(0), "");
    b.pass(1);
    assert_eq!(b.received(0), "TIMED_OUT\r\n");
}

#[test]
fn a_waiting_worker_is_told_that_its_deadline_is_near_and_then_loses_the_job() {
    let mut b = Bench::new(1);
    b.ask(0, "put 0 0 3 1\r\na\r\nreserve\r\n");
    b.received(0);
    assert_eq!(b.ask(0, "reserve\r\n"), "");
    b.pass(2 * S - 100_000);
    assert_eq!(b.received(0), "");
    b.pass(200_000);
    assert_eq!(b.received(0), "DEADLINE_SOON\r\n");
    b.pass(S);
    assert_eq!(b.ask(0, "touch 1\r\n"), "NOT_FOUND\r\n");
    assert_eq!(b.ask(0, "reserve-with-timeout 0\r\n"), "RESERVED 1 1\r\na\r\n");
}

#[test]
fn a_delayed_job_wakes_a_worker_when_it_is_due() {
    let mut b = Bench::new(2);
    b.ask(1, "reserve\r\n");
    b.ask(0, "put 0 5 9 1\r\na\r\n");
    b.pass(5 * S - 1);
    assert_eq!(b.received(1), "");
    b.pass(1);
    assert_eq!(b.received(1), "RESERVED 1 1\r\na\r\n");
}

#[test]
fn what_waits_for_earlier_entries_counts_its_time_from_when_it_is_proposed() {
    let mut b = Bench::new(1);
    let mut under_way = Vec::new();
    for nonce in 0..crate::leader::ENTRIES_UNDER_WAY_MAX as u64 {
        // Another node's gateway keeps the leader busy.
        let mut other = crate::queue::BatchBuilder::new(0, 0);
        other.section(crate::queue::Gateway { node: 2, epoch: 0 }, 0);
        other.gateway_up(nonce);
        let leader = b.leader.as_mut().unwrap();
        leader.message(&mut b.gateway.ground(), 2, crate::leader::ToLeader::Batch(other.finish()));
        under_way.push(b.take_entry().unwrap());
    }
    b.send(0, "put 0 3 9 1\r\nb\r\n");
    assert!(b.take_entry().is_none(), "enough are under way, so it gathers in an open entry");
    for _ in 0..20 {
        b.time.0.fetch_add(S / 10, SeqCst);
        b.tick();
    }
    for entry in under_way {
        b.commit(entry);
    }
    b.settle();
    b.received(0);
    b.pass(2 * S);
    assert_eq!(b.ask(0, "reserve-with-timeout 0\r\n"), "TIMED_OUT\r\n", "its delay is not over");
    b.pass(S);
    assert_eq!(b.ask(0, "reserve-with-timeout 0\r\n"), "RESERVED 1 1\r\nb\r\n");
}

#[test]
fn jobs_of_a_client_that_leaves_return() {
    let mut b = Bench::new(2);
    b.ask(0, "put 0 0 9 1\r\na\r\nreserve\r\n");
    let conn = b.clients[0].0;
    b.gateway.disconnect(conn);
    assert_eq!(b.ask(1, "reserve\r\n"), "RESERVED 1 1\r\na\r\n");
    assert!(b.ask(1, "stats-job 1\r\n").contains("\nreserves: 2\n"));
}

#[test]
fn a_full_disk_refuses_puts_and_nothing_else() {
    let mut b = Bench::new(1);
    b.ask(0, "put 0 0 9 1\r\na\r\n");
    b.entries.full.store(true, SeqCst);
    let replies = b.ask(0, "put 0 0 9 1\r\nb\r\nreserve\r\ndelete 1\r\nput 0 0 9 1\r\nc\r\n");
    assert_eq!(replies, "OUT_OF_MEMORY\r\nRESERVED 1 1\r\na\r\nDELETED\r\nOUT_OF_MEMORY\r\n");
    b.entries.full.store(false, SeqCst);
    assert_eq!(b.ask(0, "put 0 0 9 1\r\nd\r\n"), "INSERTED 2\r\n");
}

#[test]
fn a_job_handed_out_to_a_client_that_left_is_as_if_it_never_was() {
    let mut b = Bench::new(2);
    b.ask(0, "reserve\r\n");
    b.send(1, "put 0 0 9 1\r\na\r\n");
    let conn = b.clients[0].0;
    b.gateway.disconnect(conn);
    b.settle();
    let stats = b.ask(1, "stats-job 1\r\n");
    assert!(stats.contains("\nstate: ready\n") && stats.contains("\nreserves: 0\n"), "{stats}");
}

#[test]
fn a_half_closed_client_gets_what_it_is_owed_and_then_the_end() {
    let mut b = Bench::new(1);
    b.send(0, "put 0 0 9 1\r\na\r\nwatch b\r\nignore default\r\nreserve\r\n");
    let conn = b.clients[0].0;
    b.gateway.end_input(conn);
    b.settle();
    b.gateway.end_input(conn);
    b.settle();
    assert_eq!(b.received(0), "INSERTED 1\r\nWATCHING 2\r\nWATCHING 1\r\nTIMED_OUT\r\n");
    assert_eq!(b.gateway.outlook(conn).next, Next::Close);
}

#[test]
fn a_client_that_does_not_read_stops_being_listened_to() {
    let mut b = Bench::new(2);
    b.clients[0].1.takes.store(0, SeqCst);
    let body = "x".repeat(1000);
    b.ask(1, &format!("put 0 0 9 1000\r\n{body}\r\n"));
    for _ in 0..2000 {
        b.send(0, "peek 1\r\n");
    }
    let conn = b.clients[0].0;
    assert!(!b.gateway.may_take(conn));
    assert!(b.gateway.sessions.get(conn).unwrap().out.len() < 300 << 10);
    assert!(!b.clients[0].3.is_empty(), "the rest waits in the read buffer");
    b.clients[0].1.takes.store(u64::MAX, SeqCst);
    b.gateway.write(conn).unwrap();
    b.settle();
    while !b.clients[0].3.is_empty() {
        b.gateway.write(conn).unwrap();
        b.settle();
    }
    assert_eq!(b.received(0).matches("FOUND 1 1000").count(), 2000);
}

#[test]
fn cold_bodies_keep_their_place_in_the_order_of_replies() {
    let mut b = Bench::new(1);
    b.ask(0, "put 0 0 9 1\r\na\r\nput 0 0 9 1\r\nb\r\n");
    b.received(0);
    b.entries.log.lock().1 = true;
    assert_eq!(b.ask(0, "reserve-job 2\r\nuse x\r\nreserve-job 1\r\ndelete 1\r\n"), "");
    b.entries.log.lock().1 = false;
    let mut cold = b.gateway.take_cold();
    assert_eq!(cold.len(), 2);
    cold.reverse();
    for read in cold {
        let mut bytes = BytesMut::new();
        b.entries.read_now(read.addr, &mut bytes).unwrap();
        b.gateway.cold_done(&read, Ok(bytes.freeze()));
    }
    b.settle();
    assert_eq!(b.received(0), "RESERVED 2 1\r\nb\r\nUSING x\r\nRESERVED 1 1\r\na\r\nDELETED\r\n");
}

/// Changes a bit of the body `good` in the log's first entry that has it.
fn damage(b: &Bench) {
    let mut log = b.entries.log.lock();
    let payload = log.0.iter_mut().find(|entry| entry.to_bytes().windows(4).any(|w| w == b"good")).unwrap();
    let mut bytes = payload.to_bytes().to_vec();
    let at = bytes.windows(4).position(|w| w == b"good").unwrap();
    bytes[at] ^= 1;
    *payload = Payload::from(bytes);
}

/// No node that answers has the body that is being read.
fn not_to_be_had(b: &mut Bench, error: fn(BodyAddr) -> BodyError) {
    let cold = b.gateway.take_cold();
    assert_eq!(cold.len(), 1);
    b.gateway.cold_done(&cold[0], Err(error(cold[0].addr)));
    b.settle();
}

fn unavailable(addr: BodyAddr) -> BodyError {
    BodyError::Unavailable { addr, missing: "nobody answers".into() }
}

#[test]
fn a_reserve_that_meets_a_damaged_body_goes_on_to_other_jobs() {
    let mut b = Bench::new(1);
    b.ask(0, "put 0 0 9 4\r\ngood\r\nput 1 0 9 1\r\nx\r\n");
    damage(&b);
    assert_eq!(b.ask(0, "reserve-with-timeout 5\r\n"), "", "another node may have it");
    not_to_be_had(&mut b, unavailable);
    assert_eq!(b.received(0), "RESERVED 2 1\r\nx\r\n");
    assert!(b.ask(0, "stats-job 1\r\n").contains("\nstate: delayed\n"), "it is tried again later");
    assert!(!b.leader.as_ref().unwrap().has_doubts());
    assert_eq!(b.ask(0, "reserve-with-timeout 5\r\n"), "");
    b.pass(6 * S);
    assert_eq!(b.received(0), "TIMED_OUT\r\n");
    b.pass(5 * S);
    assert_eq!(b.ask(0, "peek 1\r\n"), "");
    not_to_be_had(&mut b, unavailable);
    assert_eq!(b.received(0), "INTERNAL_ERROR\r\n");
    assert_eq!(b.ask(0, "reserve-with-timeout 0\r\nuse x\r\n"), "");
    not_to_be_had(&mut b, unavailable);
    assert_eq!(b.received(0), "INTERNAL_ERROR\r\nUSING x\r\n", "later answers wait behind it");
}

#[test]
fn a_body_from_another_node_is_served_in_the_place_of_a_damaged_one() {
    let mut b = Bench::new(1);
    b.ask(0, "put 0 0 9 4\r\ngood\r\n");
    damage(&b);
    assert_eq!(b.ask(0, "reserve\r\n"), "");
    let read = b.gateway.take_cold().pop().unwrap();
    let stored = [&crc32fast::hash(b"good").to_le_bytes()[..], b"good\r\n"].concat();
    b.gateway.cold_done(&read, Ok(stored.into()));
    b.settle();
    assert_eq!(b.received(0), "RESERVED 1 4\r\ngood\r\n");
}

#[test]
fn a_body_that_comes_after_the_ttr_is_reserved_anew() {
    let mut b = Bench::new(1);
    b.ask(0, "put 0 0 1 1\r\na\r\n");
    b.entries.log.lock().1 = true;
    assert_eq!(b.ask(0, "reserve-with-timeout 9\r\n"), "");
    let read = b.gateway.take_cold().pop().unwrap();
    b.pass(2 * S);
    b.entries.log.lock().1 = false;
    let mut bytes = BytesMut::new();
    b.entries.read_now(read.addr, &mut bytes).unwrap();
    b.gateway.cold_done(&read, Ok(bytes.freeze()));
    b.settle();
    assert_eq!(b.received(0), "RESERVED 1 1\r\na\r\n");
    let stats = b.ask(0, "stats-job 1\r\n");
    assert!(stats.contains("\nstate: reserved\n") && stats.contains("\nreserves: 2\n"), "{stats}");
}

#[test]
fn a_job_whose_body_nobody_has_is_buried_when_the_leader_has_asked_too() {
    let mut b = Bench::new(1);
    b.ask(0, "put 0 0 9 4\r\ngood\r\n");
    damage(&b);
    assert_eq!(b.ask(0, "reserve-with-timeout 0\r\n"), "");
    not_to_be_had(&mut b, BodyError::Lost);
    assert_eq!(b.received(0), "TIMED_OUT\r\n");
    let stats = b.ask(0, "stats-job 1\r\n");
    assert!(stats.contains("\nstate: delayed\n"), "not before the leader has asked: {stats}");
    let doubts = b.leader.as_mut().unwrap().take_doubts();
    assert_eq!(doubts.len(), 1);
    let (job, body) = doubts[0];
    b.leader.as_mut().unwrap().body_lost(&mut b.gateway.ground(), job, body);
    b.settle();
    assert!(b.ask(0, "stats-job 1\r\n").contains("\nstate: buried\n"));
    assert_eq!(b.ask(0, "peek 1\r\n"), "");
    not_to_be_had(&mut b, BodyError::Lost);
    assert_eq!(b.received(0), "INTERNAL_ERROR\r\n");
    assert_eq!(b.ask(0, "put 0 0 9 1\r\nx\r\n"), "INSERTED 2\r\n");
}

#[test]
fn a_tube_that_nobody_knows_any_more_is_gone_with_its_counters() {
    let mut b = Bench::new(2);
    b.ask(0, "use t\r\nput 0 0 9 1\r\na\r\n");
    assert!(b.ask(1, "list-tubes\r\n").contains("- t\n"));
    assert_eq!(b.ask(0, "use default\r\ndelete 1\r\n"), "USING default\r\nDELETED\r\n");
    assert!(!b.ask(1, "list-tubes\r\n").contains("- t\n"));
    assert_eq!(b.ask(1, "stats-tube t\r\n"), "NOT_FOUND\r\n");
    let again = b.ask(0, "use t\r\nstats-tube t\r\n");
    assert!(again.contains("\ntotal-jobs: 0\n"), "{again}");
}

#[test]
fn a_tube_that_is_only_used_can_be_paused() {
    let mut b = Bench::new(1);
    assert_eq!(b.ask(0, "pause-tube t 10\r\n"), "NOT_FOUND\r\n");
    assert_eq!(b.ask(0, "use t\r\npause-tube t 10\r\nwatch t\r\n"), "USING t\r\nPAUSED\r\nWATCHING 2\r\n");
    b.ask(0, "put 0 0 9 1\r\na\r\n");
    assert_eq!(b.ask(0, "reserve-with-timeout 0\r\n"), "TIMED_OUT\r\n");
    assert_eq!(b.ask(0, "pause-tube t 0\r\nreserve\r\n"), "PAUSED\r\nRESERVED 1 1\r\na\r\n");
}

#[test]
fn stats_of_a_job_tell_the_time_though_nothing_else_happened() {
    let mut b = Bench::new(1);
    b.ask(0, "put 0 100 9 1\r\na\r\n");
    b.time.0.fetch_add(7 * S + S / 2, SeqCst);
    let stats = b.ask(0, "stats-job 1\r\n");
    assert!(stats.contains("\nage: 7\n") && stats.contains("\ntime-left: 92\n"), "{stats}");
}

#[test]
fn draining_refuses_puts_and_nothing_else() {
    let mut b = Bench::new(1);
    b.ask(0, "put 0 0 9 1\r\na\r\n");
    b.gateway.set_draining(true);
    b.settle();
    assert_eq!(b.ask(0, "put 0 0 9 1\r\nb\r\nreserve\r\n"), "DRAINING\r\nRESERVED 1 1\r\na\r\n");
    b.gateway.set_draining(false);
    b.settle();
    assert_eq!(b.ask(0, "put 0 0 9 1\r\nb\r\n"), "INSERTED 2\r\n");
}

#[test]
fn an_idle_gateway_sets_no_alarm() {
    let mut b = Bench::new(2);
    b.ask(0, "reserve\r\n");
    assert_eq!(b.set_alarm(), None);
    b.ask(1, "put 0 100 9 1\r\na\r\n");
    assert!(b.set_alarm().is_some_and(|us| us > 99 * S));
}

/// A gateway that is one of several, and whose leader is on its own node.
fn clustered(clients: usize) -> Bench {
    let mut b = Bench::new(clients);
    b.gateway.join_cluster();
    b
}

#[test]
fn a_batch_that_is_told_again_to_a_new_leader_is_executed_once() {
    let mut b = clustered(1);
    b.send(0, "put 0 0 9 1\r\na\r\n");
    let lost_sight_of = b.take_entry().unwrap();
    // A new leader is told everything again, and proposes it before the old entry turns up after all.
    b.leader = Some(Leader::new(2, 1, &mut b.gateway.ground()));
    b.gateway.connect_leader();
    let again = b.take_entry().unwrap();
    b.commit(lost_sight_of);
    assert_eq!(b.received(0), "INSERTED 1\r\n");
    b.commit(again);
    assert_eq!(b.received(0), "");
    assert_eq!(b.gateway.engine().totals().total_jobs, 1);
    assert_eq!(b.ask(0, "delete 1\r\n"), "DELETED\r\n");
}

#[test]
fn a_waiting_reserve_is_known_to_the_next_leader_too() {
    let mut b = clustered(2);
    b.send(1, "reserve\r\n");
    b.settle();
    b.leader = Some(Leader::new(2, 1, &mut b.gateway.ground()));
    b.gateway.connect_leader();
    b.ask(0, "put 0 0 9 1\r\na\r\n");
    assert_eq!(b.received(1), "RESERVED 1 1\r\na\r\n");
}

#[test]
fn a_read_in_a_cluster_waits_until_the_leader_has_told_how_far_it_is_and_that_has_applied() {
    let mut b = clustered(1);
    b.send(0, "peek 1\r\n");
    let barrier = b.gateway.take_barrier().unwrap();
    assert_eq!(b.gateway.take_barrier(), None, "one question for all that came meanwhile");
    b.gateway.barrier_reached(barrier.number, 3, Vec::new());
    b.gateway.flush(usize::MAX);
    assert_eq!(b.received(0), "", "entry 3 has not applied here");
    b.gateway.applied_up_to(3);
    b.gateway.flush(usize::MAX);
    assert_eq!(b.received(0), "NOT_FOUND\r\n");
}

#[test]
fn what_other_nodes_clients_do_with_a_tube_is_part_of_what_is_told_of_it() {
    let mut b = clustered(1);
    let elsewhere =
        |tube: &str| Elsewhere { tube: tube.into(), clients: Clients { using: 1, watching: 2 }, waiting: 1 };
    let mut ask = |command: &str, about: About| {
        b.send(0, command);
        let barrier = b.gateway.take_barrier().unwrap();
        assert_eq!(barrier.about, about, "{command}");
        let index = b.gateway.applied_index;
        let told = if about == About::Nothing { Vec::new() } else { vec![elsewhere("far")] };
        b.gateway.barrier_reached(barrier.number, index, told);
        b.settle();
        b.received(0)
    };
    let far = || About::Tubes(vec!["far".into()]);
    let stats = ask("stats-tube far\r\n", far());
    for line in ["current-using: 1\n", "current-watching: 2\n", "current-waiting: 1\n"] {
        assert!(stats.contains(line), "{stats}");
    }
    assert!(ask("list-tubes\r\n", About::AllTubes).contains("- default\n- far\n"));
    assert_eq!(ask("pause-tube far 9\r\n", far()), "PAUSED\r\n");
    assert_eq!(ask("pause-tube near 9\r\n", About::Tubes(vec!["near".into()])), "NOT_FOUND\r\n");
    assert_eq!(ask("stats-job 1\r\n", About::Nothing), "NOT_FOUND\r\n");
    assert!(b.gateway.answers.is_empty(), "answers are kept no longer than needed");
}

#[test]
fn a_node_that_no_leader_answers_lets_workers_go_then_refuses_puts_and_closes_the_rest() {
    let mut b = clustered(4);
    assert_eq!(b.ask(0, "put 0 0 99 1\r\na\r\nreserve-job 1\r\n"), "INSERTED 1\r\nRESERVED 1 1\r\na\r\n");
    b.send(1, "reserve\r\n");
    b.settle();
    let next = |b: &Bench, client: usize| b.gateway.outlook(b.clients[client].0).next;
    b.time.0.fetch_add(3 * S - 1, SeqCst);
    b.gateway.tick();
    assert_eq!([next(&b, 0), next(&b, 1), next(&b, 2)], [Next::Listen; 3]);
    b.time.0.fetch_add(1, SeqCst);
    b.gateway.tick();
    assert_eq!([next(&b, 0), next(&b, 1), next(&b, 2)], [Next::Close, Next::Close, Next::Listen]);
    b.time.0.fetch_add(2 * S, SeqCst);
    b.gateway.tick();
    b.send(2, "use x\r\nput 0 0 9 1\r\nb\r\n");
    assert_eq!(b.received(2), "USING x\r\nOUT_OF_MEMORY\r\n");
    for command in ["delete 1\r\n", "reserve\r\n", "peek 1\r\n"] {
        b.connect();
        let client = b.clients.len() - 1;
        b.send(client, command);
        assert_eq!((next(&b, client), b.received(client)), (Next::Close, String::new()), "{command}");
    }
    let now = b.gateway.now();
    b.gateway.renewed(now);
    assert_eq!(b.ask(3, "put 0 0 9 1\r\nb\r\n"), "INSERTED 2\r\n");
}

#[test]
fn a_job_handed_out_too_late_is_not_given_to_the_client() {
    let mut b = clustered(2);
    b.send(1, "reserve\r\n");
    b.settle();
    b.send(0, "put 0 0 9 1\r\na\r\n");
    let entry = b.take_entry().unwrap();
    b.time.0.fetch_add(3 * S, SeqCst);
    b.commit(entry);
    assert_eq!(b.received(1), "");
    assert_eq!(b.gateway.outlook(b.clients[1].0).next, Next::Close);
}

#[test]
fn a_gateway_that_was_taken_for_dead_closes_its_clients_and_begins_anew() {
    let mut b = clustered(1);
    b.ask(0, "put 0 0 99 1\r\na\r\nreserve-job 1\r\n");
    b.received(0);
    let epoch = b.gateway.engine().live_epoch(1).unwrap();
    let mut entry = crate::queue::BatchBuilder::new(0, 0);
    entry.section(crate::queue::Gateway { node: 2, epoch: 0 }, 0);
    entry.gateway_gone(crate::queue::Gateway { node: 1, epoch });
    b.commit(entry.finish());
    assert_eq!(b.gateway.outlook(b.clients[0].0).next, Next::Close);
    assert!(!b.gateway.is_serving());
    let conn = b.clients[0].0;
    b.gateway.disconnect(conn);
    b.clients.clear();
    b.settle();
    assert!(b.gateway.is_serving() && b.gateway.engine().live_epoch(1) > Some(epoch));
    b.connect();
    assert_eq!(b.ask(0, "reserve\r\n"), "RESERVED 1 1\r\na\r\n");
}

#[test]
fn a_client_that_was_owed_a_reply_when_it_was_let_go_is_told_so_with_the_reply() {
    let mut b = clustered(1);
    b.ask(0, "put 0 0 99 1\r\na\r\nreserve-job 1\r\n");
    b.gateway.let_go(S);
    b.send(0, "touch 1\r\n");
    let entry = b.take_entry().unwrap();
    b.pass(S);
    b.gateway.tick();
    b.gateway.flush(usize::MAX);
    let woken = b.clients[0].1.woken.load(SeqCst);
    assert_eq!(b.gateway.outlook(b.clients[0].0).next, Next::Listen, "it is owed a reply");
    b.commit(entry);
    assert_eq!(b.gateway.outlook(b.clients[0].0).next, Next::Goodbye);
    assert!(b.clients[0].1.woken.load(SeqCst) > woken, "its task looks again");
}

#[test]
fn clients_that_do_nothing_are_let_go_before_those_that_wait_or_work() {
    let mut b = Bench::new(3);
    b.ask(2, "put 0 0 99 1\r\na\r\nreserve\r\n");
    b.ask(1, "use x\r\nwatch x\r\nignore default\r\nreserve\r\n");
    b.gateway.let_go(S);
    let next = |b: &Bench| [0, 1, 2].map(|client: usize| b.gateway.outlook(b.clients[client].0).next);
    assert_eq!(next(&b), [Next::Goodbye, Next::Listen, Next::Listen]);
    b.send(0, "put 0 0 9 1\r\nb\r\n");
    assert!(b.take_entry().is_none(), "what comes after the goodbye is not executed");
    b.pass(200_000);
    assert_eq!(next(&b), [Next::Goodbye, Next::Goodbye, Next::Listen]);
    assert!(b.ask(2, "delete 1\r\n").ends_with("DELETED\r\n"));
    b.pass(100_000);
    assert_eq!(next(&b), [Next::Goodbye; 3]);
}

#[test]
fn a_job_on_its_way_to_a_client_that_was_let_go_is_ready_again() {
    let mut b = Bench::new(2);
    b.send(1, "reserve\r\n");
    b.settle();
    b.send(0, "put 0 0 99 1\r\na\r\n");
    let entry = b.take_entry().expect("the put, with an offer to the client that waits");
    b.gateway.let_go(S);
    b.time.0.fetch_add(200_000, SeqCst);
    b.tick();
    let (conn, ..) = b.clients.remove(1);
    assert_eq!(b.gateway.outlook(conn).next, Next::Goodbye);
    b.gateway.disconnect(conn);
    b.commit(entry);
    b.settle();
    assert_eq!(b.gateway.engine().has_ready(b"default"), 1, "not reserved by a session that is gone");
    let view = b.gateway.engine().job(1).unwrap();
    assert_eq!(view.reserves, 0, "nobody has had it");
}
