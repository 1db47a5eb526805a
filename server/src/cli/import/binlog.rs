//! beanstalkd's binlog, format version 7, as Debian's beanstalkd 1.12 writes it. All numbers are
//! little-endian as on the machines that write them.
//!
//! ```text
//! file     0 version u32 = 7, then records up to the end or to zeros: files are made as long as they may become
//! record   name length u32  name  Jobrec (80 bytes)  body and CRLF         full: the job is new, or was moved here
//!          0 u32            Jobrec (80 bytes)                              short: the job has changed
//! Jobrec   0 id u64  8 pri u32  16 delay i64  24 ttr i64  32 body length with CRLF i32  40 created i64  48 due i64
//!          56 reserves u32  60 timeouts u32  64 releases u32  68 buries u32  72 kicks u32  76 state u8
//! state    0 deleted  1 ready  2 reserved  3 buried  4 delayed             times in nanoseconds since 1970
//! ```
//!
//! A later record of a job replaces an earlier one. Only where each body lies is kept in memory (about 100 bytes a
//! job); the bodies are read when they are put.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::account::State;

/// The version that is understood.
const VERSION: u32 = 7;
const JOBREC: usize = 80;
/// beanstalkd takes no longer tube names.
const NAME_MAX: u32 = 200;

/// A job, and where its body lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its number there.
    pub id: u64,
    /// Its tube.
    pub tube: Arc<str>,
    /// Smaller is handed out first.
    pub pri: u32,
    /// Seconds a worker may hold it.
    pub ttr_s: u32,
    /// What it was; a reserved one is ready.
    pub state: State,
    /// When a delayed one becomes ready, in nanoseconds since 1970.
    pub due_ns: i64,
    /// Which file has its body.
    file: usize,
    /// Where in the file.
    offset: u64,
    /// Length of the body, without CRLF.
    pub len: u32,
}

impl Job {
    /// Seconds of the delay that are left, rounded up.
    pub fn delay_s(&self, now_ns: i64) -> u32 {
        if self.state != State::Delayed {
            return 0;
        }
        let left = u64::try_from(self.due_ns.saturating_sub(now_ns)).unwrap_or(0);
        u32::try_from(left.div_ceil(1_000_000_000)).unwrap_or(u32::MAX)
    }
}

/// A part of a file that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The file.
    pub file: PathBuf,
    /// From where to its end.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
    /// Why.
    pub why: String,
    /// It is the end of the newest file, cut short by a crash: what is there was never complete.
    pub torn: bool,
}

/// Why a directory cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum BinlogError {
    /// The system said no.
    #[error("{file}: {source}")]
    Io {
        /// What was to be read.
        file: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// There is no binlog.
    #[error("{0}: no file is named binlog.N here; give the directory that beanstalkd has as -b")]
    None(PathBuf),
    /// Another format.
    #[error(
        "{file}: format version {found}, and only {VERSION} is understood; start the beanstalkd that wrote it, and use \
         `beanpole import live HOST:PORT`"
    )]
    Version {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// All jobs of a directory.
pub struct Binlog {
    files: Vec<PathBuf>,
    /// The file that a body was read from last: there may be more files than a process may have open.
    open: Option<(usize, File)>,
    /// By number.
    pub jobs: BTreeMap<u64, Job>,
    /// What could not be read.
    pub unread: Vec<Unread>,
    /// Numbers of files that should lie between others and do not.
    pub missing: Vec<u64>,
}

/// Whether a beanstalkd uses the directory: it holds a lock on the file `lock` there.
pub fn is_locked(dir: &Path) -> io::Result<bool> {
    let file = match File::open(dir.join("lock")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETLK(&mut lock)).map_err(io::Error::from)?;
    Ok(i32::from(lock.l_type as libc::c_short) != libc::F_UNLCK)
}

/// Reads all records of all files in `dir`, oldest first.
pub fn read(dir: &Path) -> Result<Binlog, BinlogError> {
    let numbers = numbers(dir)?;
    let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
        return Err(BinlogError::None(dir.to_owned()));
    };
    let missing = (*first..=*last).filter(|number| !numbers.contains(number)).collect();
    let mut binlog =
        Binlog { files: Vec::new(), open: None, jobs: BTreeMap::new(), unread: Vec::new(), missing };
    let mut tubes = HashMap::new();
    for number in &numbers {
        let path = dir.join(format!("binlog.{number}"));
        let failed = |source| BinlogError::Io { file: path.clone(), source };
        let file = File::open(&path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        binlog.files.push(path.clone());
        let mut walk = Walk { input: BufReader::new(file), at: 0, size, tubes: &mut tubes };
        match walk.file(binlog.files.len() - 1, &mut binlog.jobs) {
            Ok(()) => {}
            Err(Stop::Version(found)) => return Err(BinlogError::Version { file: path, found }),
            Err(Stop::Io(source)) if source.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(failed(source));
            }
            Err(stop) => {
                let torn = number == last && stop.is_cut();
                let (offset, bytes) = (walk.at, size.saturating_sub(walk.at));
                binlog.unread.push(Unread { file: path, offset, bytes, why: stop.to_string(), torn });
            }
        }
    }
    Ok(binlog)
}

