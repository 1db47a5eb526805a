//! What holds for any bytes: requests do not depend on how the stream was cut, nothing panics, and what one
//! side encodes the other decodes to the same.

use beanpole_protocol::{
    ClientReply, Command, Decoder, JobId, MAX_JOB_SIZE_LIMIT, MAX_LINE, OwnedRequest, Priority, PutHeader,
    PutKey, Reply, ReplyDecoder, Tube, encode_command, encode_put, encode_put_once,
};
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

/// Small, so that random sizes lie on both sides.
const MAX_JOB_SIZE: u32 = 100;

fn drain(decoder: &mut Decoder, buf: &mut BytesMut) -> Vec<OwnedRequest> {
    std::iter::from_fn(|| decoder.next(buf, |request| OwnedRequest::from(request))).collect()
}

/// The requests of `stream` when it comes in pieces of these lengths, over and over.
fn in_pieces(stream: &[u8], lengths: &[usize]) -> Vec<OwnedRequest> {
    let mut decoder = Decoder::new(MAX_JOB_SIZE);
    let (mut buf, mut found, mut at) = (BytesMut::new(), Vec::new(), 0);
    for length in lengths.iter().cycle() {
        let end = (at + length).min(stream.len());
        buf.extend_from_slice(&stream[at..end]);
        found.extend(drain(&mut decoder, &mut buf));
        assert!(buf.len() < MAX_LINE.max(MAX_JOB_SIZE as usize + 2), "what stays may still become a request");
        at = end;
        if at == stream.len() {
            break;
        }
    }
    found
}

/// What a parser may trip over.
const SCRAPS: &[&[u8]] = &[b"\r\n", b"\r", b"\n", b"\0", b" ", b"put ", b"reserve", b"\r\r\n"];

/// What clients send, and what is nearly that.
fn piece_of_stream() -> impl Strategy<Value = Vec<u8>> {
    let body = proptest::collection::vec(any::<u8>(), 0..130);
    prop_oneof![
        4 => command_bytes(),
        2 => body.clone().prop_map(|body| {
            let mut out = BytesMut::new();
            encode_put(1, 0, 1, &body, &mut out);
            out.to_vec()
        }),
        1 => (0u32..300, body)
            .prop_map(|(bytes, body)| [format!("put 0 0 1 {bytes}\r\n").as_bytes(), &body].concat()),
        1 => Just(b"put 0 0 1 4 x\r\n".to_vec()),
        1 => Just(b"put 0 0 1 101 x\r\n".to_vec()),
        1 => (200usize..500).prop_map(|len| vec![b'x'; len]),
        2 => proptest::sample::select(SCRAPS).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 0..30),
    ]
}

const REPLY_WORDS: [&str; 7] = ["OK", "RESERVED", "FOUND", "INSERTED", "USING", "KICKED", ""];

fn tube_name() -> impl Strategy<Value = String> {
    "[A-Za-z0-9+/;.$_()][A-Za-z0-9+/;.$_()-]{0,199}"
}

