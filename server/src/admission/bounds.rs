//! What limits this process's memory, and how much of each limit is used: memory cgroups (version 1 and 2) from its own up to
//! the root, and the machine.
//!
//! ```text
//!   /proc/self/mountinfo   where the hierarchies are mounted, and which part of them
//!   /proc/self/cgroup      where this process is in them        └─► walk up: limit, and what cannot be taken back
//!   /proc/meminfo          the machine: all memory, less what is available
//! ```
//!
//! Page cache counts nowhere, since the kernel takes it back; shared memory does, so that a data directory on tmpfs is seen.

use std::fs;
use std::path::{Path, PathBuf};

/// A limit from here on is none: version 1 says "unlimited" with a number near 2^63.
const UNLIMITED: u64 = 1 << 60;

/// Where figures are read: the file system, or a directory that is laid out like it.
#[derive(Clone, Debug)]
pub struct System {
    root: PathBuf,
}

/// Who sets a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `--memory-limit`.
    Setting,
    /// A cgroup of version 1, by its directory.
    CgroupV1(PathBuf),
    /// A cgroup of version 2, by its directory.
    CgroupV2(PathBuf),
    /// All memory of the machine.
    Machine,
}

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Bytes that may be used.
    pub limit: u64,
    /// Who says so.
    pub source: Source,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Setting => f.write_str("--memory-limit"),
            Source::CgroupV1(dir) | Source::CgroupV2(dir) => write!(f, "cgroup {}", dir.display()),
            Source::Machine => f.write_str("machine"),
        }
    }
}

impl System {
    /// The one that this process runs on.
    pub fn real() -> System {
        System { root: "/".into() }
    }

    fn text(&self, path: &Path) -> Option<String> {
        fs::read_to_string(self.root.join(path.strip_prefix("/").unwrap_or(path))).ok()
    }

    /// Every limit there is now: that of the setting, of each cgroup up the tree that has one, and of the machine.
    pub fn bounds(&self, setting: Option<u64>) -> Vec<Bound> {
        let mut bounds: Vec<Bound> =
            setting.into_iter().map(|limit| Bound { limit, source: Source::Setting }).collect();
        for hierarchy in self.hierarchies() {
            bounds.extend(hierarchy.levels().filter_map(|dir| self.cgroup_bound(hierarchy.v2, dir)));
        }
        if let Some(total) = self.meminfo("MemTotal:") {
            bounds.push(Bound { limit: total, source: Source::Machine });
        }
        bounds
    }

    fn cgroup_bound(&self, v2: bool, dir: &Path) -> Option<Bound> {
        let number = |name: &str| self.text(&dir.join(name))?.trim().parse::<u64>().ok();
        let (limit, source) = if v2 {
            // Above `high` the kernel slows every allocation down: that is no place to live either.
            let limit = number("memory.max").into_iter().chain(number("memory.high")).min()?;
            (limit, Source::CgroupV2(dir.to_owned()))
        } else {
            (number("memory.limit_in_bytes")?, Source::CgroupV1(dir.to_owned()))
        };
        (limit < UNLIMITED).then_some(Bound { limit, source })
    }

    /// What is used of a limit and cannot be taken back, by this process (`own` bytes) and all others that it concerns.
    pub fn used(&self, bound: &Bound, own: u64) -> u64 {
        let all = match &bound.source {
            Source::Setting => None,
            Source::CgroupV1(dir) => self.stat(dir, &["total_rss", "total_shmem"]),
            Source::CgroupV2(dir) => self.stat(
                dir,
                &["anon", "shmem", "kernel_stack", "pagetables", "percpu", "sock", "slab_unreclaimable"],
            ),
            Source::Machine => self.meminfo("MemAvailable:").map(|free| bound.limit.saturating_sub(free)),
        };
        all.unwrap_or(0).max(own)
    }

