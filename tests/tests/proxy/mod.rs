//! A proxy that plays a server with one small fault, to prove that the differential test sees it. It
//! relies on the lockstep: each request arrives alone.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};

/// A fault of the kind that a real bug would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `release` forgets the new priority and takes 0.
    ReleaseForgetsPriority,
    /// `release` forgets the delay.
    ReleaseForgetsDelay,
    /// `bury` forgets the new priority.
    BuryForgetsPriority,
    /// `kick` never kicks more than one.
    KickStopsAtOne,
    /// Priority 1023 counts as not urgent.
    UrgentOffByOne,
    /// A pause is not a pause.
    PauseIsIgnored,
    /// A body comes out changed.
    BodyIsChanged,
    /// A job reserved by a connection that ends stays where it was: here, it is kept alive.
    CloseIsNotSeen,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 8] = [
        Fault::ReleaseForgetsPriority,
        Fault::ReleaseForgetsDelay,
        Fault::BuryForgetsPriority,
        Fault::KickStopsAtOne,
        Fault::UrgentOffByOne,
        Fault::PauseIsIgnored,
        Fault::BodyIsChanged,
        Fault::CloseIsNotSeen,
    ];

    /// The request as the faulty server understands it.
    fn distort(self, request: &[u8]) -> Vec<u8> {
        let text = String::from_utf8_lossy(request);
        let words: Vec<&str> = text.split_whitespace().collect();
        let distorted = match (self, words.as_slice()) {
            (Fault::ReleaseForgetsPriority, ["release", id, _, delay]) => {
                format!("release {id} 0 {delay}\r\n")
            }
            (Fault::ReleaseForgetsDelay, ["release", id, pri, _]) => format!("release {id} {pri} 0\r\n"),
            (Fault::BuryForgetsPriority, ["bury", id, _]) => format!("bury {id} 0\r\n"),
            (Fault::KickStopsAtOne, ["kick", bound]) if *bound != "0" => "kick 1\r\n".into(),
            (Fault::PauseIsIgnored, ["pause-tube", tube, _]) => format!("pause-tube {tube} 0\r\n"),
            (Fault::UrgentOffByOne, ["put", "1023", ..]) => {
                return [b"put 1024", &request["put 1023".len()..]].concat();
            }
            (Fault::BodyIsChanged, ["put", ..]) if request.ends_with(b"a\r\n") => {
                let mut changed = request.to_vec();
                let last = changed.len() - 3;
                changed[last] = b'b';
                return changed;
            }
            _ => return request.to_vec(),
        };
        distorted.into_bytes()
    }
}

/// Starts a faulty server in front of `server`; it lives as long as the test process.
pub fn start(server: SocketAddr, fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(upstream)) = (client, TcpStream::connect(server)) else { return };
            client.set_nodelay(true).unwrap();
            upstream.set_nodelay(true).unwrap();
            let (from_client, to_server) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
            std::thread::spawn(move || {
                pump(from_client, &to_server, |request| fault.distort(request));
                if fault == Fault::CloseIsNotSeen {
                    std::mem::forget(to_server);
                } else {
                    let _ended = to_server.shutdown(Shutdown::Both);
                }
            });
            std::thread::spawn(move || {
                pump(upstream, &client, <[u8]>::to_vec);
                let _ended = client.shutdown(Shutdown::Both);
            });
        }
    });
    addr
}

/// Copies what arrives, distorted, until either side ends.
fn pump(mut from: TcpStream, mut to: &TcpStream, distort: impl Fn(&[u8]) -> Vec<u8>) {
    let mut chunk = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        if to.write_all(&distort(&chunk[..n])).is_err() {
            return;
        }
    }
}
