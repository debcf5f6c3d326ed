//! A running agent: its parts, started in the order in which they need each other, and stopped in the reverse one.
//!
//! Source → declarations → (while this agent leads) workers → Redis; statuses → state directory, and in Kubernetes the
//! objects; all of them → readiness and metrics. Whatever is missing at the start is waited for: an agent that can't reach
//! Redis runs, and says so.

mod kubernetes;
mod lead;
mod publish;
mod redis;

use std::{fmt, future::Future, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::lead::{Cluster, Lead};
use crate::{
    board::Board,
    discover::Discoverer,
    embedded::Embedded,
    http::{self, Readiness},
    metrics::Metrics,
    notice::{Notice, Notices},
    probe::{ProbeSettings, Prober},
    reconcile::{self, CONCURRENT},
    source::{Declaration, files::FileSource, kubernetes::KubernetesSource},
    state::{AgentFile, Memory, OccupiedDir, StateDir},
};

/// How long the parts may take to stop.
const STOP: Duration = Duration::from_secs(10);
/// How long an agent may take to see which pools of its embedded server are not leased.
const FAREWELL: Duration = Duration::from_secs(2);

/// Which Redis.
#[derive(Debug, Clone)]
pub(crate) enum Server {
    Url(String),
    Embedded,
}

/// Where pools are declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Declared {
    /// In the manifests of this directory.
    Files(PathBuf),
    /// As objects of the cluster that the environment names.
    Kubernetes,
}

impl Declared {
    /// The directory of manifests, if it is one.
    fn dir(&self) -> Option<&PathBuf> {
        match self {
            Self::Files(dir) => Some(dir),
            Self::Kubernetes => None,
        }
    }
}

impl fmt::Display for Declared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(dir) => write!(f, "files:{}", dir.display()),
            Self::Kubernetes => f.write_str("kubernetes"),
        }
    }
}

/// How an agent runs.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) declared: Declared,
    pub(crate) server: Server,
    pub(crate) state_dir: StateDir,
    pub(crate) http_bind: String,
    pub(crate) allow_empty: bool,
    /// The identity under which pools are managed [default: that of the directory, or of the cluster].
    pub(crate) manager: Option<String>,
    pub(crate) takeover: bool,
    pub(crate) probes: ProbeSettings,
}

