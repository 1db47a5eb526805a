//! What the golden scripts have in common: their escapes, and the words for what the decoder finds.

use beanpole_protocol::{BadRequest, Request, encode_command};
use bytes::BytesMut;

/// The bytes that a script means: `\r`, `\n`, `\t`, `\v`, `\0`, `\x20`, and `<x*9>` for nine x.
pub fn bytes(text: &str) -> Vec<u8> {
    let mut out = text.to_owned();
    while let Some(start) = out.find('<') {
        let end = start + out[start..].find('>').expect("< has its >");
        let (what, times) = out[start + 1..end].split_once('*').expect("<what*times>");
        out.replace_range(start..=end, &what.repeat(times.parse().expect("a number of times")));
    }
    for (escape, byte) in
        [("\\x20", " "), ("\\r", "\r"), ("\\n", "\n"), ("\\t", "\t"), ("\\v", "\x0b"), ("\\0", "\0")]
    {
        out = out.replace(escape, byte);
    }
    out.into_bytes()
}

/// What the decoder found, in the words of the scripts; a put without its body.
pub fn verdict(request: &Request<'_>) -> String {
    match request {
        Request::Command(command) => {
            let mut line = BytesMut::new();
            encode_command(command, &mut line);
            String::from_utf8(line.to_vec()).expect("commands are text").trim_end().to_owned()
        }
        Request::Put { header, .. } => {
            format!("put {} {} {} {}", header.pri, header.delay, header.ttr, header.bytes)
        }
        Request::Bad(BadRequest::BadFormat) => "bad format".into(),
        Request::Bad(BadRequest::UnknownCommand) => "unknown".into(),
        Request::Bad(BadRequest::JobTooBig) => "job too big".into(),
        Request::Bad(BadRequest::NoRoom) => "no room".into(),
        Request::Bad(BadRequest::ExpectedCrlf) => "expected CRLF".into(),
    }
}
