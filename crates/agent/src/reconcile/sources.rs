//! Who follows which source of a pool: each one on its own, from when the pool is this declaration's, and anew when its
//! declaration changes.

use std::collections::BTreeMap;

use futures::{
    FutureExt as _, StreamExt as _,
    future::{AbortHandle, Abortable, Aborted, BoxFuture},
    stream::FuturesUnordered,
};
use redis_allocator_crd::SourceState;

use super::{
    conditions::Sync,
    worker::{Want, Worker},
};
use crate::{
    desired::DesiredSource,
    discover::{Follow, SourceReport, follow},
};

/// Those who follow now, by the name of the source.
struct Followers<'a> {
    worker: &'a Worker,
    by_source: BTreeMap<String, (DesiredSource, AbortHandle)>,
    running: FuturesUnordered<BoxFuture<'a, Result<(), Aborted>>>,
}

impl Worker {
    /// Follows the sources of a declared pool. Never returns.
    pub(super) async fn discover(&self) {
        let mut want = self.want.clone();
        let mut managing = self.managing();
        let mut followers = Followers { worker: self, by_source: BTreeMap::new(), running: FuturesUnordered::new() };
        loop {
            let declared = match &*want.borrow_and_update() {
                Want::Present { desired, .. } => desired.sources(),
                Want::Absent(_) => Vec::new(),
            };
            self.list_sources(&declared);
            let followed = if *managing.borrow_and_update() { declared } else { Vec::new() };
            self.assign(&mut followers, followed);
            tokio::select! {
                changed = want.changed() => if changed.is_err() { std::future::pending().await },
                // Its sender lives as long as this.
                _ = managing.changed() => {}
                () = followers.run() => {}
            }
        }
    }

    /// Has the status list these sources and no others.
    fn list_sources(&self, declared: &[DesiredSource]) {
        self.observe(|observed| {
            let before = std::mem::take(&mut observed.sources);
            for name in before.keys().filter(|name| declared.iter().all(|it| it.source.name != **name)) {
                self.ctx.metrics.remove_source(&self.name, name);
            }
            let report =
                |it: &DesiredSource| (it.source.name.clone(), before.get(&it.source.name).cloned().unwrap_or_default());
            observed.sources = declared.iter().map(report).collect();
        });
    }

    fn assign<'a>(&'a self, followers: &mut Followers<'a>, declared: Vec<DesiredSource>) {
        followers.by_source.retain(|_, (followed, handle)| {
            let stays = declared.contains(followed);
            if !stays {
                handle.abort();
            }
            stays
        });
        for desired in declared {
            let name = desired.source.name.clone();
            if followers.by_source.contains_key(&name) {
                continue;
            }
            let (handle, registration) = AbortHandle::new_pair();
            followers.by_source.insert(name.clone(), (desired.clone(), handle));
            let following = follow(
                Follow {
                    discoverer: &self.ctx.discoverer,
                    client: &self.ctx.client,
                    pool: &self.name,
                    desired,
                    report: self.source_report(&name),
                    made_anew: self.made_anew(),
                },
                move |report| self.report_source(&name, report),
                || self.go_astray(),
            );
            followers.running.push(Abortable::new(following, registration).boxed());
        }
    }

    fn report_source(&self, name: &str, report: SourceReport) {
        self.observe(|observed| {
            // One that left the declaration meanwhile is not to be told of.
            if let Some(known) = observed.sources.get_mut(name) {
                let is_first = known.items.is_none() && report.items.is_some();
                *known = report;
                if is_first && matches!(observed.sync, Sync::Waiting(_)) {
                    self.go_astray();
                }
            }
        });
    }

    fn source_report(&self, name: &str) -> SourceReport {
        let mut report = SourceReport { state: SourceState::Pending, ..SourceReport::default() };
        self.observe(|observed| {
            if let Some(known) = observed.sources.get(name) {
                report = known.clone();
            }
        });
        report
    }
}

impl Drop for Followers<'_> {
    /// Another agent may lead from now on: what this one last saw grows old, and is not to be shown.
    fn drop(&mut self) {
        for name in self.by_source.keys() {
            self.worker.ctx.metrics.remove_source(&self.worker.name, name);
        }
    }
}

impl Followers<'_> {
    /// Has them do their work; those that were called off are forgotten. Never returns.
    async fn run(&mut self) {
        loop {
            if self.running.next().await.is_none() {
                return std::future::pending().await;
            }
        }
    }
}
