//! `redis-allocator agent`: makes Redis agree with a directory of manifests, and keeps it agreeing.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::{self, Declared, Server, Settings},
    probe::ProbeSettings,
    state::{self, StateDir},
    telemetry::{self, LogFormat},
};

/// What `agent` takes.
// Each of its switches is one of its own, and clap wants a `bool` for each. Its help is no Markdown.
#[allow(clippy::struct_excessive_bools, clippy::doc_markdown, rustdoc::bare_urls)]
#[derive(Debug, clap::Args)]
#[command(
    after_help = "It ends on SIGTERM and SIGINT, with exit code 0. Workloads go on without it: a lease never goes \
                        through the agent."
)]
pub(crate) struct AgentArgs {
    /// The directory of manifests: *.yaml, *.yml and *.json, in subdirectories as well. It is watched.
    #[arg(long, value_name = "DIR", required_unless_present = "kubernetes")]
    config: Option<PathBuf>,

    /// Take the ResourcePools and SoftBindings of a Kubernetes cluster instead of files: of the one that the agent runs in,
    /// or else of $KUBECONFIG or ~/.kube/config.
    #[arg(long, conflicts_with_all = ["config", "embedded", "allow_exec"])]
    kubernetes: bool,

    /// The Redis or Valkey server, such as redis://host:6379 or unix:///path.
    #[arg(long, value_name = "URL", env = "REDIS_URL", hide_env_values = true, required_unless_present = "embedded")]
    redis_url: Option<String>,

    /// Run a private server, which ends with the agent and keeps nothing: $REDIS_ALLOCATOR_SERVER, else redis-server or
    /// valkey-server from PATH. $REDIS_URL is then ignored.
    #[arg(long)]
    embedded: bool,

    /// What the agent remembers, and how the command line finds it [default: $XDG_STATE_HOME/redis-allocator, else
    /// ~/.local/state/redis-allocator].
    #[arg(long, value_name = "DIR", env = state::ENV)]
    state_dir: Option<PathBuf>,

    /// Where /healthz, /readyz and /metrics are served; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9464")]
    http_bind: String,

    /// How log lines look.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,

    /// How much is logged: error, warn, info, debug, trace, or target=level,….
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,

    /// Take a directory, or a cluster, without any pool for the will to delete everything that is managed.
    #[arg(long)]
    allow_empty: bool,

    /// Let manifests run commands as probes, with the rights of the agent.
    #[arg(long)]
    allow_exec: bool,

    /// Let probes and sources reach link-local addresses, where clouds hand out credentials.
    #[arg(long)]
    allow_link_local: bool,

    /// The identity under which pools are managed; the same for all agents that read the same manifests [default:
    /// files:DIR, with the absolute path of the directory of manifests as it is given: links in it are not followed; in
    /// Kubernetes kubernetes:UID, with the uid of the namespace kube-system].
    #[arg(long, value_name = "ID")]
    manager_id: Option<String>,

    /// Take over pools that another declaration manages.
    #[arg(long)]
    takeover: bool,

    /// How many probes run at once.
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u16).range(1..))]
    max_concurrent_probes: u16,
}

pub(crate) async fn run(args: AgentArgs) -> Result<ExitCode> {
    telemetry::start(args.log_format, &args.log_level)?;
    let settings = settings(args)?;
    let stop = stop_on_signals()?;
    agent::run(settings, stop).await?;
    Ok(ExitCode::SUCCESS)
}

/// What the manifests of a directory declare. Not of where links lead: one that is swapped for a new release must not make
/// it another declaration.
pub(super) fn declared_in(dir: &Path) -> Result<Declared> {
    Ok(Declared::Files(std::path::absolute(dir)?.components().collect()))
}

fn settings(args: AgentArgs) -> Result<Settings> {
    let declared = match args.config {
        Some(dir) => declared_in(&dir)?,
        None => Declared::Kubernetes,
    };
    let server = match args.redis_url {
        Some(url) if !args.embedded => Server::Url(url),
        _ => Server::Embedded,
    };
    Ok(Settings {
        declared,
        server,
        state_dir: StateDir::locate(args.state_dir)?,
        http_bind: args.http_bind,
        allow_empty: args.allow_empty,
        manager: args.manager_id.filter(|manager| !manager.is_empty()),
        takeover: args.takeover,
        probes: ProbeSettings {
            concurrent: args.max_concurrent_probes.into(),
            allow_exec: args.allow_exec,
            allow_link_local: args.allow_link_local,
        },
    })
}

/// Cancelled by the first SIGTERM or SIGINT. A second one ends the process at once: someone is in a hurry.
fn stop_on_signals() -> Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM failed")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT failed")?;
    let stop = CancellationToken::new();
    tokio::spawn({
        let stop = stop.clone();
        async move {
            for nth in 0.. {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if nth > 0 {
                    std::process::exit(130);
                }
                stop.cancel();
            }
        }
    });
    Ok(stop)
}
