//! How byte streams to peers are made and accepted: the one seam for the network, so that a test can put
//! [`crate::SimHub`] underneath.

use std::io;
use std::net::{TcpListener as StdListener, ToSocketAddrs};
use std::time::Duration;

use futures_util::future::BoxFuture;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// A byte stream to a peer.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Makes and accepts byte streams.
pub trait Net: Send + Sync + 'static {
    /// Connects to a peer. May take as long as the network does: callers set the limit.
    ///
    /// # Errors
    /// What the network says. Trying again later may help.
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Wire>>>;

    /// The next connection that a peer makes to this node. One task accepts.
    ///
    /// # Errors
    /// What the network says; the caller goes on accepting after a pause.
    fn accept(&self) -> BoxFuture<'_, io::Result<Box<dyn Wire>>>;
}

/// Unacknowledged bytes end a connection after this long: without it the kernel tries for a quarter of an hour.
const USER_TIMEOUT: Duration = Duration::from_secs(3);
/// An idle connection is probed by the kernel after this long, and this often.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// TCP: no delay, keepalive, a bound on unacknowledged bytes.
pub struct TcpNet {
    listener: TcpListener,
}

impl TcpNet {
    /// Accepts from a listening socket, on the current runtime.
    ///
    /// # Errors
    /// What the system says when the socket is handed to the runtime.
    pub fn from_std(listener: StdListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener: TcpListener::from_std(listener)? })
    }
}

impl Net for TcpNet {
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Wire>>> {
        let address = address.to_owned();
        Box::pin(async move {
            let stream = connect_any(address).await?;
            prepare(&stream)?;
            Ok(Box::new(stream) as Box<dyn Wire>)
        })
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<Box<dyn Wire>>> {
        Box::pin(async {
            let (stream, _) = self.listener.accept().await?;
            prepare(&stream)?;
            Ok(Box::new(stream) as Box<dyn Wire>)
        })
    }
}

/// Connects to the first address that answers. Names are looked up on the blocking pool, numbers at once.
async fn connect_any(address: String) -> io::Result<TcpStream> {
    if let Ok(number) = address.parse::<std::net::SocketAddr>() {
        return TcpStream::connect(number).await;
    }
    let looked_up = tokio::task::spawn_blocking(move || address.to_socket_addrs()).await;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in looked_up.map_err(io::Error::other)?? {
        match TcpStream::connect(candidate).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}
