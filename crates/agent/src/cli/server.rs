//! Which server a command talks to, found in the three ways a user can say it, and about which pool. It must not know what
//! the command does.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use redis_allocator::{Client, Pool, PoolName};
use serde::Serialize;

use crate::state::StateDir;

/// How the user names the server.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ServerArgs {
    #[arg(
        long,
        value_name = "URL",
        help = "The Redis or Valkey server, such as redis://host:6379 or unix:///path [default: that of --state-dir, \
                else $REDIS_URL]"
    )]
    redis_url: Option<String>,

    #[arg(
        long,
        value_name = "DIR",
        help = "State directory of a running agent, whose embedded server is used when no URL is given [default: \
                $REDIS_ALLOCATOR_STATE_DIR, else ~/.local/state/redis-allocator]"
    )]
    state_dir: Option<PathBuf>,
}

impl ServerArgs {
    /// Finds the server and connects to it.
    pub(crate) async fn connect(&self) -> Result<Client> {
        self.connect_as(None).await
    }

    /// The same, with leases taken under `owner` instead of this process' name.
    pub(crate) async fn connect_as(&self, owner: Option<&str>) -> Result<Client> {
        let url = self.url(url_of_environment())?;
        let mut builder = Client::builder(url);
        if let Some(owner) = owner {
            builder = builder.owner(owner);
        }
        Ok(builder.connect().await?)
    }

    /// The same, to look at a server that is not fit for leases, too.
    pub(crate) async fn connect_to_look(&self) -> Result<Client> {
        let url = self.url(url_of_environment())?;
        Ok(Client::builder(url).allow_eviction(true).connect().await?)
    }

    /// Where an agent on this machine keeps what it says about pools, whether there is one or not.
    pub(crate) fn state_dir(&self) -> Result<StateDir> {
        Ok(StateDir::locate(self.state_dir.clone())?)
    }

    fn url(&self, environment: Option<String>) -> Result<String> {
        // What was typed for this command counts more than what the environment says for all of them.
        if let Some(url) = &self.redis_url {
            return Ok(url.clone());
        }
        if let (None, Some(url)) = (&self.state_dir, &environment) {
            return Ok(url.clone());
        }
        let directory = self.state_dir()?;
        let path = directory.path().display();
        match directory.running_agent()? {
            // Of an agent without an embedded server, the directory tells everything but that.
            Some(agent) => match agent.redis_url.or(environment) {
                Some(url) => Ok(url),
                None => bail!(
                    "the agent (pid {}) with the state directory {path} runs no embedded server, and does not write \
                     down the URL of another one: say --redis-url URL or REDIS_URL",
                    agent.pid
                ),
            },
            None if self.state_dir.is_some() => bail!("no agent is running with the state directory {path}"),
            None => bail!(
                "no server was named: say --redis-url URL, set REDIS_URL, or run an agent with an embedded server \
                 (its state directory is {path} unless --state-dir names another; no agent is running there)"
            ),
        }
    }
}

/// `REDIS_URL`. Not left to clap, which could not tell it from what was typed.
fn url_of_environment() -> Option<String> {
    std::env::var("REDIS_URL").ok().filter(|url| !url.is_empty())
}

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Told {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// The same as YAML.
    Yaml,
}

impl Told {
    pub(crate) fn tell<T: Serialize>(self, report: &T, text: impl FnOnce(&T) -> String) -> Result<String> {
        Ok(match self {
            Self::Text => text(report),
            Self::Json => serde_json::to_string_pretty(report)? + "\n",
            Self::Yaml => serde_saphyr::to_string(report).context("writing YAML failed")?.trim_end().to_owned() + "\n",
        })
    }
}

/// Whose pools: the namespace of the names that don't say theirs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct NamespaceArgs {
    /// Namespace of a pool that is named without one.
    #[arg(short, long, default_value = "default", value_name = "NAMESPACE")]
    pub(crate) namespace: String,
}

impl NamespaceArgs {
    /// The pool a user means by `name` or `namespace/name`.
    pub(crate) fn pool(&self, name: &str) -> Result<PoolName> {
        Ok(match name.split_once('/') {
            Some((namespace, name)) => PoolName::new(namespace, name)?,
            None => PoolName::new(&self.namespace, name)?,
        })
    }
}

/// The one pool that a command is about.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PoolArgs {
    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    namespace: NamespaceArgs,

    /// The pool, as NAME or NAMESPACE/NAME.
    pool: String,
}

impl PoolArgs {
    pub(crate) fn name(&self) -> Result<PoolName> {
        self.namespace.pool(&self.pool)
    }

    /// The pool on its server, whether it exists or not.
    pub(crate) async fn open(&self) -> Result<Pool> {
        let name = self.name()?;
        Ok(self.server.connect().await?.pool(name.as_str())?)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use jiff::Timestamp;
    use tempfile::{TempDir, tempdir};

    use super::*;
    use crate::state::{AgentFile, OccupiedDir};

    fn args(redis_url: Option<&str>, state_dir: &Path) -> ServerArgs {
        ServerArgs { redis_url: redis_url.map(str::to_owned), state_dir: Some(state_dir.to_owned()) }
    }

    /// A state directory that a running agent occupies, for as long as the second value lives.
    async fn agent(redis_url: Option<&str>) -> (TempDir, OccupiedDir) {
        let directory = tempdir().unwrap();
        let occupied = StateDir::locate(Some(directory.path().to_owned())).unwrap().occupy().await.unwrap();
        let agent = AgentFile {
            pid: std::process::id(),
            redis_url: redis_url.map(str::to_owned),
            server_pid: None,
            http: "127.0.0.1:9464".into(),
            config: Some("/pools".into()),
            started_at: Timestamp::UNIX_EPOCH,
        };
        occupied.write_agent(&agent).unwrap();
        (directory, occupied)
    }

    #[tokio::test]
    async fn what_is_typed_counts_more_than_the_environment() {
        let (running, _occupied) = agent(Some("unix:///agent")).await;
        let environment = || Some("redis://environment".to_owned());

        let typed = args(Some("redis://typed"), running.path());
        assert_eq!(typed.url(environment()).unwrap(), "redis://typed");
        assert_eq!(args(None, running.path()).url(environment()).unwrap(), "unix:///agent");
        let nothing_typed = ServerArgs { redis_url: None, state_dir: None };
        assert_eq!(nothing_typed.url(environment()).unwrap(), "redis://environment");
    }

    #[tokio::test]
    async fn an_agent_that_has_ended_is_not_followed() {
        let (ended, occupied) = agent(Some("unix:///gone")).await;
        drop(occupied);
        let error = args(None, ended.path()).url(None).unwrap_err().to_string();
        assert!(error.contains("no agent is running"), "{error}");
    }

    #[tokio::test]
    async fn an_agent_of_another_server_gives_no_url_but_a_reason() {
        let (running, _occupied) = agent(None).await;
        let error = args(None, running.path()).url(None).unwrap_err().to_string();
        assert!(error.contains("--redis-url") && error.contains("REDIS_URL"), "{error}");
        let environment = Some("redis://environment".to_owned());
        assert_eq!(args(None, running.path()).url(environment).unwrap(), "redis://environment");
    }

    #[test]
    fn a_pool_may_name_its_namespace() {
        let namespace = NamespaceArgs { namespace: "lab".into() };
        assert_eq!(namespace.pool("gpus").unwrap().to_string(), "lab/gpus");
        assert_eq!(namespace.pool("prod/gpus").unwrap().to_string(), "prod/gpus");
        assert!(namespace.pool("a/b/c").is_err());
    }
}
