//! What travels between nodes, cut into frames.
//!
//! ```text
//! 0 body length u32   4 kind u8   5 three zero bytes   8 id u64   16 crc u32 of bytes 0..16 and the body
//! 20 body
//! ```
//!
//! All numbers are little-endian. The id pairs a response with its request, and is 0 where nothing is paired. A
//! body goes out in the parts it consists of, without a copy, and comes in as a slice of what was read. A wrong
//! checksum or an impossible length ends the connection: a byte stream cannot be trusted after that.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;

use crate::format::{u32_at, u64_at};
use crate::payload::Payload;

/// Bytes before a body.
pub(crate) const HEAD_LEN: usize = 20;
/// The longest body: an entry of the largest size and what describes it.
pub(crate) const BODY_MAX: usize = Payload::MAX_LEN + (1 << 20);
/// How much is read at once. A longer body is allocated as it arrives, this much ahead at first.
const READ_BYTES: usize = 64 << 10;
/// With less room than this the buffer is made larger before a read, in bytes.
const ROOM_MIN: usize = 4 << 10;
/// Parts up to this long are copied into one run, so that many small frames go out in one write.
const COPY_MAX: usize = 2 << 10;
/// How many runs one write gathers.
const GATHER: usize = 64;
/// How many bytes are taken from the queue for one round of writing.
const ROUND_BYTES: usize = 256 << 10;

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// Who connects and why; the first frame of a connection.
    Hello,
    /// The answer of a node that lets the other one in: who it is.
    Welcome,
    /// Why the connection is refused; the last frame.
    Refused,
    /// Nothing: says that the sender lives.
    Alive,
    /// Entries to append, pipelined and answered in order.
    Append,
    /// A heartbeat, which waits for no append.
    Heartbeat,
    /// A request for a vote.
    Vote,
    /// A question whether a vote would be granted.
    PreVote,
    /// The leader hands over.
    Handover,
    /// The answer to the request of the same id, or to a question.
    Answer,
    /// A message of a link.
    Message,
    /// Anything that a snapshot connection carries.
    Snapshot,
    /// A question for bodies.
    Ask,
}

impl FrameKind {
    const ALL: [Self; 13] = [
        Self::Hello,
        Self::Welcome,
        Self::Refused,
        Self::Alive,
        Self::Append,
        Self::Heartbeat,
        Self::Vote,
        Self::PreVote,
        Self::Handover,
        Self::Answer,
        Self::Message,
        Self::Snapshot,
        Self::Ask,
    ];

    fn code(self) -> u8 {
        self as u8 + 1
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

/// A frame that was received and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: FrameKind,
    pub(crate) id: u64,
    pub(crate) body: Bytes,
}

/// A frame to be sent.
pub(crate) struct OutFrame {
    head: [u8; HEAD_LEN],
    parts: Vec<Bytes>,
    len: usize,
    /// A share of some room, given back when the frame is written or dropped.
    room: Option<OwnedSemaphorePermit>,
}

impl OutFrame {
    /// A frame with a body of `parts`.
    ///
    /// # Panics
    /// When the body is longer than [`BODY_MAX`]; what is proposed is bounded below that.
    pub(crate) fn new(kind: FrameKind, id: u64, parts: Vec<Bytes>) -> Self {
        let len: usize = parts.iter().map(Bytes::len).sum();
        assert!(len <= BODY_MAX, "a frame of {len} bytes");
        let mut head = [0; HEAD_LEN];
        let short = u32::try_from(len).expect("the longest body fits 32 bits");
        head[..4].copy_from_slice(&short.to_le_bytes());
        head[4] = kind.code();
        head[8..16].copy_from_slice(&id.to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head[..16]);
        for part in &parts {
            crc.update(part);
        }
        head[16..].copy_from_slice(&crc.finalize().to_le_bytes());
        Self { head, parts, len: HEAD_LEN + len, room: None }
    }

