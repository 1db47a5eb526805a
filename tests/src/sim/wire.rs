//! A client's connection in simulated time: text of the protocol, read and written by hand.

use std::time::Duration;

use beanpole::embedded::{Client, Probe};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A client that waits longer than this for a reply goes away.
const PATIENCE: Duration = Duration::from_secs(20);

/// The connection has closed, or the client has lost its patience.
#[derive(Debug)]
pub struct Gone;

/// A reply: its words, and its body where it has one.
#[derive(Debug, Default)]
pub struct Reply {
    /// The line, without its end.
    pub line: String,
    /// What followed it.
    pub body: Vec<u8>,
}

impl Reply {
    /// The first word.
    #[must_use]
    pub fn word(&self) -> &str {
        self.line.split(' ').next().unwrap_or_default()
    }

    /// The number that follows it.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        self.line.split(' ').nth(1)?.parse().ok()
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection.
pub struct Wire {
    stream: Client,
    buffer: Vec<u8>,
}

impl Wire {
    /// Speaks over `stream`.
    #[must_use]
    pub fn new(stream: Client) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Tells whether the server has closed it.
    #[must_use]
    pub fn probe(&self) -> Probe {
        self.stream.probe()
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        match tokio::time::timeout(PATIENCE, self.stream.write_all(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }

    /// The next reply.
    ///
    /// # Errors
    /// The connection is gone, or nothing came for too long.
    pub async fn reply(&mut self) -> Result<Reply, Gone> {
        tokio::time::timeout(PATIENCE, self.read_reply()).await.map_err(|_| Gone)?
    }

    /// Sends a command and waits for its reply.
    ///
    /// # Errors
    /// As of the two.
    pub async fn ask(&mut self, command: &str) -> Result<Reply, Gone> {
        self.send(format!("{command}\r\n").as_bytes()).await?;
        self.reply().await
    }

    async fn read_reply(&mut self) -> Result<Reply, Gone> {
        let end = loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                break end;
            }
            self.read_more().await?;
        };
        let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + 2);
        let mut reply = Reply { line, body: Vec::new() };
        let len = match reply.word() {
            "RESERVED" | "FOUND" => reply.line.split(' ').nth(2),
            "OK" => reply.line.split(' ').nth(1),
            _ => None,
        };
        if let Some(len) = len.and_then(|len| len.parse::<usize>().ok()) {
            while self.buffer.len() < len + 2 {
                self.read_more().await?;
            }
            reply.body = self.buffer.drain(..len + 2).take(len).collect();
        }
        Ok(reply)
    }

    async fn read_more(&mut self) -> Result<(), Gone> {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk).await {
            Ok(0) | Err(_) => Err(Gone),
            Ok(read) => {
                self.buffer.extend_from_slice(&chunk[..read]);
                Ok(())
            }
        }
    }
}
