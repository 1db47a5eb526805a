//! How fast one voter commits: entries per second, latency and CPU per entry with 1, 8 and 64 proposals in
//! flight, next to what a bare `pwrite` + `fdatasync` takes on the same disk.
//!
//! `cargo run --release -p beanpole-raft --example propose_speed -- [DIR [SECONDS [PAYLOAD [INFLIGHT]]]]`

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use beanpole_raft::{
    Access, BodyAddr, Disk, Node, Options, Outcome, Payload, RealDisk, SnapshotImage, StateMachine,
};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nix::sys::resource::{UsageWho, getrusage};

/// Counts entries and forgets them.
struct Count(u64);

struct CountImage(u64);

impl SnapshotImage for CountImage {
    fn next_slice(&mut self, out: &mut Vec<u8>, _live: &mut dyn FnMut(BodyAddr)) -> bool {
        out.extend_from_slice(&self.0.to_le_bytes());
        false
    }
}

impl StateMachine for Count {
    fn apply(&mut self, _index: u64, _payload: &Payload) {
        self.0 += 1;
    }

    fn applied(&mut self, _index: u64) {}

    fn snapshot(&mut self) -> Box<dyn SnapshotImage> {
        Box::new(CountImage(self.0))
    }

    fn restore(&mut self, _index: u64, image: &mut dyn Read) -> std::io::Result<()> {
        let mut bytes = [0; 8];
        image.read_exact(&mut bytes)?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }

    fn for_each_live(&self, _f: &mut dyn FnMut(BodyAddr)) {}
}

fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process can ask for its own usage");
    let time = |t: nix::sys::time::TimeVal| {
        Duration::new(t.tv_sec().unsigned_abs(), u32::try_from(t.tv_usec()).unwrap_or(0) * 1000)
    };
    time(usage.user_time()) + time(usage.system_time())
}

fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let at = (sorted.len() as f64 * share) as usize;
    sorted[at.min(sorted.len() - 1)]
}

/// The bare cost of making a small write durable.
fn raw(dir: &Path, len: usize) {
    let path = dir.join("raw");
    let file = RealDisk.open(&path, Access::Create).expect("the directory is writable");
    let zeros = vec![0; 1 << 20];
    for chunk in 0..16 {
        file.write_at(&[std::io::IoSlice::new(&zeros)], chunk << 20).expect("written");
    }
    file.sync_data().expect("synced");
    let bytes = vec![7; len + 32];
    let mut times = Vec::new();
    let before = cpu();
    for at in 0..3000 {
        let start = Instant::now();
        file.write_at(&[std::io::IoSlice::new(&bytes)], at * bytes.len() as u64).expect("written");
        file.sync_data().expect("synced");
        times.push(start.elapsed());
    }
    let each = (cpu() - before) / 3000;
    times.sort_unstable();
    println!(
        "raw pwrite+fdatasync  p50 {:>6.1?}  p99 {:>7.1?}  cpu/write {each:.1?}",
        percentile(&times, 0.5),
        percentile(&times, 0.99)
    );
    std::fs::remove_file(path).expect("removed");
}

async fn one_kind(node: &Node, inflight: usize, len: usize, seconds: u64) {
    let body = Bytes::from(vec![7; len]);
    let mut flying = FuturesUnordered::new();
    let mut times = Vec::new();
    let start = Instant::now();
    let before = cpu();
    let end = start + Duration::from_secs(seconds);
    loop {
        while flying.len() < inflight && Instant::now() < end {
            let began = Instant::now();
            let proposal = node.propose(Payload::from(body.clone())).await.expect("the node works");
            flying.push(async move { (began, proposal.await) });
        }
        let Some((began, outcome)) = flying.next().await else { break };
        assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
        times.push(began.elapsed());
    }
    let elapsed = start.elapsed();
    let count = u32::try_from(times.len()).expect("few seconds");
    let each = (cpu() - before) / count;
    times.sort_unstable();
    println!(
        "{inflight:>3} in flight  {:>8.0}/s  p50 {:>6.1?}  p99 {:>7.1?}  max {:>7.1?}  cpu/entry {each:.1?}",
        f64::from(count) / elapsed.as_secs_f64(),
        percentile(&times, 0.5),
        percentile(&times, 0.99),
        times[times.len() - 1],
    );
}

fn main() {
    let mut args = std::env::args().skip(1);
    let dir: PathBuf = args.next().map_or_else(|| std::env::temp_dir().join("propose-speed"), Into::into);
    let seconds = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(3);
    let len = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(300);
    let only: Option<usize> = args.next().and_then(|arg| arg.parse().ok());
    std::fs::remove_dir_all(&dir).ok();
    std::fs::create_dir_all(&dir).expect("the directory can be made");
    raw(&dir, len);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut options = Options::new(dir.join("node"));
        options.disk = Arc::new(RealDisk);
        let start = Instant::now();
        let node = Node::start(options, Count(0)).await.expect("it starts");
        node.ready().await.expect("it leads");
        println!("started in {:.1?}", start.elapsed());
        // The first segment is small; measure on the ones that follow, ready before they are needed.
        let second = dir.join("node").join(format!("{:016}.seg", 2));
        while !second.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for inflight in [1, 8, 64] {
            if only.is_none_or(|only| only == inflight) {
                one_kind(&node, inflight, len, seconds).await;
            }
        }
        println!("{:?}", node.bodies().disk_usage());
        node.shutdown().await;
    });
    raw(&dir, len);
    std::fs::remove_dir_all(&dir).ok();
}
