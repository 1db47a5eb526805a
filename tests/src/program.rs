//! Programs of users that run beside the servers, and the lines that they say.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use crate::wait;

/// A running program. It is asked to end by the end of its standard input, and killed when dropped.
pub struct Program {
    child: Child,
    input: Option<ChildStdin>,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Program {
    /// Starts `binary` with these arguments; its standard error goes where the test's goes.
    pub fn start(binary: &str, arguments: &[&str]) -> Program {
        let mut child = Command::new(binary)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {binary}: {error}"));
        let output = BufReader::new(child.stdout.take().expect("its output is piped"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let said = lines.clone();
        let reader = std::thread::spawn(move || {
            output.lines().map_while(Result::ok).for_each(|line| said.lock().unwrap().push(line));
        });
        Program { input: child.stdin.take(), child, lines, reader: Some(reader) }
    }

    /// What it has said so far.
    pub fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap()
    }

    /// The rests of those lines that begin so.
    pub fn said(&self, begin: &str) -> Vec<String> {
        self.lines().iter().filter_map(|line| Some(line.strip_prefix(begin)?.to_owned())).collect()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our own child can be waited for").is_none()
    }

    /// Asks it to end.
    pub fn end_input(&mut self) {
        self.input = None;
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended by itself and all its lines are read; panics when it does not end.
    pub fn wait(&mut self) -> ExitStatus {
        let ended = wait::until(|| self.child.try_wait().expect("our own child can be waited for"));
        let status =
            ended.unwrap_or_else(|| panic!("the program did not end; its lines: {:?}", self.lines()));
        self.reader.take().map(JoinHandle::join);
        status
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // An error means that it has ended by itself.
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}
