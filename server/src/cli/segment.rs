//! `beanpole segment ls|verify|dump DIR`: a look at the data directory of a stopped server. It writes nothing.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use beanpole_raft::inspect::{
    self, Check, FileInfo, FileKind, Finding, RecordInfo, SegmentInfo, SegmentKind,
};
use beanpole_raft::{Disk, RealDisk};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use crate::offline;

/// What to look at.
#[derive(Args, Debug)]
pub struct SegmentArgs {
    #[command(subcommand)]
    verb: SegmentVerb,
    /// Form of the answer
    #[arg(short, long, global = true, default_value = "table", value_name = "FORMAT")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Columns for people
    Table,
    /// One JSON object per line
    Json,
}

#[derive(Subcommand, Debug)]
enum SegmentVerb {
    /// List all files: segments with the entries they hold, snapshots, who the node is and whom it knows
    Ls {
        /// The data directory of a stopped server
        dir: PathBuf,
    },
    /// Check every record and every file, and that no body is missing; exit code 1 if a start would refuse the directory
    Verify {
        /// The data directory of a stopped server
        dir: PathBuf,
    },
    /// Print every record, without its payload
    Dump {
        /// The data directory of a stopped server
        dir: PathBuf,
        /// Only this segment
        #[arg(long, value_name = "NUMBER")]
        segment: Option<u64>,
    },
}

/// Exit code when a directory cannot be read at all.
const EXIT_UNREADABLE: u8 = 2;
/// Exit code when damage was found.
const EXIT_DAMAGED: u8 = 1;

/// Runs one of the verbs.
pub fn run(args: &SegmentArgs) -> ExitCode {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut out = BufWriter::new(io::stdout().lock());
    let result = match &args.verb {
        SegmentVerb::Ls { dir } => {
            look(&disk, dir).and_then(|(all, files)| list(&mut out, args.output, &all, &files))
        }
        SegmentVerb::Verify { dir } => {
            check(&disk, dir).and_then(|checks| verify(&mut out, args.output, &checks))
        }
        SegmentVerb::Dump { dir, segment } => dump(&mut out, args.output, &*disk, dir, *segment),
    };
    let result = result.and_then(|code| out.flush().map(|()| code));
    match result {
        Ok(code) => code,
        // The reader of a pipe has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!(
                "beanpole: {}: {e}; give the data directory of a stopped server",
                dir_of(&args.verb).display()
            );
            ExitCode::from(EXIT_UNREADABLE)
        }
    }
}

fn dir_of(verb: &SegmentVerb) -> &PathBuf {
    match verb {
        SegmentVerb::Ls { dir } | SegmentVerb::Verify { dir } | SegmentVerb::Dump { dir, .. } => dir,
    }
}

/// All files. A directory with neither a segment nor an identity is none of a server.
fn look(disk: &Arc<dyn Disk>, dir: &Path) -> io::Result<(Vec<SegmentInfo>, Vec<FileInfo>)> {
    let (all, files) = (inspect::list(&**disk, dir)?, inspect::files(disk, dir)?);
    if all.is_empty() && !files.iter().any(|file| file.kind == FileKind::Identity) {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "there is neither a segment nor an identity file here",
        ));
    }
    Ok((all, files))
}

fn check(disk: &Arc<dyn Disk>, dir: &Path) -> io::Result<Vec<Check>> {
    look(disk, dir)?;
    let mut checks = inspect::verify(disk, dir)?;
    // One line per file: what is found later adds to what is known of it.
    for more in inspect::verify_files(disk, dir, &mut *offline::state(1))? {
        match checks.iter_mut().find(|check| check.file == more.file) {
            Some(known) if known.finding == Finding::Whole => known.finding = more.finding,
            Some(_) => {}
            None => checks.push(more),
        }
    }
    Ok(checks)
}

fn file_kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Snapshot => "snapshot",
        FileKind::Identity => "identity",
        FileKind::Peers => "peers",
        FileKind::Lock => "lock",
        FileKind::Unfinished => "unfinished",
        FileKind::Foreign => "foreign",
    }
}

/// A segment's kind; body segments, which came with a snapshot or a compaction, are told apart.
fn kind_name(segment: &SegmentInfo) -> &'static str {
    let is_bodies = segment.file.extension().is_some_and(|end| end == "body");
    match segment.kind {
        SegmentKind::Sealed if is_bodies => "bodies",
        SegmentKind::Sealed => "sealed",
        SegmentKind::Open => "open",
        SegmentKind::Blank => "prepared",
        SegmentKind::Unreadable => "unreadable",
    }
}

