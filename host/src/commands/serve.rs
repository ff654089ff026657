//! `guesthouse serve`, and `guesthouse config check`, which stops before it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use guesthouse::config::{ConfigFile, Override, Settings};
use guesthouse::keys::Key;
use guesthouse::server;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    configuration: ConfigurationArguments,
    /// Accept the keys `local-demo-key` and `local-demo-admin-key`, which everybody knows.
    #[arg(long)]
    demo: bool,
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
    /// Address and port of the HTTP endpoints; port 0 lets the system choose.
    #[arg(long, env = "GUESTHOUSE_LISTEN")]
    listen: Option<SocketAddr>,
    /// Address and port of the admin API; port 0 lets the system choose.
    #[arg(long, env = "GUESTHOUSE_ADMIN_LISTEN")]
    admin_listen: Option<SocketAddr>,
    /// Folder of the artifacts.
    #[arg(long, env = "GUESTHOUSE_REPOSITORY")]
    repository: Option<PathBuf>,
    /// Folder of what is served.
    #[arg(long, env = "GUESTHOUSE_STATE")]
    state: Option<PathBuf>,
}

/// What can be done with a configuration without serving it.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say whether `serve` would accept the configuration, by the exit code and, if not, why.
    Check(ConfigurationArguments),
}

pub(crate) fn run(arguments: &ServeArguments, started: Instant) -> anyhow::Result<()> {
    let settings = arguments.settle().context("failed to configure")?;
    if arguments.configuration.file()?.repository.is_none() {
        // A folder that somebody named and that is not there is a mistake; the default one is not.
        std::fs::create_dir_all(&settings.repository).context("failed to make `repository`")?;
    }
    if arguments.demo {
        tracing::warn!("demo mode: everybody knows the keys, keep this server off the network");
    }
    let again = arguments.clone();
    let reread = Box::new(move || again.settle().map_err(|error| format!("{error:#}")));
    server::run(settings, reread, started).context("failed to serve")
}

#[expect(clippy::print_stdout, reason = "the answer")]
pub(crate) fn config(command: &ConfigCommand) -> anyhow::Result<()> {
    let ConfigCommand::Check(arguments) = command;
    arguments.file()?.settle().context("failed to configure")?;
    println!("the configuration is good");
    Ok(())
}

impl ServeArguments {
    fn settle(&self) -> anyhow::Result<Settings> {
        let mut settings = self.configuration.file()?.settle()?;
        if self.demo {
            settings.keys.extend([Key::demo(), Key::demo_admin()]);
        }
        Ok(settings)
    }
}

impl ConfigurationArguments {
    /// Everything that was written, the last word on top.
    fn file(&self) -> anyhow::Result<ConfigFile> {
        let mut overrides = Vec::new();
        for (name, value) in std::env::vars_os() {
            let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
            overrides.extend(Override::from_variable(name, value)?);
        }
        for argument in &self.overrides {
            overrides.push(Override::from_argument(argument)?);
        }
        let file = ConfigFile::read(self.config.as_deref(), &overrides)?;
        Ok(ConfigFile {
            listen: self.listen.or(file.listen),
            admin_listen: self.admin_listen.or(file.admin_listen),
            repository: self.repository.clone().or(file.repository),
            state: self.state.clone().or(file.state),
            ..file
        })
    }
}
