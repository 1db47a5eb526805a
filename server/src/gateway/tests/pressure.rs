//! Puts that are slowed or refused, replies that nobody takes: what a client sees, and that everything else goes on.

use super::*;
use crate::admission::{Stance, State};

const CLOSED: Stance = Stance { state: State::Closed, gap_us: 50_000 };
const SLOW: Stance = Stance { state: State::Shedding, gap_us: 20_000 };

fn stance(b: &mut Bench, stance: Stance) {
    b.gateway.set_own_stance(stance);
}

impl Bench {
    /// As the connection's task does it before it decodes.
    fn send_as_task(&mut self, client: usize, bytes: &str) {
        let refuse = self.gateway.refuses_puts();
        self.clients[client].2.refuse_bodies(refuse);
        self.send(client, bytes);
    }
}

#[test]
fn a_closed_gate_refuses_puts_and_nothing_else() {
    let mut b = Bench::new(2);
    assert_eq!(
        b.ask(0, "put 0 0 9 1\r\na\r\nput 0 0 9 1\r\nb\r\nput 0 0 9 1\r\nc\r\n").matches("INSERTED").count(),
        3
    );
    stance(&mut b, CLOSED);
    assert_eq!(b.ask(0, "put 0 0 9 1\r\nd\r\n"), "OUT_OF_MEMORY\r\n");
    assert_eq!(
        b.ask(
            0,
            "reserve\r\nrelease 1 0 0\r\nreserve\r\ntouch 1\r\nbury 1 0\r\nkick 1\r\npeek 1\r\ndelete 1\r\n\
             reserve-job 2\r\ndelete 2\r\nuse other\r\nwatch other\r\n"
        ),
        "RESERVED 1 1\r\na\r\nRELEASED\r\nRESERVED 1 1\r\na\r\nTOUCHED\r\nBURIED\r\nKICKED 1\r\nFOUND 1 1\r\na\r\nDELETED\r\n\
         RESERVED 2 1\r\nb\r\nDELETED\r\nUSING other\r\nWATCHING 2\r\n"
    );
    assert!(b.ask(1, "stats\r\n").contains("current-jobs-ready: 1\n"));
    stance(&mut b, Stance::default());
    assert_eq!(b.ask(0, "put 0 0 9 1\r\ne\r\n"), "INSERTED 4\r\n", "refused puts took no id");
    assert_eq!(b.gateway.puts_held_back(), (0, 1));
}

/// The body is thrown away as it comes, whatever is in it, and the next command is understood.
#[test]
fn a_refused_body_is_swallowed_as_it_comes_and_the_connection_goes_on() {
    let mut b = Bench::new(1);
    stance(&mut b, CLOSED);
    b.send_as_task(0, "put 0 0 9 60000\r\n");
    for _ in 0..60 {
        b.send_as_task(0, &"put\r\n".repeat(200));
        assert!(b.clients[0].3.is_empty(), "nothing of it is kept");
        assert_eq!(b.received(0), "");
    }
    b.send_as_task(0, "\r\nwatch x\r\nput 0 0 9 99999\r\n");
    assert_eq!(b.received(0), "OUT_OF_MEMORY\r\nWATCHING 2\r\n");
    b.send_as_task(0, &"y".repeat(99_999));
    b.send_as_task(0, "\r\nput 0 0 9 1\r\n");
    assert_eq!(b.received(0), "JOB_TOO_BIG\r\n", "what is never taken is told first");
    // It was refused when it began: that it opens meanwhile changes nothing for this one.
    stance(&mut b, Stance::default());
    b.send_as_task(0, "z\r\nput 0 0 9 1\r\nz\r\n");
    b.settle();
    assert_eq!(b.received(0), "OUT_OF_MEMORY\r\nINSERTED 1\r\n");
}

#[test]
fn a_draining_cluster_says_so_also_when_it_is_closed() {
    let mut b = Bench::new(1);
    b.gateway.set_draining(true);
    b.settle();
    stance(&mut b, CLOSED);
    b.send_as_task(0, "put 0 0 9 1\r\na\r\n");
    assert_eq!(b.received(0), "DRAINING\r\n");
}

