//! What signals mean: SIGTERM and SIGINT end the server in order, a second one at once; SIGUSR1 sets the draining flag.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::node::Shared;

/// A second signal counts only after this long.
const ECHO: std::time::Duration = std::time::Duration::from_millis(100);

/// The signals that end a server.
pub struct Ending {
    terminate: Signal,
    interrupt: Signal,
}

impl Ending {
    /// Starts listening; from now on these signals no longer kill the process by themselves.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Ending {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Resolves when one arrives again. What follows the first within a blink is its echo: `timeout` and shells signal a
    /// process and then its group.
    pub async fn asked_again(&mut self) {
        let echo = tokio::time::Instant::now() + ECHO;
        loop {
            self.asked().await;
            if tokio::time::Instant::now() > echo {
                return;
            }
        }
    }

    /// Resolves when one of them arrives.
    pub async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Lets SIGUSR1 do what it does to beanstalkd: `put` answers `DRAINING`. The admin API takes it back.
pub fn drain_on_usr1(shared: Arc<Shared>) -> std::io::Result<()> {
    let mut usr1 = signal(SignalKind::user_defined1())?;
    tokio::spawn(async move {
        while usr1.recv().await.is_some() {
            tracing::warn!("SIGUSR1: put answers DRAINING from now on; DELETE /api/v1/draining ends it");
            shared.gateway.lock().set_draining(true);
            shared.wake_pump();
        }
    });
    Ok(())
}