    /// The same frame, holding a share of some room.
    pub(crate) fn holding(self, room: OwnedSemaphorePermit) -> Self {
        Self { room: Some(room), ..self }
    }
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads frames.
pub(crate) struct FrameReader<R> {
    wire: R,
    buffer: BytesMut,
    body_max: usize,
    /// When bytes last arrived.
    heard: Instant,
    silence: Duration,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Takes a connection for dead when nothing arrives for `silence`.
    pub(crate) fn new(wire: R, body_max: usize, silence: Duration) -> Self {
        Self { wire, buffer: BytesMut::new(), body_max, heard: Instant::now(), silence }
    }

    /// From now on takes bodies up to `body_max`, and silence of up to `silence`.
    pub(crate) fn expect(&mut self, body_max: usize, silence: Duration) {
        self.body_max = body_max;
        self.silence = silence;
        self.heard = Instant::now();
    }

    /// Begins to count silence now.
    pub(crate) fn listen_anew(&mut self) {
        self.heard = Instant::now();
    }

    /// The next frame; `None` at the end of the stream. May be dropped and called again without losing bytes.
    ///
    /// # Errors
    /// When the stream breaks, is silent, or does not carry frames.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.cut()? {
                return Ok(Some(frame));
            }
            let deadline = self.heard + self.silence;
            let read = tokio::time::timeout_at(deadline, self.wire.read_buf(&mut self.buffer)).await;
            match read {
                Ok(Ok(0)) if self.buffer.is_empty() => return Ok(None),
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Ok(_)) => self.heard = Instant::now(),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer is silent")),
            }
        }
    }

    /// The first frame of the buffer when it is complete; else makes room for more.
    fn cut(&mut self) -> io::Result<Option<Frame>> {
        let Some(head) = self.buffer.first_chunk::<HEAD_LEN>() else {
            // What bodies are cut from is freed when all of them are: a buffer for each would cost a page for each.
            if self.buffer.capacity() - self.buffer.len() < ROOM_MIN {
                self.buffer.reserve(READ_BYTES);
            }
            return Ok(None);
        };
        let head = *head;
        let len = u32_at(&head, 0) as usize;
        let kind = FrameKind::from_code(head[4]).ok_or_else(|| bad("an unknown kind of frame"))?;
        if len > self.body_max || head[5..8] != [0; 3] {
            return Err(bad("not a frame header"));
        }
        if self.buffer.len() < HEAD_LEN + len {
            // Grows with what has arrived, so that a damaged length cannot claim memory at once.
            let missing = HEAD_LEN + len - self.buffer.len();
            self.buffer.reserve(missing.min(READ_BYTES.max(self.buffer.len())));
            return Ok(None);
        }
        self.buffer.advance(HEAD_LEN);
        let body = self.buffer.split_to(len).freeze();
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head[..16]);
        crc.update(&body);
        if crc.finalize() != u32_at(&head, 16) {
            return Err(bad("a frame with a wrong checksum"));
        }
        Ok(Some(Frame { kind, id: u64_at(&head, 8), body }))
    }
}

/// Frames that wait to be written, in two lanes: what is urgent overtakes what is bulky.
#[derive(Default)]
pub(crate) struct Outbox {
    queued: Mutex<Queued>,
    filled: Notify,
}

#[derive(Default)]
struct Queued {
    urgent: VecDeque<OutFrame>,
    bulk: VecDeque<OutFrame>,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let queued = self.queued.lock();
        write!(f, "Outbox({} urgent, {} bulk)", queued.urgent.len(), queued.bulk.len())
    }
}

impl Outbox {
    pub(crate) fn shared() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Queues a frame ahead of all bulk.
    pub(crate) fn push_urgent(&self, frame: OutFrame) {
        self.queued.lock().urgent.push_back(frame);
        self.filled.notify_one();
    }

    /// Queues a frame. Who calls bounds what it has queued.
    pub(crate) fn push(&self, frame: OutFrame) {
        self.queued.lock().bulk.push_back(frame);
        self.filled.notify_one();
    }

