//! What a seed draws before a run begins.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The shape of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed that everything follows from.
    pub seed: u64,
    /// How many nodes.
    pub nodes: u64,
    /// How many clients.
    pub clients: u64,
    /// How long clients work and faults come.
    pub duration: Duration,
    /// The longest pause between two faults.
    pub calm_max: Duration,
    /// See [`beanpole_raft::Options`].
    pub segment_bytes: u64,
    /// See [`beanpole_raft::Options`].
    pub snapshot_log_bytes: u64,
    /// See [`beanpole_raft::Options`].
    pub log_retention_bytes: u64,
    /// See [`beanpole_raft::Options`].
    pub ring_bytes: usize,
    /// The disks' sectors, in bytes.
    pub sector: usize,
    /// How long a write and its sync take at most, on a disk that is well.
    pub disk_latency: Duration,
    /// How long the network takes at most, when it is well.
    pub delay_max: Duration,
    /// How probable it is that something on the network must be sent again, when it is well.
    pub loss: f64,
    /// What draws the network's delays.
    pub network_seed: u64,
    /// The one node whose wall clock is not to be trusted.
    pub odd_clock: u64,
    /// Whether clients kick: then nobody can say when a delayed job may be handed out.
    pub kicks: bool,
    /// The one node, if any, on whose disk bits change.
    pub rots: Option<u64>,
}

impl Plan {
    /// Draws a plan.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut rng = stream(seed, 0);
        let nodes = if rng.random_bool(0.15) { 5 } else { 3 };
        let pick = |rng: &mut StdRng, of: &[u64]| of[rng.random_range(0..of.len())];
        Self {
            seed,
            nodes,
            clients: rng.random_range(3..=7),
            duration: Duration::from_secs(rng.random_range(8..=25)),
            calm_max: Duration::from_millis(pick(&mut rng, &[800, 2000, 4000])),
            segment_bytes: pick(&mut rng, &[16 << 10, 64 << 10, 256 << 10]),
            snapshot_log_bytes: pick(&mut rng, &[16 << 10, 64 << 10, 1 << 20]),
            log_retention_bytes: pick(&mut rng, &[0, 16 << 10, 1 << 20]),
            ring_bytes: 1 << 20,
            sector: [512, 4096][rng.random_range(0..2)],
            disk_latency: Duration::from_micros(pick(&mut rng, &[0, 500, 3000, 20_000])),
            delay_max: Duration::from_micros(pick(&mut rng, &[0, 300, 2000, 20_000])),
            loss: [0.0, 0.0, 0.005][rng.random_range(0..3)],
            network_seed: rng.random(),
            odd_clock: rng.random_range(1..=nodes),
            kicks: rng.random(),
            rots: rng.random_bool(0.4).then(|| rng.random_range(1..=nodes)),
        }
    }
}

/// One of the seed's independent streams of random numbers.
#[must_use]
pub fn stream(seed: u64, which: u64) -> StdRng {
    StdRng::seed_from_u64(seed ^ (which + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}
