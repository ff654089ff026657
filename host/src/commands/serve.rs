//! `guesthouse serve`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use guesthouse::config::{ConfigFile, Settings};
use guesthouse::keys::KeyHash;
use guesthouse::server;

#[derive(Debug, clap::Args)]
pub(crate) struct ServeArguments {
    /// The configuration file, in TOML.
    #[arg(long, env = "GUESTHOUSE_CONFIG")]
    config: Option<PathBuf>,
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
    /// Accept the keys `local-demo-key` and `local-demo-admin-key`, which everybody knows.
    #[arg(long)]
    demo: bool,
}

pub(crate) fn run(arguments: &ServeArguments, started: Instant) -> anyhow::Result<()> {
    let settings = settle(arguments).context("failed to configure")?;
    server::run(settings, started).context("failed to serve")
}

fn settle(arguments: &ServeArguments) -> anyhow::Result<Settings> {
    let file = match &arguments.config {
        Some(path) => ConfigFile::open(path)?,
        None => ConfigFile::default(),
    };
    let file = ConfigFile {
        listen: arguments.listen.or(file.listen),
        admin_listen: arguments.admin_listen.or(file.admin_listen),
        repository: arguments.repository.clone().or(file.repository),
        state: arguments.state.clone().or(file.state),
        ..file
    };
    let unnamed = file.repository.is_none();
    let mut settings = file.settle()?;
    if unnamed {
        // A folder that somebody named and that is not there is a mistake; the default one is not.
        std::fs::create_dir_all(&settings.repository).context("failed to make `repository`")?;
    }
    if arguments.demo {
        tracing::warn!("demo mode: everybody knows the keys, keep this server off the network");
        settings.keys.push(KeyHash::demo());
        settings.admin_keys.push(KeyHash::demo_admin());
    }
    Ok(settings)
}
