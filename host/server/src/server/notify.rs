//! The service manager's notification protocol (`sd_notify`): systemd learns when the server is ready,
//! reloads, stops, and whether it is alive.
//!
//! `READY=1` is sent when the server is ready, or when everything that should be loaded has been tried: a
//! server without a version that serves waits for deployments, and its start is over. Without `NOTIFY_SOCKET`
//! in the environment, nothing is sent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

/// What has been said to the service manager.
#[derive(Debug, Default)]
pub(super) struct ServiceManager {
    is_started: AtomicBool,
}

impl ServiceManager {
    /// The start is over.
    pub(super) fn ready(&self) {
        if !self.is_started.swap(true, Ordering::Relaxed) {
            send(&[NotifyState::Ready]);
        }
    }

    /// Run a reload of the configuration between the two messages that systemd expects of it. During the
    /// start, a reload is not reported, because the second message would say that the start is over.
    pub(super) fn while_reloading(&self, reload: impl FnOnce()) {
        let is_started = self.is_started.load(Ordering::Relaxed);
        if is_started && let Ok(now) = NotifyState::monotonic_usec_now() {
            send(&[NotifyState::Reloading, now]);
        }
        reload();
        if is_started {
            send(&[NotifyState::Ready]);
        }
    }

    /// The server stops.
    pub(super) fn stopping(&self) {
        send(&[NotifyState::Stopping]);
    }
}

/// Send `WATCHDOG=1` twice in each watchdog interval, while tokio's workers and its blocking threads run
/// tasks: each ping is a task that was spawned for it. Returns at once if the service manager has no watchdog
/// for this process.
pub(super) async fn run_watchdog() {
    // A timer needs a period above zero.
    let Some(time) = sd_notify::watchdog_enabled().filter(|time| *time >= Duration::from_millis(2))
    else {
        return;
    };
    let mut pings = interval(time / 2);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pings.tick().await;
        let ping = async {
            // Sending blocks while the service manager reads nothing.
            let _ = tokio::task::spawn_blocking(|| send(&[NotifyState::Watchdog])).await;
        };
        let _ = tokio::spawn(ping).await;
    }
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
