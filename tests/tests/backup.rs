//! Operators' last resorts, as processes: backups of a node at work, a new node made from one, and a survivor that goes on
//! alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use beanpole_tests::cluster::Cluster;
use beanpole_tests::connection::Connection;
use beanpole_tests::server::{Server, Setup, free_port};
use beanpole_tests::wait;
use serde_json::Value;
use tempfile::TempDir;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

/// Jobs of each kind.
const JOBS: usize = 200;

fn beanpole(words: &[&str]) -> Output {
    Command::new(Setup::beanpole(BIN).binary()).args(words).stdin(Stdio::null()).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn succeed(words: &[&str]) -> String {
    let output = beanpole(words);
    assert_eq!(code(&output), 0, "{words:?}: {}", told(&output));
    told(&output)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn stat(client: &mut Connection, key: &str) -> u64 {
    client.command("stats").unwrap().stat(key).unwrap().parse().unwrap()
}

/// Ready jobs, a reserved, a delayed and a buried one.
fn fill(client: &mut Connection) {
    for number in 0..JOBS {
        assert_eq!(
            client.put(number as u32, 0, 60, format!("job {number}").as_bytes()).unwrap().word(),
            "INSERTED"
        );
    }
    client.put(9_999, 5_000, 60, b"delayed").unwrap();
    let buried = client.put(9_999, 0, 60, b"buried").unwrap().number();
    client.command(&format!("reserve-job {buried}")).unwrap();
    assert_eq!(client.command(&format!("bury {buried} 9")).unwrap().line, "BURIED");
    assert_eq!(client.command("reserve").unwrap().text(), "job 0");
}

fn data_of(dir: &TempDir) -> PathBuf {
    dir.path().join("restored")
}

#[test]
fn a_backup_of_a_node_at_work_makes_a_new_node_with_its_jobs() {
    let source = Server::start(&Setup::beanpole(BIN));
    let mut worker = source.connect();
    fill(&mut worker);
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("backup");
    let admin = source.admin_addr().to_string();
    succeed(&["backup", "create", text(&file), "--admin", &admin]);
    // What comes after it is not in it.
    worker.put(0, 0, 60, b"later").unwrap();
    let again = beanpole(&["backup", "create", text(&file), "--admin", &admin]);
    assert_eq!(code(&again), 2, "{}", told(&again));

    let output = beanpole(&["backup", "verify", text(&file), "-o", "json"]);
    let manifest: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (manifest["verdict"].as_str(), manifest["jobs"].as_u64()),
        (Some("whole"), Some(JOBS as u64 + 2))
    );

    let data = data_of(&dir);
    succeed(&["backup", "restore", text(&file), "--data-dir", text(&data)]);
    let refused = beanpole(&["backup", "restore", text(&file), "--data-dir", text(&data)]);
    assert_eq!(code(&refused), 4, "{}", told(&refused));
    let mut restored = Server::start(&Setup::beanpole(BIN).on(&data));
    let mut client = restored.connect();
    check(&mut client);
    assert_ne!(cluster_id(&restored), cluster_id(&source));
    // It is a node like any other: what it acknowledges from now on survives, too.
    client.put(1, 0, 60, b"new").unwrap();
    restored.crash_and_restart();
    assert_eq!(stat(&mut restored.connect(), "current-jobs-ready"), 1);
}

/// What `fill` left is there, the reserved job ready again; all ready jobs are taken and deleted.
fn check(client: &mut Connection) {
    let ready = wait::until(|| (stat(client, "current-jobs-ready") == JOBS as u64).then_some(()));
    assert!(ready.is_some(), "{} jobs are ready", stat(client, "current-jobs-ready"));
    assert_eq!((stat(client, "current-jobs-delayed"), stat(client, "current-jobs-buried")), (1, 1));
    for number in 0..JOBS {
        let job = client.command("reserve-with-timeout 0").unwrap();
        assert_eq!(job.text(), format!("job {number}"));
        assert_eq!(client.command(&format!("delete {}", job.number())).unwrap().line, "DELETED");
    }
}

fn cluster_id(server: &Server) -> String {
    let output = beanpole(&["cluster", "--admin", &server.admin_addr().to_string(), "-o", "json", "status"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", told(&output)));
    json["cluster_id"].as_str().unwrap().to_owned()
}

/// Any damage is told with exit code 1, and no directory comes of it.
#[test]
fn a_damaged_backup_is_refused() {
    let source = Server::start(&Setup::beanpole(BIN));
    fill(&mut source.connect());
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("backup");
    succeed(&["backup", "create", text(&file), "--admin", &source.admin_addr().to_string()]);
    let whole = fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [&flipped[..], &whole[..whole.len() - 1], &whole[..whole.len() / 3], b"no backup"] {
        fs::write(&file, damaged).unwrap();
        assert_eq!(code(&beanpole(&["backup", "verify", text(&file)])), 1);
        let data = data_of(&dir);
        let restored = beanpole(&["backup", "restore", text(&file), "--data-dir", text(&data)]);
        assert_eq!(code(&restored), 1, "{}", told(&restored));
        assert!(!data.exists());
        // A failed restore leaves nothing in the way of the next one but an empty directory.
        fs::remove_dir(dir.path().join("restored.restoring")).ok();
    }
    let nobody = format!("127.0.0.1:{}", free_port());
    let missing = dir.path().join("other");
    assert_eq!(code(&beanpole(&["backup", "create", text(&missing), "--admin", &nobody])), 3);
    assert!(!missing.exists());
}

/// A backup of any node of a cluster will do, and the new node may become the first of a new cluster.
#[test]
fn a_backup_of_a_follower_starts_a_new_cluster() {
    let cluster = Cluster::start(BIN, 3);
    let leader = cluster.leader();
    fill(&mut cluster.connect(leader));
    cluster.operate("cluster verify --timeout 30");
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("backup");
    let follower = cluster.others(leader)[0];
    let admin = cluster.admin_address(follower);
    let told = cluster.operate(&format!("backup create {} --admin {admin}", text(&file)));
    assert!(told.contains("whole"), "{told}");
    drop(cluster);
    let mut fresh = Cluster::new(BIN, 1).data_at(1, data_of(&dir));
    succeed(&["backup", "restore", text(&file), "--data-dir", text(&data_of(&dir)), "--node-id", "1"]);
    fresh.start_node(1);
    fresh.wait_until_ready(&[1]);
    let id = fresh.new_node();
    fresh.start_node(id);
    let address = fresh.peer_address(id);
    fresh.operate(&format!("cluster add {id} {address} --timeout 30"));
    fresh.wait_until_ready(&[id]);
    check(&mut fresh.connect(id));
}

/// Two of three nodes are gone for good: the third one goes on alone with everything that was acknowledged, and grows again.
#[test]
fn a_survivor_goes_on_alone_and_grows_again() {
    let mut cluster = Cluster::start(BIN, 3);
    let leader = cluster.leader();
    let survivor = cluster.others(leader)[0];
    fill(&mut cluster.connect(leader));
    cluster.operate("cluster verify --timeout 30");
    let running = beanpole(&recover(&cluster.data_dir(survivor)));
    assert_eq!(code(&running), 4, "{}", told(&running));
    cluster.kill_all();
    for id in cluster.others(survivor) {
        cluster.wipe(id);
    }
    let data = cluster.data_dir(survivor);
    let unconfirmed = beanpole(&recover(&data)[..5]);
    assert_eq!(code(&unconfirmed), 4, "{}", told(&unconfirmed));
    assert!(told(&unconfirmed).contains("nothing was changed"), "{}", told(&unconfirmed));
    let text = succeed(&recover(&data));
    assert!(text.contains("only voter") && text.contains("May be lost"), "{text}");
    let again = beanpole(&recover(&data));
    assert_eq!(code(&again), 2, "it is done once: {}", told(&again));

    cluster.start_node(survivor);
    cluster.wait_until_ready(&[survivor]);
    let id = cluster.new_node();
    cluster.start_node(id);
    let address = cluster.peer_address(id);
    cluster.operate(&format!("cluster add {id} {address} --timeout 30"));
    cluster.wait_until_ready(&[id]);
    check(&mut cluster.connect(id));

    // The way back: the copy is a data directory as it was, whose node looks for the others.
    let copy =
        data.with_file_name(format!("{}.before-recovery", data.file_name().unwrap().to_str().unwrap()));
    let looked = beanpole(&recover(&copy)[..5]);
    assert_eq!(code(&looked), 4, "{}", told(&looked));
    assert!(told(&looked).contains("the others"), "{}", told(&looked));
}

fn recover(data: &Path) -> [&str; 6] {
    ["cluster", "recover", "--from-survivor", "--data-dir", text(data), "--yes"]
}
