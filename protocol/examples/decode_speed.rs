//! How many requests and replies per second one core decodes and encodes: `cargo run --release -p
//! beanpole-protocol
//! --example decode_speed`. Each line is the best of five runs over a buffer of pipelined commands, so it
//! leaves out everything but this crate. For comparison: a server on one core spends about 6 µs on a command,
//! system calls included.

use std::hint::black_box;
use std::time::Instant;

use beanpole_protocol::{
    Command, DEFAULT_MAX_JOB_SIZE, Decoder, JobId, Reply, ReplyDecoder, encode_command, encode_put,
};
use bytes::BytesMut;

/// Commands in one buffer: about what a read from a busy pipelining connection brings.
const BATCH: usize = 256;
/// Buffers in one run.
const ROUNDS: usize = 4_000;

fn main() {
    let mut puts = BytesMut::new();
    let mut cycles = BytesMut::new();
    let mut replies = BytesMut::new();
    for n in 0..BATCH as u64 {
        encode_put(1024, 0, 60, &[b'x'; 256], &mut puts);
        encode_command(&Command::Reserve, &mut cycles);
        encode_command(&Command::Delete(JobId(1_000_000 + n)), &mut cycles);
        Reply::Inserted(JobId(1_000_000 + n)).encode(&mut replies);
        Reply::Reserved { id: JobId(1_000_000 + n), data: &[b'x'; 256] }.encode(&mut replies);
        Reply::Deleted.encode(&mut replies);
    }
    report("decode put, 256-byte body", BATCH, || decode(&puts));
    report("decode reserve and delete", 2 * BATCH, || decode(&cycles));
    report("decode replies of a cycle", 3 * BATCH, || decode_replies(&replies));
    report("encode replies of a cycle", 3 * BATCH, || {
        let mut out = BytesMut::with_capacity(replies.len());
        for n in 0..BATCH as u64 {
            Reply::Inserted(JobId(1_000_000 + n)).encode(&mut out);
            Reply::Reserved { id: JobId(1_000_000 + n), data: &[b'x'; 256] }.encode(&mut out);
            Reply::Deleted.encode(&mut out);
        }
        black_box(out.len())
    });
}

fn decode(stream: &[u8]) -> usize {
    let mut buf = BytesMut::from(stream);
    let mut decoder = Decoder::new(DEFAULT_MAX_JOB_SIZE);
    let mut found = 0;
    while decoder.next(&mut buf, |request| black_box(&request) as *const _ as usize != 0).is_some() {
        found += 1;
    }
    found
}

fn decode_replies(stream: &[u8]) -> usize {
    let mut buf = BytesMut::from(stream);
    let mut decoder = ReplyDecoder::default();
    let mut found = 0;
    while black_box(decoder.next(&mut buf)).expect("the stream is well-formed").is_some() {
        found += 1;
    }
    found
}

fn report(what: &str, per_round: usize, mut round: impl FnMut() -> usize) {
    let mut best_ns = f64::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            black_box(round());
        }
        best_ns = best_ns.min(start.elapsed().as_nanos() as f64 / (ROUNDS * per_round) as f64);
    }
    println!("{what:<28} {best_ns:7.1} ns each {:6.1} million/s", 1e3 / best_ns);
}
