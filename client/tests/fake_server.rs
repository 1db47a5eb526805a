//! The connection against a server that follows a script: it expects exact bytes, answers exact bytes, and
//! closes where the script says so. So every error can be brought about at will.

use beanpole_client::{ClientReply, Command, Connection, Error, Job, JobId, PutOptions, Refusal, Reserve};
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// One step of a script.
enum Step {
    /// These bytes must come next.
    Expect(&'static str),
    /// These are sent.
    Answer(&'static str),
    /// `OK` with this body is sent.
    AnswerOk(&'static str),
    /// The connection is closed, with a reset if bytes of the client were left unread.
    Close,
}
use Step::{Answer, AnswerOk, Close, Expect};

const LIMIT: Duration = Duration::from_secs(10);

/// Runs a test's client side under a deadline.
fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, test).await.expect("the test hangs") });
}

/// A server for one connection, and a client connected to it.
async fn scripted(script: Vec<Step>) -> (Connection, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for step in script {
            match step {
                Expect(bytes) => expect(&mut stream, bytes).await,
                Answer(bytes) => stream.write_all(bytes.as_bytes()).await.unwrap(),
                AnswerOk(body) => {
                    let reply = format!("OK {}\r\n{body}\r\n", body.len());
                    stream.write_all(reply.as_bytes()).await.unwrap();
                }
                Close => return,
            }
        }
        // The script is over: nothing more may come.
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&rest), "");
    });
    (Connection::connect(address.as_str()).await.unwrap(), server)
}

async fn expect(stream: &mut TcpStream, bytes: &str) {
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&got), bytes);
}

const PUT: PutOptions = PutOptions { pri: 1, delay_s: 2, ttr_s: 3 };

#[test]
fn working_commands_have_their_words_and_replies() {
    run(async {
        let job = || Job { id: JobId(7), body: "a\r\nb".into() };
        let (mut c, server) = scripted(vec![
            Expect("use t\r\n"),
            Answer("USING t\r\n"),
            Expect("put 1 2 3 4\r\nbody\r\n"),
            Answer("INSERTED 7\r\n"),
            Expect("watch t\r\n"),
            Answer("WATCHING 2\r\n"),
            Expect("ignore default\r\n"),
            Answer("WATCHING 1\r\n"),
            Expect("reserve\r\n"),
            Answer("RESERVED 7 4\r\na\r\nb\r\n"),
            Expect("reserve-with-timeout 5\r\n"),
            Answer("TIMED_OUT\r\n"),
            Expect("reserve-with-timeout 6\r\n"),
            Answer("DEADLINE_SOON\r\n"),
            Expect("reserve-job 7\r\n"),
            Answer("RESERVED 7 4\r\na\r\nb\r\n"),
            Expect("touch 7\r\n"),
            Answer("TOUCHED\r\n"),
            Expect("release 7 8 9\r\n"),
            Answer("RELEASED\r\n"),
            Expect("bury 7 8\r\n"),
            Answer("BURIED\r\n"),
            Expect("delete 7\r\n"),
            Answer("DELETED\r\n"),
            Expect("quit\r\n"),
        ])
        .await;
        c.use_tube("t").await.unwrap();
        assert_eq!(c.put(b"body", PUT).await.unwrap(), JobId(7));
        assert_eq!(c.watch("t").await.unwrap(), 2);
        assert_eq!(c.ignore("default").await.unwrap(), 1);
        assert_eq!(c.reserve().await.unwrap(), Reserve::Job(job()));
        assert_eq!(c.reserve_with_timeout(5).await.unwrap(), Reserve::TimedOut);
        assert_eq!(c.reserve_with_timeout(6).await.unwrap(), Reserve::DeadlineSoon);
        assert_eq!(c.reserve_job(JobId(7)).await.unwrap(), job());
        c.touch(JobId(7)).await.unwrap();
        c.release(JobId(7), 8, 9).await.unwrap();
        c.bury(JobId(7), 8).await.unwrap();
        c.delete(JobId(7)).await.unwrap();
        c.quit().await.unwrap();
        server.await.unwrap();
    });
}

