//! The log as openraft sees it.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use futures_util::future::BoxFuture;
use openraft::storage::RaftLogStorage;
use openraft::{LogState, OptionalSend, RaftLogReader};

use crate::completion::Done;
use crate::error::Fatal;
use crate::format::Position;
use crate::log::{Log, Op};
use crate::repair;
use crate::scan::next_index;
use crate::types::{Entry, IOFlushed, LogId, TypeConfig, Vote};

/// Owned by openraft's core. When it is dropped without the node having been shut down, the core has died, and
/// the node with it.
pub(crate) struct Store {
    log: Arc<Log>,
}

impl Store {
    pub(crate) fn new(log: Arc<Log>) -> Self {
        Self { log }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // A reason that was recorded before stays.
        self.log.set_fatal(Fatal::Consensus("its core task ended".into()));
    }
}

impl RaftLogStorage<TypeConfig> for Store {
    type LogReader = Reader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.log.state();
        Ok(LogState {
            last_purged_log_id: state.purged.map(Into::into),
            last_log_id: state.last.map(Into::into),
        })
    }

    async fn get_log_reader(&mut self) -> Reader {
        Reader { log: self.log.clone() }
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.log.queue([Op::Vote((*vote).into())])?;
        self.log.flushed().await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.log.set_committed(committed.map(Into::into));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let state = self.log.state();
        // Only ever behind the log, but a guess that is too high would be fatal.
        let known = |position: &Position| state.last.is_some_and(|last| position.index <= last.index);
        Ok(state.committed.filter(known).map(Into::into))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.log.append(entries.into_iter(), Done::Flushed(callback)).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let last = last_log_id.map(Position::from);
        let index = last.map_or(0, |last| last.index + 1);
        if index >= next_index(&self.log.state()) {
            return Ok(());
        }
        self.log.queue([Op::Truncate { index, last }])?;
        // Until the flush thread comes to it the segments' tables show what is void now, and whoever reads from before
        // it on would be given it. Truncations are rare: they are waited for.
        self.log.flushed().await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.log.queue([Op::Purge(log_id.into())])
    }
}

/// Reads entries: from the ring, or else on the blocking pool.
#[derive(Clone)]
pub(crate) struct Reader {
    log: Arc<Log>,
}

impl Reader {
    /// The first entries of `range`, at least one when the log holds the first.
    async fn chunk(&self, range: Range<u64>) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.log.read_ring(range.clone(), &mut entries);
        if entries.is_empty() && !self.log.held(&range).is_empty() {
            entries = self.cold(range).await?;
        }
        Ok(entries)
    }
}

impl Reader {
    /// Reads from the disk. Of what is damaged there, what is known to be committed comes from a peer: nobody who applies or
    /// sends it need stop for that.
    async fn cold(&self, range: Range<u64>) -> io::Result<Vec<Entry>> {
        let first = self.log.held(&range).start;
        let error = match read_cold(self.log.clone(), range).await {
            Err(error) if is_damage(&error) && self.log.is_settled(first) => error,
            read => return read,
        };
        let fetched = repair::fetch_entry(&self.log, first).await;
        let entry = fetched.map_err(|why| io::Error::new(error.kind(), format!("{error}; {why}")))?;
        Ok(vec![entry])
    }
}

/// Whether a read failed because of what is on the disk, or cannot be read from it.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

async fn read_cold(log: Arc<Log>, range: Range<u64>) -> io::Result<Vec<Entry>> {
    let reader = log.clone();
    log.blocking(move || reader.read(range)).await
}

fn plain_range(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for Reader {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let mut range = self.log.held(&plain_range(&range));
        let mut entries = Vec::new();
        while !range.is_empty() {
            let chunk = self.chunk(range.clone()).await?;
            let Some(last) = chunk.last() else { break };
            range.start = last.log_id.index + 1;
            entries.extend(chunk);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.chunk(start..end).await
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let range = plain_range(&range);
        Entries { log: self.log.clone(), range, chunk: Vec::new().into_iter(), pending: None }
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.log.state().ballot.map(Into::into))
    }
}

/// Entries one by one, in chunks of bounded size: what apply consumes.
struct Entries {
    log: Arc<Log>,
    /// What is not in a chunk yet.
    range: Range<u64>,
    chunk: std::vec::IntoIter<Entry>,
    /// A chunk being read from the disk.
    pending: Option<BoxFuture<'static, io::Result<Vec<Entry>>>>,
}

impl Entries {
    fn take_chunk(&mut self, chunk: Vec<Entry>) {
        if let Some(last) = chunk.last() {
            self.range.start = last.log_id.index + 1;
        }
        self.chunk = chunk.into_iter();
    }
}

impl Stream for Entries {
    type Item = io::Result<Entry>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(entry) = self.chunk.next() {
                return Poll::Ready(Some(Ok(entry)));
            }
            if let Some(pending) = &mut self.pending {
                let read = ready!(pending.as_mut().poll(cx));
                self.pending = None;
                match read {
                    Ok(chunk) => self.take_chunk(chunk),
                    Err(error) => return Poll::Ready(Some(Err(error))),
                }
                continue;
            }
            if self.log.held(&self.range).is_empty() {
                return Poll::Ready(None);
            }
            let mut chunk = Vec::new();
            self.log.read_ring(self.range.clone(), &mut chunk);
            if chunk.is_empty() {
                let (log, range) = (self.log.clone(), self.range.clone());
                self.pending = Some(Box::pin(read_cold(log, range)));
            } else {
                self.take_chunk(chunk);
            }
        }
    }
}
