//! The signals that stop a server or reload its configuration.

use std::io;

use tokio::signal::unix::{self, SignalKind, signal};

/// A signal to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    Terminate,
    Interrupt,
}

/// The signals that the server handles. One value is used from start to end, so that no signal is lost between two
/// waits.
pub(super) struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    /// Reloads the configuration, and never ends the process.
    hang_up: unix::Signal,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        let hang_up = signal(SignalKind::hangup())?;
        Ok(Self { terminate, interrupt, hang_up })
    }

    /// The next signal to stop. Signals to reload are ignored.
    pub(super) async fn next(&mut self) -> Signal {
        loop {
            if let Some(signal) = self.any().await {
                return signal;
            }
        }
    }

    /// The next signal to stop; none for a signal to reload.
    pub(super) async fn any(&mut self) -> Option<Signal> {
        tokio::select! {
            _ = self.terminate.recv() => Some(Signal::Terminate),
            _ = self.interrupt.recv() => Some(Signal::Interrupt),
            _ = self.hang_up.recv() => None,
        }
    }
}
