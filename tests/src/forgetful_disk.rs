//! Disks that forget what was not flushed when their power is cut (`tests/tools/forgetful_disk.c`), each with a file system.
//!
//! ```text
//!   data directory ── ext4 ── loop device ── forgetful_disk (FUSE): image, and blocks that were not flushed
//! ```
//!
//! Needs root, `/dev/fuse`, a loop device, gcc and the headers of libfuse 3.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::wait;

/// Room for a node's log of a short test.
const IMAGE_BYTES: u64 = 512 << 20;
/// How long FUSE may take to be there.
const MOUNT_LIMIT: Duration = Duration::from_secs(10);

/// The program, compiled.
pub struct Program {
    path: PathBuf,
    _directory: TempDir,
}

impl Program {
    /// Compiles it; why that cannot be done here, or why its disks could not be used.
    pub fn build() -> Result<Program, String> {
        if fs::metadata("/proc/self").map_err(|e| e.to_string())?.uid() != 0 {
            return Err("it needs root".to_owned());
        }
        for device in ["/dev/fuse", "/dev/loop-control"] {
            File::options().read(true).write(true).open(device).map_err(|e| format!("{device}: {e}"))?;
        }
        let flags = output("pkg-config", &["--cflags", "--libs", "fuse3"])
            .map_err(|e| format!("no libfuse 3: {e}"))?;
        let directory = TempDir::with_prefix("beanpole-disk-").map_err(|e| e.to_string())?;
        let path = directory.path().join("forgetful_disk");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/forgetful_disk.c");
        let (target, flags) = (path.display().to_string(), flags.split_whitespace().collect::<Vec<_>>());
        output("gcc", &[&["-O2", source, "-o", &target], &flags[..]].concat())
            .map_err(|e| format!("gcc: {e}"))?;
        Ok(Program { path, _directory: directory })
    }
}

/// One disk with a mounted file system.
pub struct Disk {
    fuse: Child,
    device: Option<String>,
    directory: TempDir,
}

impl Disk {
    /// A new, empty disk. `seed` decides which blocks survive a cut.
    pub fn make(program: &Program, seed: u64) -> io::Result<Disk> {
        let directory = TempDir::with_prefix("beanpole-disk-")?;
        let at = |name: &str| directory.path().join(name);
        File::create(at("image"))?.set_len(IMAGE_BYTES)?;
        fs::create_dir(at("fuse"))?;
        fs::create_dir(at("mounted"))?;
        let fuse = Command::new(&program.path)
            .args([at("image"), at("fuse")])
            .arg(seed.to_string())
            .stdin(Stdio::null())
            .spawn()?;
        let mut disk = Disk { fuse, device: None, directory };
        let there = wait::until_within(MOUNT_LIMIT, || disk.at("fuse/disk").is_file().then_some(()));
        there.ok_or_else(|| io::Error::other("the FUSE file system does not come up"))?;
        disk.attach()?;
        output("mkfs.ext4", &["-q", "-F", disk.device.as_deref().unwrap_or_default()])?;
        disk.mount()?;
        Ok(disk)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where its file system is mounted.
    pub fn path(&self) -> PathBuf {
        self.at("mounted")
    }

    fn attach(&mut self) -> io::Result<()> {
        self.device =
            Some(output("losetup", &["-f", "--show", &text(&self.at("fuse/disk"))])?.trim().to_owned());
        Ok(())
    }

    fn mount(&self) -> io::Result<()> {
        output("mount", &[self.device.as_deref().unwrap_or_default(), &text(&self.path())]).map(drop)
    }

    /// The power of several disks is cut, of each when it is next told to flush: of the blocks that were not flushed, so many per
    /// cent survive. One that is not told to, for its node has nobody left to agree with, is cut as it is.
    pub fn cut_all(disks: &[Disk], survive_percent: u32) -> io::Result<()> {
        disks.iter().try_for_each(|disk| disk.tell(&survive_percent.to_string()))?;
        let all_dead = || disks.iter().all(Disk::is_dead).then_some(());
        if wait::until_within(Duration::from_secs(2), all_dead).is_none() {
            let mut alive = disks.iter().filter(|disk| !disk.is_dead());
            alive.try_for_each(|disk| disk.tell(&format!("now {survive_percent}")))?;
        }
        Ok(())
    }

    fn tell(&self, what: &str) -> io::Result<()> {
        fs::write(self.at("fuse/cut"), what)
    }

    fn is_dead(&self) -> bool {
        self.told("dead").is_ok_and(|dead| dead == 1)
    }

    /// How many blocks were lost so far.
    pub fn lost_blocks(&self) -> io::Result<u64> {
        self.told("lost")
    }

    /// What the disk tells about itself.
    fn told(&self, name: &str) -> io::Result<u64> {
        let told = fs::read_to_string(self.at("fuse/cut"))?;
        let number = told.split_whitespace().skip_while(|word| *word != name).nth(1);
        number.and_then(|number| number.parse().ok()).ok_or_else(|| io::Error::other(told))
    }

    /// The power is back: what survived is mounted again. Nobody may have a file open.
    pub fn power_on(&mut self) -> io::Result<()> {
        self.detach()?;
        self.tell("heal")?;
        self.attach()?;
        self.mount()
    }

    fn detach(&mut self) -> io::Result<()> {
        let Some(device) = self.device.take() else { return Ok(()) };
        output("umount", &[&text(&self.path())])?;
        output("losetup", &["-d", &device]).map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(e) = self.detach() {
            eprintln!("{} stays mounted: {e}", self.path().display());
        }
        if let Err(e) = output("umount", &[&text(&self.at("fuse"))]) {
            eprintln!("{} stays mounted: {e}", self.at("fuse").display());
        }
        // It ends by itself when it is unmounted; if not, it is ended.
        let _ended = self.fuse.kill();
        let _status = self.fuse.wait();
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// What a program prints; an error with what it complained of unless it succeeds.
fn output(program: &str, arguments: &[&str]) -> io::Result<String> {
    let out = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    Err(io::Error::other(format!("{program} {}: {}", arguments.join(" "), said.trim())))
}