#[test]
fn shedding_slows_each_connections_puts_and_only_those() {
    let mut b = Bench::new(2);
    stance(&mut b, SLOW);
    assert_eq!(b.ask(0, "put 0 0 9 1\r\na\r\nput 0 0 9 1\r\nb\r\nput 0 0 9 1\r\nc\r\n"), "INSERTED 1\r\n");
    assert_eq!(b.ask(1, "reserve\r\ndelete 1\r\nput 0 0 9 1\r\nd\r\n"), {
        "RESERVED 1 1\r\na\r\nDELETED\r\nINSERTED 2\r\n"
    });
    let alarm = b.set_alarm().unwrap();
    assert!(alarm <= 20_000, "it wakes up for the next put in {alarm} us");
    b.pass(19_999);
    assert_eq!(b.received(0), "");
    b.pass(1);
    assert_eq!(b.received(0), "INSERTED 3\r\n");
    b.pass(20_000);
    assert_eq!(b.received(0), "INSERTED 4\r\n");
    assert_eq!(b.gateway.puts_held_back(), (2, 0));
    // One that rests for a while does not save credits up.
    b.pass(S);
    assert_eq!(b.ask(0, "put 0 0 9 1\r\ne\r\nput 0 0 9 1\r\nf\r\n"), "INSERTED 5\r\n");
}

#[test]
fn a_slowed_put_is_refused_when_the_gate_closes_and_taken_at_once_when_it_opens() {
    let mut b = Bench::new(2);
    stance(&mut b, SLOW);
    assert_eq!(b.ask(0, "put 0 0 9 1\r\na\r\nput 0 0 9 1\r\nb\r\n"), "INSERTED 1\r\n");
    stance(&mut b, CLOSED);
    b.pass(20_000);
    assert_eq!(b.received(0), "OUT_OF_MEMORY\r\n");
    stance(&mut b, SLOW);
    b.pass(S);
    assert_eq!(b.ask(0, "put 0 0 9 1\r\na\r\nput 0 0 9 1\r\nb\r\n"), "INSERTED 2\r\n");
    stance(&mut b, Stance::default());
    assert_eq!(b.ask(1, "put 0 0 9 1\r\na\r\nput 0 0 9 1\r\nb\r\n"), "INSERTED 3\r\nINSERTED 4\r\n");
    b.pass(20_000);
    assert_eq!(b.received(0), "INSERTED 5\r\n");
}

#[test]
fn a_client_that_leaves_with_a_slowed_put_has_not_put_it() {
    let mut b = Bench::new(2);
    stance(&mut b, SLOW);
    b.ask(0, "put 0 0 9 1\r\na\r\nput 0 0 9 1\r\nb\r\n");
    let conn = b.clients[0].0;
    b.gateway.disconnect(conn);
    b.pass(S);
    assert!(b.ask(1, "stats\r\n").contains("current-jobs-ready: 1\n"));
}

#[test]
fn a_half_closed_client_still_has_its_slowed_put_taken() {
    let mut b = Bench::new(1);
    stance(&mut b, SLOW);
    b.ask(0, "put 0 0 9 1\r\na\r\nput 0 0 9 1\r\nb\r\n");
    let conn = b.clients[0].0;
    b.gateway.end_input(conn);
    assert_eq!(b.gateway.outlook(conn).next, Next::Listen);
    b.pass(20_000);
    assert_eq!(b.received(0), "INSERTED 2\r\n");
    assert_eq!(b.gateway.outlook(conn).next, Next::Close);
}

#[test]
fn the_worse_of_the_own_stance_and_the_leaders_word_holds() {
    let mut b = Bench::new(1);
    b.gateway.hear_stance(CLOSED);
    assert_eq!(b.ask(0, "put 0 0 9 1\r\na\r\n"), "OUT_OF_MEMORY\r\n");
    stance(&mut b, SLOW);
    b.gateway.hear_stance(Stance::default());
    assert_eq!(b.gateway.stance(), SLOW);
    stance(&mut b, Stance::default());
    assert_eq!(b.ask(0, "put 0 0 9 1\r\na\r\n"), "INSERTED 1\r\n");
}

