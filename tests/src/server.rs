//! Server processes under test: started on free ports, stopped by pid, restarted on the same directory.
//!
//! A [`Server`] is handed out only when *its own child* owns the listening port and has answered a
//! command, so a test can never talk to a stranger by accident. It is killed when dropped.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::connection::Connection;
use crate::wait::PATIENCE;
use crate::{admin, cgroup, extra, procfs, wait};

/// How long a server that did not serve may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// The product behind a [`Server`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Beanpole,
    /// Debian's, the oracle.
    Beanstalkd,
}

/// How a server is to be started.
#[derive(Debug, Clone)]
pub struct Setup {
    kind: Kind,
    binary: PathBuf,
    /// A directory of the caller's; otherwise a fresh one that goes away with the server.
    data_dir: Option<PathBuf>,
    /// Where a fresh directory is made; the system's place for temporary files otherwise.
    scratch: Option<PathBuf>,
    /// beanstalkd only: keep a binlog, synced at each write.
    persistent: bool,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    /// The directory of the cgroup that it is born in.
    cgroup: Option<PathBuf>,
}

impl Setup {
    /// Beanpole from `binary`; the environment variable `BEANPOLE_BIN` names another one (a release
    /// build, say) for the whole run.
    pub fn beanpole(binary: impl Into<PathBuf>) -> Setup {
        let binary = std::env::var_os("BEANPOLE_BIN").map_or_else(|| binary.into(), PathBuf::from);
        Setup::new(Kind::Beanpole, binary)
    }

    /// Beanpole by way of a program that becomes it.
    pub fn wrapped(wrapper: &Path) -> Setup {
        Setup::new(Kind::Beanpole, wrapper.to_owned())
    }

    /// The installed beanstalkd, in memory; `None` when there is none.
    pub fn beanstalkd() -> Option<Setup> {
        extra::program("beanstalkd").map(|binary| Setup::new(Kind::Beanstalkd, binary))
    }

    fn new(kind: Kind, binary: PathBuf) -> Setup {
        Setup {
            kind,
            binary,
            data_dir: None,
            scratch: None,
            persistent: kind == Kind::Beanpole,
            flags: Vec::new(),
            environment: Vec::new(),
            cgroup: None,
        }
    }

    /// In this cgroup, by its directory.
    pub fn within(mut self, cgroup: &Path) -> Setup {
        self.cgroup = Some(cgroup.to_owned());
        self
    }

    /// With a directory that the caller owns and that outlives the server.
    pub fn on(mut self, data_dir: impl Into<PathBuf>) -> Setup {
        self.data_dir = Some(data_dir.into());
        self.persistent = true;
        self
    }

    /// With its directory in memory where there is plenty: for tests in which durability plays no part, and
    /// syncs only cost time.
    pub fn in_memory(mut self) -> Setup {
        const PLENTY_BYTES: u64 = 2 << 30;
        let shm = PathBuf::from("/dev/shm");
        let free =
            nix::sys::statvfs::statvfs(&shm).map_or(0, |shm| shm.blocks_available() * shm.fragment_size());
        self.scratch = (free >= PLENTY_BYTES).then_some(shm);
        self
    }

    /// beanstalkd with a binlog, synced at each write. Beanpole knows no other way.
    pub fn persistent(mut self) -> Setup {
        self.persistent = true;
        self
    }

    /// With more arguments.
    pub fn flags<I: IntoIterator<Item = S>, S: Into<String>>(mut self, flags: I) -> Setup {
        self.flags.extend(flags.into_iter().map(Into::into));
        self
    }

    /// With an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Setup {
        self.environment.push((name.to_string(), value.to_string()));
        self
    }

    /// Which product this starts.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The program that will be run.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    fn command(&self, data_dir: &Path, port: u16, admin_port: u16) -> Command {
        let mut command = cgroup::command(&self.binary, self.cgroup.as_deref());
        match self.kind {
            Kind::Beanpole => {
                command.arg("serve").arg("--data-dir").arg(data_dir);
                command.args(["--listen", &format!("127.0.0.1:{port}")]);
                command.args(["--admin-listen", &format!("127.0.0.1:{admin_port}")]);
            }
            Kind::Beanstalkd => {
                command.args(["-l", "127.0.0.1", "-p", &port.to_string()]);
                if self.persistent {
                    command.arg("-b").arg(data_dir).args(["-f", "0"]);
                }
            }
        }
        command.args(&self.flags);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

