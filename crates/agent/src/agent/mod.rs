//! A running agent: its parts, started in the order in which they need each other, and stopped in the reverse one.
//!
//! Source → declarations → (while this agent leads) workers → Redis; statuses → state directory; all of them → readiness
//! and metrics. Whatever is missing at the start is waited for: an agent that can't reach Redis runs, and says so.

mod publish;
mod redis;

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use redis_allocator::PoolName;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    backoff::Backoff,
    board::Board,
    complaint::Complaint,
    embedded::Embedded,
    http::{self, Readiness, Role},
    leader::{ASK, Leadership},
    metrics::Metrics,
    probe::{ProbeSettings, Prober},
    reconcile::{self, CONCURRENT},
    source::{Declaration, files::FileSource},
    state::{AgentFile, Memory, OccupiedDir, RememberedPool, StateDir},
};

/// How long the parts may take to stop.
const STOP: Duration = Duration::from_secs(10);
/// How long an agent may take to see which pools of its embedded server are not leased.
const FAREWELL: Duration = Duration::from_secs(2);
/// How often a follower looks at the pools, to know as much as the leader should it have to take over.
const OBSERVE: Duration = Duration::from_secs(30);

/// Which Redis.
#[derive(Debug, Clone)]
pub(crate) enum Server {
    Url(String),
    Embedded,
}

/// How an agent runs.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) config: PathBuf,
    pub(crate) server: Server,
    pub(crate) state_dir: StateDir,
    pub(crate) http_bind: String,
    pub(crate) allow_empty: bool,
    pub(crate) manager: String,
    pub(crate) takeover: bool,
    pub(crate) probes: ProbeSettings,
}