    /// The sum of some lines of a cgroup's `memory.stat`.
    fn stat(&self, dir: &Path, names: &[&str]) -> Option<u64> {
        let text = self.text(&dir.join("memory.stat"))?;
        let values = text.lines().filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            names.contains(&name).then(|| value.trim().parse::<u64>().ok()).flatten()
        });
        Some(values.sum())
    }

    /// For how much of the last ten seconds all tasks that the limit concerns stood still for want of memory, in thousandths.
    pub fn stalled(&self, bound: &Bound) -> u32 {
        let path = match &bound.source {
            Source::CgroupV2(dir) => dir.join("memory.pressure"),
            Source::Machine => PathBuf::from("/proc/pressure/memory"),
            // Version 1 does not tell, and other processes' troubles are not this limit's.
            Source::Setting | Source::CgroupV1(_) => return 0,
        };
        self.text(&path).and_then(|text| full_avg10(&text)).unwrap_or(0)
    }

    /// OOM kills that the cgroup has seen in its life.
    pub fn oom_kills(&self, bound: &Bound) -> u64 {
        let (dir, file) = match &bound.source {
            Source::CgroupV1(dir) => (dir, "memory.oom_control"),
            Source::CgroupV2(dir) => (dir, "memory.events"),
            Source::Setting | Source::Machine => return 0,
        };
        let text = self.text(&dir.join(file)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }

    /// Memory of this process that cannot be taken back, in bytes: anonymous, shared, and page tables.
    pub fn own(&self) -> u64 {
        let text = self.text(Path::new("/proc/self/status")).unwrap_or_default();
        ["RssAnon:", "RssShmem:", "VmPTE:"].iter().filter_map(|name| kib(&text, name)).sum()
    }

    fn meminfo(&self, name: &str) -> Option<u64> {
        kib(&self.text(Path::new("/proc/meminfo"))?, name)
    }

    /// Where memory cgroups are, and where this process is in them.
    fn hierarchies(&self) -> Vec<Hierarchy> {
        let mounts = self.text(Path::new("/proc/self/mountinfo")).unwrap_or_default();
        let own = self.text(Path::new("/proc/self/cgroup")).unwrap_or_default();
        mounts.lines().filter_map(|line| hierarchy(line, &own)).collect()
    }
}

/// A mounted hierarchy that limits memory.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    v2: bool,
    mount: PathBuf,
    /// This process's cgroup, as a directory below `mount`.
    own: PathBuf,
}

impl Hierarchy {
    /// From the own cgroup up to what is mounted.
    fn levels(&self) -> impl Iterator<Item = &Path> {
        self.own.ancestors().take_while(|dir| dir.starts_with(&self.mount))
    }
}

/// Reads a line of mountinfo: `id parent dev root mount options [fields] - type source options`.
fn hierarchy(line: &str, own: &str) -> Option<Hierarchy> {
    let (front, back) = line.split_once(" - ")?;
    let front: Vec<&str> = front.split(' ').collect();
    let back: Vec<&str> = back.split(' ').collect();
    let (root, mount) = (*front.get(3)?, PathBuf::from(*front.get(4)?));
    let v2 = match *back.first()? {
        "cgroup2" => true,
        "cgroup" if back.get(2)?.split(',').any(|option| option == "memory") => false,
        _ => return None,
    };
    let path = own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let is = if v2 { controllers.is_empty() } else { controllers.split(',').any(|c| c == "memory") };
        is.then_some(path)
    })?;
    // Within a container the mount may show a part of the tree only, or the path may be one outside it.
    let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
    Some(Hierarchy { v2, own: mount.join(below.strip_prefix("/").unwrap_or(below)), mount })
}

/// `full avg10=1.23 ...` as thousandths.
fn full_avg10(text: &str) -> Option<u32> {
    let line = text.lines().find_map(|line| line.strip_prefix("full avg10="))?;
    let (whole, rest) = line.split_once('.')?;
    Some(whole.parse::<u32>().ok()? * 10 + rest.get(..1)?.parse::<u32>().ok()?)
}