/// Why a server did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It ended by itself: a refusal to start, which some tests want to see.
    #[error("the server ended with {status} before it served; its stderr: {stderr}")]
    Exited {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// It runs, but did not serve in time.
    #[error("the server did not serve within {PATIENCE:?}; its stderr: {stderr}")]
    Silent {
        /// What it said.
        stderr: String,
    },
    /// The operating system refused.
    #[error("cannot start {binary}: {source}")]
    Os {
        /// What was to be run.
        binary: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
}

/// A running server process.
pub struct Server {
    child: Child,
    setup: Setup,
    port: u16,
    admin_port: u16,
    /// The directory of the data, given or inside `workdir`.
    data_dir: PathBuf,
    /// Holds stderr, and the data unless the caller gave a directory.
    workdir: TempDir,
    /// When the process was spawned.
    spawned: Instant,
}

impl Server {
    /// Starts a server and waits until it answers. Panics with its stderr when it does not: for tests
    /// that are about something else.
    pub fn start(setup: &Setup) -> Server {
        Server::try_start(setup).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts a server and waits until it answers a command.
    pub fn try_start(setup: &Setup) -> Result<Server, StartError> {
        const ATTEMPTS: usize = 3;
        let mut last = Server::try_start_at(setup, free_port(), free_port());
        // Between the look for a free port and its use, somebody else may have taken it.
        for _ in 1..ATTEMPTS {
            match &last {
                Err(StartError::Exited { stderr, .. }) if stderr.contains("in use") => {}
                Ok(_) | Err(_) => break,
            }
            last = Server::try_start_at(setup, free_port(), free_port());
        }
        last
    }

    /// The same on given ports, for tests in which the port is the matter.
    pub fn try_start_at(setup: &Setup, port: u16, admin_port: u16) -> Result<Server, StartError> {
        let os = |source| StartError::Os { binary: setup.binary.clone(), source };
        let scratch = setup.scratch.clone().unwrap_or_else(std::env::temp_dir);
        let workdir = TempDir::with_prefix_in("beanpole-test-", scratch).map_err(os)?;
        let data_dir = setup.data_dir.clone().unwrap_or_else(|| workdir.path().join("data"));
        if setup.kind == Kind::Beanstalkd && setup.persistent {
            fs::create_dir_all(&data_dir).map_err(os)?;
        }
        let stderr = File::create(workdir.path().join("stderr")).map_err(os)?;
        let spawned = Instant::now();
        let child = setup.command(&data_dir, port, admin_port).stderr(stderr).spawn().map_err(os)?;
        let mut server = Server { child, setup: setup.clone(), port, admin_port, data_dir, workdir, spawned };
        server.wait_until_serving()?;
        Ok(server)
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Where the admin interface listens (Beanpole).
    pub fn admin_addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.admin_port).into()
    }

    /// A new client connection.
    pub fn connect(&self) -> Connection {
        Connection::open(self.addr()).unwrap_or_else(|error| {
            panic!("cannot connect to {}: {error}; its stderr: {}", self.addr(), self.stderr())
        })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Which product this is.
    pub fn kind(&self) -> Kind {
        self.setup.kind
    }

    /// Where its data lie.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// When its process was spawned.
    pub fn spawned(&self) -> Instant {
        self.spawned
    }

    /// The answer of the admin interface; panics without one.
    pub fn get(&self, path: &str) -> String {
        let answer = admin::get(self.admin_addr(), path, PATIENCE);
        answer.unwrap_or_else(|| panic!("{path}: no answer; its stderr: {}", self.stderr())).1
    }

    /// A figure of `/metrics`, by its whole name with labels.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        line.unwrap_or_else(|| panic!("no {name} in\n{text}"))
    }

    /// The end of what it wrote to stderr.
    pub fn stderr(&self) -> String {
        const TAIL: usize = 4000;
        let bytes = fs::read(self.workdir.path().join("stderr")).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL)..]).into_owned()
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("a pid fits in i32");
        nix::sys::signal::kill(Pid::from_raw(pid), signal).expect("our own child can be signalled");
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        // An error means that it has ended by itself, which `wait` sees as well.
        let _gone_already = self.child.kill();
        self.child.wait().expect("our own child can be waited for");
    }

    /// SIGTERM; the exit status and how long it took. Panics when it does not end.
    pub fn terminate(&mut self) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        self.signal(Signal::SIGTERM);
        let status = self.wait_for_exit();
        (status, begun.elapsed())
    }

    /// Waits until the process ends by itself.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let ended = wait::until(|| self.child.try_wait().expect("our own child can be waited for"));
        ended.unwrap_or_else(|| panic!("the server did not end; its stderr: {}", self.stderr()))
    }

    /// True while the process runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our own child can be waited for").is_none()
    }

    /// Starts the process again, on the same directory and ports, after it was killed or ended.
    pub fn start_again(&mut self) -> Result<(), StartError> {
        let os = |source| StartError::Os { binary: self.setup.binary.clone(), source };
        let path = self.workdir.path().join("stderr");
        let stderr = File::options().append(true).open(path).map_err(os)?;
        self.spawned = Instant::now();
        self.child = self
            .setup
            .command(&self.data_dir, self.port, self.admin_port)
            .stderr(stderr)
            .spawn()
            .map_err(os)?;
        self.wait_until_serving()
    }

    /// Kills and starts again. Panics when it does not come back.
    pub fn crash_and_restart(&mut self) {
        self.kill();
        self.start_again().unwrap_or_else(|error| panic!("after kill -9: {error}"));
    }

    fn wait_until_serving(&mut self) -> Result<(), StartError> {
        let (pid, port, addr) = (self.pid(), self.port, self.addr());
        let deadline = Instant::now() + PATIENCE;
        let ended_or_listening = wait::until(|| {
            if let Some(status) = self.child.try_wait().expect("our own child can be waited for") {
                return Some(Some(status));
            }
            procfs::owns_listening_port(pid, port).then_some(None)
        });
        match ended_or_listening {
            Some(Some(status)) => return Err(StartError::Exited { status, stderr: self.stderr() }),
            Some(None) => {}
            None => return Err(StartError::Silent { stderr: self.stderr() }),
        }
        let answered = Connection::open(addr).and_then(|mut connection| {
            connection.set_patience(deadline.saturating_duration_since(Instant::now()));
            connection.command("list-tubes")
        });
        match answered {
            Ok(reply) if reply.word() == "OK" => Ok(()),
            // One that refuses lets go of its clients a moment before it ends.
            Ok(_) | Err(_) => match wait::until_within(ENDS_WITHIN, || {
                self.child.try_wait().expect("our own child can be waited for")
            }) {
                Some(status) => Err(StartError::Exited { status, stderr: self.stderr() }),
                None => Err(StartError::Silent { stderr: self.stderr() }),
            },
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() && !self.stderr().is_empty() {
            eprintln!("--- stderr of the {:?} under test, its end ---\n{}", self.setup.kind, self.stderr());
        }
    }
}

/// What a command that is expected to end at once did.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it wrote to stderr.
    pub stderr: String,
}

/// Runs the server of `setup` on a directory and ports until it ends by itself; panics when it goes on.
pub fn run_to_end(setup: &Setup, port: u16, admin_port: u16) -> Ended {
    match Server::try_start_at(setup, port, admin_port) {
        Err(StartError::Exited { status, stderr }) => {
            Ended { code: status.code(), signal: status.signal(), stderr }
        }
        Err(error @ (StartError::Silent { .. } | StartError::Os { .. })) => panic!("{error}"),
        Ok(server) => panic!("it should have refused to start; its stderr: {}", server.stderr()),
    }
}

/// A TCP port that nobody listens on, below the range that the kernel gives to outgoing connections, so
/// that it is still free when the server is restarted.
pub fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes of one test run start at different places.
    let start = (std::process::id() * 97 % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (start + step) % COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port in {FIRST}..{}", FIRST + COUNT);
}