/// Runs until told to stop.
///
/// # Errors
/// What keeps an agent from starting: its state directory is taken, its address is, its embedded server does not start.
pub(crate) async fn run(settings: Settings, stop: CancellationToken) -> Result<()> {
    let occupied = settings.state_dir.occupy().await?;
    let memory = Arc::new(Memory::load(&occupied)?);
    let listener = TcpListener::bind(&settings.http_bind)
        .await
        .with_context(|| format!("listening on {} failed: give another --http-bind", settings.http_bind))?;
    let http_address = listener.local_addr()?.to_string();

    let metrics = Metrics::new();
    let prober = Arc::new(Prober::new(settings.probes, metrics.clone()).context("preparing HTTP probes failed")?);
    let readiness = Readiness::new();
    let board = Arc::new(Board::default());
    // Parts that the last steps of others need are stopped after them.
    let (work, upkeep) = (Group::default(), Group::default());

    upkeep.spawn(|stop| http::serve(listener, readiness.clone(), metrics.clone(), stop));
    let (pids, pid) = watch::channel(None);
    let url = match &settings.server {
        Server::Url(url) => url.clone(),
        Server::Embedded => {
            let embedded = Embedded::start(occupied.path()).await?;
            pids.send_replace(embedded.pid());
            let url = embedded.url();
            upkeep.spawn(|stop| embedded.keep(pids, stop));
            url
        }
    };

    let (declarations, declared) = watch::channel(Arc::<Declaration>::default());
    let source = FileSource { dir: settings.config.clone(), allow_empty: settings.allow_empty };
    work.spawn(|stop| source.run(declarations, stop));
    work.spawn(|stop| follow_source(declared.clone(), readiness.clone(), metrics.clone(), Arc::clone(&memory), stop));
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
        config: settings.config.clone(),
        started_at: jiff::Timestamp::now(),
    };
    write_agent(&occupied, &agent_file, *pid.borrow());
    upkeep.spawn(|stop| follow_server(Arc::clone(&occupied), agent_file, pid, stop));
    upkeep.spawn(|stop| {
        publish::run(Arc::clone(&occupied), Arc::clone(&board), settings.manager.clone(), declared.clone(), stop)
    });
    tracing::info!(
        config = %settings.config.display(), manager = settings.manager, http = http_address,
        state_dir = %occupied.path().display(), embedded = matches!(settings.server, Server::Embedded),
        "agent started"
    );

    let connecting = redis::connect(&url, &readiness, &metrics);
    if let Some(client) = stop.run_until_cancelled(connecting).await {
        let client = client?;
        let (back, redis_back) = watch::channel(0);
        upkeep.spawn(|stop| redis::watch_over(client.clone(), readiness.clone(), metrics.clone(), back, stop));
        let ctx = Arc::new(reconcile::Context {
            client,
            manager: settings.manager,
            takeover: settings.takeover,
            memory,
            board,
            metrics,
            prober,
            reconciling: Semaphore::new(CONCURRENT),
            redis_back,
        });
        work.spawn(|stop| lead_and_follow(Arc::clone(&ctx), declared, readiness, stop));
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
                    remember(ctx, &info, remembered.deletion_policy);
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

/// Leads whenever it can, again and again.
async fn lead_and_follow(
    ctx: Arc<reconcile::Context>,
    mut declared: watch::Receiver<Arc<Declaration>>,
    readiness: Readiness,
    stop: CancellationToken,
) {
    // Leading before the manifests were read would mean to lead without knowing where to.
    if stop.run_until_cancelled(declared.changed()).await.is_none() {
        return;
    }
    declared.mark_changed();
    let mut backoff = Backoff::default();
    let mut complaint = Complaint::default();
    let mut observed = None;
    loop {
        let asked = tokio::select! {
            () = stop.cancelled() => return,
            asked = Leadership::ask(&ctx.client, &ctx.manager) => asked,
        };
        let pause = match asked {
            Ok(Some(leadership)) => {
                complaint.is_over();
                backoff.forget();
                lead(&ctx, leadership, declared.clone(), &readiness, &stop).await;
                continue;
            }
            Ok(None) => {
                complaint.is_over();
                backoff.forget();
                readiness.set_role(Role::Follower);
                if observed.is_none_or(|observed: tokio::time::Instant| observed.elapsed() > OBSERVE) {
                    if observed.is_none() {
                        tracing::info!("another agent leads; this one follows");
                    }
                    let desired = Arc::clone(&declared.borrow().desired);
                    observe(&ctx, desired.pools.keys()).await;
                    observed = Some(tokio::time::Instant::now());
                }
                ASK
            }
            Err(error) => {
                let is_news = complaint.is_news(&error);
                if !error.is_transient() {
                    if is_news {
                        tracing::error!("asking for the lead failed: {error}");
                    }
                    readiness.set_redis(Some(error.to_string()));
                }
                backoff.next()
            }
        };
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// Leads until told to stop, or until it must not any more.
async fn lead(
    ctx: &Arc<reconcile::Context>,
    leadership: Leadership,
    declared: watch::Receiver<Arc<Declaration>>,
    readiness: &Readiness,
    stop: &CancellationToken,
) {
    tracing::info!("leading");
    ctx.metrics.set_leader(true);
    ctx.board.set_leader(true);
    readiness.set_role(Role::Leader);
    let lost = leadership.lost();
    let over = CancellationToken::new();
    let settled = async {
        // The workers begin with the first declaration, and say at once which pools are pending.
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if ctx.board.is_settled() {
                readiness.set_work(None);
                return std::future::pending::<()>().await;
            }
        }
    };
    let ending = async {
        tokio::select! {
            () = stop.cancelled() => {}
            () = lost.cancelled() => tracing::warn!("the lead is lost: this agent stops writing"),
            () = settled => {}
        }
        over.cancel();
    };
    tokio::join!(reconcile::lead(Arc::clone(ctx), declared, over.clone()), ending);
    ctx.metrics.set_leader(false);
    ctx.board.set_leader(false);
    readiness.set_role(Role::Candidate);
    leadership.resign().await;
}

/// Remembers what the leader remembers, so that a follower knows it when it is needed.
async fn observe(ctx: &reconcile::Context, pools: impl Iterator<Item = &PoolName>) {
    for name in pools {
        let Some(remembered) = ctx.memory.get(name) else {
            if let Ok(pool) = ctx.client.pool(name.as_str())
                && let Ok(info) = pool.info().await
                && info.manager.as_deref() == Some(&ctx.manager)
            {
                remember(ctx, &info, redis_allocator_crd::DeletionPolicy::Drain);
            }
            continue;
        };
        if let Ok(pool) = ctx.client.pool(name.as_str())
            && let Ok(info) = pool.info().await
            && info.manager.as_deref() == Some(&ctx.manager)
        {
            remember(ctx, &info, remembered.deletion_policy);
        }
    }
}

fn remember(
    ctx: &reconcile::Context,
    info: &redis_allocator::PoolInfo,
    deletion_policy: redis_allocator_crd::DeletionPolicy,
) {
    let known = redis_allocator::Known { incarnation: info.incarnation.clone(), longest: info.longest };
    ctx.memory.remember(&info.name, RememberedPool { known, deletion_policy });
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
