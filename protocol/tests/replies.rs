//! Every reply, as its exact bytes and back; and what is no reply.

use beanpole_protocol::{
    ClientReply, JobId, MAX_JOB_SIZE_LIMIT, Reply, ReplyDecoder, ReplyError, encode_found_header,
    encode_reserved_header,
};
use bytes::{Bytes, BytesMut};

fn every_reply() -> Vec<(Reply<'static>, &'static [u8], ClientReply)> {
    let data = Bytes::from_static(b"a\r\nb\0");
    let id = JobId(9_007_199_254_740_991);
    vec![
        (Reply::Inserted(JobId(0)), b"INSERTED 0\r\n", ClientReply::Inserted(JobId(0))),
        (Reply::Inserted(id), b"INSERTED 9007199254740991\r\n", ClientReply::Inserted(id)),
        (Reply::BuriedPut(JobId(7)), b"BURIED 7\r\n", ClientReply::BuriedPut(JobId(7))),
        (Reply::ExpectedCrlf, b"EXPECTED_CRLF\r\n", ClientReply::ExpectedCrlf),
        (Reply::JobTooBig, b"JOB_TOO_BIG\r\n", ClientReply::JobTooBig),
        (Reply::Draining, b"DRAINING\r\n", ClientReply::Draining),
        (Reply::OutOfMemory, b"OUT_OF_MEMORY\r\n", ClientReply::OutOfMemory),
        (Reply::InternalError, b"INTERNAL_ERROR\r\n", ClientReply::InternalError),
        (Reply::BadFormat, b"BAD_FORMAT\r\n", ClientReply::BadFormat),
        (Reply::UnknownCommand, b"UNKNOWN_COMMAND\r\n", ClientReply::UnknownCommand),
        (Reply::Using("a-b"), b"USING a-b\r\n", ClientReply::Using("a-b".into())),
        (Reply::DeadlineSoon, b"DEADLINE_SOON\r\n", ClientReply::DeadlineSoon),
        (Reply::TimedOut, b"TIMED_OUT\r\n", ClientReply::TimedOut),
        (
            Reply::Reserved { id: JobId(3), data: b"a\r\nb\0" },
            b"RESERVED 3 5\r\na\r\nb\0\r\n",
            ClientReply::Reserved { id: JobId(3), data: data.clone() },
        ),
        (Reply::Deleted, b"DELETED\r\n", ClientReply::Deleted),
        (Reply::NotFound, b"NOT_FOUND\r\n", ClientReply::NotFound),
        (Reply::Released, b"RELEASED\r\n", ClientReply::Released),
        (Reply::Buried, b"BURIED\r\n", ClientReply::Buried),
        (Reply::Touched, b"TOUCHED\r\n", ClientReply::Touched),
        (Reply::Watching(10), b"WATCHING 10\r\n", ClientReply::Watching(10)),
        (Reply::NotIgnored, b"NOT_IGNORED\r\n", ClientReply::NotIgnored),
        (
            Reply::Found { id: JobId(3), data: b"" },
            b"FOUND 3 0\r\n\r\n",
            ClientReply::Found { id: JobId(3), data: Bytes::new() },
        ),
        (Reply::Kicked(12), b"KICKED 12\r\n", ClientReply::Kicked(12)),
        (Reply::KickedJob, b"KICKED\r\n", ClientReply::KickedJob),
        (Reply::Paused, b"PAUSED\r\n", ClientReply::Paused),
        (Reply::Ok(b"---\n"), b"OK 4\r\n---\n\r\n", ClientReply::Ok(Bytes::from_static(b"---\n"))),
    ]
}

#[test]
fn every_reply_has_its_bytes_and_is_read_back() {
    for (reply, bytes, read) in every_reply() {
        let mut buf = BytesMut::new();
        reply.encode(&mut buf);
        assert_eq!(buf, bytes);
        assert!(bytes.starts_with(read.word().as_bytes()));
        assert_eq!(ReplyDecoder::default().next(&mut buf), Ok(Some(read)));
        assert!(buf.is_empty());
    }
}

#[test]
fn a_header_and_a_body_that_lies_elsewhere_are_the_same_reply() {
    let (mut whole, mut parts) = (BytesMut::new(), BytesMut::new());
    Reply::Reserved { id: JobId(5), data: b"hello" }.encode(&mut whole);
    Reply::Found { id: JobId(6), data: b"" }.encode(&mut whole);
    encode_reserved_header(&mut parts, JobId(5), 5);
    parts.extend_from_slice(b"hello\r\n");
    encode_found_header(&mut parts, JobId(6), 0);
    parts.extend_from_slice(b"\r\n");
    assert_eq!(whole, parts);
}

#[test]
fn what_is_no_reply_is_an_error_and_never_a_wrong_reply() {
    for line in [
        "",
        " ",
        "HELLO",
        "INSERTED",
        "INSERTED ",
        "INSERTED x",
        "INSERTED 1 2",
        "INSERTED +1",
        "INSERTED -1",
        "INSERTED 18446744073709551616",
        "inserted 1",
        "RESERVED 1",
        "RESERVED 1 ",
        "RESERVED 1  2",
        "RESERVED 1 2 3",
        "RESERVED 1 x",
        "FOUND 1",
        "OK",
        "OK x",
        "OK 1 2",
        "USING",
        "USING ",
        "USING a b",
        "DELETED ",
        "DELETED 1",
        "NOT_FOUND\r",
        "KICKED x",
        "WATCHING",
        "\u{fffd}",
    ] {
        let mut buf = BytesMut::from(format!("{line}\r\n").as_bytes());
        let found = ReplyDecoder::default().next(&mut buf);
        assert_eq!(found, Err(ReplyError::Unknown(format!("{line}\r"))), "{line:?}");
    }
    let found = ReplyDecoder::default().next(&mut BytesMut::from(&b"DELETED\n"[..]));
    assert_eq!(found, Err(ReplyError::Unknown("DELETED".into())), "an LF alone ends no line");
}

/// A server gone wrong must not make its client wait for ever, allocate at will, or overflow.
#[test]
fn lines_and_bodies_have_a_limit() {
    let next = |bytes: &[u8]| ReplyDecoder::default().next(&mut BytesMut::from(bytes));
    assert_eq!(next(&[b'x'; 511]), Ok(None));
    assert_eq!(next(&[b'x'; 512]), Err(ReplyError::LineTooLong));
    assert_eq!(next(format!("OK {MAX_JOB_SIZE_LIMIT}\r\n").as_bytes()), Ok(None));
    for too_big in [u64::from(MAX_JOB_SIZE_LIMIT) + 1, u64::MAX - 1, u64::MAX] {
        for word in ["OK", "RESERVED 1", "FOUND 1"] {
            let line = format!("{word} {too_big}\r\nabc\r\n");
            assert_eq!(next(line.as_bytes()), Err(ReplyError::BodyTooBig(too_big)));
        }
    }
    assert_eq!(next(b"OK 2\r\nabc\r\n"), Err(ReplyError::NoCrlf));
    assert_eq!(next(b"OK 2\r\nab\r"), Ok(None));
}
