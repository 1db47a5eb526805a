//! `beanpole segment`, as a process, on directories that a real server left.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use beanpole_tests::server::{Server, Setup};
use serde_json::Value;
use tempfile::TempDir;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

fn segment(verb: &str, dir: &Path) -> Output {
    Command::new(Setup::beanpole(BIN).binary())
        .args(["segment", verb, "-o", "json"])
        .arg(dir)
        .output()
        .unwrap()
}

fn rows(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

/// The files of a directory and their bytes.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .flatten()
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn the_offline_tools_see_every_file_find_damage_and_change_nothing() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    let mut server = Server::start(&Setup::beanpole(BIN).on(&data));
    let mut client = server.connect();
    for number in 0..50 {
        client.put(0, 0, 60, format!("body number {number}").repeat(20).as_bytes()).unwrap();
    }
    // A backup takes a snapshot.
    let (admin, backup) = (server.admin_addr().to_string(), dir.path().join("backup"));
    let made = Command::new(Setup::beanpole(BIN).binary())
        .args(["backup", "create", "--admin", &admin])
        .arg(&backup)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    client.put(0, 0, 60, b"last").unwrap();
    server.kill();
    let before = contents(&data);

    let listed = segment("ls", &data);
    let listed = rows(&listed);
    let kinds: Vec<&str> = listed.iter().map(|row| row["kind"].as_str().unwrap()).collect();
    for kind in ["open", "snapshot", "identity", "lock"] {
        assert!(kinds.contains(&kind), "{kind} in {kinds:?}");
    }
    assert_eq!(listed.len(), before.len(), "one row per file");
    assert_eq!(segment("verify", &data).status.code(), Some(0));
    let dumped = rows(&segment("dump", &data));
    assert!(dumped.iter().filter(|row| row["kind"] == "entry").count() >= 51);
    assert!(contents(&data) == before, "nothing is changed");

    let path = data.join(&before.iter().find(|(name, _)| name.ends_with(".seg")).unwrap().0);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(13).position(|window| window == b"body number 7").unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let verified = segment("verify", &data);
    assert_eq!(verified.status.code(), Some(1));
    assert!(rows(&verified).iter().any(|row| row["verdict"] == "damaged"));
    for verb in ["ls", "verify"] {
        assert_eq!(segment(verb, dir.path()).status.code(), Some(2), "{verb} of no data directory");
        assert_eq!(segment(verb, &dir.path().join("none")).status.code(), Some(2), "{verb} of nothing");
    }
}