/// Runs until told to stop.
///
/// # Errors
/// What keeps an agent from starting: its state directory is taken, its address is, its embedded server does not start.
pub(crate) async fn run(settings: Settings, stop: CancellationToken) -> Result<()> {
    let occupied = settings.state_dir.occupy().await?;
    let listener = TcpListener::bind(&settings.http_bind)
        .await
        .with_context(|| format!("listening on {} failed: give another --http-bind", settings.http_bind))?;
    let http_address = listener.local_addr()?.to_string();
    let shared = Shared {
        memory: Arc::new(Memory::load(&occupied)?),
        metrics: Metrics::new(),
        readiness: Readiness::new(),
        board: Arc::default(),
    };
    let Shared { memory, metrics, readiness, board } = shared.clone();
    let (notices, told) = Notices::channel();
    let notices = if settings.declared == Declared::Kubernetes { notices } else { Notices::default() };
    let prober =
        Arc::new(Prober::new(settings.probes, metrics.clone(), notices).context("preparing HTTP probes failed")?);
    // Parts that the last steps of others need are stopped after them.
    let (work, upkeep) = (Group::default(), Group::default());

    upkeep.spawn(|stop| http::serve(listener, readiness.clone(), metrics.clone(), stop));
    let (url, server_pid) = server(&settings.server, &occupied, &upkeep).await?;
    let (unreachable, redis_trouble) = watch::channel(None);
    let (found, context) = watch::channel(None);
    let lead = lead(&settings, &shared, &work, context, redis_trouble, told).await?;
    let (declared, cluster) = (lead.declared.clone(), lead.cluster.as_ref().map(|cluster| cluster.client.clone()));
    let discoverer = Discoverer::new(cluster.clone(), settings.probes.allow_link_local, metrics.clone())
        .context("preparing HTTP sources failed")?;
    work.spawn(|stop| lead.run(stop));
    upkeep.spawn({
        let memory = Arc::clone(&memory);
        |stop| async move { memory.keep_on_disk(stop).await }
    });

    let occupied = Arc::new(occupied);
    let agent_file = AgentFile {
        pid: std::process::id(),
        redis_url: matches!(settings.server, Server::Embedded).then(|| url.clone()),
        server_pid: None,
        http: http_address.clone(),
        config: settings.declared.dir().cloned(),
        started_at: jiff::Timestamp::now(),
    };
    write_agent(&occupied, &agent_file, *server_pid.borrow());
    upkeep.spawn(|stop| follow_server(Arc::clone(&occupied), agent_file, server_pid, stop));
    tracing::info!(
        declared = %settings.declared, http = http_address, state_dir = %occupied.path().display(),
        embedded = matches!(settings.server, Server::Embedded), "agent started"
    );

    let connecting = async {
        let manager = match (settings.manager, cluster) {
            (Some(manager), _) => manager,
            (None, Some(cluster)) => kubernetes::manager(&cluster, &readiness).await,
            (None, None) => settings.declared.to_string(),
        };
        tracing::info!(manager, "pools are managed under this identity");
        upkeep.spawn(|stop| {
            publish::run(Arc::clone(&occupied), Arc::clone(&board), manager.clone(), declared.clone(), stop)
        });
        let connected = redis::connect(&url, &readiness, &metrics, &unreachable).await;
        connected.map(|client| (manager, client))
    };
    if let Some(connected) = stop.run_until_cancelled(connecting).await {
        let (manager, client) = connected?;
        let (back, redis_back) = watch::channel(0);
        upkeep.spawn(|stop| redis::watch_over(client.clone(), readiness.clone(), metrics.clone(), back, stop));
        let ctx = Arc::new(reconcile::Context {
            client,
            manager,
            takeover: settings.takeover,
            memory,
            board,
            metrics,
            prober,
            discoverer,
            reconciling: Semaphore::new(CONCURRENT),
            redis_back,
        });
        found.send_replace(Some(Arc::clone(&ctx)));
        stop.cancelled().await;
        tracing::info!("stopping");
        work.stop().await;
        if matches!(settings.server, Server::Embedded) {
            let _ = tokio::time::timeout(FAREWELL, forget_what_nobody_holds(&ctx)).await;
        }
    } else {
        tracing::info!("stopping");
        work.stop().await;
    }
    upkeep.stop().await;
    tracing::info!("stopped");
    Ok(())
}

/// What all parts of an agent share.
#[derive(Clone)]
struct Shared {
    memory: Arc<Memory>,
    metrics: Metrics,
    readiness: Readiness,
    board: Arc<Board>,
}

/// What leading takes; files are read, and declared, from now on.
async fn lead(
    settings: &Settings,
    shared: &Shared,
    work: &Group,
    context: watch::Receiver<Option<Arc<reconcile::Context>>>,
    unreachable: watch::Receiver<Option<String>>,
    notices: mpsc::Receiver<Notice>,
) -> Result<Lead> {
    let (declarations, declared) = watch::channel(Arc::<Declaration>::default());
    let Shared { memory, metrics, readiness, board } = shared.clone();
    let cluster = match &settings.declared {
        Declared::Files(dir) => {
            let source = FileSource { dir: dir.clone(), allow_empty: settings.allow_empty };
            work.spawn(|stop| source.run(declarations, stop));
            work.spawn(|stop| follow_source(declared.clone(), readiness.clone(), metrics.clone(), memory, stop));
            None
        }
        Declared::Kubernetes => {
            let kubernetes::Way { requests: client, watches, namespace } = kubernetes::way().await?;
            let source = KubernetesSource {
                client: client.clone(),
                watches,
                allow_empty: settings.allow_empty,
                board: Arc::clone(&board),
                memory,
                metrics: metrics.clone(),
                readiness: readiness.clone(),
                unreachable,
            };
            Some(Cluster { client, namespace, source, declarations, notices })
        }
    };
    Ok(Lead { context, declared, readiness, metrics, board, cluster })
}

