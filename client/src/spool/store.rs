//! The directory of a spool: segments that are appended to, read from the first to the last, and removed.
//!
//! ```text
//!   lock      held by the one producer that uses the directory
//!   cursor    segment u64 | offset u64 | crc-32 u32: everything before it has been replayed
//!   0000000000000001.spool, 0000000000000002.spool, ...      see record.rs
//! ```
//!
//! A segment that is being read is not written any more: the next put begins another one. So is what a crash left behind; of
//! that the torn end is cut off. A cursor that is lost or old makes records be replayed again, under the same keys.

use super::record::{Found, MAGIC, Record, read};
use super::{SpoolCounters, SpoolError, SpoolSettings};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Length of the file `cursor`.
const CURSOR_BYTES: usize = 20;

/// A file of records.
#[derive(Debug)]
struct Segment {
    number: u64,
    bytes: u64,
    /// Records that were not handed out.
    records: u64,
    /// When the newest of them was put.
    newest_ms: u64,
}

/// The segment that is read, in memory.
#[derive(Debug)]
struct Head {
    number: u64,
    data: Vec<u8>,
    next: usize,
}

/// A record that was handed out.
#[derive(Debug)]
struct Handed {
    number: u64,
    segment: u64,
    end: u64,
    is_done: bool,
}

/// Why a record was not stored.
#[derive(Debug)]
pub(super) enum NotStored {
    /// There is no room; nothing was written.
    Full,
    /// The file could not be written, and was set back.
    Failed(io::Error),
    /// It could neither be written nor set back.
    Unclear(io::Error),
}

/// A spool's directory.
#[derive(Debug)]
pub(super) struct Store {
    settings: SpoolSettings,
    counters: Arc<SpoolCounters>,
    /// Held for as long as the directory is used.
    _lock: File,
    segments: VecDeque<Segment>,
    /// The last segment, while it is appended to.
    writer: Option<File>,
    head: Option<Head>,
    handed: VecDeque<Handed>,
    next_number: u64,
    next_segment: u64,
    cursor: (u64, u64),
    cursor_is_written: bool,
}