/// `NAME   123 kB` as bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine in a directory.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new(files: &[(&str, &str)]) -> Machine {
            let machine = Machine(tempfile::tempdir().unwrap());
            machine.put("proc/meminfo", "MemTotal:  1048576 kB\nMemFree: 1 kB\nMemAvailable: 524288 kB\n");
            for (path, text) in files {
                machine.put(path, text);
            }
            machine
        }
        fn put(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        fn system(&self) -> System {
            System { root: self.0.path().to_owned() }
        }
    }

    fn shown(bounds: &[Bound]) -> Vec<String> {
        bounds.iter().map(|bound| format!("{} {}", bound.limit >> 20, bound.source)).collect()
    }

    const V2: &str = "30 20 0:25 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "33 20 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      34 20 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";

    #[test]
    fn every_limit_up_the_tree_counts_in_version_2() {
        let machine = Machine::new(&[
            ("proc/self/mountinfo", V2),
            ("proc/self/cgroup", "0::/system.slice/beanpole.service\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "268435456\n"),
            ("sys/fs/cgroup/system.slice/memory.high", "max\n"),
            ("sys/fs/cgroup/system.slice/beanpole.service/memory.max", "max\n"),
            ("sys/fs/cgroup/system.slice/beanpole.service/memory.high", "402653184\n"),
            ("sys/fs/cgroup/system.slice/memory.stat", "anon 1000\nfile 5000\nshmem 20\nsock 3\n"),
            ("sys/fs/cgroup/system.slice/memory.events", "low 0\noom 4\noom_kill 3\n"),
            (
                "sys/fs/cgroup/system.slice/memory.pressure",
                "some avg10=40.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=12.34 avg60=0.00 avg300=0.00 total=1\n",
            ),
        ]);
        let system = machine.system();
        let bounds = system.bounds(Some(512 << 20));
        assert_eq!(
            shown(&bounds),
            [
                "512 --memory-limit",
                "384 cgroup /sys/fs/cgroup/system.slice/beanpole.service",
                "256 cgroup /sys/fs/cgroup/system.slice",
                "1024 machine",
            ]
        );
        assert_eq!(system.used(&bounds[0], 77), 77, "a setting is about this process alone");
        assert_eq!(system.used(&bounds[2], 77), 1023, "siblings count, page cache does not");
        assert_eq!(system.used(&bounds[2], 5000), 5000);
        assert_eq!(system.used(&bounds[3], 77), 512 << 20);
        assert_eq!((system.stalled(&bounds[2]), system.stalled(&bounds[0])), (123, 0));
        assert_eq!((system.oom_kills(&bounds[2]), system.oom_kills(&bounds[3])), (3, 0));
    }

    #[test]
    fn version_1_is_read_where_its_memory_controller_is_mounted() {
        let machine = Machine::new(&[
            ("proc/self/mountinfo", V1),
            ("proc/self/cgroup", "9:cpu:/elsewhere\n4:memory:/jobs/node1\n0::/\n"),
            ("sys/fs/cgroup/memory/jobs/node1/memory.limit_in_bytes", "100663296\n"),
            ("sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/jobs/node1/memory.stat", "rss 1\ntotal_rss 2000\ntotal_shmem 100\n"),
            ("sys/fs/cgroup/memory/jobs/node1/memory.oom_control", "under_oom 0\noom_kill 2\n"),
        ]);
        let system = machine.system();
        let bounds = system.bounds(None);
        assert_eq!(shown(&bounds), ["96 cgroup /sys/fs/cgroup/memory/jobs/node1", "1024 machine"]);
        assert_eq!((system.used(&bounds[0], 5), system.oom_kills(&bounds[0])), (2100, 2));
    }

    #[test]
    fn a_container_sees_its_own_part_of_the_tree() {
        let own = "4:memory:/docker/abc\n";
        let line = "33 20 0:28 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let found = hierarchy(line, own).unwrap();
        assert_eq!(found.own, Path::new("/sys/fs/cgroup/memory"));
        let other = hierarchy(line, "4:memory:/../../outside\n").unwrap();
        assert_eq!(other.own, Path::new("/sys/fs/cgroup/memory"));
        assert_eq!(hierarchy("1 2 0:3 / /proc rw - proc proc rw", own), None);
    }

    #[test]
    fn a_system_that_tells_nothing_has_no_bounds() {
        let empty = tempfile::tempdir().unwrap();
        let system = System { root: empty.path().to_owned() };
        assert_eq!((system.bounds(None), system.own()), (Vec::new(), 0));
    }

    #[test]
    fn the_real_system_has_bounds_and_uses_some_of_them() {
        let system = System::real();
        let bounds = system.bounds(None);
        assert!(bounds.iter().any(|bound| bound.source == Source::Machine));
        for bound in &bounds {
            let used = system.used(bound, system.own());
            assert!(used > 0 && system.own() > 0, "{bound:?}");
        }
    }
}
