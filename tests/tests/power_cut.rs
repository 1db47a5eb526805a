//! The power of all three machines fails at once, and with it all that their disks had not flushed.

use std::time::{Duration, Instant};

use beanpole_tests::cluster::Cluster;
use beanpole_tests::cluster::load::Load;
use beanpole_tests::extra;
use beanpole_tests::forgetful_disk::{Disk, Program};

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

/// Puts and receipts before the power is cut.
const SOME: u64 = 400;
/// Of the blocks that were not flushed, how many per cent survive; each way is tried.
const SURVIVE_PERCENT: [u32; 3] = [0, 50, 90];
/// How long after the start all nodes must serve.
const SERVING_MAX: Duration = Duration::from_secs(3);

#[test]
fn a_power_cut_of_all_disks_loses_nothing_that_was_acknowledged() {
    let name = "a_power_cut_of_all_disks_loses_nothing_that_was_acknowledged";
    if extra::skip_unless_wanted(name) {
        return;
    }
    let program = match Program::build() {
        Ok(program) => program,
        Err(why) => return extra::skipped(name, &why),
    };
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut disks: Vec<Disk> = (0..3).map(|n| Disk::make(&program, seed.wrapping_add(n)).unwrap()).collect();
    let mut cluster = Cluster::new(BIN, 3);
    for (id, disk) in (1..).zip(&disks) {
        cluster = cluster.data_at(id, disk.path().join("data"));
    }
    cluster.ids().into_iter().for_each(|id| cluster.start_node(id));
    cluster.wait_until_ready(&[1, 2, 3]);
    for percent in SURVIVE_PERCENT {
        let load = Load::start(&cluster);
        load.wait_for_more(SOME);
        Disk::cut_all(&disks, percent).unwrap();
        cluster.kill_all();
        let mut account = load.finish();
        let lost: Vec<u64> = disks.iter().map(|disk| disk.lost_blocks().unwrap()).collect();
        disks.iter_mut().for_each(|disk| disk.power_on().unwrap());
        let begun = Instant::now();
        cluster.ids().into_iter().for_each(|id| cluster.start_node(id));
        cluster.wait_until_ready(&[1, 2, 3]);
        let took = begun.elapsed();
        let acknowledged = account.acknowledged.len();
        println!(
            "{percent} % survive: {acknowledged} acknowledged, blocks lost {lost:?}, serving after {took:?}"
        );
        let forgotten: u64 = lost.iter().sum();
        assert!(percent > 0 || forgotten > 0, "nothing was forgotten, so nothing was tried");
        assert!(took <= SERVING_MAX, "serving after {took:?}");
        account.expect_nothing_lost(&cluster, 1);
    }
    cluster.operate("cluster verify --timeout 30");
    // The nodes end before their disks do.
    drop(cluster);
}
