//! Memory cgroups, version 1 or 2, for tests that want a process to meet its limit. They need root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// A cgroup of a test's own, removed when it is dropped (its processes must be gone by then).
pub struct Cgroup {
    dir: PathBuf,
    v2: bool,
}

impl Cgroup {
    /// One with a limit of so many bytes; `None` without root or memory cgroups.
    pub fn with_limit(bytes: u64) -> Option<Cgroup> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("beanpole-test-{}-{number}", std::process::id());
        [("/sys/fs/cgroup/memory", false), ("/sys/fs/cgroup", true)].into_iter().find_map(|(mount, v2)| {
            let limit = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
            if v2 {
                // Children have the controller only if their parent hands it down; an error means that it is not there.
                let _may_be_on = fs::write(Path::new(mount).join("cgroup.subtree_control"), "+memory");
            }
            let cgroup = Cgroup { dir: Path::new(mount).join(&name), v2 };
            fs::create_dir(&cgroup.dir).ok()?;
            fs::write(cgroup.dir.join(limit), bytes.to_string()).ok()?;
            Some(cgroup)
        })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// OOM kills in it so far.
    pub fn oom_kills(&self) -> u64 {
        let file = if self.v2 { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that was just killed may still be going; it is waited for, because an empty cgroup that stays is litter.
        let gone = crate::wait::until(|| fs::remove_dir(&self.dir).ok());
        if gone.is_none() {
            eprintln!("{} stays behind", self.dir.display());
        }
    }
}

/// The command for `binary`, born in the cgroup with that directory if there is one.
pub fn command(binary: &Path, cgroup: Option<&Path>) -> Command {
    let Some(dir) = cgroup else { return Command::new(binary) };
    let mut command = Command::new("sh");
    let procs = dir.join("cgroup.procs");
    command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(procs).arg(binary);
    command
}
