//! One worker for each pool, for as long as this agent leads: those that are declared, and those that are managed under
//! this agent's identity and not declared any more.
//!
//! # Guarantees
//! - What is not declared is taken down only when the source is sure of that.
//! - When told to stop, every worker has stopped before this returns.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use redis_allocator::{Client, Error, PoolName};
use redis_allocator_crd::DeletionPolicy;
use tokio::{
    sync::watch,
    task::{Id, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Context, SYSTEM_NAMESPACE,
    worker::{Want, Worker},
};
use crate::{
    backoff::Backoff,
    board::BindingVerdict,
    complaint::Complaint,
    desired::{Desired, DesiredBinding},
    source::Declaration,
};

/// How often Redis is searched for managed pools that are not declared.
const SWEEP: Duration = Duration::from_mins(10);

/// Leads until told to stop.
pub(crate) async fn lead(
    ctx: Arc<Context>,
    mut declarations: watch::Receiver<Arc<Declaration>>,
    stop: CancellationToken,
) {
    let mut crew = Crew {
        ctx,
        workers: BTreeMap::new(),
        running: JoinSet::new(),
        names: BTreeMap::new(),
        search: Complaint::default(),
        unreadable: BTreeSet::new(),
        stop: stop.child_token(),
    };
    let mut backoff = Backoff::default();
    let mut sweep = Instant::now();
    loop {
        let declaration = Arc::clone(&declarations.borrow_and_update());
        crew.assign(&declaration);
        if declaration.complete && sweep <= Instant::now() {
            let swept = stop.run_until_cancelled(crew.sweep(&declaration.desired, &mut backoff)).await;
            sweep = Instant::now() + swept.unwrap_or(SWEEP);
        }
        tokio::select! {
            () = stop.cancelled() => return crew.dismiss().await,
            changed = declarations.changed() => {
                if changed.is_err() {
                    // The source has ended: what it said last stays until this is told to stop, too.
                    stop.cancelled().await;
                    return crew.dismiss().await;
                }
                // What could not be told before may be certain now.
                sweep = Instant::now();
            }
            // A pool that was declared again while it was taken down needs another worker.
            Some(ended) = crew.running.join_next_with_id() => crew.ended(ended),
            () = sleep_until(sweep), if declaration.complete => {}
        }
    }
}

/// All pools of the server but those that agents use among themselves.
pub(super) async fn existing_pools(client: &Client) -> Result<Vec<PoolName>, Error> {
    let mut found = Vec::new();
    for namespace in client.namespaces().await? {
        if namespace != SYSTEM_NAMESPACE {
            found.extend(client.pools(&namespace).await?);
        }
    }
    Ok(found)
}

/// The workers.
struct Crew {
    ctx: Arc<Context>,
    workers: BTreeMap<PoolName, watch::Sender<Want>>,
    running: JoinSet<()>,
    names: BTreeMap<Id, PoolName>,
    /// About the search for pools that are not declared.
    search: Complaint,
    /// Pools that this search can't read, and has said so of.
    unreadable: BTreeSet<PoolName>,
    stop: CancellationToken,
}

impl Crew {
    /// Tells each worker what its pool is to be.
    fn assign(&mut self, declaration: &Declaration) {
        let desired = &*declaration.desired;
        for (name, pool) in &desired.pools {
            let complete = declaration.complete && !desired.partial.contains(name);
            self.want(name, Want::Present { desired: Arc::clone(pool), complete });
        }
        for (name, policy) in &desired.deleting {
            // Its object may be there for a while after the pool has gone.
            if self.ctx.board.gone(name).is_none() {
                self.want(name, Want::Absent(*policy));
            }
        }
        if declaration.complete {
            let gone: Vec<_> = self.workers.keys().filter(|name| !desired.mentions(name)).cloned().collect();
            for name in gone {
                self.want_gone(&name);
            }
        }
        self.report_idle_bindings(desired);
    }

    fn want(&mut self, name: &PoolName, want: Want) {
        if let Some(worker) = self.workers.get(name) {
            worker.send_if_modified(|old| {
                let differs = *old != want;
                if differs {
                    *old = want;
                }
                differs
            });
            return;
        }
        let (sender, receiver) = watch::channel(want);
        let worker = Worker::new(Arc::clone(&self.ctx), name.clone(), receiver);
        let handle = self.running.spawn(worker.run(self.stop.clone()));
        self.names.insert(handle.id(), name.clone());
        self.workers.insert(name.clone(), sender);
    }

    /// Has a pool taken down as its last declaration said.
    fn want_gone(&mut self, name: &PoolName) {
        let last = self.workers.get(name).map(|worker| match &*worker.borrow() {
            Want::Present { desired, .. } => desired.deletion_policy(),
            Want::Absent(policy) => *policy,
        });
        let remembered = || self.ctx.memory.get(name).map(|remembered| remembered.deletion_policy);
        // A pool whose declaration nobody remembers is taken down in the way that takes nothing from anyone.
        let policy = last.or_else(remembered).unwrap_or(DeletionPolicy::Drain);
        self.want(name, Want::Absent(policy));
    }

    /// Finds pools that were managed under this identity and are not declared: deleted while no agent ran. When to look
    /// again.
    async fn sweep(&mut self, desired: &Desired, backoff: &mut Backoff) -> Duration {
        match self.find_undeclared(desired).await {
            Ok(()) => {
                backoff.forget();
                self.search.is_over();
                SWEEP
            }
            Err(error) => {
                if self.search.is_news(&error) && !error.is_transient() {
                    tracing::error!("looking for pools that are not declared any more failed: {error}");
                }
                backoff.next()
            }
        }
    }

    async fn find_undeclared(&mut self, desired: &Desired) -> Result<(), Error> {
        let mut found: BTreeSet<PoolName> = self.ctx.memory.pools().into_iter().collect();
        found.extend(existing_pools(&self.ctx.client).await?);
        found.retain(|name| !desired.mentions(name) && !self.workers.contains_key(name));
        for name in found {
            let found = self.ctx.client.pool(name.as_str())?.info().await;
            match found {
                Err(error) if error.is_transient() => return Err(error),
                // Not to be taken down before it can be read; the others can.
                Err(error) if !matches!(error, Error::UnknownPool { .. }) => {
                    if self.unreadable.insert(name.clone()) {
                        tracing::error!(pool = %name, "can't tell whether the pool is to be taken down: {error}");
                    }
                    continue;
                }
                Ok(info) if info.manager.as_deref() == Some(&self.ctx.manager) => self.want_gone(&name),
                Ok(_) => self.ctx.memory.forget(&name),
                Err(_) => self.ctx.memory.miss(&name, Timestamp::now()),
            }
            self.unreadable.remove(&name);
        }
        Ok(())
    }

    /// Says of the bindings that no worker has why they are not bound.
    fn report_idle_bindings(&self, desired: &Desired) {
        let mut by_pool: BTreeMap<&PoolName, Vec<(DesiredBinding, BindingVerdict)>> = BTreeMap::new();
        for binding in &desired.unpooled {
            let pool = &binding.pool;
            let verdict = if desired.deleting.contains_key(pool) {
                BindingVerdict::failed("PoolDeleting", format!("pool {pool} is being deleted"))
            } else if desired.partial.contains(pool) {
                BindingVerdict::failed(
                    "PoolInvalid",
                    format!("pool {pool} is not declared as it must be: see its status"),
                )
            } else {
                BindingVerdict::failed("PoolNotFound", format!("pool {pool} is not declared"))
            };
            by_pool.entry(pool).or_default().push((binding.clone(), verdict));
        }
        for (binding, refusal) in &desired.refused {
            let verdict = BindingVerdict::failed(refusal.reason, &refusal.message);
            by_pool.entry(&binding.pool).or_default().push((binding.clone(), verdict));
        }
        self.ctx.board.set_idle_bindings(&by_pool);
    }

    fn ended(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                tracing::error!(%error, "the worker of a pool failed; it is started again");
                error.id()
            }
        };
        if let Some(name) = self.names.remove(&id) {
            self.workers.remove(&name);
        }
    }

    async fn dismiss(mut self) {
        self.stop.cancel();
        while self.running.join_next().await.is_some() {}
    }
}
