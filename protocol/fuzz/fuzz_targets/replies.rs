//! Any bytes to a client: no panic, and the same replies and the same error however they are cut. The first
//! byte says how long the pieces are.
#![no_main]

use beanpole_protocol::{ClientReply, ReplyDecoder, ReplyError};
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

fn replies(stream: &[u8], piece: usize) -> (Vec<ClientReply>, Option<ReplyError>) {
    let mut decoder = ReplyDecoder::default();
    let (mut buf, mut found) = (BytesMut::new(), Vec::new());
    for bytes in stream.chunks(piece) {
        buf.extend_from_slice(bytes);
        loop {
            match decoder.next(&mut buf) {
                Ok(Some(reply)) => found.push(reply),
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((piece, stream)) = data.split_first() else { return };
    let whole = replies(stream, stream.len().max(1));
    assert_eq!(whole, replies(stream, usize::from(*piece).max(1)));
});
