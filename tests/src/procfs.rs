//! What the kernel knows about a process, read from `/proc`: who owns a port, how much memory cannot be
//! taken back, how much was written, how much CPU was used.

use std::collections::HashSet;
use std::fs;

/// True when process `pid` itself holds the listening TCP socket of `port` on any local address. A test
/// that sent its load to a stranger's server would be green for nothing.
pub fn owns_listening_port(pid: u32, port: u16) -> bool {
    let inodes = listening_inodes(port);
    if inodes.is_empty() {
        return false;
    }
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    entries.flatten().any(|entry| {
        fs::read_link(entry.path()).is_ok_and(|target| {
            let target = target.to_string_lossy();
            target
                .strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']'))
                .is_some_and(|inode| inodes.contains(inode))
        })
    })
}

/// Inodes of the sockets in state LISTEN (0A) on `port`.
fn listening_inodes(port: u16) -> HashSet<String> {
    let suffix = format!(":{port:04X}");
    let mut inodes = HashSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.len() > 9 && fields[3] == "0A" && fields[1].ends_with(&suffix) {
                inodes.insert(fields[9].to_string());
            }
        }
    }
    inodes
}

/// Anonymous resident memory in bytes: the part of RSS that the kernel cannot take back.
pub fn rss_anon_bytes(pid: u32) -> u64 {
    field(&format!("/proc/{pid}/status"), "RssAnon:") * 1024
}

/// What a process has written so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Write system calls, sockets included.
    pub syscalls: u64,
    /// Bytes sent to the storage layer.
    pub bytes: u64,
}

/// Write counters of process `pid`.
pub fn written(pid: u32) -> Written {
    let path = format!("/proc/{pid}/io");
    Written { syscalls: field(&path, "syscw:"), bytes: field(&path, "write_bytes:") }
}

/// CPU time of process `pid`, user and system, in clock ticks (10 ms each on Linux).
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command name may contain spaces; fields are counted from behind its closing bracket.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<u64> = after_name.split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
    fields.get(11).copied().unwrap_or(0) + fields.get(12).copied().unwrap_or(0)
}

/// Number of open file descriptors of process `pid`.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map(|entries| entries.count()).unwrap_or(0)
}

/// How many files a process may have open: the limit in force, and up to where it may raise that.
pub fn file_limit(pid: u32) -> (u64, u64) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap_or_default();
    let mut numbers = line.split_whitespace().map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Lets a process of ours have no more than so many files open from now on.
pub fn limit_files(pid: u32, files: u64) {
    let (_, hard) = file_limit(pid);
    let limit = libc::rlimit { rlim_cur: files, rlim_max: hard };
    let pid = i32::try_from(pid).expect("a pid fits in i32");
    // SAFETY: the limit is read during the call only, and the old one is not asked for.
    let done = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut()) };
    assert_eq!(done, 0, "the limit of our own child can be lowered: {}", std::io::Error::last_os_error());
}

/// The first number behind `name` in a file of `name value` lines; 0 when it is not there.
fn field(path: &str, name: &str) -> u64 {
    fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