    /// Drops what is queued.
    pub(crate) fn clear(&self) {
        let mut queued = self.queued.lock();
        queued.urgent.clear();
        queued.bulk.clear();
    }

    /// Moves frames into `runs` until a round is full.
    fn take(&self, runs: &mut Runs) {
        let mut queued = self.queued.lock();
        while runs.bytes < ROUND_BYTES {
            let next = queued.urgent.pop_front().or_else(|| queued.bulk.pop_front());
            let Some(frame) = next else { return };
            runs.push(frame);
        }
    }

    /// Writes frames as they come, until writing fails. Says that this side lives when there was nothing to
    /// write for `alive_every`. May be dropped without losing what is in `runs`.
    pub(crate) async fn write_to<W: AsyncWrite + Unpin>(
        &self,
        runs: &mut Runs,
        wire: &mut W,
        alive_every: Duration,
    ) -> io::Result<()> {
        loop {
            self.flush_to(runs, wire).await?;
            if tokio::time::timeout(alive_every, self.filled.notified()).await.is_err() {
                self.push_urgent(OutFrame::new(FrameKind::Alive, 0, Vec::new()));
            }
        }
    }

    /// Writes what is in `runs` and everything queued.
    pub(crate) async fn flush_to<W: AsyncWrite + Unpin>(
        &self,
        runs: &mut Runs,
        wire: &mut W,
    ) -> io::Result<()> {
        loop {
            self.take(runs);
            if runs.bytes == 0 {
                return Ok(());
            }
            runs.write_to(wire).await?;
        }
    }
}

/// Bytes about to be written: small parts copied together, large ones as they are.
#[derive(Default)]
pub(crate) struct Runs {
    ready: VecDeque<Bytes>,
    /// Small parts that follow `ready`.
    open: BytesMut,
    bytes: usize,
    /// What the frames hold until they are written.
    rooms: Vec<OwnedSemaphorePermit>,
}

impl Runs {
    fn push(&mut self, frame: OutFrame) {
        self.bytes += frame.len;
        self.rooms.extend(frame.room);
        self.open.put_slice(&frame.head);
        for part in frame.parts {
            if part.len() <= COPY_MAX {
                self.open.put_slice(&part);
            } else {
                self.close();
                self.ready.push_back(part);
            }
        }
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.ready.push_back(self.open.split().freeze());
        }
    }

    async fn write_to<W: AsyncWrite + Unpin>(&mut self, wire: &mut W) -> io::Result<()> {
        self.close();
        while let Some(first) = self.ready.front() {
            let mut slices = [IoSlice::new(first); GATHER];
            let mut count = 0;
            for (slice, run) in slices.iter_mut().zip(&self.ready) {
                *slice = IoSlice::new(run);
                count += 1;
            }
            let written = wire.write_vectored(&slices[..count]).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.advance(written);
        }
        self.rooms.clear();
        wire.flush().await
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(first) = self.ready.front_mut() {
            if first.len() > written {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.ready.pop_front();
        }
    }
}

