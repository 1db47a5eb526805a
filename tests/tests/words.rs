//! The client's verbs of the command line, as people and scripts use them: what they print, and their exit codes.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use beanpole_tests::operator;
use beanpole_tests::program::Program;
use beanpole_tests::server::{Server, Setup};
use beanpole_tests::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

/// What a verb did.
struct Told {
    code: i32,
    out: String,
    err: String,
}

/// Runs a verb against this address, with this standard input.
fn verb(address: &str, words: &str, input: &str) -> Told {
    let program = Setup::beanpole(BIN);
    let mut child = Command::new(program.binary())
        .args(words.split_whitespace())
        .env("BEANPOLE_ADDR", address)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A verb that refuses its arguments does not read.
    let _unread = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Told { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

fn start() -> (Server, String) {
    let server = Server::start(&Setup::beanpole(BIN).in_memory());
    let address = server.addr().to_string();
    (server, address)
}

/// The verb's standard output; panics unless it succeeds.
fn ok(address: &str, words: &str, input: &str) -> String {
    let told = verb(address, words, input);
    assert_eq!(told.code, 0, "{words}: {}{}", told.out, told.err);
    told.out
}

#[test]
fn a_job_a_line_and_a_job_a_file() {
    let (server, address) = start();
    assert_eq!(ok(&address, "put mail --pri 5", "one\ntwo\n\nlast without an end"), "1\n2\n3\n4\n");
    assert_eq!(ok(&address, "peek 2", ""), "two\n");
    assert_eq!(ok(&address, "put mail --file - --delay 100s --ttr 7", "two\nlines\n"), "5\n");
    let stats = ok(&address, "stats --job 5 -o json", "");
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(
        (stats["state"].as_str(), stats["ttr"].as_u64(), stats["delay"].as_u64()),
        (Some("delayed"), Some(7), Some(100))
    );
    // The same again under keys puts nothing.
    assert_eq!(ok(&address, "put mail --key run:7", "a\nb\n"), "6\n7\n");
    assert_eq!(ok(&address, "put mail --key run:7", "a\nb\nc\n"), "6\n7\n8\n");
    let total = server.connect().command("stats").unwrap().stat("total-jobs");
    assert_eq!(total.as_deref(), Some("8"));
}

#[test]
fn what_cannot_be_put_is_told_by_the_exit_code() {
    let (mut server, address) = start();
    let big = "x".repeat(70_000);
    let told = verb(&address, "put", &format!("{big}\nsmall\n"));
    assert_eq!((told.code, told.out.as_str()), (4, "rejected\n1\n"), "{}", told.err);
    assert!(
        told.err.contains("1 jobs put, 0 spooled, 1 rejected, 0 unknown") && told.err.contains("JOB_TOO_BIG")
    );
    assert_eq!(verb(&address, "put -- -bad", "x").code, 2);
    assert_eq!(verb(&address, "put --file /nowhere/at/all", "").code, 2);
    server.kill();
    let told = verb(&address, "put --deadline 200ms", "x\n");
    assert_eq!((told.code, told.out.as_str()), (5, "rejected\n"), "{}", told.err);
    assert_eq!(verb(&address, "stats", "").code, 3);
    // What a spool keeps is put by the next command that has it.
    let spool = TempDir::new().unwrap();
    let words = format!("put mail --spool {}", spool.path().display());
    assert_eq!(ok(&address, &words, "kept\n"), "spooled\n");
}

#[test]
fn a_job_is_taken_looked_at_put_aside_and_made_ready() {
    let (_server, address) = start();
    ok(&address, "put mail", "one\ntwo\nthree\n");
    let told = verb(&address, "reserve mail --timeout 5s", "");
    assert_eq!(
        (told.code, told.out.as_str(), told.err.as_str()),
        (0, "one\n", "job 1 of mail, given back\n")
    );
    let job: serde_json::Value =
        serde_json::from_str(&ok(&address, "reserve mail --delete -o json", "")).unwrap();
    assert_eq!(
        (job["id"].as_u64(), job["body"].as_str(), job["tube"].as_str()),
        (Some(1), Some("one"), Some("mail"))
    );
    assert_eq!(ok(&address, "bury 2", ""), "buried 2\n");
    assert_eq!(ok(&address, "peek --buried mail", ""), "two\n");
    assert_eq!(ok(&address, "peek --ready mail", ""), "three\n");
    assert_eq!(verb(&address, "peek --delayed mail", "").code, 1);
    assert_eq!(ok(&address, "kick mail 10", ""), "1 jobs kicked\n");
    let told = verb(&address, "kick --job 2", "");
    assert!(told.code == 1 && told.err.contains("neither buried nor delayed"), "{}", told.err);
    let told = verb(&address, "delete 2 99 3", "");
    assert_eq!((told.code, told.out.as_str()), (1, "deleted 2\ndeleted 3\n"));
    assert!(told.err.contains("not there, or held by a worker: 99"), "{}", told.err);
    assert_eq!(verb(&address, "reserve mail other --timeout 0s", "").code, 5);
    assert!(ok(&address, "stats --tube default", "").contains("name: default\n"));
    assert_eq!(verb(&address, "stats --tube nowhere", "").code, 1);
}

#[test]
fn tubes_are_listed_and_paused() {
    let (server, address) = start();
    let admin = server.admin_addr().to_string();
    ok(&address, "put mail", "one\n");
    assert_eq!(ok(&address, "tube pause mail 60s", ""), "mail is paused for 1m\n");
    let listed = operator::succeed(BIN, &admin, "list");
    let mail = listed.lines().find(|line| line.starts_with("mail ")).unwrap_or_else(|| panic!("{listed}"));
    assert_eq!(mail.split_whitespace().collect::<Vec<_>>(), ["mail", "1", "0", "0", "0", "paused"]);
    assert_eq!(verb(&address, "reserve mail --timeout 0s", "").code, 5);
    assert_eq!(ok(&address, "tube pause mail 0s", ""), "mail is not paused\n");
    assert_eq!(verb(&address, "tube pause nowhere 1s", "").code, 1);
    let json = operator::succeed(BIN, &admin, "list -o json");
    assert!(
        json.lines().any(|line| line.contains("\"name\":\"mail\"") && line.contains("\"paused\":false")),
        "{json}"
    );
}

/// A handler that notes what it was given, and ends as its job says.
fn handler(directory: &Path) -> String {
    let script = directory.join("handler");
    let notes = directory.join("notes");
    let text = format!(
        "body=$(cat)\necho \"$BEANPOLE_TUBE $BEANPOLE_JOB_ID $BEANPOLE_ATTEMPT $body\" >> {}\ncase $body in\n\
         bad) exit 65 ;;\n later) exit 75 ;;\n long) sleep 600 ;;\nesac\n",
        notes.display()
    );
    fs::write(&script, text).unwrap();
    script.display().to_string()
}

#[test]
fn a_command_for_each_job_decides_by_its_exit_code() {
    let (server, address) = start();
    let directory = TempDir::new().unwrap();
    let script = handler(directory.path());
    ok(&address, "put emails", "good\nbad\nlater\n");
    let program = Setup::beanpole(BIN).binary().display().to_string();
    let words = [
        "work",
        "--addr",
        &address,
        "-t",
        "emails",
        "-j",
        "2",
        "--attempts",
        "3",
        "--backoff",
        "0s,0s",
        "--grace",
        "100ms",
    ];
    let mut worker = Program::start(&program, &[&words[..], &["--", "sh", &script]].concat());
    let mut asks = server.connect();
    let buried = wait::until(|| {
        let tube = asks.command("stats-tube emails").ok()?;
        (tube.stat("current-jobs-buried")? == "2" && tube.stat("cmd-delete")? == "1").then_some(())
    });
    assert!(buried.is_some(), "{:?}", fs::read_to_string(directory.path().join("notes")));
    let mut notes: Vec<String> =
        fs::read_to_string(directory.path().join("notes")).unwrap().lines().map(str::to_owned).collect();
    notes.sort();
    assert_eq!(
        notes,
        ["emails 1 1 good", "emails 2 1 bad", "emails 3 1 later", "emails 3 2 later", "emails 3 3 later"]
    );
    // One that does not end is killed when its time is over, and its job goes back.
    let long: u64 = ok(&address, "put emails", "long\n").trim().parse().unwrap();
    let noted = || fs::read_to_string(directory.path().join("notes")).unwrap().contains("long");
    assert!(wait::until(|| noted().then_some(())).is_some());
    kill(Pid::from_raw(worker.pid().try_into().unwrap()), Signal::SIGTERM).unwrap();
    // Also what the command has started: it would keep the worker's output open.
    assert!(worker.wait().success());
    assert_eq!(asks.command(&format!("stats-job {long}")).unwrap().stat("state").as_deref(), Some("ready"));
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_tried() {
    let nobody = "127.0.0.1:1";
    for (words, says) in [
        ("put --addr foo", "HOST:PORT (port 1 to 65535) or unix:/path"),
        ("put --addr 127.0.0.1", "HOST:PORT"),
        ("work --addr 127.0.0.1:99999 -- true", "HOST:PORT"),
        ("work --addr 127.0.0.1:1,foo -- true", "HOST:PORT"),
        ("work -- ./nope.sh", "cannot run \"./nope.sh\": No such file"),
        ("work -- no-such-command", "in no directory of PATH"),
        ("work -- /etc/passwd", "not executable"),
        ("work -j 0 -- true", "--jobs"),
        ("work --attempts 0 -- true", "--attempts"),
        ("work --backoff 5s,1s -- true", "above the longest"),
    ] {
        let told = verb(nobody, words, "job\n");
        assert!(told.code == 2 && told.err.contains(says), "{words}: {} {}", told.code, told.err);
    }
    assert_eq!(verb("", "put", "job\n").code, 2);
}

#[test]
fn a_body_that_is_no_text_is_told_whole_before_its_job_is_deleted() {
    let (server, address) = start();
    server.connect().put(0, 0, 60, b"\xff\x00a").unwrap();
    for words in ["peek 1 -o json", "reserve --delete -o json"] {
        let job: serde_json::Value = serde_json::from_str(&ok(&address, words, "")).unwrap();
        assert!(job["body"].is_null() && job["body_hex"] == "ff0061", "{job}");
    }
    assert_eq!(verb(&address, "peek 1", "").code, 1);
}

/// A command that is away for a while, as in a deployment.
#[test]
fn a_command_that_cannot_be_started_costs_no_job() {
    let (server, address) = start();
    let directory = TempDir::new().unwrap();
    let command = directory.path().join("handler");
    std::os::unix::fs::symlink("/bin/true", &command).unwrap();
    let program = Setup::beanpole(BIN).binary().display().to_string();
    let text = command.display().to_string();
    let words = ["work", "--addr", &address, "--attempts", "2", "--backoff", "0s,0s", "--", &text];
    let _worker = Program::start(&program, &words);
    ok(&address, "put", "first\n");
    let mut asks = server.connect();
    let done = wait::until(|| (asks.command("stats").unwrap().stat("cmd-delete")? == "1").then_some(()));
    assert!(done.is_some(), "the command is there");
    fs::remove_file(&command).unwrap();
    ok(&address, "put", "second\n");
    let tried = wait::until(|| {
        let tries: u64 = asks.command("stats-job 2").unwrap().stat("releases")?.parse().ok()?;
        (tries > 3).then_some(())
    });
    assert!(tried.is_some(), "it is given back more often than --attempts");
    std::os::unix::fs::symlink("/bin/true", &command).unwrap();
    let done = wait::until(|| (asks.command("stats").unwrap().stat("cmd-delete")? == "2").then_some(()));
    assert!(done.is_some(), "the command is back");
}