#[test]
fn tending_commands_have_their_words_and_replies() {
    run(async {
        let job = || Job { id: JobId(7), body: "ab".into() };
        let (mut c, server) = scripted(vec![
            Expect("kick 100\r\n"),
            Answer("KICKED 3\r\n"),
            Expect("kick-job 7\r\n"),
            Answer("KICKED\r\n"),
            Expect("peek 7\r\n"),
            Answer("FOUND 7 2\r\nab\r\n"),
            Expect("peek-ready\r\n"),
            Answer("FOUND 7 2\r\nab\r\n"),
            Expect("peek-delayed\r\n"),
            Answer("NOT_FOUND\r\n"),
            Expect("peek-buried\r\n"),
            Answer("NOT_FOUND\r\n"),
            Expect("pause-tube t 60\r\n"),
            Answer("PAUSED\r\n"),
        ])
        .await;
        assert_eq!(c.kick(100).await.unwrap(), 3);
        c.kick_job(JobId(7)).await.unwrap();
        assert_eq!(c.peek(JobId(7)).await.unwrap(), job());
        assert_eq!(c.peek_ready().await.unwrap(), job());
        assert!(matches!(c.peek_delayed().await, Err(Error::NotFound { verb: "peek-delayed" })));
        assert!(matches!(c.peek_buried().await, Err(Error::NotFound { .. })));
        c.pause_tube("t", 60).await.unwrap();
        drop(c);
        server.await.unwrap();
    });
}

#[test]
fn several_commands_go_out_at_once() {
    run(async {
        let (mut c, server) = scripted(vec![
            Expect("watch t\r\nignore default\r\nreserve\r\n"),
            Answer("WATCHING 2\r\nWATCHING 1\r\nRESERVED 7 4\r\na\r\nb\r\n"),
        ])
        .await;
        let tube = beanpole_client::Tube::new(b"t").unwrap();
        c.send(&Command::Watch(tube));
        c.send(&Command::Ignore(beanpole_client::Tube::DEFAULT));
        c.send(&Command::Reserve);
        assert_eq!(c.unanswered(), 3);
        c.flush().await.unwrap();
        assert_eq!(c.recv().await.unwrap(), ClientReply::Watching(2));
        assert_eq!(c.recv().await.unwrap(), ClientReply::Watching(1));
        assert_eq!(c.recv().await.unwrap(), ClientReply::Reserved { id: JobId(7), data: "a\r\nb".into() });
        drop(c);
        server.await.unwrap();
    });
}

#[test]
fn bodies_of_stats_and_lists_are_read() {
    run(async {
        let (mut c, server) = scripted(vec![
            Expect("stats\r\n"),
            AnswerOk("---\ncurrent-jobs-ready: 3\nversion: \"1.13\"\n"),
            Expect("stats-tube t\r\n"),
            AnswerOk("---\nname: \"t\"\n"),
            Expect("stats-job 9\r\n"),
            AnswerOk("---\nid: 9\n"),
            Expect("list-tubes\r\n"),
            AnswerOk("---\n- default\n- t\n"),
            Expect("list-tubes-watched\r\n"),
            AnswerOk("---\n- default\n"),
            Expect("list-tube-used\r\n"),
            Answer("USING t\r\n"),
        ])
        .await;
        let stats = c.stats().await.unwrap();
        assert_eq!((stats.number("current-jobs-ready"), stats.get("version")), (Some(3), Some("1.13")));
        assert_eq!(c.stats_tube("t").await.unwrap().get("name"), Some("t"));
        assert_eq!(c.stats_job(JobId(9)).await.unwrap().number("id"), Some(9));
        assert_eq!(c.list_tubes().await.unwrap(), ["default", "t"]);
        assert_eq!(c.list_tubes_watched().await.unwrap(), ["default"]);
        assert_eq!(c.list_tube_used().await.unwrap(), "t");
        drop(c);
        server.await.unwrap();
    });
}