/// The server's URL, and the process of one that was started for it.
async fn server(
    server: &Server,
    occupied: &OccupiedDir,
    upkeep: &Group,
) -> Result<(String, watch::Receiver<Option<u32>>)> {
    let (pids, pid) = watch::channel(None);
    let url = match server {
        Server::Url(url) => url.clone(),
        Server::Embedded => {
            let embedded = Embedded::start(occupied.path()).await?;
            pids.send_replace(embedded.pid());
            let url = embedded.url();
            upkeep.spawn(|stop| embedded.keep(pids, stop));
            url
        }
    };
    Ok((url, pid))
}

/// Before an embedded server goes, and all pools with it: one that is not leased needs no hold when it is made anew.
async fn forget_what_nobody_holds(ctx: &reconcile::Context) {
    for name in ctx.memory.pools() {
        let look = async {
            let pool = ctx.client.pool(name.as_str())?;
            pool.suspend(true).await?;
            let info = pool.info().await?;
            Ok::<_, redis_allocator::Error>(info)
        };
        match look.await {
            Ok(info) if info.counts.leased == 0 && info.hold.is_none() => ctx.memory.forget(&name),
            Ok(info) => {
                if let Some(remembered) = ctx.memory.get(&name) {
                    ctx.memory.saw(&info, remembered.deletion_policy);
                }
                tracing::info!(pool = %name, "still leased: when it is made anew, it is held back for a while");
            }
            Err(error) => tracing::debug!(pool = %name, %error, "remembered, as nothing is known of its leases"),
        }
    }
}

/// Tasks that are stopped together.
#[derive(Debug, Default)]
struct Group {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Group {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: impl FnOnce(CancellationToken) -> F) {
        self.tasks.spawn(task(self.stop.clone()));
    }

    async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP, self.tasks.wait()).await.is_err() {
            tracing::warn!("a part of the agent did not stop in time");
        }
    }
}

/// Has readiness and metrics say what the source says.
async fn follow_source(
    mut declared: watch::Receiver<Arc<Declaration>>,
    readiness: Readiness,
    metrics: Metrics,
    memory: Arc<Memory>,
    stop: CancellationToken,
) {
    while let Some(Ok(())) = stop.run_until_cancelled(declared.changed()).await {
        let declaration = Arc::clone(&declared.borrow_and_update());
        metrics.set_files(declaration.fine, declaration.errors.len());
        // An agent that never managed anything may well begin with an empty directory.
        let harmless = declaration.empty && declaration.desired.pools.is_empty() && memory.is_empty();
        readiness.set_source(declaration.trouble.clone().filter(|_| !harmless));
    }
}

/// Has `agent.json` name the embedded server's process, which changes when it is restarted.
async fn follow_server(
    occupied: Arc<OccupiedDir>,
    agent: AgentFile,
    mut pid: watch::Receiver<Option<u32>>,
    stop: CancellationToken,
) {
    while let Some(Ok(())) = stop.run_until_cancelled(pid.changed()).await {
        write_agent(&occupied, &agent, *pid.borrow_and_update());
    }
}

fn write_agent(occupied: &OccupiedDir, agent: &AgentFile, server_pid: Option<u32>) {
    if let Err(error) = occupied.write_agent(&AgentFile { server_pid, ..agent.clone() }) {
        tracing::error!(error = &error as &dyn std::error::Error, "the command line will not find this agent");
    }
}
