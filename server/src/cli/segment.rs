//! `beanpole segment ls|verify|dump DIR`: a look at the log of a stopped server. It writes nothing.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use beanpole_raft::inspect::{self, Check, Finding, RecordInfo, SegmentInfo, SegmentKind};
use beanpole_raft::{Disk, RealDisk};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

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
    /// List the segments with the entries they hold
    Ls {
        /// The data directory of a stopped server
        dir: PathBuf,
    },
    /// Check every record and every snapshot; exit code 1 if a start would refuse the directory
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
            inspect::list(&*disk, dir).and_then(|all| list(&mut out, args.output, &all))
        }
        SegmentVerb::Verify { dir } => {
            inspect::verify(&disk, dir).and_then(|checks| verify(&mut out, args.output, &checks))
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

fn kind_name(kind: SegmentKind) -> &'static str {
    match kind {
        SegmentKind::Sealed => "sealed",
        SegmentKind::Open => "open",
        SegmentKind::Blank => "prepared",
        SegmentKind::Unreadable => "unreadable",
    }
}

fn list(out: &mut impl Write, output: Output, all: &[SegmentInfo]) -> io::Result<ExitCode> {
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
                    "segment": s.id, "kind": kind_name(s.kind), "first": s.first, "last": s.last,
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
                    kind_name(s.kind),
                    s.used,
                    s.bytes
                )?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
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
    dir: &std::path::Path,
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
