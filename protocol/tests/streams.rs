//! The story of `scripts/streams.txt`: reads of a socket in, requests out, with the state that lies between
//! them.

mod script;

use beanpole_protocol::{Decoder, Request};
use bytes::BytesMut;

/// The size limit that the script speaks of.
const MAX_JOB_SIZE: u32 = 100;

fn shown(request: &Request<'_>) -> String {
    let verdict = script::verdict(request);
    match request {
        Request::Put { header, body } => {
            let (data, crlf) = body.split_at(header.bytes as usize);
            assert_eq!(crlf, b"\r\n");
            format!("{verdict} \"{}\"", String::from_utf8_lossy(data))
        }
        Request::Command(_) | Request::Bad(_) => verdict,
    }
}

/// Runs one connection's paragraph; what it should have said, and what came out.
fn run(paragraph: &[&str]) -> (Vec<String>, Vec<String>) {
    let mut decoder = Decoder::new(MAX_JOB_SIZE);
    let mut buf = BytesMut::new();
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    for line in paragraph {
        let Some(read) = line.strip_prefix("> ") else {
            expected.push(String::from_utf8(script::bytes(line)).unwrap());
            continue;
        };
        expected.push((*line).to_owned());
        found.push((*line).to_owned());
        buf.extend_from_slice(&script::bytes(read));
        let before = found.len();
        found.extend(std::iter::from_fn(|| decoder.next(&mut buf, |request| shown(&request))));
        if found.len() == before {
            found.push("nothing".into());
        }
    }
    assert!(buf.is_empty() && !decoder.is_mid_request(&buf), "{paragraph:?} ends with a whole request");
    (expected, found)
}

#[test]
fn every_stream_of_the_script_gives_its_requests() {
    let lines: Vec<&str> =
        include_str!("scripts/streams.txt").lines().filter(|line| !line.starts_with('#')).collect();
    let mut checked = 0;
    for paragraph in lines.split(|line| line.is_empty()).filter(|paragraph| !paragraph.is_empty()) {
        let (expected, found) = run(paragraph);
        assert_eq!(found, expected);
        checked += 1;
    }
    assert!(checked >= 15, "{checked} connections checked");
}
