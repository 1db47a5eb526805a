//! Replies that clients do not take: counted in bytes over all sessions, and bounded. A session that has its share of them takes
//! no more commands; one that makes no progress for half a minute with more than its share is closed.

use std::collections::BTreeMap;

use super::session::{ConnId, Session};
use super::{Gateway, OUT_BYTES_MAX, OUT_KEEP_BYTES};

/// Replies of all sessions that may wait, before it is told otherwise.
const REPLY_BYTES_DEFAULT: usize = 64 << 20;
/// What a session may always have waiting, whatever the others do.
const SHARE_MIN: usize = 16 << 10;
/// How long a client may make no progress with more than that, in microseconds.
const STUCK_MAX_US: u64 = 30_000_000;
/// How often it is looked who does, in microseconds.
const LOOK_EVERY_US: u64 = 1_000_000;

/// The account of replies that wait.
#[derive(Debug)]
pub(super) struct Unread {
    /// Of all sessions, in bytes.
    bytes: usize,
    limit: usize,
    /// Sessions whose sockets took less than there was, and when they last took something, in monotonic microseconds.
    stuck: BTreeMap<ConnId, u64>,
    looked_us: u64,
    closed: u64,
}

impl Default for Unread {
    fn default() -> Self {
        Unread { bytes: 0, limit: REPLY_BYTES_DEFAULT, stuck: BTreeMap::new(), looked_us: 0, closed: 0 }
    }
}

impl Unread {
    /// Brings a session's part up to date.
    pub fn count(&mut self, session: &mut Session) {
        let now = session.out.capacity() + session.aside_bytes;
        self.bytes = self.bytes + now - session.counted_bytes;
        session.counted_bytes = now;
    }

    /// The session's socket was offered what it had, `before` bytes.
    pub fn wrote(&mut self, session: &mut Session, before: usize, now_us: u64) {
        let left = session.out.len();
        if left == 0 {
            if !self.stuck.is_empty() {
                self.stuck.remove(&session.conn);
            }
        } else if left < before {
            self.stuck.insert(session.conn, now_us);
        } else {
            self.stuck.entry(session.conn).or_insert(now_us);
        }
        // What is left of a large buffer is small: the rest of it is given back.
        if left > 0 && left <= OUT_KEEP_BYTES && session.counted_bytes > 4 * OUT_KEEP_BYTES {
            session.out = bytes::BytesMut::from(&session.out[..]);
        }
        self.count(session);
    }

    /// The session ends.
    pub fn forget(&mut self, session: &Session) {
        self.bytes -= session.counted_bytes;
        self.stuck.remove(&session.conn);
    }

    /// In how many microseconds it is to be looked again who is stuck.
    pub fn next_look_in_us(&self, now_us: u64) -> Option<u64> {
        (!self.stuck.is_empty()).then(|| (self.looked_us + LOOK_EVERY_US).saturating_sub(now_us))
    }
}

impl Gateway {
    /// Replies that all sessions together may have waiting, in bytes.
    pub fn set_reply_limit(&mut self, bytes: usize) {
        self.unread.limit = bytes;
    }

    /// Bytes of replies that wait, and how many clients were closed because they took none.
    pub fn unread_replies(&self) -> (usize, u64) {
        (self.unread.bytes, self.unread.closed)
    }

    /// Bytes of replies that a session may have waiting and still take commands.
    pub(super) fn reply_share(&self) -> usize {
        if self.unread.bytes < self.unread.limit / 2 {
            return OUT_BYTES_MAX;
        }
        (self.unread.limit / self.sessions.len().max(1)).clamp(SHARE_MIN, OUT_BYTES_MAX)
    }

    /// Closes clients that hold more than their share and take none of it.
    pub(super) fn close_stuck(&mut self, now_us: u64) {
        if self.unread.stuck.is_empty() || now_us < self.unread.looked_us + LOOK_EVERY_US {
            return;
        }
        self.unread.looked_us = now_us;
        let share = SHARE_MIN;
        let stuck: Vec<ConnId> = self
            .unread
            .stuck
            .iter()
            .filter(|(_, since)| now_us.saturating_sub(**since) >= STUCK_MAX_US)
            .filter(|(conn, _)| {
                self.sessions
                    .get(**conn)
                    .is_some_and(|session| !session.dead && session.counted_bytes > share)
            })
            .map(|(conn, _)| *conn)
            .collect();
        for conn in stuck {
            tracing::info!(conn = conn.0, "a client took none of its replies for 30 s; it is disconnected");
            self.unread.closed += 1;
            self.close(conn);
        }
    }
}
