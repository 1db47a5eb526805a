//! Who holds what: every reservation by its deadline, and by its session.

use super::runs::Runs;
use super::tubes::TimeKey;

/// A reservation in the order of its session. Node and connection name the session: jobs are held in the
/// node's live epoch only. Halves, so that the key takes 28 bytes and not 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct SessionKey {
    pub node: u32,
    conn: [u32; 2],
    deadline: [u32; 2],
    id: [u32; 2],
}

fn split(value: u64) -> [u32; 2] {
    [(value >> 32) as u32, value as u32]
}

fn join([high, low]: [u32; 2]) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

impl SessionKey {
    pub fn new(node: u32, conn: u64, deadline: u64, id: u64) -> Self {
        SessionKey { node, conn: split(conn), deadline: split(deadline), id: split(id) }
    }
    pub fn conn(self) -> u64 {
        join(self.conn)
    }
    pub fn deadline(self) -> u64 {
        join(self.deadline)
    }
    pub fn id(self) -> u64 {
        join(self.id)
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Reserved {
    pub by_deadline: Runs<TimeKey>,
    by_session: Runs<SessionKey>,
}

impl Reserved {
    pub fn insert(&mut self, node: u32, conn: u64, deadline: u64, id: u64) {
        self.by_deadline.insert(TimeKey { at: deadline, id });
        self.by_session.insert(SessionKey::new(node, conn, deadline, id));
    }

    pub fn remove(&mut self, node: u32, conn: u64, deadline: u64, id: u64) {
        let known = self.by_deadline.remove(TimeKey { at: deadline, id })
            && self.by_session.remove(SessionKey::new(node, conn, deadline, id));
        assert!(known, "a held job is in both orders");
    }

    /// Bytes of memory that they hold.
    pub fn bytes(&self) -> usize {
        self.by_deadline.bytes() + self.by_session.bytes()
    }

    /// The session's reservations, the next to run out first.
    pub fn of_session(&self, node: u32, conn: u64) -> impl Iterator<Item = SessionKey> {
        let from = SessionKey::new(node, conn, 0, 0);
        self.by_session.from(from).take_while(move |key| key.node == node && key.conn() == conn)
    }

    /// Reservations of all sessions of a node.
    pub fn of_node(&self, node: u32) -> impl Iterator<Item = SessionKey> {
        self.by_session.from(SessionKey::new(node, 0, 0, 0)).take_while(move |key| key.node == node)
    }
}
