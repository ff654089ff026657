//! `guesthouse serve`, and `guesthouse config check`, which stops before it.

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

/// Variables with names of their own, and the keys that they set.
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
    /// Accept the keys `local-demo-key` and `local-demo-admin-key`, which everybody knows.
    #[arg(long)]
    demo: bool,
    /// Start although the ledger lost changes, and go on with what is left. What is missing is
    /// recorded in the audit log, and keys that were revoked stay revoked. For one start only.
    #[arg(long)]
    accept_ledger_loss: bool,
}

/// Where the configuration comes from: what stands further down stands over what stands further up.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ConfigurationArguments {
    /// The configuration file, in TOML.
    #[arg(long, env = "GUESTHOUSE_CONFIG")]
    config: Option<PathBuf>,
    /// A key of the file and its value, such as `limits.batch_rows=64`; variables of the environment
    /// such as GUESTHOUSE__LIMITS__BATCH_ROWS do the same.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Address or name, and port, of the HTTP endpoints; port 0 lets the system choose. Also
    /// GUESTHOUSE_LISTEN.
    #[arg(long)]
    listen: Option<ListenAddress>,
    /// Address or name, and port, of gRPC, or `off`; port 0 lets the system choose. Also
    /// GUESTHOUSE_GRPC_LISTEN.
    #[arg(long)]
    grpc_listen: Option<GrpcListen>,
    /// Address or name, and port, of the admin API; port 0 lets the system choose. Also
    /// GUESTHOUSE_ADMIN_LISTEN.
    #[arg(long)]
    admin_listen: Option<ListenAddress>,
    /// Folder of the artifacts. Also GUESTHOUSE_REPOSITORY.
    #[arg(long)]
    repository: Option<PathBuf>,
    /// Folder of what is served. Also GUESTHOUSE_STATE.
    #[arg(long)]
    state: Option<PathBuf>,
}

/// What can be done with a configuration without serving it.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say whether `serve` would accept the configuration, by the exit code and, if not, why.
    Check(ServeArguments),
}

pub(crate) fn run(arguments: &ServeArguments, started: Instant) -> anyhow::Result<()> {
    clock::check().context("failed to serve")?;
    let settings = arguments.validate_with_listeners().context("failed to configure")?;
    if arguments.configuration.file()?.repository.is_none() {
        // A folder that somebody named and that is not there is a mistake; the default one is not.
        std::fs::create_dir_all(&settings.repository).context("failed to make `repository`")?;
    }
    if arguments.demo {
        tracing::warn!("demo mode: everybody knows the keys, keep this server off the network");
    }
    let again = arguments.clone();
    let reread = Box::new(move || again.validate().map_err(|error| format!("{error:#}")));
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

    /// The settings of a server that has yet to listen.
    fn validate_with_listeners(&self) -> anyhow::Result<Settings> {
        let settings = self.validate()?;
        // Without keys for it, the admin API may stay closed, so its default is in nobody's way.
        let is_named = self.configuration.file()?.admin_listen.is_some();
        let has_key = settings.keys.iter().any(|key| key.scopes.administers());
        settings.check_listeners(is_named || has_key)?;
        Ok(settings)
    }
}

impl ConfigurationArguments {
    /// Everything that was written, the last word on top.
    fn file(&self) -> anyhow::Result<ConfigFile> {
        let mut overrides = Vec::new();
        // What stands further down has the last word.
        for (variable, key) in VARIABLES {
            let Some(value) = std::env::var_os(variable) else { continue };
            let value = value.into_string();
            let value = value.map_err(|_value| anyhow::anyhow!("{variable} is not a text"))?;
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
