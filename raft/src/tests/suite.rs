//! openraft's own conformance tests of storage, on the real disk and on the one in memory.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use crate::disk::FaultDisk;
use crate::machine::Machine;
use crate::open;
use crate::options::Options;
use crate::store::Store;
use crate::tests::machine::TestMachine;
use crate::types::TypeConfig;

struct Real;
struct Memory;

fn build(options: &Options) -> (Store, Machine) {
    let (state, _) = TestMachine::new();
    let storage = open::open(options, Box::new(state)).unwrap();
    storage.log.completions.spawn();
    (Store::new(storage.log), storage.machine)
}

impl StoreBuilder<TypeConfig, Store, Machine, TempDir> for Real {
    async fn build(&self) -> Result<(TempDir, Store, Machine), StorageError<TypeConfig>> {
        let dir = TempDir::new().unwrap();
        let mut options = Options::new(dir.path().join("data"));
        options.segment_bytes = 16 << 10;
        let (store, machine) = build(&options);
        Ok((dir, store, machine))
    }
}

impl StoreBuilder<TypeConfig, Store, Machine, ()> for Memory {
    async fn build(&self) -> Result<((), Store, Machine), StorageError<TypeConfig>> {
        let mut options = Options::new("d");
        options.segment_bytes = 16 << 10;
        options.ring_bytes = 1;
        options.disk = Arc::new(FaultDisk::new());
        let (store, machine) = build(&options);
        Ok(((), store, machine))
    }
}

/// The suite passes with real files.
#[tokio::test]
async fn suite_on_files() {
    Suite::<TypeConfig, Store, Machine, Real, TempDir>::test_all(Real).await.unwrap();
}

/// The suite passes in memory, with a ring that keeps nothing: every read comes from a segment.
#[tokio::test]
async fn suite_without_ring() {
    Suite::<TypeConfig, Store, Machine, Memory, ()>::test_all(Memory).await.unwrap();
}
