//! What a node's admin HTTP is asked: whether it serves, and who leads. One short request per question, without waiting
//! longer than asked, because the node may be dead or frozen.

use serde::Deserialize;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Most bytes of an answer that are read; a cluster's JSON is a few kilobytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// The part of `GET /api/v1/cluster` that matters here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ClusterView {
    /// The node that answered.
    pub node_id: u64,
    /// The leader it knows.
    pub leader_id: Option<u64>,
    /// Its term.
    pub term: u64,
    /// Whether it serves commands.
    pub ready: bool,
}

/// Whether the node at `address` (HOST:PORT of its admin HTTP) says that it serves.
pub fn is_ready(address: &str, limit: Duration) -> bool {
    matches!(get(address, "/readyz", limit), Ok((200, _)))
}

/// The cluster as the node at `address` sees it; `None` when it does not answer in time or has nothing to tell yet.
pub fn cluster(address: &str, limit: Duration) -> Option<ClusterView> {
    match get(address, "/api/v1/cluster", limit) {
        Ok((200, body)) => serde_json::from_str(&body).ok(),
        Ok(_) | Err(_) => None,
    }
}

/// One GET: the status code and the body. `limit` bounds the connect and each read, not their sum.
pub fn get(address: &str, path: &str, limit: Duration) -> io::Result<(u16, String)> {
    let resolved = address.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&resolved, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn an_answer_is_taken_apart() {
        assert_eq!(parse("HTTP/1.1 503 No\r\nx: y\r\n\r\nnot ready\n"), Some((503, "not ready\n".into())));
        assert_eq!(parse("garbage"), None);
    }

    #[test]
    fn a_cluster_is_asked_for_its_leader() {
        // A server that answers one request with what a node without a leader would say, and more.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut part = [0; 1024];
                let n = stream.read(&mut part).unwrap();
                request.extend_from_slice(&part[..n]);
            }
            assert!(request.starts_with(b"GET /api/v1/cluster HTTP/1.1\r\n"));
            let body = r#"{"cluster_id":"x","node_id":2,"leader_id":null,"term":7,"ready":false,"nodes":[]}"#;
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
        });
        let view = cluster(&address, Duration::from_secs(5)).unwrap();
        assert_eq!(view, ClusterView { node_id: 2, leader_id: None, term: 7, ready: false });
        serving.join().unwrap();
        assert_eq!(cluster(&address, Duration::from_millis(50)), None, "nobody listens there any more");
    }
}
