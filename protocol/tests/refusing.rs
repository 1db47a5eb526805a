//! Bodies that a server does not take: thrown away as they come, and the requests behind them are understood.

use beanpole_protocol::{Decoder, Request};
use bytes::BytesMut;

/// Feeds bytes in pieces of `step`, and answers what came out.
fn decode(decoder: &mut Decoder, buf: &mut BytesMut, bytes: &[u8], step: usize) -> Vec<String> {
    let mut out = Vec::new();
    for piece in bytes.chunks(step) {
        buf.extend_from_slice(piece);
        while let Some(line) = decoder.next(buf, |request| match request {
            Request::Put { body, .. } => format!("put of {}", body.len() - 2),
            Request::Command(command) => format!("{command:?}"),
            Request::Bad(bad) => format!("{bad:?}"),
        }) {
            out.push(line);
        }
    }
    out
}

#[test]
fn a_refused_body_is_never_kept_and_never_parsed() {
    let input = b"put 0 0 1 6\r\nquit\r\n\r\npeek-ready\r\nput 0 0 1 99\r\n";
    for step in 1..input.len() {
        let (mut decoder, mut buf) = (Decoder::new(50), BytesMut::new());
        decoder.refuse_bodies(true);
        assert_eq!(
            decode(&mut decoder, &mut buf, input, step),
            ["NoRoom", "PeekReady"],
            "in pieces of {step}"
        );
        assert_eq!((decoder.body_missing(), buf.len()), (0, 0));
        decoder.refuse_bodies(false);
        let rest = [&[b'x'; 99][..], b"\r\nput 0 0 1 2\r\nab\r\n"].concat();
        assert_eq!(decode(&mut decoder, &mut buf, &rest, step), ["JobTooBig", "put of 2"]);
    }
}

#[test]
fn a_body_that_is_given_up_half_way_ends_where_it_would_have() {
    for come in 0..12 {
        let (mut decoder, mut buf) = (Decoder::new(50), BytesMut::new());
        let whole = b"0123456789\r\n";
        assert_eq!(decode(&mut decoder, &mut buf, b"put 0 0 1 10\r\n", 100), [""; 0]);
        assert_eq!(decode(&mut decoder, &mut buf, &whole[..come], 100), [""; 0]);
        decoder.give_up_body(&mut buf);
        assert!(buf.is_empty() && decoder.body_missing() == 0);
        let rest = [&whole[come..], b"peek-ready\r\nput 0 0 1 1\r\na\r\n"].concat();
        assert_eq!(decode(&mut decoder, &mut buf, &rest, 1), ["NoRoom", "PeekReady", "put of 1"]);
    }
}

#[test]
fn there_is_nothing_to_give_up_between_requests() {
    let (mut decoder, mut buf) = (Decoder::new(50), BytesMut::from("peek"));
    decoder.give_up_body(&mut buf);
    assert_eq!(
        decode(&mut decoder, &mut buf, b"-ready\r\n", 100),
        [format!("{:?}", beanpole_protocol::Command::PeekReady)]
    );
}
