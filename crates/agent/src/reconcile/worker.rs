//! Looks after one pool: reconciles it when its declaration changes, now and then, and when Redis is back; collects what
//! is over; probes; discovers. Four loops, so that a slow one holds up no other.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use jiff::Timestamp;
use redis_allocator::{Error, PoolInfo, PoolName};
use redis_allocator_crd::DeletionPolicy;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Context,
    apply::{Applied, Extent, apply, configure},
    conditions::{self, Observed, Probing, Sync},
    delete::{Deletion, delete},
};
use crate::{
    backoff::{Backoff, jittered},
    board::{BindingVerdict, Gone},
    complaint::Complaint,
    desired::{DesiredBinding, DesiredPool},
    probe,
};

/// How often a pool is reconciled though nothing is known to have changed.
const RESYNC: Duration = Duration::from_mins(1);
/// How often the invariants of a pool are checked.
const THOROUGH: Duration = Duration::from_mins(10);
/// How often a pool that waits for its last leases is looked at.
const DRAIN: Duration = Duration::from_secs(1);
/// Things reclaimed by one call.
const GC_BATCH: u32 = 200;

/// What is to become of a pool.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Want {
    /// `complete`: whether what is not declared of it is known to be undeclared.
    Present {
        desired: Arc<DesiredPool>,
        complete: bool,
    },
    Absent(DeletionPolicy),
}

/// One pool's worker.
pub(super) struct Worker {
    pub(super) ctx: Arc<Context>,
    pub(super) name: PoolName,
    pub(super) want: watch::Receiver<Want>,
    observed: Mutex<Observed>,
    /// Something was seen that only a reconciliation mends.
    astray: Notify,
    /// Whether Redis has said that the pool is this declaration's. Until then, nothing is done to it.
    managing: watch::Sender<bool>,
    /// Counts how often the pool was made anew.
    created: watch::Sender<u64>,
}

impl Worker {
    pub(super) fn new(ctx: Arc<Context>, name: PoolName, want: watch::Receiver<Want>) -> Self {
        let managing = watch::Sender::new(false);
        let created = watch::Sender::new(0);
        let worker = Self { ctx, name, want, observed: Mutex::default(), astray: Notify::new(), managing, created };
        worker.observe(|_| {});
        worker
    }

