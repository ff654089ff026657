//! `guesthouse serve`, and `guesthouse config check`, which validates the same configuration.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use guesthouse_control::keys::Key;
use guesthouse_control::ledger::OnLoss;
use guesthouse_runtime::clock;
use guesthouse_server::config::{
    ConfigFile, GrpcListen, ListenAddress, Override, Settings, StartOptions,
};
use guesthouse_server::edge::Tls;
use guesthouse_server::server;

/// Environment variables with short names, and the keys that they set.
const VARIABLES: [(&str, &str); 5] = [
    ("GUESTHOUSE_LISTEN", "listen"),
    ("GUESTHOUSE_GRPC_LISTEN", "grpc_listen"),
    ("GUESTHOUSE_ADMIN_LISTEN", "admin_listen"),
    ("GUESTHOUSE_REPOSITORY", "repository"),
    ("GUESTHOUSE_STATE", "state"),
];

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    configuration: ConfigurationArguments,
    /// Accept the public keys `local-demo-key` and `local-demo-admin-key`.
    #[arg(long)]
    demo: bool,
    /// Start although the ledger has lost changes, and continue with the rest. The loss is recorded in the
    /// audit log, and revoked keys stay revoked. For a single start.
    #[arg(long)]
    accept_ledger_loss: bool,
}

/// The sources of the configuration. Later ones take precedence over earlier ones.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ConfigurationArguments {
    /// The configuration file, in TOML.
    #[arg(long, env = "GUESTHOUSE_CONFIG")]
    config: Option<PathBuf>,
    /// Set a key of the configuration, such as `limits.batch_rows=64`. Environment variables such as
    /// GUESTHOUSE__LIMITS__BATCH_ROWS do the same. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// The address or host name, and the port, of the public HTTP listener. The system chooses a port for
    /// 0. Also GUESTHOUSE_LISTEN.
    #[arg(long)]
    listen: Option<ListenAddress>,
    /// The address or host name, and the port, of the gRPC listener, or `off`. The system chooses a port
    /// for 0. Also GUESTHOUSE_GRPC_LISTEN.
    #[arg(long)]
    grpc_listen: Option<GrpcListen>,
    /// The address or host name, and the port, of the admin API. The system chooses a port for 0. Also
    /// GUESTHOUSE_ADMIN_LISTEN.
    #[arg(long)]
    admin_listen: Option<ListenAddress>,
    /// The folder of artifacts to serve. Also GUESTHOUSE_REPOSITORY.
    #[arg(long)]
    repository: Option<PathBuf>,
    /// The folder of the server's state. Also GUESTHOUSE_STATE.
    #[arg(long)]
    state: Option<PathBuf>,
}

/// Commands for a configuration that is not served.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check whether `serve` would accept the configuration. Fails with the reason if not.
    Check(ServeArguments),
}

pub(crate) fn run(arguments: &ServeArguments, started: Instant) -> anyhow::Result<()> {
    clock::check().context("failed to serve")?;
    let settings = arguments.validate_with_listeners().context("failed to configure")?;
    if arguments.configuration.file()?.repository.is_none() {
        // A configured folder that does not exist is a mistake; the default one is created.
        std::fs::create_dir_all(&settings.repository).context("failed to make `repository`")?;
    }
    if arguments.demo {
        tracing::warn!("demo mode: the keys are public, so keep this server off the network");
    }
    let arguments = arguments.clone();
    let reread = Box::new(move || arguments.validate().map_err(|error| format!("{error:#}")));
    server::run(settings, reread, started).context("failed to serve")
}

#[expect(clippy::print_stdout, reason = "the answer")]
pub(crate) fn config(command: &ConfigCommand) -> anyhow::Result<()> {
    let ConfigCommand::Check(arguments) = command;
    let settings = arguments.validate_with_listeners().context("failed to configure")?;
    settings.tls.map(Tls::open).transpose().context("failed to configure")?;
    println!("the configuration is good");
    Ok(())
}

impl ServeArguments {
    fn validate(&self) -> anyhow::Result<Settings> {
        let mut settings = self.configuration.file()?.validate()?;
        let on_ledger_loss = if self.accept_ledger_loss { OnLoss::Accept } else { OnLoss::Refuse };
        settings.start = StartOptions { on_ledger_loss, is_demo: self.demo };
        if self.demo {
            settings.keys.extend([Key::demo(), Key::demo_admin()]);
        }
        Ok(settings)
    }

    /// The settings of a server that has not bound its listeners yet.
    fn validate_with_listeners(&self) -> anyhow::Result<Settings> {
        let settings = self.validate()?;
        // Without a key for it, the admin API stays closed, so its default address may be in use.
        let is_named = self.configuration.file()?.admin_listen.is_some();
        let has_key = settings.keys.iter().any(|key| key.scopes.administers());
        settings.check_listeners(is_named || has_key)?;
        Ok(settings)
    }
}

impl ConfigurationArguments {
    /// The file with all overrides applied.
    fn file(&self) -> anyhow::Result<ConfigFile> {
        let mut overrides = Vec::new();
        for (variable, key) in VARIABLES {
            let Some(value) = std::env::var_os(variable) else { continue };
            let value = value.into_string();
            let value = value.map_err(|_value| anyhow::anyhow!("{variable} is not valid UTF-8"))?;
            overrides.push(Override::from_text(key, value));
        }
        for (name, value) in std::env::vars_os() {
            let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
            overrides.extend(Override::from_variable(name, value)?);
        }
        for argument in &self.overrides {
            overrides.push(Override::from_argument(argument)?);
        }
        let file = ConfigFile::read(self.config.as_deref(), &overrides)?;
        Ok(ConfigFile {
            listen: self.listen.clone().or(file.listen),
            grpc_listen: self.grpc_listen.clone().or(file.grpc_listen),
            admin_listen: self.admin_listen.clone().or(file.admin_listen),
            repository: self.repository.clone().or(file.repository),
            state: self.state.clone().or(file.state),
            ..file
        })
    }
}
