//! `beanpole backup`: a consistent copy of a running node as one file, checking it, and making a new node from it.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use beanpole_raft::Options;
use beanpole_raft::backup::{self, BackupError, Contents, Manifest, Reader};
use clap::{Args, Subcommand};
use serde_json::json;

use super::admin::{self, Ask, Failure, NO, Output, REFUSED, UNREACHABLE, USAGE, YES};
use super::progress::{Progress, short};
use crate::offline;

/// The node takes a snapshot before it answers: longer than that it does not take.
const ANSWER_MAX: Duration = Duration::from_secs(600);
/// Bytes read at once.
const PIECE: usize = 256 << 10;
/// Bytes written between two syncs: a whole backup synced at once would hold up a node that shares the disk.
const UNSYNCED_MAX: u64 = 1 << 20;

/// The flags of `beanpole backup`.
#[derive(Args, Debug)]
pub struct BackupArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Copy everything that a running node has into a file, as of one moment, and check it
    Create {
        /// The file to make; it must not exist
        file: PathBuf,
        #[command(flatten)]
        ask: Ask,
    },
    /// Check a backup as a restore would: exit code 0 if it is whole, 1 if not
    Verify {
        /// The backup
        file: PathBuf,
        /// Form of the answer
        #[arg(short, long, default_value = "table", value_name = "FORM")]
        output: Output,
    },
    /// Make a new data directory from a backup: a new cluster with one node; jobs reserved at the time become ready
    Restore {
        /// The backup
        file: PathBuf,
        /// The directory to make: absent or empty
        #[arg(long, short = 'b', env = "BEANPOLE_DATA_DIR", default_value = "./beanpole-data")]
        data_dir: PathBuf,
        /// The new node's number
        #[arg(long, env = "BEANPOLE_NODE_ID", default_value_t = 1)]
        node_id: u32,
    },
}

/// Runs the verb.
pub fn run(args: &BackupArgs) -> ExitCode {
    admin::finish(match &args.verb {
        Verb::Create { file, ask } => create(file, ask),
        Verb::Verify { file, output } => verify(file, *output),
        Verb::Restore { file, data_dir, node_id } => restore(file, data_dir, *node_id),
    })
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(NO, format!("{}: {error}", path.display()))
}

fn create(file: &Path, ask: &Ask) -> Result<u8, Failure> {
    if file.exists() {
        return Err(Failure::new(USAGE, format!("{} exists; give another name", file.display())));
    }
    let (address, mut stream) = open_stream(ask)?;
    let partial = with_ending(file, ".partial")?;
    let copied = copy(&mut stream, &partial, &address);
    let checked = copied.and_then(|()| check(&partial));
    let (manifest, contents) = match checked {
        Ok(checked) => checked,
        Err(failure) => {
            // What is there is not whole, and of no use.
            fs::remove_file(&partial).ok();
            return Err(failure);
        }
    };
    fs::rename(&partial, file).map_err(|error| failed(file, &error))?;
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(|error| failed(parent, &error))?;
    show(file, ask.output, &manifest, contents);
    Ok(YES)
}

/// The first node that answers.
fn open_stream(ask: &Ask) -> Result<(String, Box<dyn Read>), Failure> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(2)))
        .timeout_recv_response(Some(ANSWER_MAX))
        .http_status_as_error(false)
        .build()
        .into();
    let mut last = Failure::new(UNREACHABLE, "no address was given with --admin");
    for address in &ask.admin {
        let url = format!("http://{address}/api/v1/backup");
        match agent.get(&url).call() {
            Ok(answer) if answer.status() == 200 => {
                return Ok((address.clone(), Box::new(answer.into_body().into_reader())));
            }
            Ok(mut answer) => {
                let text = answer.body_mut().read_to_string().unwrap_or_default();
                let code = if answer.status() == 503 { UNREACHABLE } else { REFUSED };
                last = Failure::new(code, format!("{url}: {} {}", answer.status(), text.trim()));
            }
            Err(error) => {
                let help = "is the node running, and is --admin its admin address?";
                last = Failure::new(UNREACHABLE, format!("{url}: {error}; {help}"));
            }
        }
    }
    Err(last)
}