#[test]
fn refusals_leave_the_connection_usable() {
    run(async {
        let (mut c, server) = scripted(vec![
            Expect("put 1 2 3 1\r\nx\r\nput 1 2 3 1\r\nx\r\n"),
            Answer("OUT_OF_MEMORY\r\nBURIED 4\r\n"),
            Expect("ignore default\r\n"),
            Answer("NOT_IGNORED\r\n"),
            Expect("delete 1\r\n"),
            Answer("NOT_FOUND\r\n"),
            Expect("touch 1\r\n"),
            Answer("RELEASED\r\n"),
        ])
        .await;
        c.send_put(b"x", PUT).unwrap();
        c.send_put(b"x", PUT).unwrap();
        assert_eq!(c.recv().await.unwrap(), ClientReply::OutOfMemory);
        assert_eq!(c.recv().await.unwrap(), ClientReply::BuriedPut(JobId(4)));
        let error = c.ignore("default").await.unwrap_err();
        assert!(matches!(error, Error::Refused { verb: "ignore", refusal: Refusal::NotIgnored }), "{error}");
        assert!(error.had_no_effect());
        assert!(matches!(c.delete(JobId(1)).await, Err(Error::NotFound { verb: "delete" })));
        let error = c.touch(JobId(1)).await.unwrap_err();
        assert!(
            matches!(error, Error::Unexpected { verb: "touch", reply: "RELEASED" }) && !error.had_no_effect()
        );
        drop(c);
        server.await.unwrap();
    });
}

#[test]
fn what_is_wrong_on_this_side_is_never_sent() {
    run(async {
        let (mut c, server) = scripted(vec![Expect("stats\r\n"), Answer("TIMED_OUT\r\n")]).await;
        assert!(matches!(c.use_tube("-x").await, Err(Error::BadTubeName(name)) if name == "-x"));
        assert!(matches!(c.watch("a b\r\ndelete 1").await, Err(Error::BadTubeName(_))));
        let none = PutOptions::default();
        assert!(
            matches!(c.put_once("a key", b"x", none).await, Err(Error::BadPutKey(key)) if key == "a key")
        );
        assert!(matches!(c.recv().await, Err(Error::NothingAsked)));
        c.send(&Command::Stats);
        assert!(matches!(c.delete(JobId(1)).await, Err(Error::RepliesOutstanding(1))));
        assert_eq!(c.recv().await.unwrap(), ClientReply::TimedOut);
        drop(c);
        server.await.unwrap();
    });
}

#[test]
fn a_put_with_a_key_is_a_put_whose_answer_may_be_an_earlier_one() {
    run(async {
        let exchange = vec![
            Expect("put-once order:1 7 0 9 3\r\nabc\r\n"),
            Answer("INSERTED 4\r\n"),
            Expect("put-once order:1 7 0 9 3\r\nabc\r\n"),
            Answer("OUT_OF_MEMORY\r\n"),
        ];
        let (mut c, server) = scripted(exchange).await;
        let options = PutOptions { pri: 7, delay_s: 0, ttr_s: 9 };
        assert_eq!(c.put_once("order:1", b"abc", options).await.unwrap(), JobId(4));
        let again = c.put_once("order:1", b"abc", options).await;
        assert!(matches!(again, Err(Error::Refused { refusal: Refusal::OutOfMemory, .. })));
        drop(c);
        server.await.unwrap();
    });
}

#[test]
fn a_lost_connection_tells_unknown_from_unsent() {
    run(async {
        // The put went out whole and the server closed: who knows. The delete after it was never sent.
        let (mut c, server) =
            scripted(vec![Expect("put 1 2 3 1\r\nx\r\n"), Answer("INSERTED 1\r\nINSER"), Close]).await;
        c.send_put(b"x", PUT).unwrap();
        c.send_put(b"x", PUT).unwrap();
        c.flush().await.unwrap();
        assert_eq!(c.recv().await.unwrap(), ClientReply::Inserted(JobId(1)));
        server.await.unwrap();
        let error = c.recv().await.unwrap_err();
        assert!(
            matches!(error, Error::OutcomeUnknown { verb: "put", .. }) && !error.had_no_effect(),
            "{error}"
        );
        let error = c.delete(JobId(1)).await.unwrap_err();
        assert!(matches!(error, Error::NotSent { verb: "delete", .. }) && error.had_no_effect(), "{error}");
        // And it stays so.
        assert!(matches!(c.stats().await, Err(Error::NotSent { verb: "stats", .. })));
    });
}

