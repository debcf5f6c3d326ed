//! Leading whenever it is possible, and following otherwise.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use redis_allocator_crd::DeletionPolicy;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::Backoff,
    board::Board,
    http::{Readiness, Role},
    leader::{ASK, Election, ElectionError, Leadership},
    metrics::Metrics,
    notice::Notice,
    reconcile,
    source::{Declaration, kubernetes::KubernetesSource},
};

/// How often a follower looks at the pools, to know as much as the leader should it have to take over.
const OBSERVE: Duration = Duration::from_secs(30);

/// What leading takes.
pub(super) struct Lead {
    /// What the reconcilers need; absent until Redis has answered.
    pub(super) context: watch::Receiver<Option<Arc<reconcile::Context>>>,
    pub(super) declared: watch::Receiver<Arc<Declaration>>,
    pub(super) readiness: Readiness,
    pub(super) metrics: Metrics,
    pub(super) board: Arc<Board>,
    /// Where pools are declared, if that is in a cluster; otherwise the declarations come by themselves.
    pub(super) cluster: Option<Cluster>,
}

/// A cluster in which pools are declared. Only the agent that leads looks at it.
pub(super) struct Cluster {
    pub(super) client: kube::Client,
    /// The agent's own namespace.
    pub(super) namespace: String,
    pub(super) source: KubernetesSource,
    pub(super) declarations: watch::Sender<Arc<Declaration>>,
    pub(super) notices: mpsc::Receiver<Notice>,
}

impl Lead {
    /// Leads whenever it can, again and again, until told to stop.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let Some(Some(mut election)) = stop.run_until_cancelled(self.election()).await else { return };
        let mut backoff = Backoff::default();
        let mut told: Option<String> = None;
        let mut observed: Option<Instant> = None;
        loop {
            let asked = tokio::select! {
                // First: a lead that ended because of it must not be asked for again.
                biased;
                () = stop.cancelled() => return,
                asked = election.ask().boxed() => asked,
            };
            let pause = match asked {
                Ok(Some(leadership)) => {
                    told = None;
                    backoff.forget();
                    self.lead(leadership, &stop).boxed().await;
                    continue;
                }
                Ok(None) => {
                    told = None;
                    backoff.forget();
                    self.readiness.set_role(Role::Follower);
                    if self.cluster.is_some() {
                        // The API server has answered, which is all that a follower needs of it.
                        self.readiness.set_source(None);
                    }
                    if observed.is_none() {
                        tracing::info!("another agent leads; this one follows");
                    }
                    if observed.is_none_or(|observed| observed.elapsed() > OBSERVE) {
                        self.observe().await;
                        observed = Some(Instant::now());
                    }
                    ASK
                }
                Err(error) => {
                    self.complain(&error, &mut told);
                    backoff.next()
                }
            };
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    async fn election(&mut self) -> Option<Election> {
        if let Some(cluster) = &self.cluster {
            return Some(Election::in_kubernetes(cluster.client.clone(), &cluster.namespace));
        }
        let ctx = self.context.wait_for(Option::is_some).await.ok()?.clone()?;
        // Leading before the manifests were read would mean to lead without knowing where to.
        self.declared.changed().await.ok()?;
        self.declared.mark_changed();
        Some(Election::Redis { client: ctx.client.clone(), manager: ctx.manager.clone() })
    }

    /// Leads until told to stop, or until it must not any more.
    async fn lead(&mut self, leadership: Leadership, stop: &CancellationToken) {
        tracing::info!("leading");
        self.metrics.set_leader(true);
        self.board.set_leader(true);
        self.readiness.set_role(Role::Leader);
        let lost = leadership.lost();
        let over = CancellationToken::new();
        if let Some(cluster) = &self.cluster {
            // Whatever was declared when this agent last led, someone else has led since.
            self.board.clear();
            cluster.declarations.send_replace(Arc::default());
            self.readiness.set_source(Some("the objects have not been listed yet".to_owned()));
        }
        let (mut context, declared) = (self.context.clone(), self.declared.clone());
        let reconciling = async {
            let ctx = over.run_until_cancelled(context.wait_for(Option::is_some)).await;
            if let Some(Ok(Some(ctx))) = ctx.map(|ctx| ctx.map(|ctx| ctx.clone())) {
                reconcile::lead(ctx, declared, over.clone()).boxed().await;
            }
        };
        let watching = async {
            if let Some(Cluster { source, declarations, notices, .. }) = &mut self.cluster {
                over.run_until_cancelled(source.run(declarations, notices).boxed()).await;
            }
        };
        let (board, readiness) = (&self.board, &self.readiness);
        let settled = async {
            // The workers begin with the first declaration, and say at once which pools are pending.
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                if board.is_settled() {
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
        tokio::join!(reconciling, watching, ending);
        self.metrics.set_leader(false);
        self.board.set_leader(false);
        self.readiness.set_role(Role::Candidate);
        leadership.resign().await;
    }

    fn complain(&self, error: &ElectionError, told: &mut Option<String>) {
        let is_news = told.replace(error.category().to_owned()).as_deref() != Some(error.category());
        match error {
            ElectionError::Redis(error) => {
                if !error.is_transient() {
                    if is_news {
                        tracing::error!("asking for the lead failed: {error}");
                    }
                    self.readiness.set_redis(Some(error.to_string()));
                }
            }
            ElectionError::Kubernetes(_) => {
                if is_news {
                    tracing::error!("asking for the lead failed, and is tried again and again: {error}");
                }
                self.readiness.set_source(Some(error.to_string()));
            }
        }
    }

    /// Learns what the leader knows, so that this agent knows it when it leads.
    async fn observe(&self) {
        if self.cluster.is_some() {
            // The objects remember it.
            return;
        }
        let Some(ctx) = self.context.borrow().clone() else { return };
        let desired = Arc::clone(&self.declared.borrow().desired);
        for name in desired.pools.keys() {
            let policy = ctx.memory.get(name).map_or(DeletionPolicy::Drain, |remembered| remembered.deletion_policy);
            if let Ok(pool) = ctx.client.pool(name.as_str())
                && let Ok(info) = pool.info().await
                && info.manager.as_deref() == Some(&ctx.manager)
            {
                ctx.memory.saw(&info, policy);
            }
        }
    }
}
