//! Watches the nodes' admin HTTP from a thread of its own, because a frozen node lets one wait, and tells when the cluster
//! begins to serve, and under whom.

use std::io;
use std::time::Duration;

use beanpole_bench::admin;
use tokio::sync::mpsc::UnboundedSender;

/// How often the nodes are asked.
const PERIOD: Duration = Duration::from_millis(100);
/// How long a node may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// What was seen, told at every change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The leader that most of the nodes name.
    pub(super) leader: Option<u64>,
    /// The highest term that a node names.
    pub(super) term: u64,
    /// How many nodes say that they serve.
    pub(super) ready: usize,
}

/// Asks the nodes at `admins` for as long as somebody listens.
pub(super) fn start(admins: Vec<String>, tell: UnboundedSender<Seen>) -> io::Result<()> {
    std::thread::Builder::new().name("watch".into()).spawn(move || {
        let mut last = Seen::default();
        while !tell.is_closed() {
            let now = look(&admins);
            if now != last && tell.send(now).is_err() {
                return;
            }
            last = now;
            std::thread::sleep(PERIOD);
        }
    })?;
    Ok(())
}

fn look(admins: &[String]) -> Seen {
    let views: Vec<_> = admins.iter().filter_map(|at| admin::cluster(at, ANSWER_LIMIT)).collect();
    let named: Vec<u64> = views.iter().filter_map(|view| view.leader_id).collect();
    let ready = admins.iter().filter(|at| admin::is_ready(at, ANSWER_LIMIT)).count();
    let term = views.iter().map(|view| view.term).max().unwrap_or(0);
    Seen { leader: majority(&named, admins.len()), term, ready }
}

/// What more than half of `nodes` name.
fn majority(named: &[u64], nodes: usize) -> Option<u64> {
    named.iter().copied().find(|id| named.iter().filter(|other| *other == id).count() > nodes / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_one_that_most_nodes_name() {
        assert_eq!(majority(&[2, 2], 3), Some(2));
        assert_eq!(majority(&[1, 2, 2], 3), Some(2));
        assert_eq!(majority(&[1, 2], 3), None, "an old leader may still believe in itself");
        assert_eq!(majority(&[1], 1), Some(1));
    }
}
