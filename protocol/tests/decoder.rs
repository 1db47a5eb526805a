//! What the decoder promises of memory: nothing is copied, nothing is kept that no request can be made of.

use beanpole_protocol::{Command, Decoder, MAX_LINE, Request};
use bytes::{Bytes, BytesMut};

fn drain(decoder: &mut Decoder, buf: &mut BytesMut) -> Vec<String> {
    std::iter::from_fn(|| decoder.next(buf, |request| format!("{request:?}"))).collect()
}

fn all(stream: &[u8]) -> Vec<String> {
    drain(&mut Decoder::new(100), &mut BytesMut::from(stream))
}

#[test]
fn a_body_is_cut_out_of_the_buffer_with_its_crlf_and_not_copied() {
    let mut buf = BytesMut::from(&b"put 1 2 3 5\r\nhello\r\nstats\r\n"[..]);
    let body_at = buf[b"put 1 2 3 5\r\n".len()..].as_ptr();
    let mut decoder = Decoder::new(100);
    let body = decoder.next(&mut buf, |request| match request {
        Request::Put { body, .. } => body,
        Request::Command(_) | Request::Bad(_) => panic!("{request:?}"),
    });
    let body = body.unwrap();
    assert_eq!(body, Bytes::from_static(b"hello\r\n"));
    assert_eq!(body.as_ptr(), body_at);
    assert_eq!(decoder.next(&mut buf, |r| r == Request::Command(Command::Stats)), Some(true));
}

/// Somebody announces 4 GiB and sends them, a MiB at a time: the buffer is empty after each, and no room is
/// asked for.
#[test]
fn a_job_that_is_too_big_is_swallowed_without_being_kept() {
    let mut decoder = Decoder::new(100);
    let mut buf = BytesMut::from(&b"put 1 2 3 4294967295\r\n"[..]);
    assert_eq!(decoder.next(&mut buf, |_| ()), None);
    let chunk = vec![b'x'; 1 << 20];
    let mut left: u64 = 4_294_967_295 + 2;
    while left > 0 {
        let now = left.min(chunk.len() as u64);
        buf.extend_from_slice(&chunk[..now as usize]);
        left -= now;
        let answer = decoder.next(&mut buf, |request| format!("{request:?}"));
        assert_eq!(answer.as_deref(), (left == 0).then_some("Bad(JobTooBig)"));
        assert!(buf.is_empty());
        assert!(buf.capacity() <= 2 * chunk.len());
        assert_eq!(decoder.body_missing(), 0);
        assert_eq!(decoder.is_mid_request(&buf), left > 0);
    }
}

/// A line without end: no more than the CR that may be half of its end stays.
#[test]
fn a_line_that_is_too_long_is_discarded_without_being_kept() {
    let mut decoder = Decoder::new(100);
    let mut buf = BytesMut::new();
    for _ in 0..1000 {
        buf.extend_from_slice(&[b'x'; 5000]);
        buf.extend_from_slice(b"\r");
        assert_eq!(decoder.next(&mut buf, |_| ()), None);
        assert_eq!(buf, b"\r"[..]);
    }
    buf.extend_from_slice(b"\nstats\r\n");
    assert_eq!(drain(&mut decoder, &mut buf), ["Bad(BadFormat)", "Command(Stats)"]);
}

/// Each length around the limit and around twice the limit, whole and cut at each byte near its end.
#[test]
fn lines_up_to_the_limit_fit_and_longer_ones_are_answered_once() {
    for len in (MAX_LINE - 4..MAX_LINE + 6).chain(2 * MAX_LINE - 4..2 * MAX_LINE + 6) {
        let mut stream = vec![b'x'; len - 2];
        stream.extend_from_slice(b"\r\nstats\r\n");
        let expected = if len <= MAX_LINE { "Bad(UnknownCommand)" } else { "Bad(BadFormat)" };
        assert_eq!(all(&stream), [expected, "Command(Stats)"], "a line of {len} bytes");
        for cut in len - 4..len + 2 {
            let mut decoder = Decoder::new(100);
            let mut buf = BytesMut::from(&stream[..cut]);
            let mut found = drain(&mut decoder, &mut buf);
            buf.extend_from_slice(&stream[cut..]);
            found.extend(drain(&mut decoder, &mut buf));
            assert_eq!(found, [expected, "Command(Stats)"], "a line of {len} bytes, cut at {cut}");
        }
    }
}

#[test]
fn what_is_missing_of_a_body_is_known() {
    let mut decoder = Decoder::new(100);
    let mut buf = BytesMut::from(&b"put 1 2 3 5\r"[..]);
    assert!(!decoder.is_mid_request(&BytesMut::new()));
    assert_eq!(decoder.next(&mut buf, |_| ()), None);
    assert_eq!((decoder.body_missing(), decoder.is_mid_request(&buf)), (0, true));
    for (read, missing) in [(&b"\n"[..], 7), (b"hel", 4), (b"lo\r", 1)] {
        buf.extend_from_slice(read);
        assert_eq!(decoder.next(&mut buf, |_| ()), None);
        assert_eq!((decoder.body_missing(), decoder.is_mid_request(&buf)), (missing, true));
    }
    buf.extend_from_slice(b"\n");
    assert_eq!(decoder.next(&mut buf, |_| ()), Some(()));
    assert_eq!((decoder.body_missing(), decoder.is_mid_request(&buf)), (0, false));
}
