//! How long this gateway may go on without an answer from a leader that has its quorum.
//!
//! ```text
//!   renewal sent ──────────────── 3 s ─────► hold_until: connections that hold or await a job close
//!        └───────────────────────────── 5 s ─────► cut off: whoever is owed an answer is closed; put is refused
//! ```
//!
//! Counted from when the last answered renewal was *sent*: the leader ends a gateway that it has not heard for 5 s,
//! so by then no client
//! of this node believes that it still holds a job. A node that is a cluster by itself needs no lease.

/// Connections that hold or await a job are kept for this long after the last answered renewal was sent, in microseconds.
pub const HOLD_US: u64 = 3_000_000;
/// Commands wait for an answer for this long after the last answered renewal was sent, in microseconds.
pub const CUT_OFF_US: u64 = 5_000_000;
/// A renewal is sent this often, in microseconds.
pub const RENEW_EVERY_US: u64 = 500_000;

/// Where the gateway stands with the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Jobs may be handed out.
    Good,
    /// No job may be handed out; commands wait.
    Expired,
    /// Nothing is waited for any longer.
    CutOff,
}

/// The lease of one gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// When the last answered renewal was sent, in monotonic microseconds. None: no lease is needed.
    renewed: Option<u64>,
}

impl Lease {
    /// The gateway's node is one of several from now on; it begins with a full term.
    pub fn begin(&mut self, now: u64) {
        self.renewed.get_or_insert(now);
    }

    /// A renewal that was sent at `sent` was answered.
    pub fn renew(&mut self, sent: u64) {
        if let Some(renewed) = &mut self.renewed {
            *renewed = sent.max(*renewed);
        }
    }

    /// Where the gateway stands at `now`.
    pub fn standing(&self, now: u64) -> Standing {
        match self.renewed {
            None => Standing::Good,
            Some(renewed) if now < renewed + HOLD_US => Standing::Good,
            Some(renewed) if now < renewed + CUT_OFF_US => Standing::Expired,
            Some(_) => Standing::CutOff,
        }
    }

    /// When the standing changes next, in monotonic microseconds.
    pub fn changes_at(&self, now: u64) -> Option<u64> {
        let renewed = self.renewed?;
        [renewed + HOLD_US, renewed + CUT_OFF_US].into_iter().find(|at| *at > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_from_when_the_renewal_was_sent() {
        let mut lease = Lease::default();
        assert_eq!((lease.standing(u64::MAX), lease.changes_at(7)), (Standing::Good, None));
        lease.begin(1_000_000);
        lease.renew(2_000_000);
        lease.renew(1_500_000);
        assert_eq!(lease.standing(4_999_999), Standing::Good);
        assert_eq!(lease.changes_at(4_999_999), Some(5_000_000));
        assert_eq!(lease.standing(5_000_000), Standing::Expired);
        assert_eq!(lease.standing(7_000_000), Standing::CutOff);
        assert_eq!(lease.changes_at(7_000_000), None);
    }
}