#[test]
fn a_command_cut_off_in_the_middle_was_not_sent() {
    run(async {
        // The server reads the first bytes of a body larger than all socket buffers, and closes.
        let (mut c, server) = scripted(vec![Expect("delete 5\r\nput 1 2 3 67108864\r\n"), Close]).await;
        c.send(&Command::Delete(JobId(5)));
        c.send_put(&vec![b'x'; 64 << 20], PUT).unwrap();
        let error = c.recv().await.unwrap_err();
        server.await.unwrap();
        assert!(matches!(error, Error::OutcomeUnknown { verb: "delete", .. }), "{error}");
        let error = c.recv().await.unwrap_err();
        assert!(matches!(error, Error::NotSent { verb: "put", .. }), "{error}");
    });
}

#[test]
fn nonsense_breaks_the_connection() {
    run(async {
        let (mut c, _server) = scripted(vec![Expect("reserve\r\n"), Answer("HELLO 5\r\n")]).await;
        let error = c.reserve().await.unwrap_err();
        assert!(matches!(error, Error::Malformed { verb: "reserve", .. }), "{error}");
        assert!(matches!(c.delete(JobId(1)).await, Err(Error::NotSent { .. })));
    });
}

#[test]
fn a_cancelled_command_does_not_mix_up_the_next_ones() {
    run(async {
        let (mut c, server) = scripted(vec![
            Expect("reserve\r\ndelete 3\r\n"),
            Answer("RESERVED 3 2\r\nhi\r\nDELETED\r\nTOUCHED\r\n"),
            Expect("touch 4\r\n"),
        ])
        .await;
        // The server answers nothing before the delete, so this cannot come to an end.
        let reserve = tokio::time::timeout(Duration::from_millis(20), c.reserve()).await;
        assert!(reserve.is_err());
        assert!(matches!(c.touch(JobId(4)).await, Err(Error::RepliesOutstanding(1))));
        c.send(&Command::Delete(JobId(3)));
        assert_eq!(c.recv().await.unwrap(), ClientReply::Reserved { id: JobId(3), data: "hi".into() });
        assert_eq!(c.recv().await.unwrap(), ClientReply::Deleted);
        c.touch(JobId(4)).await.unwrap();
        drop(c);
        server.await.unwrap();
    });
}

#[test]
fn a_deep_pipeline_cannot_block_itself() {
    // Both directions together hold more than the socket buffers do: the server answers while it reads, and
    // reads no further while its answers are not taken.
    const JOBS: usize = 20_000;
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let reply = format!("FOUND 1 1000\r\n{}\r\n", "y".repeat(1000));
            let mut command = vec![0; "peek 1\r\n".len() * 100];
            for _ in 0..JOBS / 100 {
                stream.read_exact(&mut command).await.unwrap();
                stream.write_all(reply.repeat(100).as_bytes()).await.unwrap();
            }
        });
        let mut c = Connection::connect(address.as_str()).await.unwrap();
        (0..JOBS).for_each(|_| c.send(&Command::Peek(JobId(1))));
        c.flush().await.unwrap();
        for _ in 0..JOBS {
            assert!(matches!(c.recv().await.unwrap(), ClientReply::Found { data, .. } if data.len() == 1000));
        }
        server.await.unwrap();
    });
}

#[test]
fn no_server_is_a_clear_error() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let error = Connection::connect(address.as_str()).await.unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot connect to {address}: ")), "{error}");
        assert!(Connection::connect("unix:/nowhere/at/all").await.is_err());
    });
}

#[test]
fn a_reply_that_does_not_come_in_time_can_still_be_taken_later() {
    run(async {
        let (c, server) = scripted(vec![
            Expect("delete 5\r\n"),
            Expect("reserve-with-timeout 1\r\n"),
            Answer("DELETED\r\nTIMED_OUT\r\n"),
            Expect("touch 4\r\n"),
            Answer("TOUCHED\r\n"),
        ])
        .await;
        let limit = Duration::from_millis(20);
        let mut c = c.with_timeout(limit);
        let error = c.delete(JobId(5)).await.unwrap_err();
        assert!(matches!(error, Error::NoReply { verb: "delete", limit: l } if l == limit), "{error}");
        assert!(!error.had_no_effect() && !error.ends_connection());
        assert!(matches!(c.touch(JobId(4)).await, Err(Error::RepliesOutstanding(1))));
        c.send(&Command::ReserveWithTimeout(1));
        assert_eq!(c.recv().await.unwrap(), ClientReply::Deleted);
        assert_eq!(c.recv().await.unwrap(), ClientReply::TimedOut);
        c.set_timeout(None);
        c.touch(JobId(4)).await.unwrap();
        drop(c);
        server.await.unwrap();
    });
}