impl Store {
    /// Opens the directory, and makes it if there is none.
    pub(super) fn open(settings: SpoolSettings, counters: Arc<SpoolCounters>) -> Result<Store, SpoolError> {
        let directory = settings.directory.clone();
        let io = |source| SpoolError::Io { directory: directory.clone(), source };
        fs::create_dir_all(&directory).map_err(io)?;
        let lock = File::create(directory.join("lock")).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SpoolError::InUse { directory }),
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let mut store = Store {
            cursor: read_cursor(&directory).unwrap_or_default(),
            settings,
            counters,
            _lock: lock,
            segments: VecDeque::new(),
            writer: None,
            head: None,
            handed: VecDeque::new(),
            next_number: 0,
            next_segment: 1,
            cursor_is_written: true,
        };
        store.scan().map_err(io)?;
        store.publish();
        Ok(store)
    }

    /// Finds the segments, and removes those that were replayed.
    fn scan(&mut self) -> io::Result<()> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.settings.directory)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".spool"));
            numbers.extend(number.and_then(|number| u64::from_str_radix(number, 16).ok()));
        }
        numbers.sort_unstable();
        self.next_segment = numbers.last().map_or(self.cursor.0, |last| *last).max(self.cursor.0) + 1;
        for number in numbers {
            if number < self.cursor.0 {
                fs::remove_file(self.path(number))?;
            } else {
                self.scan_segment(number)?;
            }
        }
        Ok(())
    }

    fn scan_segment(&mut self, number: u64) -> io::Result<()> {
        let data = fs::read(self.path(number))?;
        if data.len() >= MAGIC.len() && !data.starts_with(MAGIC) {
            let what = format!("{} is no spool file of this release", self.path(number).display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let mut at = self.start_of(number);
        let mut segment = Segment { number, bytes: 0, records: 0, newest_ms: 0 };
        loop {
            match read(&data, at) {
                Found::Record(record, next) => {
                    segment.records += 1;
                    segment.newest_ms = segment.newest_ms.max(record.put_at_ms);
                    at = next;
                }
                Found::Damaged(next) => at = next,
                Found::End => break,
            }
        }
        if at < data.len() {
            let torn = data.len() - at;
            tracing::warn!(file = %self.path(number).display(), torn, "the end of a spool file was not written whole");
            OpenOptions::new().write(true).open(self.path(number))?.set_len(at as u64)?;
        }
        segment.bytes = at.min(data.len()) as u64;
        self.segments.push_back(segment);
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.settings.directory.join(format!("{number:016x}.spool"))
    }

    /// Where the first record lies that was not replayed.
    fn start_of(&self, segment: u64) -> usize {
        if segment == self.cursor.0 { (self.cursor.1 as usize).max(MAGIC.len()) } else { MAGIC.len() }
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Appends a record; it is durable after the next [`sync`](Self::sync).
    pub(super) fn append(&mut self, record: &Record, now_ms: u64) -> Result<(), NotStored> {
        let bytes = record.encode();
        if self.bytes() + bytes.len() as u64 > self.settings.bytes_max {
            self.drop_old_segments(now_ms);
        }
        if self.bytes() + bytes.len() as u64 > self.settings.bytes_max {
            self.counters.refused_full.fetch_add(1, Relaxed);
            return Err(NotStored::Full);
        }
        let result = self.write(&bytes);
        if let (Ok(()), Some(segment)) = (&result, self.segments.back_mut()) {
            segment.bytes += bytes.len() as u64;
            segment.records += 1;
            segment.newest_ms = segment.newest_ms.max(record.put_at_ms);
        }
        result
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), NotStored> {
        let is_full = self.segments.back().is_some_and(|last| last.bytes >= self.settings.segment_bytes);
        if self.writer.is_none() || is_full {
            self.begin_segment().map_err(NotStored::Failed)?;
        }
        let (Some(writer), Some(segment)) = (&mut self.writer, self.segments.back()) else {
            return Err(NotStored::Failed(io::ErrorKind::NotFound.into()));
        };
        let Err(error) = writer.write_all(bytes) else { return Ok(()) };
        let set_back = writer.set_len(segment.bytes);
        // Whatever is wrong with this file, the next put begins another one.
        self.writer = None;
        Err(if set_back.is_ok() { NotStored::Failed(error) } else { NotStored::Unclear(error) })
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        self.sync()?;
        let number = self.next_segment;
        let mut file = OpenOptions::new().append(true).create_new(true).open(self.path(number))?;
        self.next_segment += 1;
        file.write_all(MAGIC)?;
        // The name must be durable before what is in the file can be.
        File::open(&self.settings.directory)?.sync_all()?;
        self.writer = Some(file);
        self.segments.push_back(Segment { number, bytes: MAGIC.len() as u64, records: 0, newest_ms: 0 });
        Ok(())
    }

    /// Makes durable what was appended.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        let Some(writer) = &self.writer else { return Ok(()) };
        let result = writer.sync_data();
        if result.is_err() {
            // What a later sync says of this file is worth nothing.
            self.writer = None;
        }
        result
    }

    /// Records of the oldest segments, if all of a segment's are too old, make room for new ones.
    fn drop_old_segments(&mut self, now_ms: u64) {
        while let Some(first) = self.segments.front() {
            let is_read = self.head.as_ref().is_some_and(|head| head.number == first.number);
            let is_written = self.writer.is_some() && self.segments.len() == 1;
            let is_old = first.newest_ms.saturating_add(self.settings.age_max_ms()) < now_ms;
            if is_read || is_written || !is_old || !self.handed.is_empty() {
                return;
            }
            let (number, records) = (first.number, first.records);
            self.counters.dropped_old.fetch_add(records, Relaxed);
            tracing::warn!(records, "spooled puts were dropped: they are too old");
            self.move_cursor(number + 1, 0);
        }
    }

    /// Up to `most` records in order, each with a number to give to [`done`](Self::done). Those that are too old are dropped.
    pub(super) fn hand_out(&mut self, most: usize, now_ms: u64) -> Vec<(u64, Record)> {
        let mut records = Vec::new();
        let mut dropped = 0;
        while records.len() < most {
            let Some((segment, found, end)) = self.read_next() else { break };
            let number = self.next_number;
            self.next_number += 1;
            let is_old =
                |record: &Record| record.put_at_ms.saturating_add(self.settings.age_max_ms()) < now_ms;
            let wanted = found.filter(|record| {
                dropped += u64::from(is_old(record));
                !is_old(record)
            });
            self.handed.push_back(Handed { number, segment, end, is_done: wanted.is_none() });
            records.extend(wanted.map(|record| (number, record)));
        }
        if dropped > 0 {
            self.counters.dropped_old.fetch_add(dropped, Relaxed);
            tracing::warn!(records = dropped, "spooled puts were dropped: they are too old");
        }
        self.settle();
        records
    }

    /// The next record, or none in its place if it is damaged; its segment, and where it ends.
    fn read_next(&mut self) -> Option<(u64, Option<Record>, u64)> {
        loop {
            if self.head.is_none() {
                self.load_head()?;
            }
            let head = self.head.as_mut()?;
            let number = head.number;
            match read(&head.data, head.next) {
                Found::Record(record, next) => {
                    head.next = next;
                    if let Some(segment) = self.segments.iter_mut().find(|segment| segment.number == number) {
                        segment.records = segment.records.saturating_sub(1);
                    }
                    return Some((number, Some(record), next as u64));
                }
                Found::Damaged(next) => {
                    head.next = next;
                    self.counters.damaged.fetch_add(1, Relaxed);
                    tracing::error!(file = %self.path(number).display(), "a spooled put is damaged and is dropped");
                    return Some((number, None, next as u64));
                }
                Found::End => {
                    self.head = None;
                    self.segment_is_read(number);
                }
            }
        }
    }

    /// Reads the first segment that was not read; the one that is written is no longer.
    fn load_head(&mut self) -> Option<()> {
        let after = self.handed.back().map_or(0, |handed| handed.segment);
        let segment = self.segments.iter().find(|segment| segment.records > 0 && segment.number >= after)?;
        let number = segment.number;
        if self.segments.back().is_some_and(|last| last.number == number) {
            if let Err(error) = self.sync() {
                tracing::error!(%error, "the spool cannot be synced");
            }
            self.writer = None;
        }
        match fs::read(self.path(number)) {
            Ok(data) => {
                self.head = Some(Head { number, data, next: self.start_of(number) });
                Some(())
            }
            Err(error) => {
                tracing::error!(file = %self.path(number).display(), %error, "a spool file cannot be read");
                None
            }
        }
    }

    /// Nothing more will be handed out of a segment.
    fn segment_is_read(&mut self, number: u64) {
        if let Some(segment) = self.segments.iter_mut().find(|segment| segment.number == number) {
            segment.records = 0;
        }
    }

    /// A record needs no more replaying.
    pub(super) fn done(&mut self, number: u64) {
        if let Some(handed) = self.handed.iter_mut().find(|handed| handed.number == number) {
            handed.is_done = true;
        }
        self.settle();
    }

    /// Moves the cursor behind everything that is done.
    fn settle(&mut self) {
        let mut last = None;
        while let Some(first) = self.handed.front().filter(|first| first.is_done) {
            last = Some((first.segment, first.end));
            self.handed.pop_front();
        }
        let Some((segment, end)) = last else { return };
        let is_over = self.segments.iter().any(|of| of.number == segment && of.bytes <= end);
        let is_written = self.writer.is_some() && self.segments.back().is_some_and(|of| of.number == segment);
        if is_over && !is_written && self.handed.is_empty() {
            self.head = self.head.take().filter(|head| head.number != segment);
            self.move_cursor(segment + 1, 0);
        } else {
            self.move_cursor(segment, end);
        }
    }

    /// Everything before is done: files that hold nothing else are removed.
    fn move_cursor(&mut self, segment: u64, offset: u64) {
        self.cursor = (segment, offset);
        self.cursor_is_written = false;
        while let Some(number) =
            self.segments.front().map(|first| first.number).filter(|first| *first < segment)
        {
            self.segments.pop_front();
            if let Err(error) = fs::remove_file(self.path(number)) {
                tracing::error!(file = %self.path(number).display(), %error, "cannot be removed");
            }
        }
    }

    /// Writes the cursor if it has moved. Without a sync: an old one is as good, only slower.
    pub(super) fn save_cursor(&mut self) {
        if self.cursor_is_written {
            return;
        }
        let mut bytes = [self.cursor.0.to_le_bytes(), self.cursor.1.to_le_bytes()].concat();
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        let (new, name) =
            (self.settings.directory.join("cursor.new"), self.settings.directory.join("cursor"));
        match fs::write(&new, bytes).and_then(|()| fs::rename(&new, &name)) {
            Ok(()) => self.cursor_is_written = true,
            Err(error) => tracing::warn!(file = %name.display(), %error, "cannot be written"),
        }
    }

    /// Tells how much there is.
    pub(super) fn publish(&self) {
        let waiting: u64 = self.segments.iter().map(|segment| segment.records).sum();
        self.counters.waiting.store(waiting, Relaxed);
        self.counters.unfinished.store(waiting + self.handed.len() as u64, Relaxed);
        self.counters.bytes.store(self.bytes(), Relaxed);
    }
}

fn read_cursor(directory: &Path) -> Option<(u64, u64)> {
    let bytes: [u8; CURSOR_BYTES] = fs::read(directory.join("cursor")).ok()?.try_into().ok()?;
    let crc = u32::from_le_bytes(bytes[16..].try_into().ok()?);
    let number = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    (crc32fast::hash(&bytes[..16]) == crc).then_some((number(0)?, number(8)?))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
