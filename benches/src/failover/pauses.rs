//! Pauses: how long nothing succeeded.

use serde::Serialize;

/// What one kind of command suffered from one fault, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pause {
    /// The longest time in which no client had a success.
    pub all_ms: f64,
    /// The longest time without a success of the client that suffered most.
    pub client_longest_ms: f64,
    /// The same of the client in the middle.
    pub client_median_ms: f64,
}

impl Pause {
    /// The pauses within `from_ns..to_ns` of clients with these times of success, each sorted; `None` without clients.
    pub fn of(clients: &[&[u64]], from_ns: u64, to_ns: u64) -> Option<Pause> {
        if clients.is_empty() {
            return None;
        }
        let mut merged: Vec<u64> = clients.iter().flat_map(|times| times.iter().copied()).collect();
        merged.sort_unstable();
        let mut each: Vec<u64> = clients.iter().map(|times| longest_gap(times, from_ns, to_ns)).collect();
        each.sort_unstable();
        Some(Pause {
            all_ms: ms(longest_gap(&merged, from_ns, to_ns)),
            client_longest_ms: ms(each.last().copied().unwrap_or(0)),
            client_median_ms: ms(each.get(each.len() / 2).copied().unwrap_or(0)),
        })
    }
}

fn ms(ns: u64) -> f64 {
    (ns as f64 / 1e4).round() / 100.0
}

/// The longest time between two neighbours in sorted `times` that reaches into `from_ns..to_ns`. A pause that has not ended
/// at `to_ns` counts up to there.
pub fn longest_gap(times: &[u64], from_ns: u64, to_ns: u64) -> u64 {
    let first = times.partition_point(|t| *t <= from_ns);
    let mut last = if first > 0 { times[first - 1] } else { from_ns };
    let mut longest = 0;
    for at in times[first..].iter().copied().take_while(|t| *t < to_ns) {
        longest = longest.max(at - last);
        last = at;
    }
    longest.max(to_ns.saturating_sub(last))
}

/// The middle and the largest of some values; zeros if there are none.
pub fn median_and_longest(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |i: usize| values.get(i).copied().unwrap_or(0.0);
    (at(values.len() / 2), at(values.len().saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_counts_from_the_last_success_before_the_fault() {
        let times = [0, 10, 20, 90, 95];
        assert_eq!(longest_gap(&times, 25, 100), 70);
        assert_eq!(longest_gap(&times, 20, 100), 70);
        assert_eq!(longest_gap(&times, 90, 100), 5);
        assert_eq!(longest_gap(&times, 0, 20), 10);
        assert_eq!(longest_gap(&times, 25, 60), 40, "it has not ended");
        assert_eq!(longest_gap(&[], 25, 60), 35, "nothing ever succeeded");
    }

    #[test]
    fn all_clients_together_pause_less_than_each() {
        const MS: u64 = 1_000_000;
        let (a, b) = ([0, 40 * MS, 80 * MS], [0, 20 * MS, 60 * MS, 80 * MS]);
        let pause = Pause::of(&[&a, &b], 1, 80 * MS);
        assert_eq!(pause, Some(Pause { all_ms: 20.0, client_longest_ms: 40.0, client_median_ms: 40.0 }));
        assert_eq!(Pause::of(&[], 5, 50), None, "nobody was there to feel one");
    }

    #[test]
    fn the_middle_and_the_largest() {
        assert_eq!(median_and_longest([3.0, 1.0, 2.0].into_iter()), (2.0, 3.0));
        assert_eq!(median_and_longest(std::iter::empty()), (0.0, 0.0));
    }
}
