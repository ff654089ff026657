//! Reloading the configuration while the server runs (SIGHUP). Everything that can change without a restart
//! changes; if the new configuration is not valid, the last valid one stays.
//!
//! Sockets, threads and memory stay as they were set up at the start. The log says which sections need a restart.

use std::fmt::Debug;
use std::sync::Arc;

use crate::config::{Limits, Settings};
use crate::edge::{Edge, Policy};
use guesthouse_control::control::Control;

/// Reads the configuration again; the error says why it is not valid.
pub type Reread = Box<dyn Fn() -> Result<Settings, String> + Send + Sync>;

/// Reloads the configuration.
pub(super) struct Reloader {
    pub(super) reread: Reread,
    pub(super) control: Arc<Control>,
    pub(super) edge: Arc<Edge>,
    /// The settings at the start of the server.
    pub(super) started: Settings,
}

/// The settings that each request looks up, with these limits.
pub(super) fn policy(settings: &Settings, limits: Limits) -> Policy {
    Policy {
        captured: settings.shadow_captures.clone(),
        capture_shares: settings.capture_shares.clone(),
        default_model: settings.default_model.clone(),
        origins: settings.origins.clone(),
        sticky: settings.sticky.clone(),
        limits,
        metrics: settings.metrics,
        server: settings.server.clone(),
    }
}

impl Reloader {
    /// Read the configuration and apply what can be applied. Blocks on the disk.
    pub(super) fn reload(&self) {
        match self.try_reload() {
            Ok(settings) => {
                let sections = self.needs_restart(&settings);
                tracing::info!(
                    target: "change",
                    needs_restart = sections.join(", "),
                    "configuration reloaded"
                );
            }
            Err(reason) => {
                let reason = guesthouse_model::terminal::reason(&reason);
                tracing::error!(
                    target: "change",
                    reason,
                    "configuration not reloaded: the last valid one stays"
                );
            }
        }
    }

    fn try_reload(&self) -> Result<Settings, String> {
        let settings = (self.reread)()?;
        let held = self.edge.policy.load().limits;
        let limits = reloaded(&held, &settings.limits);
        let words =
            |error: &dyn std::error::Error| guesthouse_control::registry::error_chain(error);
        let keys = self.control.keys();
        keys.check_configured(&settings.keys).map_err(|error| words(&error))?;
        // This step can fail although the configuration is valid, so it comes first.
        self.control.configure(settings.splits.clone()).map_err(|error| words(&error))?;
        let configured = self.control.configure_keys(settings.keys.clone(), settings.key_rate);
        configured.map_err(|error| words(&error))?;
        self.edge.model_rates.replace(&settings.model_rates);
        let mut policy = policy(&settings, limits);
        policy.metrics.listener = self.started.metrics.listener;
        self.edge.policy.store(Arc::new(policy));
        Ok(settings)
    }

    /// The sections whose changes need a restart.
    fn needs_restart(&self, now: &Settings) -> Vec<&'static str> {
        let differs =
            |one: &dyn Debug, other: &dyn Debug| format!("{one:?}") != format!("{other:?}");
        let then = &self.started;
        let limits = differs(&then.limits, &reloaded(&now.limits, &then.limits));
        let sections = [
            ("listen", differs(&then.listen, &now.listen)),
            ("grpc_listen", differs(&then.grpc_listen, &now.grpc_listen)),
            ("admin_listen", differs(&then.admin_listen, &now.admin_listen)),
            ("repository", differs(&then.repository, &now.repository)),
            ("state", differs(&then.state, &now.state)),
            ("metrics", then.metrics.listener != now.metrics.listener),
            ("tls", differs(&then.tls, &now.tls)),
            ("proxy", differs(&then.trusted_proxies, &now.trusted_proxies)),
            ("idempotency", differs(&then.answers, &now.answers)),
            ("tracing", differs(&then.tracing, &now.tracing)),
            ("capture", differs(&then.capture, &now.capture)),
            ("arithmetic", then.arithmetic != now.arithmetic),
            ("models", differs(&then.models, &now.models)),
            ("parked_versions", differs(&then.max_parked, &now.max_parked)),
            ("limits", limits),
        ];
        sections.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }
}

/// The current limits, with the new values of those that each request looks up.
fn reloaded(held: &Limits, new: &Limits) -> Limits {
    Limits {
        // One body of the largest size must fit.
        body_bytes: new.body_bytes.min(held.bodies_in_flight_bytes),
        batch_rows: new.batch_rows,
        max_predict_time: new.max_predict_time,
        ..*held
    }
}
