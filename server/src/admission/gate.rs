//! From readings to a stance: a pure state machine, driven by scripts in its tests.
//!
//! ```text
//!   room left:   ────────── 2 reserves ──────── 1 reserve ────────── 0
//!                  open     │     shedding      │      closed
//!                           └ longer and longer ┘
//!                             between two puts
//! ```
//!
//! A state is left only when there is somewhat more room than it was entered with, so that it does not flap. When everything is
//! open again, puts are let in at a rising rate: clients that were refused come back all at once.

use serde::{Deserialize, Serialize};

/// The reserve is this part of the budget ...
const RESERVE_PART: u64 = 6;
/// ... but not less than a node needs to apply, replicate and take snapshots while puts are refused ...
const RESERVE_MIN: u64 = 12 << 20;
/// ... and not more than that takes on a large machine.
const RESERVE_MAX: u64 = 512 << 20;
/// Tasks that stood still for want of memory during this part of the last ten seconds, in thousandths, slow puts down.
const STALLED_SHEDS: u32 = 200;
/// Below this they no longer do.
const STALLED_ENDS: u32 = 100;
/// The pause between two puts of a connection where shedding begins, in microseconds.
const GAP_MIN_US: u32 = 1_000;
/// The same where it ends, next to closed. A put is answered within 100 ms, whatever it met.
const GAP_MAX_US: u32 = 50_000;
/// The pause between two puts of a connection when everything has just opened again ...
const SLOW_START_GAP_US: u32 = 16_000;
/// ... which is halved each time so many milliseconds have passed ...
const SLOW_START_HALVES_MS: u64 = 500;
/// ... until it is not worth keeping.
const SLOW_START_GAP_END_US: u32 = 250;

/// What puts meet. The worst is the greatest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Puts are taken.
    #[default]
    Open,
    /// Puts are slowed.
    Shedding,
    /// Puts are answered `OUT_OF_MEMORY`.
    Closed,
}

impl State {
    /// Its name in lines, metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Open => "open",
            State::Shedding => "shedding",
            State::Closed => "closed",
        }
    }
}

/// What a gateway does with puts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stance {
    /// Whether they are taken.
    pub state: State,
    /// How long a connection waits after one put before it may make the next, in microseconds.
    pub gap_us: u32,
}

impl Stance {
    /// What satisfies both.
    pub fn worst(self, other: Stance) -> Stance {
        Stance { state: self.state.max(other.state), gap_us: self.gap_us.max(other.gap_us) }
    }

    /// As a message carries it.
    pub fn from_parts(state: u8, gap_us: u32) -> Option<Stance> {
        let state = [State::Open, State::Shedding, State::Closed].into_iter().find(|s| *s as u8 == state)?;
        Some(Stance { state, gap_us })
    }
}

/// How things are with memory, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What may be used, in bytes.
    pub budget: u64,
    /// What is used of it and cannot be taken back, in bytes.
    pub used: u64,
    /// For how much of the last ten seconds every task stood still for want of memory, in thousandths.
    pub stalled: u32,
}

impl Reading {
    /// What may still be used, in bytes.
    pub fn room(&self) -> u64 {
        self.budget.saturating_sub(self.used)
    }
}

/// How much room each state needs, for a budget. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// With less it is closed.
    pub closed_below: u64,
    /// With as much it is no longer closed.
    pub closed_until: u64,
    /// With less it is shedding.
    pub shedding_below: u64,
    /// With as much it is open.
    pub shedding_until: u64,
}

impl Marks {
    /// The marks of a budget of so many bytes.
    pub fn of(budget: u64) -> Marks {
        let reserve = (budget / RESERVE_PART).clamp(RESERVE_MIN, RESERVE_MAX);
        Marks {
            closed_below: reserve,
            closed_until: reserve + reserve / 4,
            shedding_below: 2 * reserve,
            shedding_until: 2 * reserve + reserve / 4,
        }
    }
}

/// One node's state, and when it opened last.
#[derive(Debug, Default)]
pub struct Gate {
    state: State,
    /// When it opened after it had been shedding or closed, in milliseconds of the caller's clock.
    opened_ms: Option<u64>,
}

impl Gate {
    /// Takes a reading made at `now_ms`, which never runs backwards, and answers what to do with puts from now on.
    pub fn read(&mut self, now_ms: u64, reading: &Reading) -> Stance {
        let before = self.state;
        self.state = next(before, reading);
        match (before, self.state) {
            (State::Shedding | State::Closed, State::Open) => self.opened_ms = Some(now_ms),
            (_, State::Shedding | State::Closed) => self.opened_ms = None,
            (State::Open, State::Open) => {}
        }
        Stance { state: self.state, gap_us: self.gap_us(now_ms, reading) }
    }

    fn gap_us(&mut self, now_ms: u64, reading: &Reading) -> u32 {
        match self.state {
            State::Open => {
                let Some(opened) = self.opened_ms else { return 0 };
                let halvings = (now_ms.saturating_sub(opened) / SLOW_START_HALVES_MS).min(31);
                let gap = SLOW_START_GAP_US >> halvings;
                if gap >= SLOW_START_GAP_END_US {
                    return gap;
                }
                self.opened_ms = None;
                0
            }
            State::Shedding => shedding_gap_us(reading),
            State::Closed => GAP_MAX_US,
        }
    }
}

