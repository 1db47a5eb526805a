//! The sockets that clients connect to.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use super::stream::Stream;
use crate::config::Listen;

/// Connections the kernel may hold before they are accepted; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A bound, listening socket that is not yet part of a runtime.
pub enum Bound {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// Unix, with the path to remove at the end.
    Unix(std::os::unix::net::UnixListener, PathBuf),
}

/// A listening socket of the running server.
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// Unix; the path is removed with it.
    Unix(UnixListener, SocketFile),
}

/// The file of a unix socket, removed when it is dropped.
pub struct SocketFile(PathBuf);

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else listens there.
    #[error(
        "{0} is already in use; stop the process that listens there, or choose another address with --{1}"
    )]
    InUse(Listen, &'static str),
    /// The name has no address, or the system refuses.
    #[error("cannot listen on {0}: {2}; check --{1}")]
    Refused(Listen, &'static str, io::Error),
}

/// Binds an address at once, so that a taken port is reported before anything else is touched. `flag` names the setting
/// in errors.
pub fn bind(listen: &Listen, flag: &'static str) -> Result<Bound, BindError> {
    let result = match listen {
        Listen::Tcp { host, port } => bind_tcp(host, *port).map(Bound::Tcp),
        Listen::Unix(path) => bind_unix(path).map(|l| Bound::Unix(l, path.clone())),
    };
    result.map_err(|e| {
        if e.kind() == io::ErrorKind::AddrInUse {
            BindError::InUse(listen.clone(), flag)
        } else {
            BindError::Refused(listen.clone(), flag, e)
        }
    })
}

fn bind_tcp(host: &str, port: u16) -> io::Result<std::net::TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for addr in (host, port).to_socket_addrs()? {
        match listen_tcp(addr) {
            Ok(listener) => return Ok(listener),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn listen_tcp(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for old connections to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn bind_unix(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    remove_stale_socket(path)?;
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A socket file that nobody answers on is left over from a process that was killed.
fn remove_stale_socket(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

impl Bound {
    /// Where it listens; the real port when 0 was asked for.
    pub fn address(&self) -> String {
        match self {
            Bound::Tcp(l) => l.local_addr().map_or_else(|_| "?".into(), |a| a.to_string()),
            Bound::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    /// Hands it to the runtime of the calling task.
    pub fn into_listener(self) -> io::Result<Listener> {
        match self {
            Bound::Tcp(l) => TcpListener::from_std(l).map(Listener::Tcp),
            Bound::Unix(l, path) => UnixListener::from_std(l).map(|l| Listener::Unix(l, SocketFile(path))),
        }
    }
}

impl Listener {
    /// The next connection, and the address of who opened it; a unix socket has none.
    pub async fn accept(&self) -> io::Result<(Stream, Option<SocketAddr>)> {
        match self {
            Listener::Tcp(l) => l.accept().await.map(|(s, from)| (Stream::Tcp(s), Some(from))),
            Listener::Unix(l, _) => l.accept().await.map(|(s, _)| (Stream::Unix(s), None)),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It is gone already, or the next start finds that nobody listens on it.
        let _ = std::fs::remove_file(&self.0);
    }
}
