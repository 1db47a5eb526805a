//! One node's process. It is started through a step of our own, because only a process itself can ask the kernel to be
//! killed when its parent dies:
//!
//! ```text
//!   dev cluster ──spawn──► dev child: die with my parent ──exec──► serve --node-id 1 ...      (one process id throughout)
//! ```

use std::io::{self, PipeReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use clap::Args;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

/// Arguments of the hidden step.
#[derive(Args, Debug)]
pub(super) struct ChildArgs {
    /// The process to die with
    #[arg(long)]
    parent: i32,
    /// Arguments of `beanpole`
    #[arg(last = true, required = true)]
    arguments: Vec<String>,
}

/// Never returns if all is well: the process becomes the server.
pub(super) fn become_server(args: &ChildArgs) -> ExitCode {
    let failed = set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from).and_then(|()| {
        // A parent that died before the call would not be noticed any more.
        if getppid().as_raw() != args.parent {
            return Ok(io::Error::other("the process that started this one is gone"));
        }
        Ok(Command::new(std::env::current_exe()?).args(&args.arguments).exec())
    });
    let (Ok(error) | Err(error)) = failed;
    eprintln!("beanpole: cannot start a node: {error}");
    ExitCode::FAILURE
}

/// Starts a node with `arguments` of `beanpole`; what it prints comes out of the pipe. Must be called on the process's main
/// thread: the kernel takes the thread that started a child for its parent.
pub(super) fn spawn(
    program: &Path,
    arguments: &[String],
    env: &[(String, String)],
) -> io::Result<(Child, PipeReader)> {
    let (reader, writer) = io::pipe()?;
    let child = Command::new(program)
        .args(["dev", "child", "--parent", &std::process::id().to_string(), "--"])
        .args(arguments)
        // A port in the environment would contradict the addresses given.
        .env_remove("BEANPOLE_PORT")
        .envs(env.iter().map(|(name, value)| (name, value)))
        // Ctrl-C is for the parent, which ends its children in order.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()?;
    Ok((child, reader))
}
