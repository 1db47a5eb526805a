//! Where a measurement was made: the machine, its disk's fdatasync, and what the measuring itself cost.

use crate::body::mix;
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use serde::Serialize;
use std::fs;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The machine, for the report.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// The processor's name.
    pub cpu: String,
    /// Processors this process may use.
    pub cpus: usize,
    /// Operating system and release.
    pub kernel: String,
    /// Memory of the machine, in bytes; 0 if unknown.
    pub memory_bytes: u64,
    /// What fdatasync costs in the directory named by `--fsync-dir`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fdatasync: Option<Fdatasync>,
}

/// The time of one 4-KiB overwrite with fdatasync, in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Fdatasync {
    /// Where it was measured.
    pub directory: String,
    /// How many times.
    pub samples: usize,
    /// The median.
    pub p50_us: f64,
    /// Nine of ten were faster.
    pub p90_us: f64,
    /// 99 of 100 were faster.
    pub p99_us: f64,
}

impl Environment {
    /// Looks at this machine.
    pub fn here() -> Environment {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let memory_kib: u64 = field(&meminfo, "MemTotal")
            .and_then(|value| value.trim_end_matches(" kB").parse().ok())
            .unwrap_or_default();
        Environment {
            cpu: field(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: format!("{} {}", std::env::consts::OS, release.trim()),
            memory_bytes: memory_kib * 1024,
            fdatasync: None,
        }
    }
}

/// The value of the first `key : value` line.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().filter_map(|line| line.split_once(':')).find(|(k, _)| k.trim() == key).map(|(_, v)| v.trim())
}

const FDATASYNC_SAMPLES: usize = 300;
const FDATASYNC_PAGES: u64 = 64;

/// Measures fdatasync in `directory` on a file of its own, written beforehand (as a log's prepared segment
/// is), which is removed again. Takes under a second on any disk worth measuring.
pub fn measure_fdatasync(directory: &Path) -> io::Result<Fdatasync> {
    let path = directory.join(format!(".bench-fdatasync-{:016x}", random_id()));
    let result = sample_fdatasync(&path);
    let removed = fs::remove_file(&path);
    let mut samples = result?;
    removed?;
    samples.sort_unstable();
    let at = |share: f64| {
        let index = ((samples.len() - 1) as f64 * share).round() as usize;
        samples[index].as_secs_f64() * 1e6
    };
    Ok(Fdatasync {
        directory: directory.display().to_string(),
        samples: samples.len(),
        p50_us: at(0.5),
        p90_us: at(0.9),
        p99_us: at(0.99),
    })
}

fn sample_fdatasync(path: &Path) -> io::Result<Vec<Duration>> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    let page = [0x5a_u8; 4096];
    for _ in 0..FDATASYNC_PAGES {
        file.write_all(&page)?;
    }
    file.sync_all()?;
    let mut samples = Vec::with_capacity(FDATASYNC_SAMPLES);
    for i in 0..FDATASYNC_SAMPLES as u64 {
        file.seek(SeekFrom::Start(i % FDATASYNC_PAGES * 4096))?;
        let start = Instant::now();
        file.write_all(&page)?;
        file.sync_data()?;
        samples.push(start.elapsed());
    }
    Ok(samples)
}

/// Processor time this process has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuTime {
    /// In its own code.
    pub user: Duration,
    /// In the kernel for it; sending over loopback includes the receiver's side of TCP.
    pub system: Duration,
}

impl CpuTime {
    /// Up to now; zero if the system does not tell.
    pub fn now() -> CpuTime {
        let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return CpuTime::default() };
        let duration = |t: nix::sys::time::TimeVal| {
            Duration::from_secs(t.tv_sec().unsigned_abs()) + Duration::from_micros(t.tv_usec().unsigned_abs())
        };
        CpuTime { user: duration(usage.user_time()), system: duration(usage.system_time()) }
    }

    /// What was used since `earlier`.
    pub fn since(self, earlier: CpuTime) -> CpuTime {
        CpuTime {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }
}

/// Raises the soft limit of open files to the hard one if `connections` need it. A failure shows when
/// connecting.
pub fn allow_connections(connections: usize) {
    let wanted = connections as u64 + 64;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < wanted
    {
        // Best effort: the connect that fails for want of a file names the reason.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard);
    }
}

/// A number that no other run has: from the clock, the process and an address, well mixed.
pub fn random_id() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // The standard library seeds this from the system's randomness.
    let seed = std::collections::hash_map::RandomState::new().build_hasher().finish();
    mix(seed ^ mix(u64::try_from(since.as_nanos() & u128::from(u64::MAX)).expect("masked to 64 bits")))
        ^ u64::from(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        let here = Environment::here();
        assert!(here.cpus >= 1 && here.memory_bytes > 0 && here.kernel.starts_with("linux "), "{here:?}");
    }

    #[test]
    fn fdatasync_is_measured_and_nothing_is_left() {
        let directory = std::env::temp_dir().join(format!("bench-test-{:016x}", random_id()));
        fs::create_dir(&directory).unwrap();
        let fdatasync = measure_fdatasync(&directory).unwrap();
        assert!(fdatasync.p50_us > 0.0 && fdatasync.p50_us <= fdatasync.p99_us);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        fs::remove_dir(&directory).unwrap();
        assert!(measure_fdatasync(&directory).is_err());
    }

    #[test]
    fn ids_differ() {
        assert_ne!(random_id(), random_id());
    }
}
