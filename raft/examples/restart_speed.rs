//! How long a start takes after a kill with many bodies waiting: 1 million entries of 1 KiB by default, of
//! which the state machine keeps all addresses.
//!
//! `cargo run --release -p beanpole-raft --example restart_speed -- [DIR [ENTRIES [BODY]]]`

use std::io::Read;
use std::path::PathBuf;
use std::time::Instant;

use beanpole_raft::{Bodies, BodyAddr, Node, Options, Outcome, Payload, SnapshotImage, StateMachine};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

/// Keeps the address of every body.
#[derive(Default)]
struct Keep {
    bodies: Option<Bodies>,
    kept: Vec<(u64, u32)>,
}

struct KeepImage(std::vec::IntoIter<(u64, u32)>);

impl SnapshotImage for KeepImage {
    fn next_slice(&mut self, out: &mut Vec<u8>, live: &mut dyn FnMut(BodyAddr)) -> bool {
        for (index, len) in self.0.by_ref().take(8192) {
            out.extend_from_slice(&index.to_le_bytes());
            out.extend_from_slice(&len.to_le_bytes());
            live(BodyAddr { index, offset: 0, len });
        }
        self.0.len() > 0
    }
}

impl StateMachine for Keep {
    fn attach(&mut self, bodies: Bodies) {
        self.bodies = Some(bodies);
    }

    fn apply(&mut self, index: u64, payload: &Payload) {
        let len = u32::try_from(payload.len()).expect("bodies are short");
        self.kept.push((index, len));
        self.bodies.as_ref().expect("attached first").retain(BodyAddr { index, offset: 0, len });
    }

    fn applied(&mut self, _index: u64) {}

    fn snapshot(&mut self) -> Box<dyn SnapshotImage> {
        Box::new(KeepImage(self.kept.clone().into_iter()))
    }

    fn restore(&mut self, _index: u64, image: &mut dyn Read) -> std::io::Result<()> {
        self.kept.clear();
        let mut image = std::io::BufReader::with_capacity(1 << 20, image);
        let mut bytes = [0; 12];
        while image.read_exact(&mut bytes).is_ok() {
            let (index, len) = bytes.split_at(8);
            let index = u64::from_le_bytes(index.try_into().expect("eight bytes"));
            self.kept.push((index, u32::from_le_bytes(len.try_into().expect("four bytes"))));
        }
        Ok(())
    }

    fn for_each_live(&self, f: &mut dyn FnMut(BodyAddr)) {
        for (index, len) in &self.kept {
            f(BodyAddr { index: *index, offset: 0, len: *len });
        }
    }
}

/// Asks the kernel to drop the files from its cache.
fn forget_pages(dir: &std::path::Path) {
    for entry in std::fs::read_dir(dir).expect("the directory is there") {
        let file = std::fs::File::open(entry.expect("readable").path()).expect("readable");
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&file, 0, 0, advice).expect("advised");
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let dir: PathBuf = args.next().map_or_else(|| std::env::temp_dir().join("restart-speed"), Into::into);
    let entries: u64 = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    let body: usize = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(1024);
    std::fs::remove_dir_all(&dir).ok();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let filling = runtime();
    filling.block_on(async {
        let start = Instant::now();
        let node = Node::start(Options::new(&dir), Keep::default()).await.expect("it starts");
        node.ready().await.expect("it leads");
        let bytes = Bytes::from(vec![7; body]);
        let mut flying = FuturesUnordered::new();
        for _ in 0..entries {
            flying.push(node.propose(Payload::from(bytes.clone())).await.expect("the node works"));
            while flying.len() >= 1024 {
                assert!(matches!(flying.next().await, Some(Outcome::Committed { .. })));
            }
        }
        while flying.next().await.is_some() {}
        println!("filled in {:.1?}: {:?}", start.elapsed(), node.bodies().disk_usage());
    });
    // Without a shutdown: as after a kill.
    drop(filling);
    for warm in [true, true, false] {
        if !warm {
            forget_pages(&dir);
        }
        runtime().block_on(async {
            // The threads of the life before may still be at their last words.
            let (start, node) = loop {
                let start = Instant::now();
                match Node::start(Options::new(&dir), Keep::default()).await {
                    Ok(node) => break (start, node),
                    Err(beanpole_raft::StartError::InUse { .. }) => std::thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            };
            let opened = start.elapsed();
            node.ready().await.expect("it leads");
            let status = node.status();
            println!(
                "{} open {opened:.1?}, ready {:.1?}; snapshot {}, last {}",
                if warm { "warm" } else { "cold" },
                start.elapsed(),
                status.snapshot_index,
                status.last_index
            );
            node.shutdown().await;
        });
    }
    std::fs::remove_dir_all(&dir).ok();
}