/// Its replies are a quarter of a MiB at most; after half a minute without a byte taken, they are given back.
#[test]
fn a_client_that_takes_nothing_for_half_a_minute_is_closed_when_it_holds_much() {
    let mut b = Bench::new(3);
    let body = "x".repeat(60_000);
    b.ask(2, &format!("put 0 0 9 60000\r\n{body}\r\n"));
    b.clients[0].1.takes.store(0, SeqCst);
    b.clients[1].1.takes.store(0, SeqCst);
    for _ in 0..50 {
        b.ask(0, "peek 1\r\n");
        b.ask(2, "peek 1\r\n");
    }
    b.ask(1, "use little\r\n");
    let (held, _) = b.gateway.unread_replies();
    assert!((240_000..700_000).contains(&held), "{held} bytes");
    b.pass(29 * S);
    let conns: Vec<ConnId> = b.clients.iter().map(|client| client.0).collect();
    assert!(conns.iter().all(|conn| b.gateway.outlook(*conn).next == Next::Listen));
    b.pass(3 * S);
    let next: Vec<Next> = conns.iter().map(|conn| b.gateway.outlook(*conn).next).collect();
    assert_eq!(next, [Next::Close, Next::Listen, Next::Listen]);
    b.gateway.disconnect(conns[0]);
    assert!(b.gateway.unread_replies().0 < 70_000, "{:?}", b.gateway.unread_replies());
}

#[test]
fn a_client_that_takes_a_little_now_and_then_is_kept() {
    let mut b = Bench::new(1);
    let body = "x".repeat(60_000);
    b.ask(0, &format!("put 0 0 9 60000\r\n{body}\r\n"));
    b.clients[0].1.takes.store(0, SeqCst);
    for _ in 0..50 {
        b.ask(0, "peek 1\r\n");
    }
    let conn = b.clients[0].0;
    for _ in 0..5 {
        b.pass(20 * S);
        b.clients[0].1.takes.store(100, SeqCst);
        // `write` goes on until the socket takes no more, which this one never says: one piece at a time.
        b.gateway.touch_session(conn, false);
        b.gateway.flush_session(conn);
        b.clients[0].1.takes.store(0, SeqCst);
    }
    assert_eq!(b.gateway.outlook(conn).next, Next::Listen);
}

#[test]
fn when_many_do_not_read_each_has_only_its_share() {
    let mut b = Bench::new(8);
    b.gateway.set_reply_limit(256 << 10);
    let body = "x".repeat(10_000);
    b.ask(0, &format!("put 0 0 9 10000\r\n{body}\r\n"));
    for client in 1..8 {
        b.clients[client].1.takes.store(0, SeqCst);
        for _ in 0..50 {
            b.ask(client, "peek 1\r\n");
        }
    }
    let (held, _) = b.gateway.unread_replies();
    assert!(held < 600 << 10, "{held} bytes, and not 7 times 256 KiB");
    assert!(b.ask(0, "peek 1\r\n").starts_with("FOUND 1 10000\r\n"), "who reads is served");
}

#[test]
fn reserving_many_jobs_by_id_is_bounded_by_their_bodies() {
    let mut b = Bench::new(1);
    let body = "x".repeat(60_000);
    for _ in 0..60 {
        b.ask(0, &format!("put 0 0 9 60000\r\n{body}\r\n"));
    }
    b.clients[0].1.takes.store(0, SeqCst);
    let all: String = (1..=60).map(|id| format!("reserve-job {id}\r\n")).collect();
    b.ask(0, &all);
    let (held, _) = b.gateway.unread_replies();
    assert!(held < 3 << 20, "{held} bytes of replies, and not all of 3.6 MB and more");
    b.clients[0].1.takes.store(u64::MAX, SeqCst);
    for _ in 0..60 {
        let conn = b.clients[0].0;
        b.gateway.write(conn).unwrap();
        b.settle();
    }
    assert_eq!(b.received(0).matches("RESERVED").count(), 60);
}
