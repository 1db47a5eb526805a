//! What is counted and timed during the measured window.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;

/// The longest time a histogram tells apart, in nanoseconds; longer ones count as this (an hour).
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;
/// Decimal digits of precision kept of every time.
const LATENCY_DIGITS: u8 = 3;

/// Times of one kind of operation.
pub struct Series {
    histogram: Histogram<u64>,
}

impl Series {
    fn new() -> Series {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, LATENCY_DIGITS)
            .expect("the bounds are constants that the histogram allows");
        Series { histogram }
    }

    /// Adds one time, in nanoseconds.
    pub fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns);
    }

    /// Percentiles and the rate over `seconds`.
    pub fn summary(&self, seconds: f64) -> Summary {
        let us = |ns: u64| ns as f64 / 1e3;
        let at = |share: f64| us(self.histogram.value_at_quantile(share));
        Summary {
            count: self.histogram.len(),
            per_second: if seconds > 0.0 { self.histogram.len() as f64 / seconds } else { 0.0 },
            latency_us: Percentiles {
                min: us(if self.histogram.is_empty() { 0 } else { self.histogram.min() }),
                mean: self.histogram.mean() / 1e3,
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: us(self.histogram.max()),
            },
        }
    }
}

/// One kind of operation in the report.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// How many were answered within the measured window.
    pub count: u64,
    /// The rate over the window.
    pub per_second: f64,
    /// Time from writing the command to reading its reply.
    pub latency_us: Percentiles,
}

/// Times in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Percentiles {
    /// The fastest.
    pub min: f64,
    /// The average.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// 90 of 100 were at most this.
    pub p90: f64,
    /// 99 of 100 were at most this.
    pub p99: f64,
    /// 999 of 1,000 were at most this.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

/// Everything measured in one run.
pub struct Meter {
    /// The window, in nanoseconds since the run's start; nothing outside it is recorded.
    from_ns: u64,
    to_ns: u64,
    /// `put` to `INSERTED`.
    pub put: Series,
    /// `reserve` to `RESERVED`, the wait for a job included.
    pub reserve: Series,
    /// `delete` to `DELETED`.
    pub delete: Series,
    /// Put, reserve and delete of one connection's turn.
    pub cycle: Series,
    /// From the put's writing to the job's receipt by a worker.
    pub end_to_end: Series,
    /// Replies read within the window, whatever they said.
    pub round_trips: u64,
    /// When the last of them was read, on the run's clock.
    pub last_reply_ns: u64,
    /// Replies that are no success, and lost connections, by name; of the whole run.
    pub errors: BTreeMap<String, u64>,
}

impl Meter {
    /// A meter whose window is still closed.
    pub fn new() -> Meter {
        Meter {
            from_ns: u64::MAX,
            to_ns: 0,
            put: Series::new(),
            reserve: Series::new(),
            delete: Series::new(),
            cycle: Series::new(),
            end_to_end: Series::new(),
            round_trips: 0,
            last_reply_ns: 0,
            errors: BTreeMap::new(),
        }
    }

    /// Records what happens in `from_ns..to_ns`.
    pub fn set_window(&mut self, from_ns: u64, to_ns: u64) {
        self.from_ns = from_ns;
        self.to_ns = to_ns;
    }

    /// Whether something that happens now is recorded.
    pub fn is_open(&self, now_ns: u64) -> bool {
        self.from_ns <= now_ns && now_ns < self.to_ns
    }

    /// Counts a reply that was read now.
    pub fn reply(&mut self, now_ns: u64) {
        if self.is_open(now_ns) {
            self.round_trips += 1;
            self.last_reply_ns = now_ns;
        }
    }

    /// Counts an error.
    pub fn error(&mut self, name: String) {
        *self.errors.entry(name).or_default() += 1;
    }
}

impl Default for Meter {
    fn default() -> Self {
        Meter::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_rates() {
        let mut series = Series::new();
        assert_eq!(series.summary(1.0).latency_us.max, 0.0);
        (1..=1000).for_each(|us| series.record(us * 1000));
        let summary = series.summary(2.0);
        assert_eq!((summary.count, summary.per_second), (1000, 500.0));
        let near = |a: f64, b: f64| (a - b).abs() / b < 0.01;
        assert!(near(summary.latency_us.p50, 500.0) && near(summary.latency_us.p999, 999.0), "{summary:?}");
    }

    #[test]
    fn the_window_is_closed_until_it_is_set() {
        let mut meter = Meter::new();
        assert!(!meter.is_open(0) && !meter.is_open(u64::MAX));
        meter.set_window(10, 20);
        assert!(!meter.is_open(9) && meter.is_open(10) && meter.is_open(19) && !meter.is_open(20));
    }
}
