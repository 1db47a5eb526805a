//! `beanpole cluster recover --from-survivor`: when a majority of the nodes is lost for good, one that is left goes on alone.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use beanpole_raft::inspect::{self, SegmentKind};
use beanpole_raft::rescue::{self, Outlook, RescueError};
use beanpole_raft::{Disk, Options, RealDisk, StartError};
use clap::Args;

use super::admin::{Failure, NO, REFUSED, USAGE, YES};
use crate::offline;

/// The flags of `beanpole cluster recover`.
#[derive(Args, Debug)]
pub struct RecoverArgs {
    /// Say that the majority is lost for good, and that this node is the one to go on with
    #[arg(long, required = true)]
    from_survivor: bool,
    /// The data directory of the survivor, which must be stopped
    #[arg(long, short = 'b', env = "BEANPOLE_DATA_DIR", default_value = "./beanpole-data")]
    data_dir: PathBuf,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Looks, tells, asks, keeps a copy, and does it.
pub fn run(args: &RecoverArgs) -> Result<u8, Failure> {
    let dir = &args.data_dir;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let outlook = rescue::look(&disk, dir).map_err(|error| explain(dir, &error))?;
    let lock = disk
        .lock(&dir.join("lock"))
        .map_err(|error| Failure::new(NO, format!("{}: {error}", dir.display())))?;
    if lock.is_none() {
        let what = format!("{}: a node is running on it; stop it first", dir.display());
        return Err(Failure::new(REFUSED, what));
    }
    print!("{}", describe(&outlook));
    confirm(args.yes)?;
    let copy = copy_path(dir)?;
    keep_copy(&*disk, dir, &copy).map_err(|error| {
        let what = format!("{}: no copy could be made: {error}; nothing was changed", copy.display());
        Failure::new(NO, what)
    })?;
    drop(lock);
    let mut options = Options::new(dir);
    options.node_id = outlook.node;
    let state = offline::state(u32::try_from(outlook.node).unwrap_or(u32::MAX));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(NO, format!("cannot start: {error}")))?;
    let rescued =
        runtime.block_on(rescue::go_on_alone(&options, state)).map_err(|error| explain(dir, &error))?;
    println!(
        "node {} is the only voter of the new cluster {}, from entry {} on",
        rescued.node, rescued.cluster, rescued.last
    );
    println!(
        "start it as before; then wipe the other nodes' directories and let them in with `beanpole cluster add`"
    );
    println!("the directory as it was: {}; remove it when all is well", copy.display());
    Ok(YES)
}

fn explain(dir: &Path, error: &RescueError) -> Failure {
    match error {
        RescueError::NoNode(_) | RescueError::Alone(_) => Failure::new(USAGE, error.to_string()),
        RescueError::Start(StartError::InUse { .. }) => Failure::new(REFUSED, error.to_string()),
        RescueError::Start(_) | RescueError::Io(_) => Failure::new(
            NO,
            format!("{}: {error}; try another survivor, or `beanpole backup restore`", dir.display()),
        ),
    }
}

fn describe(outlook: &Outlook) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let others: Vec<String> = outlook.others.keys().map(u64::to_string).collect();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "node {} of cluster {}; the others: node {}",
        outlook.node,
        outlook.cluster,
        others.join(", node ")
    );
    let _ = writeln!(text, "it has all entries up to {} (term {})", outlook.last, outlook.last_term);
    let _ = writeln!(text, "it knows that those up to {} were acknowledged by a majority", outlook.committed);
    for (node, acknowledged) in &outlook.others {
        let _ = writeln!(text, "node {node} is known to have had entry {acknowledged}");
    }
    match outlook.known_missing() {
        Some(upto) => {
            let _ = writeln!(text, "LOST for certain: entries {} to {upto}", outlook.last + 1);
        }
        None => {
            let _ = writeln!(text, "nothing is known to be missing");
        }
    }
    let _ = writeln!(
        text,
        "May be lost: entries that a majority without this node acknowledged after {}: puts are gone then,",
        outlook.last
    );
    let _ = writeln!(
        text,
        "and deletes undone. If another node's disk can be read, recover from the one with the higher entry instead."
    );
    let _ = writeln!(text, "If a majority can come back, stop here: start those nodes, and nothing is lost.");
    text
}

fn confirm(yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let refused = |what: &str| Err(Failure::new(REFUSED, format!("{what}; nothing was changed")));
    if !io::stdin().is_terminal() {
        return refused("not confirmed: run it on a terminal, or with --yes");
    }
    print!("Go on with this node alone, in a new cluster? Type yes: ");
    // An answer is read whether or not the question was seen.
    io::stdout().flush().ok();
    let mut answer = String::new();
    match io::stdin().read_line(&mut answer) {
        Ok(_) if answer.trim() == "yes" => Ok(()),
        Ok(_) | Err(_) => refused("not confirmed"),
    }
}

/// Where the directory is kept as it was.
fn copy_path(dir: &Path) -> Result<PathBuf, Failure> {
    let full =
        fs::canonicalize(dir).map_err(|error| Failure::new(USAGE, format!("{}: {error}", dir.display())))?;
    let mut name = full.file_name().unwrap_or_default().to_os_string();
    name.push(".before-recovery");
    let copy = full.with_file_name(name);
    if copy.exists() {
        let what = format!("{} exists, from an earlier recovery: move it away first", copy.display());
        return Err(Failure::new(REFUSED, what));
    }
    Ok(copy)
}

/// Files that are never written again are linked, the others copied. Prepared segments hold nothing and are left out.
fn keep_copy(disk: &dyn Disk, dir: &Path, copy: &Path) -> io::Result<()> {
    fs::create_dir(copy)?;
    let segments = inspect::list(disk, dir)?;
    let is = |path: &Path, kind| segments.iter().any(|segment| segment.file == path && segment.kind == kind);
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (from, to) = (entry.path(), copy.join(entry.file_name()));
        if !entry.file_type()?.is_file() || is(&from, SegmentKind::Blank) {
            continue;
        }
        let settled = is(&from, SegmentKind::Sealed) || from.extension().is_some_and(|end| end == "snap");
        if settled && fs::hard_link(&from, &to).is_ok() {
            continue;
        }
        fs::copy(&from, &to)?;
        File::open(&to)?.sync_all()?;
    }
    File::open(copy)?.sync_all()?;
    match copy.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