fn list(
    out: &mut impl Write,
    output: Output,
    all: &[SegmentInfo],
    files: &[FileInfo],
) -> io::Result<ExitCode> {
    if output == Output::Table {
        writeln!(
            out,
            "{:>10}  {:<10}  {:>12}  {:>12}  {:>12}  {:>12}",
            "SEGMENT", "KIND", "FIRST", "LAST", "USED", "BYTES"
        )?;
    }
    for s in all {
        match output {
            Output::Json => {
                let row = json!({
                    "file": s.file, "segment": s.id, "kind": kind_name(s), "first": s.first, "last": s.last,
                    "used": s.used, "bytes": s.bytes,
                });
                writeln!(out, "{row}")?;
            }
            Output::Table => {
                let index = |i: Option<u64>| i.map_or_else(|| "-".into(), |i| i.to_string());
                let (first, last) = (index(s.first), index(s.last));
                writeln!(
                    out,
                    "{:>10}  {:<10}  {first:>12}  {last:>12}  {:>12}  {:>12}",
                    s.id,
                    kind_name(s),
                    s.used,
                    s.bytes
                )?;
            }
        }
    }
    for file in files {
        list_file(out, output, file)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list_file(out: &mut impl Write, output: Output, file: &FileInfo) -> io::Result<()> {
    let kind = file_kind_name(file.kind);
    match output {
        Output::Json => {
            let says: serde_json::Map<String, serde_json::Value> =
                file.says.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
            writeln!(out, "{}", json!({"file": file.file, "kind": kind, "bytes": file.bytes, "says": says}))
        }
        Output::Table => {
            let name = file.file.file_name().unwrap_or_default().to_string_lossy();
            let says: Vec<String> = file.says.iter().map(|(name, value)| format!("{name} {value}")).collect();
            writeln!(out, "{:>10}  {kind:<10}  {:>12}  {name}  {}", "-", file.bytes, says.join(", "))
        }
    }
}

fn verify(out: &mut impl Write, output: Output, checks: &[Check]) -> io::Result<ExitCode> {
    let mut damaged = 0;
    for check in checks {
        let (verdict, text) = verdict(&check.finding);
        damaged += u32::from(verdict == "damaged");
        match output {
            Output::Json => {
                let row =
                    json!({"file": check.file, "records": check.records, "verdict": verdict, "detail": text});
                writeln!(out, "{row}")?;
            }
            Output::Table => {
                writeln!(
                    out,
                    "{verdict:<8}  {:>9} records  {}  {text}",
                    check.records,
                    check.file.display()
                )?;
            }
        }
    }
    if damaged > 0 {
        return Ok(ExitCode::from(EXIT_DAMAGED));
    }
    Ok(ExitCode::SUCCESS)
}

/// One word for a finding, and what is to be said about it.
fn verdict(finding: &Finding) -> (&'static str, String) {
    match finding {
        Finding::Whole => ("whole", String::new()),
        Finding::Torn { from, to } => (
            "torn",
            format!(
                "a write was cut short at offset {from} to {to}, as a crash leaves it; the next start cuts it off"
            ),
        ),
        Finding::Footer { end } => (
            "footer",
            format!("the footer behind offset {end} is damaged; the next start reads the records instead"),
        ),
        Finding::Damaged { offset, what } => (
            "damaged",
            format!(
                "at offset {offset}: {what}; a start refuses this directory: replace the node, or restore a copy"
            ),
        ),
    }
}

fn dump(
    out: &mut impl Write,
    output: Output,
    disk: &dyn Disk,
    dir: &Path,
    only: Option<u64>,
) -> io::Result<ExitCode> {
    let mut failed = None;
    inspect::dump(disk, dir, only, &mut |record| {
        if failed.is_none() {
            failed = show(out, output, &record).err();
        }
    })?;
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn show(out: &mut impl Write, output: Output, r: &RecordInfo) -> io::Result<()> {
    match output {
        Output::Json => {
            let row = json!({
                "segment": r.segment, "offset": r.offset, "kind": r.kind, "index": r.index,
                "term": r.term, "len": r.len,
            });
            writeln!(out, "{row}")
        }
        Output::Table => {
            writeln!(
                out,
                "{:>6} {:>10}  {:<10} index {:>10} term {:>4} {:>8} bytes",
                r.segment, r.offset, r.kind, r.index, r.term, r.len
            )
        }
    }
}