/// The less room, the longer.
fn shedding_gap_us(reading: &Reading) -> u32 {
    let marks = Marks::of(reading.budget);
    let width = marks.shedding_below - marks.closed_below;
    let missing = marks.shedding_below.saturating_sub(reading.room()).min(width);
    let span = u64::from(GAP_MAX_US - GAP_MIN_US);
    GAP_MIN_US + u32::try_from(span * missing / width).unwrap_or(GAP_MAX_US)
}

/// The state after a reading: it worsens at one mark and betters at another.
fn next(state: State, reading: &Reading) -> State {
    let marks = Marks::of(reading.budget);
    let room = reading.room();
    let closed = room < if state == State::Closed { marks.closed_until } else { marks.closed_below };
    if closed {
        return State::Closed;
    }
    let (mark, stalled) = match state {
        State::Open => (marks.shedding_below, STALLED_SHEDS),
        State::Shedding | State::Closed => (marks.shedding_until, STALLED_ENDS),
    };
    if room < mark || reading.stalled >= stalled { State::Shedding } else { State::Open }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a script, and answers what it printed: per line `at MILLISECONDS used MIB [stalled THOUSANDTHS]`.
    fn run(budget_mib: u64, script: &str) -> String {
        let mut gate = Gate::default();
        let mut out = String::new();
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split("->").next().unwrap().split_whitespace().collect();
            let number = |name: &str| {
                let at = words.iter().position(|word| *word == name)?;
                words[at + 1].parse::<u64>().ok()
            };
            let reading = Reading {
                budget: budget_mib << 20,
                used: number("used").unwrap() << 20,
                stalled: number("stalled").unwrap_or(0) as u32,
            };
            let stance = gate.read(number("at").unwrap(), &reading);
            out += &format!("{} -> {} {} us\n", words.join(" "), stance.state.as_str(), stance.gap_us);
        }
        out
    }

    /// A script holds what it should print.
    fn check(budget_mib: u64, script: &str) {
        let expected: String =
            script.lines().map(str::trim).filter(|l| !l.is_empty()).map(|line| format!("{line}\n")).collect();
        assert_eq!(run(budget_mib, script), expected);
    }

    #[test]
    fn puts_are_slowed_before_they_are_refused_and_slowed_after() {
        check(
            96,
            "
            at 0 used 28 -> open 0 us
            at 100 used 64 -> open 0 us
            at 200 used 65 -> shedding 4062 us
            at 300 used 72 -> shedding 25500 us
            at 400 used 80 -> shedding 50000 us
            at 500 used 81 -> closed 50000 us
            at 600 used 95 -> closed 50000 us
            at 700 used 200 -> closed 50000 us
            at 800 used 77 -> closed 50000 us
            at 900 used 76 -> shedding 37750 us
            at 1000 used 61 -> shedding 1000 us
            at 1100 used 60 -> open 16000 us
            at 1600 used 60 -> open 8000 us
            at 2100 used 60 -> open 4000 us
            at 4000 used 60 -> open 500 us
            at 5000 used 60 -> open 0 us
            at 9000 used 60 -> open 0 us
            ",
        );
    }

    #[test]
    fn a_sudden_flood_closes_at_once_and_a_sudden_drain_starts_slowly() {
        check(
            256,
            "
            at 0 used 30 -> open 0 us
            at 50 used 250 -> closed 50000 us
            at 100 used 40 -> open 16000 us
            at 200 used 250 -> closed 50000 us
            at 300 used 40 -> open 16000 us
            ",
        );
    }

    #[test]
    fn tasks_that_stand_still_for_memory_slow_puts_but_never_refuse_them() {
        check(
            1000,
            "
            at 0 used 100 stalled 199 -> open 0 us
            at 100 used 100 stalled 200 -> shedding 1000 us
            at 200 used 100 stalled 1000 -> shedding 1000 us
            at 300 used 100 stalled 100 -> shedding 1000 us
            at 400 used 100 stalled 99 -> open 16000 us
            ",
        );
    }

    #[test]
    fn a_start_over_the_budget_is_closed_from_the_first_reading() {
        check(64, "at 0 used 70 -> closed 50000 us");
    }

    /// Whatever is read, there is no state without room for it, and none is worse than the room says.
    #[test]
    fn no_reading_is_answered_too_mildly() {
        for budget in [1u64 << 20, 64 << 20, 96 << 20, 256 << 20, 8 << 30, 1 << 40] {
            let marks = Marks::of(budget);
            for state in [State::Open, State::Shedding, State::Closed] {
                for step in 0..=1000 {
                    let reading = Reading { budget, used: budget / 1000 * step, stalled: 0 };
                    let then = next(state, &reading);
                    assert!(reading.room() >= marks.closed_below || then == State::Closed);
                    assert!(reading.room() >= marks.shedding_below || then >= State::Shedding);
                    assert!(reading.room() < marks.shedding_until || then == State::Open);
                }
            }
        }
    }

    #[test]
    fn the_worst_of_two_stances_satisfies_both() {
        let (a, b) =
            (Stance { state: State::Shedding, gap_us: 9 }, Stance { state: State::Open, gap_us: 16_000 });
        assert_eq!(a.worst(b), Stance { state: State::Shedding, gap_us: 16_000 });
        assert_eq!(Stance::from_parts(State::Closed as u8, 7).map(|s| s.state), Some(State::Closed));
        assert_eq!(Stance::from_parts(3, 7), None);
    }
}
