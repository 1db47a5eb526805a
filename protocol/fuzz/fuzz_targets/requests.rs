//! Any bytes to a server: no panic, the same requests however they are cut, and each well-formed command
//! survives being encoded again. The first byte says how long the pieces are.
#![no_main]

use beanpole_protocol::{Decoder, MAX_LINE, OwnedRequest};
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

const MAX_JOB_SIZE: u32 = 100;

fn requests(stream: &[u8], piece: usize) -> Vec<OwnedRequest> {
    let mut decoder = Decoder::new(MAX_JOB_SIZE);
    let (mut buf, mut found) = (BytesMut::new(), Vec::new());
    for bytes in stream.chunks(piece) {
        buf.extend_from_slice(bytes);
        while let Some(request) = decoder.next(&mut buf, |request| OwnedRequest::from(request)) {
            found.push(request);
        }
        assert!(buf.len() < MAX_LINE, "only what may still become a request is kept");
    }
    found
}

fuzz_target!(|data: &[u8]| {
    let Some((piece, stream)) = data.split_first() else { return };
    let whole = requests(stream, stream.len().max(1));
    assert_eq!(whole, requests(stream, usize::from(*piece).max(1)));
    for request in &whole {
        if let OwnedRequest::Command(line) = request {
            assert!(request.command().is_some(), "{line:?} was understood once");
        }
    }
});
