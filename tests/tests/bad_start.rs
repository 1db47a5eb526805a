//! A start that cannot be is refused: exit code 2, one clear message, nothing damaged.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use beanpole_tests::server::{self, Ended, Server, Setup, StartError};
use tempfile::TempDir;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

fn beanpole() -> Setup {
    Setup::beanpole(BIN)
}

fn refused(setup: &Setup) -> Ended {
    server::run_to_end(setup, server::free_port(), server::free_port())
}

/// Exit code 2 and a message with all of `words`, told once and not as a panic.
fn assert_refusal(ended: &Ended, words: &[&str]) {
    assert_eq!(ended.code, Some(2), "exit code, with signal {:?}: {}", ended.signal, ended.stderr);
    for word in words {
        assert!(ended.stderr.contains(word), "the message names {word:?}: {}", ended.stderr);
    }
    assert!(!ended.stderr.contains("panicked"), "a refusal is not a panic: {}", ended.stderr);
    let lines = ended.stderr.lines().filter(|line| !line.trim().is_empty()).count();
    assert!((1..=8).contains(&lines), "one message, not {lines} lines: {}", ended.stderr);
}

/// Puts numbered jobs and gives their ids.
fn put_jobs(server: &Server, count: usize) -> Vec<u64> {
    let mut connection = server.connect();
    (0..count).map(|number| connection.put(0, 0, 60, body(number).as_bytes()).unwrap().number()).collect()
}

fn body(number: usize) -> String {
    format!("MARKER-{number:06}-{}", "z".repeat(200))
}

fn assert_jobs(server: &Server, ids: &[u64]) {
    let mut connection = server.connect();
    for (number, id) in ids.iter().enumerate() {
        let reply = connection.command(&format!("peek {id}")).unwrap();
        assert_eq!(reply.text(), body(number), "job {id}: {}", reply.line);
    }
}

/// Every file below a directory with its contents.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            files.insert(path, bytes);
        }
    }
    files
}

#[test]
fn data_directory_in_use() {
    let first = Server::start(&beanpole());
    let ids = put_jobs(&first, 10);
    let ended = refused(&beanpole().on(first.data_dir()));
    assert_refusal(&ended, &[first.data_dir().to_str().unwrap()]);
    assert_jobs(&first, &ids);
    assert_eq!(put_jobs(&first, 1).len(), 1, "the first one goes on");
}

#[test]
fn data_directory_is_a_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, "precious").unwrap();
    assert_refusal(&refused(&beanpole().on(&path)), &[path.to_str().unwrap()]);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn data_directory_cannot_be_made() {
    // /proc takes no directories, not even from root.
    assert_refusal(&refused(&beanpole().on("/proc/beanpole-data")), &["/proc/beanpole-data"]);
}

#[test]
fn data_directory_holds_something_else() {
    // Neither empty nor ours: somebody mistyped a path, and nothing there may be touched.
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("letter.txt"), "dear all").unwrap();
    let before = contents(dir.path());
    match Server::try_start(&beanpole().on(dir.path())) {
        // Living beside foreign files is fine, too, as long as they are left alone.
        Ok(server) => drop(server),
        Err(StartError::Exited { status, stderr }) => {
            assert_eq!(status.code(), Some(2), "{stderr}");
        }
        Err(error @ (StartError::Silent { .. } | StartError::Os { .. })) => panic!("{error}"),
    }
    assert_eq!(contents(dir.path()).get(&dir.path().join("letter.txt")), before.values().next());
}

#[test]
fn port_taken() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let dir = TempDir::new().unwrap();
    let setup = beanpole().on(dir.path().join("data"));
    let ended = server::run_to_end(&setup, port, server::free_port());
    assert_refusal(&ended, &[&port.to_string()]);
    let ended = server::run_to_end(&setup, server::free_port(), port);
    assert_refusal(&ended, &[&port.to_string()]);
    // The directory is as good as new.
    let server = Server::start(&setup);
    put_jobs(&server, 1);
}

#[test]
fn unknown_flag_and_bad_values() {
    assert_refusal(&refused(&beanpole().flags(["--data-dri", "x"])), &["--data-dri"]);
    assert_refusal(&refused(&beanpole().flags(["-z", "many"])), &["many"]);
    assert_refusal(&refused(&beanpole().flags(["-z", "1073741825"])), &["1073741825"]);
}

#[test]
fn unknown_key_in_the_configuration() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("beanpole.toml");
    fs::write(&path, "data_dri = \"x\"\n").unwrap();
    let ended = refused(&beanpole().flags(["--config", path.to_str().unwrap()]));
    // The nearest key there is; spelled with - or _ as the file format has it.
    let hint = ["data_dir", "data-dir"].iter().any(|key| ended.stderr.contains(key));
    assert!(hint, "it names the nearest key: {}", ended.stderr);
    assert_refusal(&ended, &["data_dri"]);
    let missing = dir.path().join("nowhere.toml");
    let ended = refused(&beanpole().flags(["--config", missing.to_str().unwrap()]));
    assert_refusal(&ended, &["nowhere.toml"]);
}

#[test]
fn corruption_in_the_middle_is_refused_and_nothing_is_thrown_away() {
    let dir = TempDir::new().unwrap();
    let setup = beanpole().on(dir.path().join("data"));
    let mut server = Server::start(&setup);
    let ids = put_jobs(&server, 100);
    server.kill();
    drop(server);

    // One bit of one body, with valid records behind it.
    let marker = &body(50).into_bytes()[..20];
    let (path, at) = contents(dir.path())
        .into_iter()
        .find_map(|(path, bytes)| Some((path, bytes.windows(marker.len()).position(|w| w == marker)?)))
        .expect("the body of job 50 is in some file");
    let healthy = fs::read(&path).unwrap();
    let mut flipped = healthy.clone();
    flipped[at + 30] ^= 1;
    fs::write(&path, &flipped).unwrap();
    let before = contents(dir.path());
    let ended = refused(&setup);
    assert_refusal(&ended, &[path.file_name().unwrap().to_str().unwrap()]);
    let after = contents(dir.path());
    // The identity counts starts, and the lock names the process that tried: neither holds a job.
    let is_own = |path: &Path| path.ends_with("identity") || path.ends_with("lock");
    for (path, bytes) in before.iter().filter(|(path, _)| !is_own(path)) {
        assert!(after.get(path) == Some(bytes), "{} was changed by a refused start", path.display());
    }

    // Healed (from a backup, say), everything is there.
    fs::write(&path, &healthy).unwrap();
    let server = Server::start(&setup);
    assert_jobs(&server, &ids);
}

#[test]
fn a_torn_tail_is_cut_and_the_rest_is_there() {
    // The last record is half written: nobody was told of it, so it may go, and only it.
    let dir = TempDir::new().unwrap();
    let setup = beanpole().on(dir.path().join("data"));
    let mut server = Server::start(&setup);
    let mut ids = put_jobs(&server, 20);
    server.kill();
    drop(server);
    let marker = &body(19).into_bytes()[..20];
    let (path, at) = contents(dir.path())
        .into_iter()
        .find_map(|(path, bytes)| Some((path, bytes.windows(marker.len()).position(|w| w == marker)?)))
        .expect("the last body is in some file");
    let mut torn = fs::read(&path).unwrap();
    torn[at + 30..].fill(0);
    fs::write(&path, &torn).unwrap();
    let server = Server::start(&setup);
    let last = ids.pop().unwrap();
    assert_jobs(&server, &ids);
    assert_eq!(server.connect().command(&format!("peek {last}")).unwrap().line, "NOT_FOUND");
    put_jobs(&server, 5);
}
