//! The story of `scripts/lines.txt`: one line in, one verdict out, through the same decoder a server uses.

mod script;

use beanpole_protocol::{DEFAULT_MAX_JOB_SIZE, Decoder, MAX_LINE};
use bytes::BytesMut;

#[test]
fn every_line_of_the_script_gets_its_verdict() {
    let mut checked = 0;
    let mut wrong = String::new();
    for (number, line) in include_str!("scripts/lines.txt").lines().enumerate() {
        let Some((input, expected)) = line.split_once(" => ") else { continue };
        if line.starts_with('#') {
            continue;
        }
        let input = script::bytes(input.strip_prefix("! ").unwrap_or(input));
        assert!(input.len() + 2 <= MAX_LINE, "line {} is about lines that are not too long", number + 1);
        let expected = String::from_utf8(script::bytes(expected)).unwrap();
        let mut stream = BytesMut::from(&input[..]);
        stream.extend_from_slice(b"\r\n");
        // A put wants its body before it is a request.
        if let Some(len) = expected.strip_prefix("put ").and_then(|rest| rest.rsplit(' ').next()) {
            stream.extend_from_slice(&vec![b'x'; len.parse().unwrap()]);
            stream.extend_from_slice(b"\r\n");
        }
        let found = Decoder::new(DEFAULT_MAX_JOB_SIZE).next(&mut stream, |request| script::verdict(&request));
        let found = found.unwrap_or_else(|| "nothing".into());
        if found != expected || !stream.is_empty() {
            wrong += &format!("line {}: {line}\n  found {found}, {} bytes left\n", number + 1, stream.len());
        }
        checked += 1;
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    assert!(checked > 200, "{checked} lines checked");
}