/// Any command. The choice comes with arguments for all, each command takes what it needs.
fn with_command<R>(choice: u8, name: &str, id: u64, a: u32, b: u32, f: impl FnOnce(Command<'_>) -> R) -> R {
    let tube = Tube::new(name.as_bytes()).expect("the strategy makes valid names");
    let (id, pri) = (JobId(id), Priority(a));
    f(match choice % 24 {
        0 => Command::Use(tube),
        1 => Command::Reserve,
        2 => Command::ReserveWithTimeout(a >> 1),
        3 => Command::ReserveJob(id),
        4 => Command::Delete(id),
        5 => Command::Release { id, pri, delay: b },
        6 => Command::Bury { id, pri },
        7 => Command::Touch(id),
        8 => Command::Watch(tube),
        9 => Command::Ignore(tube),
        10 => Command::Peek(id),
        11 => Command::PeekReady,
        12 => Command::PeekDelayed,
        13 => Command::PeekBuried,
        14 => Command::Kick(a),
        15 => Command::KickJob(id),
        16 => Command::Stats,
        17 => Command::StatsTube(tube),
        18 => Command::StatsJob(id),
        19 => Command::ListTubes,
        20 => Command::ListTubeUsed,
        21 => Command::ListTubesWatched,
        22 => Command::PauseTube { tube, delay: b },
        _ => Command::Quit,
    })
}

fn command_bytes() -> impl Strategy<Value = Vec<u8>> {
    (any::<u8>(), tube_name(), any::<u64>(), any::<u32>(), any::<u32>()).prop_map(
        |(choice, name, id, a, b)| {
            let mut out = BytesMut::new();
            with_command(choice, &name, id, a, b, |command| encode_command(&command, &mut out));
            out.to_vec()
        },
    )
}

/// The borrowed reply that says the same.
fn borrowed(reply: &ClientReply) -> Reply<'_> {
    match reply {
        ClientReply::Inserted(id) => Reply::Inserted(*id),
        ClientReply::BuriedPut(id) => Reply::BuriedPut(*id),
        ClientReply::ExpectedCrlf => Reply::ExpectedCrlf,
        ClientReply::JobTooBig => Reply::JobTooBig,
        ClientReply::Draining => Reply::Draining,
        ClientReply::OutOfMemory => Reply::OutOfMemory,
        ClientReply::InternalError => Reply::InternalError,
        ClientReply::BadFormat => Reply::BadFormat,
        ClientReply::UnknownCommand => Reply::UnknownCommand,
        ClientReply::Using(tube) => Reply::Using(tube),
        ClientReply::DeadlineSoon => Reply::DeadlineSoon,
        ClientReply::TimedOut => Reply::TimedOut,
        ClientReply::Reserved { id, data } => Reply::Reserved { id: *id, data },
        ClientReply::Deleted => Reply::Deleted,
        ClientReply::NotFound => Reply::NotFound,
        ClientReply::Released => Reply::Released,
        ClientReply::Buried => Reply::Buried,
        ClientReply::Touched => Reply::Touched,
        ClientReply::Watching(count) => Reply::Watching(*count),
        ClientReply::NotIgnored => Reply::NotIgnored,
        ClientReply::Found { id, data } => Reply::Found { id: *id, data },
        ClientReply::Kicked(count) => Reply::Kicked(*count),
        ClientReply::KickedJob => Reply::KickedJob,
        ClientReply::Paused => Reply::Paused,
        ClientReply::Ok(data) => Reply::Ok(data),
    }
}

fn reply() -> impl Strategy<Value = ClientReply> {
    let data = || proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
    let id = || any::<u64>().prop_map(JobId);
    prop_oneof![
        id().prop_map(ClientReply::Inserted),
        id().prop_map(ClientReply::BuriedPut),
        tube_name().prop_map(ClientReply::Using),
        (id(), data()).prop_map(|(id, data)| ClientReply::Reserved { id, data }),
        (id(), data()).prop_map(|(id, data)| ClientReply::Found { id, data }),
        any::<u64>().prop_map(ClientReply::Watching),
        any::<u64>().prop_map(ClientReply::Kicked),
        data().prop_map(ClientReply::Ok),
        proptest::sample::select(vec![
            ClientReply::Deleted,
            ClientReply::NotFound,
            ClientReply::TimedOut,
            ClientReply::KickedJob,
            ClientReply::Buried,
            ClientReply::DeadlineSoon,
        ]),
    ]
}