/// Writes one frame at once.
pub(crate) async fn write_frame<W: AsyncWrite + Unpin>(wire: &mut W, frame: OutFrame) -> io::Result<()> {
    let mut runs = Runs::default();
    runs.push(frame);
    runs.write_to(wire).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(1);

    fn frames() -> Vec<(FrameKind, u64, Vec<Bytes>)> {
        let large = Bytes::from(vec![7; 300_000]);
        let mut frames = vec![
            (FrameKind::Append, 9, vec![Bytes::from_static(b"ab"), large.clone(), Bytes::from_static(b"c")]),
            (FrameKind::Alive, 0, vec![]),
        ];
        frames.extend((0..500).map(|id| (FrameKind::Message, id, vec![Bytes::from(vec![1; id as usize])])));
        frames.push((FrameKind::Answer, u64::MAX, vec![large]));
        frames
    }

    /// Frames of all sizes arrive as they were queued, through a stream that cuts them anywhere.
    #[tokio::test]
    async fn round_trip() {
        let (mut near, far) = tokio::io::duplex(1000);
        let (outbox, mut runs) = (Outbox::default(), Runs::default());
        for (kind, id, parts) in frames() {
            outbox.push(OutFrame::new(kind, id, parts));
        }
        let mut reader = FrameReader::new(far, BODY_MAX, SILENCE);
        let read = async {
            for (kind, id, parts) in frames() {
                let frame = reader.next().await.unwrap().unwrap();
                assert_eq!((frame.kind, frame.id), (kind, id));
                assert_eq!(frame.body, parts.concat());
            }
        };
        tokio::select! {
            () = read => {}
            result = outbox.write_to(&mut runs, &mut near, SILENCE) => panic!("{result:?}"),
        }
    }

    /// Bodies that are held, of frames that came one at a time, lie side by side: they do not take a buffer each.
    #[tokio::test]
    async fn small_frames_share_a_buffer() {
        let (mut near, far) = tokio::io::duplex(1000);
        let mut reader = FrameReader::new(far, BODY_MAX, SILENCE);
        let mut held = Vec::new();
        for id in 0..100 {
            let body = vec![Bytes::from_static(b"a body")];
            write_frame(&mut near, OutFrame::new(FrameKind::Message, id, body)).await.unwrap();
            held.push(reader.next().await.unwrap().unwrap().body);
        }
        let next =
            |pair: &[Bytes]| pair[1].as_ptr().addr() == pair[0].as_ptr().addr() + HEAD_LEN + pair[0].len();
        assert!(held.windows(2).all(next));
    }

    /// An urgent frame overtakes bulk that waits.
    #[tokio::test]
    async fn urgent_first() {
        let (mut near, far) = tokio::io::duplex(100_000);
        let (outbox, mut runs) = (Outbox::default(), Runs::default());
        outbox.push(OutFrame::new(FrameKind::Append, 1, vec![]));
        outbox.push_urgent(OutFrame::new(FrameKind::Vote, 2, vec![]));
        let mut reader = FrameReader::new(far, BODY_MAX, SILENCE);
        let ids =
            async { [reader.next().await.unwrap().unwrap().id, reader.next().await.unwrap().unwrap().id] };
        tokio::select! {
            ids = ids => assert_eq!(ids, [2, 1]),
            result = outbox.write_to(&mut runs, &mut near, SILENCE) => panic!("{result:?}"),
        }
    }

    /// No changed byte of a frame goes unnoticed, and a length beyond the limit is refused before its body.
    #[tokio::test]
    async fn damage() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, OutFrame::new(FrameKind::Vote, 5, vec![Bytes::from_static(b"body")]))
            .await
            .unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x11;
            let mut reader = FrameReader::new(&changed[..], 1000, SILENCE);
            assert!(reader.next().await.is_err(), "byte {at}");
        }
        let mut reader = FrameReader::new(&bytes[..], 3, SILENCE);
        assert!(reader.next().await.is_err());
        let mut reader = FrameReader::new(&bytes[..], 4, SILENCE);
        assert_eq!(reader.next().await.unwrap().unwrap().body, "body");
        assert!(reader.next().await.unwrap().is_none());
    }

    /// A peer that says nothing is taken for dead; one that says it lives is not.
    #[tokio::test(start_paused = true)]
    async fn silence() {
        let (mut near, far) = tokio::io::duplex(1000);
        let (outbox, mut runs) = (Outbox::default(), Runs::default());
        let mut reader = FrameReader::new(far, 1000, SILENCE);
        let count = async {
            for _ in 0..20 {
                assert_eq!(reader.next().await.unwrap().unwrap().kind, FrameKind::Alive);
            }
        };
        tokio::select! {
            () = count => {}
            result = outbox.write_to(&mut runs, &mut near, SILENCE / 4) => panic!("{result:?}"),
        }
        assert_eq!(reader.next().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
