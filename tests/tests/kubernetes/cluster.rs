//! An API server with the project installed, a Redis, and agents between them, as a test sees them: manifests it applies,
//! objects whose status it reads. It must not know what the manifests say.

#![allow(dead_code, reason = "the benchmark uses some of it")]

use std::{
    fmt::Debug,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{
    Flavor, Server, eventually,
    kube::{ApiServer, Request},
};
use k8s_openapi::{api::events::v1::Event, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{Api, Resource, api::ListParams};
use redis_allocator::{Client, Error, Pool};
use redis_allocator_crd::{ResourcePool, SoftBinding};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::agent::Agent;

/// How long anything may take that an agent does at once, and shows when it next writes counts.
pub(crate) const SOON: Duration = Duration::from_secs(40);

/// Where the shipped manifests put the agents.
pub(crate) const NAMESPACE: &str = "redis-allocator";
const ACCOUNT: &str = "redis-allocator-agent";
/// As the API server knows it.
const USER: &str = "system:serviceaccount:redis-allocator:redis-allocator-agent";

pub(crate) struct Cluster {
    pub(crate) api: ApiServer,
    pub(crate) redis: Server,
    /// The library, connected to that Redis.
    pub(crate) client: Client,
    kube: kube::Client,
    kubeconfig: PathBuf,
    agents: AtomicU32,
    dir: TempDir,
}

impl Cluster {
    /// An API server with the shipped manifests, and an empty Redis; `None`, said aloud, without an API server.
    pub(crate) async fn start(what: &str) -> Result<Option<Self>> {
        let Some(api) = ApiServer::start(what).await? else { return Ok(None) };
        let kube = api.client().await?;
        install(&api, &kube).await?;
        let redis = Server::start(Flavor::Redis).await?;
        let client = Client::connect(&redis.url()).await?;
        let kubeconfig = api.service_account_kubeconfig(NAMESPACE, ACCOUNT).await?;
        Ok(Some(Self { api, redis, client, kube, kubeconfig, agents: AtomicU32::new(0), dir: TempDir::new()? }))
    }

    /// Applies the shipped manifests once more.
    pub(crate) async fn install(&self) -> Result<()> {
        install(&self.api, &self.kube).await
    }

    /// Starts an agent with nothing in its state directory.
    pub(crate) fn agent(&self) -> Result<Agent> {
        let state = self.dir.path().join(format!("agent-{}", self.agents.fetch_add(1, Ordering::Relaxed)));
        Agent::in_kubernetes(&self.kubeconfig, &state, &["--redis-url", &self.redis.url()])
    }

    /// Applies manifests; what kubectl said.
    pub(crate) async fn apply(&self, manifests: &str) -> Result<String> {
        self.api.kubectl_with(&["apply", "-f", "-"], manifests).await
    }

    /// Deletes an object without waiting until it is gone.
    pub(crate) async fn delete(&self, kind: &str, name: &str) -> Result<()> {
        self.api.kubectl(&["delete", "--wait=false", kind, name]).await.map(drop)
    }

    pub(crate) fn pools(&self) -> Api<ResourcePool> {
        Api::namespaced(self.kube.clone(), "default")
    }

    pub(crate) fn bindings(&self) -> Api<SoftBinding> {
        Api::namespaced(self.kube.clone(), "default")
    }

    /// A client of the API server that may do everything.
    pub(crate) fn kube(&self) -> kube::Client {
        self.kube.clone()
    }

    /// The same pool in Redis.
    pub(crate) fn in_redis(&self, name: &str) -> Result<Pool> {
        Ok(self.client.pool(name)?)
    }

    /// Waits until a pool has this condition, said of its latest generation; the pool.
    pub(crate) async fn pool_is(&self, name: &str, type_: &str, status: &str, reason: &str) -> Result<ResourcePool> {
        self.pool_is_within(SOON, name, type_, status, reason).await
    }

    /// The same, for what may take longer.
    pub(crate) async fn pool_is_within(
        &self,
        time: Duration,
        name: &str,
        type_: &str,
        status: &str,
        reason: &str,
    ) -> Result<ResourcePool> {
        let pools = self.pools();
        self.within(time, async || {
            let pool = pools.get(name).await?;
            let conditions = pool.status.as_ref().map_or(&[][..], |status| &status.conditions);
            // A deletion counts as an edit, but there is no spec to observe in it.
            let generation = pool.metadata.generation.filter(|_| pool.metadata.deletion_timestamp.is_none());
            has(conditions, generation, type_, status, reason)?;
            Ok(pool)
        })
        .await
        .with_context(|| format!("the pool {name} is not {type_}={status} because of {reason}"))
    }

    /// Waits until a pool is `Ready`; the pool.
    pub(crate) async fn ready(&self, name: &str) -> Result<ResourcePool> {
        self.pool_is(name, "Ready", "True", "Ready").await
    }

    /// Waits until a binding is, or is not, `Ready` for this reason; the binding.
    pub(crate) async fn binding_is(&self, name: &str, status: &str, reason: &str) -> Result<SoftBinding> {
        let bindings = self.bindings();
        self.eventually(async || {
            let binding = bindings.get(name).await?;
            let conditions = binding.status.as_ref().map_or(&[][..], |status| &status.conditions);
            has(conditions, binding.metadata.generation, "Ready", status, reason)?;
            Ok(binding)
        })
        .await
        .with_context(|| format!("the binding {name} is not Ready={status} because of {reason}"))
    }

    /// Waits until a number in a pool's status is this.
    pub(crate) async fn counts<N: PartialEq + Debug>(
        &self,
        name: &str,
        count: impl Fn(&redis_allocator_crd::ResourcePoolStatus) -> N,
        expected: N,
    ) -> Result<()> {
        let pools = self.pools();
        self.eventually(async || {
            let status = pools.get(name).await?.status.context("no status")?;
            let found = count(&status);
            ensure!(found == expected, "found {found:?} instead of {expected:?} in {status:?}");
            Ok(())
        })
        .await
    }

    /// Waits until an object is gone from the API server.
    pub(crate) async fn is_gone<K>(&self, objects: Api<K>, name: &str) -> Result<()>
    where
        K: Resource + Clone + Debug + DeserializeOwned,
    {
        self.eventually(async || match objects.get_opt(name).await? {
            None => Ok(()),
            Some(object) => bail!("{name} is still there: {object:?}"),
        })
        .await
    }

    /// Waits until a pool is gone from the API server and from Redis.
    pub(crate) async fn pool_is_gone(&self, name: &str) -> Result<()> {
        self.is_gone(self.pools(), name).await?;
        match self.in_redis(name)?.info().await {
            Err(Error::UnknownPool { .. }) => Ok(()),
            other => bail!("the object is gone, but Redis has the pool: {other:?}"),
        }
    }

    /// Waits until Redis has so many resources of a pool.
    pub(crate) async fn redis_has(&self, name: &str, resources: u64) -> Result<()> {
        let pool = self.in_redis(name)?;
        self.eventually(async || {
            let found = pool.len().await?;
            ensure!(found == resources, "{name} has {found} resources instead of {resources}");
            Ok(())
        })
        .await
    }

    /// Waits for an Event about an object.
    pub(crate) async fn event(&self, object: &str, reason: &str) -> Result<Event> {
        let events: Api<Event> = Api::namespaced(self.kube.clone(), "default");
        self.eventually(async || {
            let list = events.list(&ListParams::default()).await?.items;
            let told: Vec<_> = list.iter().map(|it| (&it.regarding, &it.reason, &it.note)).collect();
            let told = format!("no Event {reason} about {object} among {told:?}");
            let matches = |event: &Event| {
                let regarding = event.regarding.as_ref().and_then(|it| it.name.as_deref());
                regarding == Some(object) && event.reason.as_deref() == Some(reason)
            };
            list.into_iter().find(matches).context(told)
        })
        .await
    }

    /// Waits for a condition; a failure shows the agents' logs.
    pub(crate) async fn eventually<T>(&self, condition: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        self.within(SOON, condition).await
    }

    /// The same, for what may take longer.
    pub(crate) async fn within<T>(&self, time: Duration, condition: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        eventually(time, condition).await.with_context(|| format!("what the agents logged:\n{}", self.logs()))
    }

    /// What all agents logged, one after the other.
    fn logs(&self) -> String {
        let agents = 0..self.agents.load(Ordering::Relaxed);
        let log = |agent| {
            let path = self.dir.path().join(format!("agent-{agent}/agent.log"));
            format!("agent {agent}:\n{}", fs::read_to_string(path).unwrap_or_default())
        };
        agents.map(log).collect()
    }

    /// What the agents asked of the API server so far.
    pub(crate) fn requests_of_agents(&self) -> Result<Vec<Request>> {
        let mut requests = self.api.requests()?;
        requests.retain(|request| request.user == USER);
        Ok(requests)
    }

    /// The same, but only what changed something and is no Lease, since there were so many requests.
    pub(crate) fn writes_since(&self, requests: usize) -> Result<Vec<Request>> {
        let mut writes = self.requests_of_agents()?.split_off(requests);
        writes.retain(|it| it.is_write() && it.resource != "leases");
        Ok(writes)
    }

    /// No agent asked for anything that the shipped rights refuse, or sent what the API server does not understand.
    pub(crate) fn nothing_was_refused(&self) -> Result<()> {
        let mut refused = self.requests_of_agents()?;
        refused.retain(|it| match it.status {
            400 | 401 | 403 | 405 | 415 => true,
            // A patch of the finalizer is tested against the object as it was seen: this is how it is overtaken.
            422 => it.resource != "resourcepools",
            _ => false,
        });
        ensure!(refused.is_empty(), "{refused:?}\n{}", self.logs());
        Ok(())
    }
}

/// Applies the shipped manifests, and waits until their kinds are served.
async fn install(api: &ApiServer, kube: &kube::Client) -> Result<()> {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    api.kubectl(&["apply", "-k", &manifests.display().to_string()]).await?;
    let pools: Api<ResourcePool> = Api::all(kube.clone());
    let bindings: Api<SoftBinding> = Api::all(kube.clone());
    eventually(SOON, async || {
        pools.list(&ListParams::default()).await?;
        bindings.list(&ListParams::default()).await.map(drop).map_err(Into::into)
    })
    .await
    .context("the kinds are not served")
}

/// Whether the condition is there, and about this generation, if one is given.
fn has(conditions: &[Condition], generation: Option<i64>, type_: &str, status: &str, reason: &str) -> Result<()> {
    let found = conditions.iter().find(|it| it.type_ == type_);
    let found = found.with_context(|| format!("no condition {type_} among {conditions:?}"))?;
    ensure!(found.status == status && found.reason == reason, "found {found:?}");
    let is_latest = generation.is_none() || found.observed_generation == generation;
    ensure!(is_latest, "{found:?} is about another generation than {generation:?}");
    Ok(())
}
