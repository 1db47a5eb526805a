//! `kill -9` under load, again and again on the same directory, and a count of what is left.
//!
//! Two kinds of load run at the same time. *Owners* have a tube each, so they know from their replies
//! exactly what every job of theirs must look like; only the one command that was on its way when the
//! server died is unknown, and may have happened or not. *Producers and workers* share a tube; there only
//! the fate of each job is known, not its history.
//!
//! ```text
//!   start -> load from all connections -> kill -9 -> start -> check every job ever put -> load -> ...
//! ```
//!
//! Checked after each restart: every acknowledged put that was not deleted is there once, with its body,
//! priority, delay and counters; no acknowledged delete is undone; what is unknown is either before or
//! after; no id is given twice; a paused tube is still paused.

mod ledger;
mod load;
mod verify;

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::server::{Server, Setup};
use load::Owner;
use load::Shared;

/// Connections that have a tube of their own.
const OWNERS: usize = 6;
/// Connections that put into the shared tube, and as many that work on it.
const PRODUCERS: usize = 2;
/// The server is killed between these times after the load began.
const LIFE_MS: std::ops::Range<u64> = 15..350;
/// A tube that was paused once, for this many seconds.
const PAUSED: (&str, u64) = ("paused", 100_000);

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of kills.
    pub rounds: u64,
    /// Makes the load and the moments of the kills.
    pub seed: u64,
}

/// What was done.
#[derive(Debug, Default, Clone, Copy)]
pub struct Summary {
    /// Kills survived.
    pub rounds: u64,
    /// Puts acknowledged.
    pub puts: u64,
    /// Deletes acknowledged.
    pub deletes: u64,
    /// Other changes acknowledged: reserves, releases, buries, kicks.
    pub changes: u64,
    /// Commands whose outcome the kill left open.
    pub unknown: u64,
    /// Job states compared after restarts.
    pub checked: u64,
    /// Slowest restart: from spawn until the first command was answered.
    pub slowest_start: Duration,
}

/// What was wrong after a restart.
#[derive(Debug, thiserror::Error)]
#[error("round {round} of seed {seed}: {} faults\n  {}", faults.len(), faults.join("\n  "))]
pub struct Faults {
    /// Which kill.
    pub round: u64,
    /// The seed of the run.
    pub seed: u64,
    /// What, one line each.
    pub faults: Vec<String>,
}

/// Kills and checks, as often as wanted or until something is wrong.
pub fn run(setup: &Setup, options: &Options) -> Result<Summary, Faults> {
    println!("crash: seed {}, {} rounds", options.seed, options.rounds);
    let mut rng = StdRng::seed_from_u64(options.seed);
    let mut server = Server::start(setup);
    let mut summary = Summary::default();
    let mut owners: Vec<Owner> = (0..OWNERS).map(|number| Owner::new(number, rng.random())).collect();
    let shared = Shared::new();
    let mut first_id = pause(&server);
    for round in 1..=options.rounds {
        let life = Duration::from_millis(rng.random_range(LIFE_MS));
        let seed = rng.random();
        load_and_kill(&mut server, &mut owners, &shared, life, seed);
        let begun = Instant::now();
        let failed = |faults| Faults { round, seed: options.seed, faults };
        server.start_again().map_err(|error| failed(vec![format!("after kill -9: {error}")]))?;
        summary.slowest_start = summary.slowest_start.max(begun.elapsed());
        let mut audit = verify::Audit::new(&server, first_id);
        audit.all(&mut owners, &shared, &mut summary);
        first_id = audit.next_id();
        let faults = audit.faults();
        if !faults.is_empty() {
            return Err(failed(faults));
        }
        summary.rounds += 1;
    }
    Ok(summary)
}

/// Makes the paused tube and gives the id behind its job.
fn pause(server: &Server) -> u64 {
    let mut connection = server.connect();
    let (tube, seconds) = PAUSED;
    for command in [format!("use {tube}"), format!("pause-tube {tube} {seconds}")] {
        connection.command(&command).expect("a fresh server answers");
    }
    // The job keeps the tube alive.
    connection.put(0, 0, 60, b"x").expect("a fresh server answers").number() + 1
}

/// Runs all connections until the server is killed after `life`.
fn load_and_kill(server: &mut Server, owners: &mut [Owner], shared: &Shared, life: Duration, seed: u64) {
    let addr = server.addr();
    std::thread::scope(|scope| {
        for owner in owners {
            scope.spawn(move || owner.work(addr));
        }
        for number in 0..PRODUCERS as u64 {
            scope.spawn(move || shared.produce(addr, seed.wrapping_add(number)));
            scope.spawn(move || shared.consume(addr, seed.wrapping_sub(number)));
        }
        // Not a synchronisation: the moment of the kill is meant to be any.
        std::thread::sleep(life);
        server.kill();
    });
}