fn numbers(dir: &Path) -> Result<Vec<u64>, BinlogError> {
    let failed = |source| BinlogError::Io { file: dir.to_owned(), source };
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let number: Option<u64> = name.to_str().and_then(|name| name.strip_prefix("binlog.")?.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

impl Binlog {
    /// The body of a job.
    ///
    /// # Errors
    /// When the file cannot be read, or the body does not end with CRLF: then it is not one.
    pub fn body(&mut self, job: &Job) -> io::Result<Bytes> {
        let open = match self.open.take() {
            Some(open) if open.0 == job.file => open,
            Some(_) | None => (job.file, File::open(&self.files[job.file])?),
        };
        let (_, file) = self.open.insert(open);
        let mut body = vec![0; job.len as usize + 2];
        file.read_exact_at(&mut body, job.offset)?;
        if !body.ends_with(b"\r\n") {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the body does not end with CRLF"));
        }
        body.truncate(job.len as usize);
        Ok(body.into())
    }
}

/// Why reading a file ends before its end.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("format version {0}")]
    Version(u32),
    #[error("a record is cut short")]
    Io(#[from] io::Error),
    #[error("a record makes no sense: {0}")]
    Nonsense(String),
}

impl Stop {
    /// The file ends in the midst of a record.
    fn is_cut(&self) -> bool {
        matches!(self, Stop::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof)
    }
}

/// One file, from its start.
struct Walk<'a> {
    input: BufReader<File>,
    /// Where the last whole record ended.
    at: u64,
    size: u64,
    /// One name for all jobs of a tube.
    tubes: &'a mut HashMap<String, Arc<str>>,
}

impl Walk<'_> {
    fn file(&mut self, file: usize, jobs: &mut BTreeMap<u64, Job>) -> Result<(), Stop> {
        if self.size == 0 {
            return Ok(());
        }
        let version = self.number()?;
        // A file that was made and never written to is all zeros.
        if version == 0 {
            return Ok(());
        }
        if version != VERSION {
            return Err(Stop::Version(version));
        }
        self.at = 4;
        while self.at < self.size {
            if !self.record(file, jobs)? {
                break;
            }
        }
        Ok(())
    }

    /// Reads a record; false at the zeros behind the last one.
    fn record(&mut self, file: usize, jobs: &mut BTreeMap<u64, Job>) -> Result<bool, Stop> {
        if self.size - self.at < 4 + JOBREC as u64 && self.rest_is_zero()? {
            return Ok(false);
        }
        let name_len = self.number()?;
        if name_len > NAME_MAX {
            return Err(Stop::Nonsense(format!("a tube name of {name_len} bytes")));
        }
        let mut name = vec![0; name_len as usize];
        self.input.read_exact(&mut name)?;
        let mut bytes = [0; JOBREC];
        self.input.read_exact(&mut bytes)?;
        let fixed = Jobrec::decode(&bytes);
        if fixed.id == 0 {
            return Ok(false);
        }
        let state = fixed.state()?;
        let body_at = self.at + 4 + u64::from(name_len) + JOBREC as u64;
        let mut end = body_at;
        if name_len > 0 {
            let job = self.full(file, body_at, &name, &fixed)?;
            end += u64::from(job.len) + 2;
            self.pass_over(i64::from(job.len) + 2)?;
            jobs.insert(fixed.id, job);
        }
        fixed.apply(state, jobs);
        self.at = end;
        Ok(true)
    }

    fn full(&mut self, file: usize, offset: u64, name: &[u8], fixed: &Jobrec) -> Result<Job, Stop> {
        let name = beanpole_protocol::Tube::new(name)
            .ok_or_else(|| Stop::Nonsense(format!("the tube name {:?}", String::from_utf8_lossy(name))))?;
        let len = fixed.body_size.checked_sub(2).and_then(|len| u32::try_from(len).ok());
        let len = len.ok_or_else(|| Stop::Nonsense(format!("a body of {} bytes", fixed.body_size)))?;
        if offset + u64::from(len) + 2 > self.size {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let tube = self.tubes.entry(name.to_string()).or_insert_with(|| name.as_str().into()).clone();
        let state = State::Ready;
        Ok(Job { id: fixed.id, tube, pri: 0, ttr_s: 0, state, due_ns: 0, file, offset, len })
    }

    fn number(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.input.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn pass_over(&mut self, bytes: i64) -> io::Result<()> {
        self.input.seek_relative(bytes)
    }

    /// What is left is too short for a record; as zeros it is only unused room.
    fn rest_is_zero(&mut self) -> io::Result<bool> {
        let rest = usize::try_from(self.size - self.at).expect("shorter than a record");
        let mut bytes = vec![0; rest];
        self.input.get_ref().read_exact_at(&mut bytes, self.at)?;
        Ok(bytes.iter().all(|byte| *byte == 0))
    }
}

/// The fixed part of a record.
struct Jobrec {
    id: u64,
    pri: u32,
    ttr_ns: i64,
    body_size: i32,
    due_ns: i64,
    state: u8,
}

impl Jobrec {
    fn decode(bytes: &[u8; JOBREC]) -> Jobrec {
        let four = |at: usize| bytes[at..at + 4].try_into().expect("four bytes");
        let eight = |at: usize| bytes[at..at + 8].try_into().expect("eight bytes");
        Jobrec {
            id: u64::from_le_bytes(eight(0)),
            pri: u32::from_le_bytes(four(8)),
            ttr_ns: i64::from_le_bytes(eight(24)),
            body_size: i32::from_le_bytes(four(32)),
            due_ns: i64::from_le_bytes(eight(48)),
            state: bytes[76],
        }
    }

    /// What the record makes of the job; none when it is deleted.
    fn state(&self) -> Result<Option<State>, Stop> {
        match self.state {
            0 => Ok(None),
            // A reserved job is ready again once its worker is gone.
            1 | 2 => Ok(Some(State::Ready)),
            3 => Ok(Some(State::Buried)),
            4 => Ok(Some(State::Delayed)),
            other => Err(Stop::Nonsense(format!("the state {other}"))),
        }
    }

    /// Brings the job to what this record says. A job whose full record was in a file that is gone is gone as well:
    /// it was deleted, or moved to a later file.
    fn apply(&self, state: Option<State>, jobs: &mut BTreeMap<u64, Job>) {
        let Some(state) = state else {
            jobs.remove(&self.id);
            return;
        };
        if let Some(job) = jobs.get_mut(&self.id) {
            job.state = state;
            job.pri = self.pri;
            job.ttr_s = u32::try_from((self.ttr_ns / 1_000_000_000).max(1)).unwrap_or(u32::MAX);
            job.due_ns = self.due_ns;
        }
    }
}

#[cfg(test)]
mod tests;
