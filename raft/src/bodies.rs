//! Reading and accounting of bodies.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::error::BodyError;
use crate::format::HEAD_LEN;
use crate::log::Log;
use crate::payload::BodyAddr;
use crate::prepare::Preparer;
use crate::segment::Segment;

/// A handle to read bodies and to say which are still referenced. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Bodies {
    log: Arc<Log>,
    preparer: Arc<Preparer>,
}

impl Bodies {
    pub(crate) fn new(log: Arc<Log>, preparer: Arc<Preparer>) -> Self {
        Self { log, preparer }
    }

    /// Appends the bytes at `addr` to `out` when that needs no disk: they are in the ring of recent entries,
    /// or in a mapped page that is resident. Answers `false`, and leaves `out` alone, when they are cold.
    ///
    /// # Errors
    /// [`BodyError::Unknown`] when no retained entry holds that range.
    pub fn read_now(&self, addr: BodyAddr, out: &mut BytesMut) -> Result<bool, BodyError> {
        if self.read_ring(addr, out)? {
            return Ok(true);
        }
        let read = self.log.table.with_body(addr.index, |segment| {
            let start = place(segment, addr)?;
            let now = segment.map.resident(start, addr.len as usize);
            if now {
                segment.map.copy(start, addr.len as usize, out);
            }
            Some(now)
        });
        read.flatten().ok_or(BodyError::Unknown(addr))
    }

    /// Reads a body wherever it is, on the blocking pool, or at once where the node does all IO on the runtime.
    ///
    /// # Errors
    /// As [`Bodies::read_blocking`]; [`BodyError::Io`] also when the runtime goes down meanwhile.
    pub async fn read(&self, addr: BodyAddr) -> Result<Bytes, BodyError> {
        let bodies = self.clone();
        let read = self.log.blocking(move || Ok(bodies.read_blocking(addr))).await;
        read.unwrap_or_else(|source| Err(BodyError::Io { addr, source }))
    }

    /// Reads a body wherever it is. May block on the disk: call it on the blocking pool. It reads through the
    /// file and not through the map: a media error is an error then, and not a signal that ends the process.
    ///
    /// # Errors
    /// [`BodyError::Unknown`] when no retained entry holds that range, [`BodyError::Io`] when the disk fails.
    pub fn read_blocking(&self, addr: BodyAddr) -> Result<Bytes, BodyError> {
        let mut out = BytesMut::new();
        if self.read_ring(addr, &mut out)? {
            return Ok(out.freeze());
        }
        let segment = self.log.table.with_body(addr.index, Arc::clone).ok_or(BodyError::Unknown(addr))?;
        let start = place(&segment, addr).ok_or(BodyError::Unknown(addr))?;
        let mut bytes = vec![0; addr.len as usize];
        match segment.file.read_at(&mut bytes, start) {
            Ok(read) if read == bytes.len() => Ok(bytes.into()),
            Ok(_) => Err(BodyError::Io { addr, source: std::io::ErrorKind::UnexpectedEof.into() }),
            Err(source) => Err(BodyError::Io { addr, source }),
        }
    }

    /// Appends the bytes at `addr` when the ring has them. What came with a snapshot is not taken from there:
    /// the ring may still hold an entry that was never committed under the same index.
    fn read_ring(&self, addr: BodyAddr, out: &mut BytesMut) -> Result<bool, BodyError> {
        if self.log.table.imported(addr.index).is_some() {
            return Ok(false);
        }
        match self.log.ring_bytes(addr.index, addr.offset as usize, addr.len as usize, out) {
            Some(false) => Err(BodyError::Unknown(addr)),
            found => Ok(found.is_some()),
        }
    }

    /// Says that the state references the body from now on: its segment stays. Call it during apply.
    pub fn retain(&self, addr: BodyAddr) {
        self.log.retain(addr.index, u64::from(addr.len));
    }

    /// Says that the state no longer references the body. Call it during apply, once per `retain`. The bytes
    /// stay readable until the segment goes, which is not before the next durable snapshot.
    ///
    /// # Panics
    /// When it was not retained.
    pub fn release(&self, addr: BodyAddr) {
        self.log.release(addr.index, u64::from(addr.len));
    }

    /// Whether the next segment cannot be made, because the disk is full above all. What is left of the active one still takes
    /// entries; when that is used up too, the node stops. Tried again every second. Cheap.
    #[must_use]
    pub fn no_space(&self) -> bool {
        self.preparer.failing()
    }

    /// What the log and its bodies occupy now. Takes time in proportion to the number of segments.
    #[must_use]
    pub fn disk_usage(&self) -> DiskUsage {
        let mut segments = self.log.table.all();
        segments.extend(self.log.table.bodies());
        let mut usage = DiskUsage {
            segments: segments.len() as u64,
            pinned_deleted: self.log.table.pinned_deleted(),
            no_space: self.no_space(),
            ..DiskUsage::default()
        };
        for segment in &segments {
            usage.log_bytes += segment.capacity;
            usage.body_bytes += segment.end();
            usage.live_bytes += segment.live_bytes();
        }
        usage.dead_bytes = usage.body_bytes.saturating_sub(usage.live_bytes);
        usage
    }
}

/// Where in the file a body starts; `None` when it is not within its entry's record.
pub(crate) fn place(segment: &Segment, addr: BodyAddr) -> Option<u64> {
    let (record, end) = segment.span(addr.index)?;
    let start = record + HEAD_LEN as u64 + u64::from(addr.offset);
    (start + u64::from(addr.len) <= end).then_some(start)
}

/// Bytes and files of the log, for statistics and for admission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Size of the segment files in use.
    pub log_bytes: u64,
    /// Bytes of records in them.
    pub body_bytes: u64,
    /// Bytes of bodies that the state references.
    pub live_bytes: u64,
    /// `body_bytes` less `live_bytes`: what a purge or a compaction could give back.
    pub dead_bytes: u64,
    /// Number of segments, the active one included.
    pub segments: u64,
    /// Bytes of segment files that are deleted but still mapped by a reader.
    pub pinned_deleted: u64,
    /// The next segment could not be made: what is left of the active one is all the room there is. Puts
    /// should be refused, so that deletes can still be logged; it is tried again every second.
    pub no_space: bool,
}