#[test]
fn a_wait_for_a_job_has_its_own_time_beside_the_timeout() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (c, _server) = scripted(vec![Expect("reserve-with-timeout 30\r\n"), Expect("never")]).await;
        let mut c = c.with_timeout(Duration::from_secs(2));
        let begun = tokio::time::Instant::now();
        let error = c.reserve_with_timeout(30).await.unwrap_err();
        assert!(matches!(error, Error::NoReply { verb: "reserve-with-timeout", .. }), "{error}");
        assert_eq!(begun.elapsed().as_secs(), 32);
    });
}

#[test]
fn replies_that_came_before_a_reset_are_not_lost_by_a_failing_write() {
    run(async {
        // The server answers the delete and closes with a byte unread, which resets the connection.
        let (mut c, server) =
            scripted(vec![Expect("delete 5\r\n"), Answer("DELETED\r\n"), Expect("touch"), Close]).await;
        c.send(&Command::Delete(JobId(5)));
        c.send(&Command::Touch(JobId(6)));
        c.flush().await.unwrap();
        server.await.unwrap();
        // This cannot be written whole any more.
        c.send_put(&vec![b'x'; 1 << 20], PUT).unwrap();
        assert_eq!(c.recv().await.unwrap(), ClientReply::Deleted);
        let error = c.recv().await.unwrap_err();
        assert!(matches!(error, Error::OutcomeUnknown { verb: "touch", .. }), "{error}");
        let error = c.recv().await.unwrap_err();
        assert!(matches!(error, Error::NotSent { verb: "put", .. }) && error.ends_connection(), "{error}");
    });
}

#[test]
fn an_idle_connection_tells_that_its_server_is_gone() {
    run(async {
        let (mut c, server) =
            scripted(vec![Expect("touch 4\r\n"), Answer("TOUCHED\r\n"), Expect("delete 4\r\n"), Close]).await;
        c.touch(JobId(4)).await.unwrap();
        // Nothing happens to it; the wait is cut short and taken up again.
        assert!(tokio::time::timeout(Duration::from_millis(10), c.closed()).await.is_err());
        c.send(&Command::Delete(JobId(4)));
        c.flush().await.unwrap();
        server.await.unwrap();
        assert_eq!(c.closed().await.kind(), std::io::ErrorKind::UnexpectedEof);
        assert!(matches!(c.recv().await, Err(Error::OutcomeUnknown { verb: "delete", .. })));
        assert!(matches!(c.stats().await, Err(Error::NotSent { .. })));
    });
}

#[test]
fn whether_a_server_knows_put_once_is_asked_without_putting_anything() {
    run(async {
        let script = vec![
            Expect("put-once \r\n"),
            Answer("BAD_FORMAT\r\n"),
            Expect("put-once \r\n"),
            Answer("UNKNOWN_COMMAND\r\n"),
        ];
        let (mut c, server) = scripted(script).await;
        assert!(c.knows_put_once().await.unwrap());
        assert!(!c.knows_put_once().await.unwrap());
        drop(c);
        server.await.unwrap();
    });
}

#[test]
fn a_connect_has_a_limit() {
    run(async {
        // A listener that is full answers no handshake: connections are made until one is not accepted.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut made = Vec::new();
        let error = loop {
            let connected = Connection::connect_within(address.as_str(), Duration::from_millis(50)).await;
            match connected {
                Ok(connection) => made.push(connection),
                Err(error) => break error,
            }
            assert!(made.len() < 100, "nothing is ever refused");
        };
        assert_eq!(error.source.kind(), std::io::ErrorKind::TimedOut, "{error}");
    });
}