proptest! {
    #[test]
    fn the_same_bytes_give_the_same_requests_however_they_arrive(
        pieces in proptest::collection::vec(piece_of_stream(), 0..12),
        lengths in proptest::collection::vec(1usize..60, 1..20),
    ) {
        let stream = pieces.concat();
        let whole = drain(&mut Decoder::new(MAX_JOB_SIZE), &mut BytesMut::from(&stream[..]));
        prop_assert_eq!(&whole, &in_pieces(&stream, &lengths));
        prop_assert_eq!(&whole, &in_pieces(&stream, &[1]));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        in_pieces(&bytes, &[bytes.len().max(1)]);
        let mut buf = BytesMut::from(&bytes[..]);
        let mut decoder = ReplyDecoder::default();
        while let Ok(Some(_)) = decoder.next(&mut buf) {}
    }

    /// Lines that begin as a reply does reach further into the parser than noise.
    #[test]
    fn arbitrary_replies_never_panic(
        word in proptest::sample::select(&REPLY_WORDS[..]),
        args in "( [0-9]{0,22}){0,3}|[ -~]{0,20}",
        rest in proptest::collection::vec(any::<u8>(), 0..50),
    ) {
        let mut buf = BytesMut::from(format!("{word}{args}\r\n").as_bytes());
        buf.extend_from_slice(&rest);
        let mut decoder = ReplyDecoder::default();
        while let Ok(Some(_)) = decoder.next(&mut buf) {}
    }

    #[test]
    fn any_command_comes_out_as_it_went_in(
        choice in any::<u8>(), name in tube_name(), id in any::<u64>(), a in any::<u32>(), b in any::<u32>(),
    ) {
        with_command(choice, &name, id, a, b, |command| {
            let mut buf = BytesMut::new();
            encode_command(&command, &mut buf);
            prop_assert!(buf.len() <= MAX_LINE, "every command fits a line");
            let found = drain(&mut Decoder::new(MAX_JOB_SIZE), &mut buf);
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].command(), Some(command));
            prop_assert!(buf.is_empty());
            Ok(())
        })?;
    }

    #[test]
    fn any_put_comes_out_as_it_went_in(
        pri in any::<u32>(), delay in any::<u32>(), ttr in any::<u32>(),
        body in proptest::collection::vec(any::<u8>(), 0..3000),
    ) {
        let mut buf = BytesMut::new();
        encode_put(pri, delay, ttr, &body, &mut buf);
        let found = drain(&mut Decoder::new(MAX_JOB_SIZE_LIMIT), &mut buf);
        let header = PutHeader { pri, delay, ttr: ttr.max(1), bytes: body.len() as u32, key: None };
        prop_assert_eq!(found, [OwnedRequest::Put(header, Bytes::from([&body[..], b"\r\n"].concat()))]);
        prop_assert!(buf.is_empty());
    }

    #[test]
    fn any_put_with_a_key_comes_out_as_it_went_in(
        numbers in any::<[u32; 3]>(),
        key in "[!-~]{1,64}",
        body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut buf = BytesMut::new();
        let key = PutKey::new(key.as_bytes()).unwrap();
        encode_put_once(&key, numbers, &body, &mut buf);
        let found = drain(&mut Decoder::new(MAX_JOB_SIZE_LIMIT), &mut buf);
        let [pri, delay, ttr] = numbers;
        let header = PutHeader { pri, delay, ttr: ttr.max(1), bytes: body.len() as u32, key: Some(key) };
        prop_assert_eq!(found, [OwnedRequest::Put(header, Bytes::from([&body[..], b"\r\n"].concat()))]);
    }

    #[test]
    fn any_replies_come_out_as_they_went_in(
        replies in proptest::collection::vec(reply(), 0..10),
        length in 1usize..80,
    ) {
        let mut stream = BytesMut::new();
        for reply in &replies {
            borrowed(reply).encode(&mut stream);
        }
        let mut decoder = ReplyDecoder::default();
        let (mut buf, mut found) = (BytesMut::new(), Vec::new());
        for piece in stream.chunks(length) {
            buf.extend_from_slice(piece);
            while let Some(reply) = decoder.next(&mut buf).unwrap() {
                found.push(reply);
            }
        }
        prop_assert_eq!(found, replies);
        prop_assert!(buf.is_empty());
    }
}
