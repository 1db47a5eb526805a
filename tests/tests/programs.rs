//! A producer program and a worker program, each with the addresses of all three nodes, while those are restarted one after the
//! other, while the leader dies, and while all of them are away: no error surfaces, every job is handled, none is lost.

use std::collections::HashSet;
use std::time::Duration;

use beanpole_tests::cluster::Cluster;
use beanpole_tests::program::Program;
use beanpole_tests::{extra, wait};

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");
const PRODUCER: &str = env!("CARGO_BIN_EXE_producer_program");
const WORKER: &str = env!("CARGO_BIN_EXE_worker_program");
/// Puts a second.
const RATE: &str = "200";

struct Programs {
    cluster: Cluster,
    producer: Program,
    worker: Program,
}

impl Programs {
    fn start() -> Programs {
        let cluster = Cluster::start(BIN, 3);
        let addresses: Vec<String> = cluster.ids().iter().map(|id| cluster.addr(*id).to_string()).collect();
        let addresses = addresses.join(",");
        let spool = cluster.directory().join("spool").display().to_string();
        let producer = Program::start(PRODUCER, &[&addresses, "jobs", &spool, RATE]);
        let worker = Program::start(WORKER, &[&addresses, "jobs", "4"]);
        let mut programs = Programs { cluster, producer, worker };
        programs.go_on();
        programs
    }

    fn put(&self) -> usize {
        self.producer.said("put ").len()
    }

    fn handled(&self) -> HashSet<u64> {
        self.worker.said("job ").iter().map(|number| number.parse().expect("bodies are numbers")).collect()
    }

    /// Both go on: more is put, and more is handled.
    fn go_on(&mut self) {
        let (put, handled) = (self.put(), self.handled().len());
        let went_on = wait::until(|| (self.put() > put && self.handled().len() > handled + 50).then_some(()));
        assert!(went_on.is_some(), "{} hundreds put, {} handled", self.put(), self.handled().len());
        self.expect_well();
    }

    fn expect_well(&mut self) {
        assert_eq!(self.producer.said("error "), Vec::<String>::new());
        assert!(self.producer.is_running() && self.worker.is_running());
    }

    fn restart_one_after_the_other(&mut self) {
        for id in self.cluster.ids() {
            self.cluster.terminate(id);
            self.expect_well();
            self.cluster.start_node(id);
            self.cluster.wait_until_ready(&self.cluster.ids());
            self.go_on();
        }
    }

    fn kill_the_leader(&mut self) {
        let leader = self.cluster.leader();
        self.cluster.kill(leader);
        self.go_on();
        self.cluster.start_node(leader);
        self.cluster.wait_until_ready(&self.cluster.ids());
    }

    fn lose_all_nodes_for(&mut self, outage: Duration) {
        let put = self.put();
        self.cluster.kill_all();
        // The time of an outage has no other end.
        let _outage_is_over = wait::until_within(outage, || None::<()>);
        assert!(self.put() > put, "the producer waited for servers");
        self.expect_well();
        self.cluster.ids().into_iter().for_each(|id| self.cluster.start_node(id));
        self.cluster.wait_until_ready(&self.cluster.ids());
    }

    /// All that was put is handled.
    fn end(mut self) {
        self.producer.end_input();
        let status = self.producer.wait();
        let total = self.producer.said("total ").pop().expect("its last line");
        eprintln!("producer: {total}");
        assert!(status.success(), "{total}");
        let number =
            |at: usize| total.split(' ').nth(at).and_then(|word| word.parse::<u64>().ok()).expect("a number");
        let (put, slowest_ms) = (number(0), number(2));
        let all = wait::until(|| (self.handled().len() as u64 >= put).then_some(()));
        let missing: Vec<u64> = (0..put).filter(|number| !self.handled().contains(number)).collect();
        assert!(all.is_some(), "{} of {put} are missing: {missing:?}", missing.len());
        self.worker.end_input();
        assert!(self.worker.wait().success());
        let times = self.worker.said("job ").len() as u64;
        eprintln!(
            "worker: {put} jobs handled, {} of them twice; {:?}",
            times - put,
            self.worker.said("WorkerCounts")
        );
        // The producer's patience is a second.
        assert!(slowest_ms < 3000, "a put took {slowest_ms} ms");
        let left = self.cluster.connect(1).command("stats").unwrap();
        for state in ["ready", "delayed", "buried", "reserved"] {
            assert_eq!(left.stat(&format!("current-jobs-{state}")).as_deref(), Some("0"), "{state}");
        }
    }
}

#[test]
fn programs_outlive_restarts_a_dead_leader_and_an_outage() {
    let mut programs = Programs::start();
    programs.restart_one_after_the_other();
    programs.kill_the_leader();
    programs.lose_all_nodes_for(Duration::from_secs(5));
    programs.end();
}

#[test]
fn programs_outlive_a_minute_without_any_server() {
    if extra::skip_unless_wanted("programs_outlive_a_minute_without_any_server") {
        return;
    }
    let mut programs = Programs::start();
    programs.lose_all_nodes_for(Duration::from_secs(60));
    programs.end();
}