fn copy(stream: &mut dyn Read, partial: &Path, address: &str) -> Result<(), Failure> {
    let mut out = File::create(partial).map_err(|error| failed(partial, &error))?;
    let mut progress = Progress::new("backup");
    let mut total = None;
    let (mut done, mut unsynced, mut piece) = (0, 0, vec![0; PIECE]);
    loop {
        let read = stream.read(&mut piece).map_err(|error| {
            let what = format!("http://{address}/api/v1/backup ended too early: {error}; see the node's log");
            Failure::new(UNREACHABLE, what)
        })?;
        if read == 0 {
            break;
        }
        // The first piece begins with the header.
        let expected =
            *total.get_or_insert_with(|| Reader::open(&piece[..read]).map_or(0, |r| r.manifest().bytes));
        out.write_all(&piece[..read]).map_err(|error| failed(partial, &error))?;
        done += read as u64;
        unsynced += read as u64;
        if unsynced >= UNSYNCED_MAX {
            out.sync_data().map_err(|error| failed(partial, &error))?;
            unsynced = 0;
        }
        progress.bytes(done, expected.max(done));
    }
    out.sync_all().map_err(|error| failed(partial, &error))
}

/// Reads it through, as a restore would.
fn check(file: &Path) -> Result<(Manifest, Contents), Failure> {
    let mut reader = open(file)?;
    let mut progress = Progress::new("check");
    let total = reader.manifest().bytes;
    let mut state = offline::state(1);
    let contents =
        backup::verify(&mut reader, &mut *state, &mut |done| progress.bytes(done, total.max(done)));
    let contents = contents.map_err(|error| failed(file, &error))?;
    Ok((reader.manifest().clone(), contents))
}

fn open(file: &Path) -> Result<Reader<BufReader<File>>, Failure> {
    let input =
        File::open(file).map_err(|error| Failure::new(USAGE, format!("{}: {error}", file.display())))?;
    Reader::open(BufReader::with_capacity(PIECE, input)).map_err(|error| failed(file, &error))
}

fn verify(file: &Path, output: Output) -> Result<u8, Failure> {
    let (manifest, contents) = check(file)?;
    show(file, output, &manifest, contents);
    Ok(YES)
}

fn show(file: &Path, output: Output, manifest: &Manifest, contents: Contents) {
    let size = fs::metadata(file).map_or(0, |metadata| metadata.len());
    match output {
        Output::Json => {
            let json = json!({
                "file": file, "size": size, "node": manifest.node, "cluster": manifest.cluster,
                "taken_at": manifest.taken_at_s, "term": manifest.term, "index": manifest.index,
                "entries": contents.entries, "entry_bytes": contents.entry_bytes, "image_bytes": contents.image_bytes,
                "jobs": contents.bodies, "verdict": "whole",
            });
            println!("{json:#}");
        }
        Output::Table => {
            println!("{}: whole, {}", file.display(), short(size));
            println!(
                "node {} of cluster {}, up to entry {}",
                manifest.node, manifest.cluster, manifest.index
            );
            println!(
                "{} jobs, {} entries, {}",
                contents.bodies,
                contents.entries,
                short(contents.entry_bytes)
            );
        }
    }
}

fn restore(file: &Path, data_dir: &Path, node_id: u32) -> Result<u8, Failure> {
    if node_id == 0 {
        return Err(Failure::new(USAGE, "0 is not a node's number"));
    }
    let mut reader = open(file)?;
    let mut options = Options::new(data_dir);
    options.node_id = u64::from(node_id);
    if let Some(parent) = data_dir.parent() {
        fs::create_dir_all(parent).map_err(|error| failed(parent, &error))?;
    }
    let mut progress = Progress::new("restore");
    let total = reader.manifest().bytes;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(NO, format!("cannot start: {error}")))?;
    let restored =
        runtime.block_on(backup::restore(&mut reader, &options, offline::state(node_id), &mut |done| {
            progress.bytes(done, total.max(done));
        }));
    progress.clear();
    let restored = restored.map_err(|error| {
        let BackupError::NotEmpty(dir) = &error else { return failed(file, &error) };
        let what =
            format!("{} is not empty; a restore makes a new directory: give another one", dir.display());
        Failure::new(REFUSED, what)
    })?;
    println!("{}: node {} of the new cluster {}", data_dir.display(), restored.node, restored.cluster);
    println!(
        "start it with `beanpole serve --data-dir {} --node-id {node_id}`, and with --peer-listen HOST:PORT if others \
         shall join it",
        data_dir.display()
    );
    Ok(YES)
}

fn with_ending(file: &Path, ending: &str) -> Result<PathBuf, Failure> {
    let name =
        file.file_name().ok_or_else(|| Failure::new(USAGE, format!("{} is no file name", file.display())))?;
    let mut name = name.to_os_string();
    name.push(ending);
    Ok(file.with_file_name(name))
}