    /// Works until the pool is gone, or until told to stop.
    pub(super) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.reconcile() => {}
            () = self.collect() => {}
            () = self.probe() => {}
            () = self.discover().boxed() => {}
        }
    }

    /// Whether the pool is this declaration's.
    pub(super) fn managing(&self) -> watch::Receiver<bool> {
        self.managing.subscribe()
    }

    /// Changes each time that the pool was made anew.
    pub(super) fn made_anew(&self) -> watch::Receiver<u64> {
        self.created.subscribe()
    }

    /// Has the pool reconciled soon: it is not there, or not as it was.
    pub(super) fn go_astray(&self) {
        self.astray.notify_one();
    }

    fn set_managing(&self, managing: bool) {
        self.managing.send_if_modified(|before| std::mem::replace(before, managing) != managing);
    }

    /// Waits until the pool is this declaration's, or until it is not any more.
    async fn is_managing(&self, managing: bool) {
        // Its sender lives as long as this.
        let _ = self.managing.subscribe().wait_for(|now| *now == managing).await;
    }

    /// Changes what is known, and says so to all who want to know.
    pub(super) fn observe(&self, change: impl FnOnce(&mut Observed)) {
        // Nothing panics while holding it.
        let mut observed = self.observed.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut observed);
        self.ctx.board.set_pool(&self.name, &observed);
        if let Some(info) = &observed.info {
            self.ctx.metrics.set_pool(info);
        }
    }

    /// Returns when the pool is gone.
    async fn reconcile(&self) {
        let mut want = self.want.clone();
        let mut redis_back = self.ctx.redis_back.clone();
        let mut backoff = Backoff::default();
        let mut checked: Option<Instant> = None;
        let mut complaint = Complaint::default();
        loop {
            let wanted = want.borrow_and_update().clone();
            redis_back.borrow_and_update();
            let thoroughly = checked.is_none_or(|checked| checked.elapsed() > THOROUGH);
            // Boxed, as are the others: a pool rests most of the time, and there may be many.
            let pause = match self.reconcile_once(&wanted, thoroughly).boxed().await {
                Ok(Some(pause)) => {
                    if complaint.is_over() {
                        tracing::info!(pool = %self.name, "the pool is reconciled again");
                    }
                    if thoroughly {
                        checked = Some(Instant::now());
                    }
                    backoff.forget();
                    pause
                }
                Ok(None) => return,
                Err(error) => {
                    // Each trouble once: Redis being away is said once for all pools.
                    if complaint.is_news(&error) && !error.is_transient() {
                        let category = error.category();
                        tracing::error!(pool = %self.name, category, "reconciling the pool failed: {error}");
                    }
                    if matches!(error, Error::ManagerConflict { .. }) {
                        self.set_managing(false);
                    }
                    match &wanted {
                        Want::Present { desired, .. } => self.fail_bindings(desired, &error),
                        Want::Absent(policy) => self.ctx.board.set_stuck(&self.name, *policy),
                    }
                    self.observe(|observed| {
                        if let Want::Present { desired, .. } = &wanted {
                            observed.generation = desired.generation;
                        }
                        observed.sync = Sync::Failed(error);
                    });
                    backoff.next()
                }
            };
            tokio::select! {
                changed = want.changed() => if changed.is_err() { return },
                _ = redis_back.changed() => {}
                () = self.astray.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// What can't be said of the pool can't be said of its bindings.
    fn fail_bindings(&self, desired: &DesiredPool, error: &Error) {
        let verdict = |binding: &DesiredBinding| {
            let message = format!("pool {} is not reconciled: {error}", self.name);
            (binding.clone(), BindingVerdict::failed(conditions::reason(error), message))
        };
        self.ctx.board.set_bindings(&self.name, desired.bindings.iter().map(verdict).collect());
    }

    /// How long to wait until the next time; `None` when the pool is gone.
    async fn reconcile_once(&self, want: &Want, thoroughly: bool) -> Result<Option<Duration>, Error> {
        let Ok(_permit) = self.ctx.reconciling.acquire().await else { return Ok(None) };
        let started = Instant::now();
        let result = match want {
            Want::Present { desired, complete } => {
                self.bring(desired, Extent { complete: *complete, thorough: thoroughly }).await
            }
            Want::Absent(policy) => self.take_down(*policy).await,
        };
        self.ctx.metrics.reconciled(started.elapsed(), result.as_ref().err().map(Error::category));
        result
    }

    async fn bring(&self, desired: &DesiredPool, extent: Extent) -> Result<Option<Duration>, Error> {
        let configured = configure(&self.ctx, desired).await?;
        if configured.created {
            self.created.send_modify(|times| *times += 1);
        }
        self.set_managing(true);
        let extent = Extent { thorough: extent.thorough || configured.recovered, ..extent };
        let mut brought = BTreeSet::new();
        self.observe(|observed| brought = observed.brought());
        let Applied { sync, info } = apply(&self.ctx, desired, &brought, extent).await?;
        self.observe(|observed| {
            if matches!(sync, Sync::Waiting(_)) && observed.brought() != brought {
                // Who waited for it did not hear of it.
                self.go_astray();
            }
            if let Sync::HeldBack(shrinks) = &sync
                && !matches!(&observed.sync, Sync::HeldBack(before) if before == shrinks)
            {
                for shrink in shrinks {
                    tracing::warn!(
                        pool = %self.name, origin = %shrink.origin, found = shrink.found, peak = shrink.peak,
                        allowed_min = shrink.allowed_min,
                        "held back: too much would leave the pool; raise spec.maxShrinkPercent if it is meant"
                    );
                }
            }
            observed.generation = desired.generation;
            observed.sync = sync;
            observed.suspended = desired.is_suspended();
            observed.info = Some(info);
            observed.ours = true;
        });
        Ok(Some(jittered(RESYNC)))
    }

    async fn take_down(&self, policy: DeletionPolicy) -> Result<Option<Duration>, Error> {
        // Nobody keeps them up any more.
        self.ctx.board.set_bindings(&self.name, Vec::new());
        match delete(&self.ctx, &self.name, policy).await? {
            ended @ (Deletion::Done | Deletion::NotOurs | Deletion::Lost) => {
                if ended == Deletion::Lost {
                    self.ctx.memory.miss(&self.name, Timestamp::now());
                } else {
                    self.ctx.memory.forget(&self.name);
                }
                let gone = if ended == Deletion::NotOurs { Gone::NotOurs } else { Gone::TakenDown };
                self.ctx.board.remove_pool(&self.name, gone);
                self.ctx.metrics.remove_pool(&self.name);
                Ok(None)
            }
            Deletion::Leases(leases_left) => {
                self.set_managing(true);
                self.observe(|observed| {
                    if !matches!(observed.sync, Sync::Draining { .. }) {
                        tracing::info!(pool = %self.name, leases_left, "draining the pool: it is not declared any more");
                    }
                    observed.sync = Sync::Draining { leases_left };
                });
                Ok(Some(DRAIN))
            }
        }
    }

    /// Collects what is over, and looks at the pool, as often as the declaration says.
    async fn collect(&self) {
        let mut want = self.want.clone();
        let mut interval = Duration::from_secs(5);
        let mut complaint = Complaint::default();
        loop {
            if let Want::Present { desired, .. } = &*want.borrow_and_update() {
                interval = desired.gc_interval();
            }
            tokio::select! {
                changed = want.changed() => if changed.is_err() { std::future::pending().await },
                () = tokio::time::sleep(jittered(interval)) => match self.collect_once().boxed().await {
                    Ok(()) => drop(complaint.is_over()),
                    // Redis came back without it, or with another one of the same name.
                    Err(Error::UnknownPool { .. }) => self.astray.notify_one(),
                    Err(error) if complaint.is_news(&error) => {
                        // That Redis is away is said once for all pools.
                        if !error.is_transient() {
                            tracing::warn!(pool = %self.name, "collecting in the pool failed: {error}");
                        }
                        // What hinders this hinders reconciling, which says so in the status.
                        self.astray.notify_one();
                    }
                    Err(_) => {}
                },
            }
        }
    }

    async fn collect_once(&self) -> Result<(), Error> {
        let pool = self.ctx.client.pool(self.name.as_str())?;
        if !*self.managing.borrow() {
            // Only looked at, so that people see how it is.
            self.look(pool.info().await?);
            return Ok(());
        }
        let started = Instant::now();
        let (mut leases, mut quarantines, mut bindings) = (0, 0, 0);
        loop {
            let report = pool.gc(GC_BATCH).await?;
            for (resource, owner) in &report.expired {
                tracing::info!(pool = %self.name, %resource, owner, "reclaimed an expired lease");
            }
            leases += report.expired.len();
            quarantines += report.recovered.len();
            bindings += report.unbound.len();
            if !report.more {
                break;
            }
        }
        self.ctx.metrics.collected(started.elapsed(), leases, quarantines, bindings);
        self.look(pool.info().await?);
        Ok(())
    }

    fn look(&self, info: PoolInfo) {
        let wanted = self.want.borrow().clone();
        let is_ours = info.manager.as_deref() == Some(&self.ctx.manager);
        if !is_ours && *self.managing.borrow() {
            // Taken over: the reconciler says so, or finds that it may have it after all.
            self.set_managing(false);
            self.astray.notify_one();
        }
        let Want::Present { desired, .. } = wanted else {
            return self.observe(|observed| (observed.info, observed.ours) = (Some(info), is_ours));
        };
        let known = self.ctx.memory.get(&self.name);
        if is_ours && known.is_some_and(|known| known.known.incarnation != info.incarnation) {
            // Another life than the remembered one: that must be judged before it is taken for the known one.
            self.astray.notify_one();
        } else if is_ours {
            self.ctx.memory.saw(&info, desired.deletion_policy());
        }
        self.observe(|observed| (observed.info, observed.ours) = (Some(info), is_ours));
    }

    /// Probes the resources of a declared pool, each time anew when the declaration changes.
    async fn probe(&self) {
        let mut want = self.want.clone();
        loop {
            let wanted = want.borrow_and_update().clone();
            let check = match &wanted {
                Want::Present { desired, .. } => desired.health_check(),
                Want::Absent(_) => None,
            };
            let probing = async {
                if !*self.managing.borrow() {
                    self.observe(|observed| observed.probing = Probing::Fine);
                    self.is_managing(true).await;
                }
                match check {
                    None => {
                        self.observe(|observed| observed.probing = Probing::Fine);
                        while probe::release_all(&self.ctx.client, &self.name).boxed().await.is_err() {
                            tokio::time::sleep(probe::RETRY).await;
                        }
                        std::future::pending::<()>().await;
                    }
                    Some(check) => {
                        let report = |probing| self.observe(|observed| observed.probing = probing);
                        probe::watch_over(&self.ctx.prober, &self.ctx.client, &self.name, check, report).boxed().await;
                    }
                }
            };
            let taken_away = async {
                self.is_managing(true).await;
                self.is_managing(false).await;
            };
            let changed = async {
                // Other edits of the declaration must not make the prober forget what it counted.
                loop {
                    if want.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                    let now = want.borrow_and_update();
                    let same = match &*now {
                        Want::Present { desired, .. } => desired.health_check() == check,
                        Want::Absent(_) => check.is_none(),
                    };
                    if !same {
                        return;
                    }
                }
            };
            tokio::select! {
                () = probing => {}
                () = changed => {}
                () = taken_away => {}
            }
        }
    }
}
