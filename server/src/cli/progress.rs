//! One line on a terminal that says how far a long work is. Without a terminal it says nothing: logs stay clean.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often the line is written anew, at most.
const SHOW_EVERY: Duration = Duration::from_millis(100);
/// Characters of the bar.
const BAR_CHARS: u64 = 30;

/// The progress of one piece of work, on standard error.
pub struct Progress {
    /// What is done, in one word.
    what: &'static str,
    terminal: bool,
    begun: Instant,
    shown: Option<Instant>,
}

impl Progress {
    /// A line that begins with `what`.
    pub fn new(what: &'static str) -> Progress {
        Progress { what, terminal: std::io::stderr().is_terminal(), begun: Instant::now(), shown: None }
    }

    /// So many jobs and bytes are done; `total` jobs in all, when that is known.
    pub fn jobs(&mut self, done: u64, total: Option<u64>, bytes: u64) {
        let rate = done as f64 / self.begun.elapsed().as_secs_f64().max(0.001);
        let text = match total {
            Some(total) => format!("{} {done} of {total} jobs", bar(done, total)),
            None => format!("{done} jobs"),
        };
        self.show(&format!("{text}, {}, {rate:.0} jobs/s", short(bytes)));
    }

    /// So many bytes of all are done.
    pub fn bytes(&mut self, done: u64, total: u64) {
        self.show(&format!("{} {} of {}", bar(done, total), short(done), short(total)));
    }

    fn show(&mut self, text: &str) {
        if !self.terminal || self.shown.is_some_and(|at| at.elapsed() < SHOW_EVERY) {
            return;
        }
        self.shown = Some(Instant::now());
        // A terminal that went away is no reason to end the work.
        let _unseen = write!(std::io::stderr(), "\r\x1b[K{} {text}", self.what);
    }

    /// Takes the line away, for what is to be printed next.
    pub fn clear(&mut self) {
        if self.terminal && self.shown.take().is_some() {
            let _unseen = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A number of bytes for people, with one decimal.
pub fn short(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}

fn bar(done: u64, total: u64) -> String {
    let share = done.min(total) as f64 / total.max(1) as f64;
    let full = (share * BAR_CHARS as f64) as usize;
    let percent = (share * 100.0) as u64;
    format!("[{}{}] {percent:>3} %", "#".repeat(full), "-".repeat(BAR_CHARS as usize - full))
}

#[cfg(test)]
mod tests {
    use super::{bar, short};

    #[test]
    fn sizes_are_short() {
        assert_eq!(short(0), "0 bytes");
        assert_eq!(short(1023), "1023 bytes");
        assert_eq!(short(1536), "1.5 KiB");
        assert_eq!(short(324_994_566), "309.9 MiB");
        assert_eq!(short(3 << 40), "3072.0 GiB");
    }

    #[test]
    fn the_bar_fills_and_never_overflows() {
        assert_eq!(bar(0, 10), format!("[{}]   0 %", "-".repeat(30)));
        assert_eq!(bar(5, 10), format!("[{}{}]  50 %", "#".repeat(15), "-".repeat(15)));
        assert_eq!(bar(11, 10), format!("[{}] 100 %", "#".repeat(30)));
        assert_eq!(bar(0, 0), format!("[{}]   0 %", "-".repeat(30)));
    }
}
