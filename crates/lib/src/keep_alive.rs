//! The one timer of a client: it renews the leases that are kept alive, all that are due in one round trip per pool, and
//! tells when a lease's time is over. It decides *when*; what a renewal is, is in [`crate::pool`].

use std::{
    cmp::{Ordering as Order, Reverse},
    collections::{BinaryHeap, HashMap},
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering},
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    lease::Grant,
    names::PoolName,
    pool::{BATCH, Pool},
    time::BootInstant,
};

/// Longest nap: the local timer stands still while the machine sleeps, the deadline does not.
const NAP: Duration = Duration::from_secs(1);
/// How often a permanent lease that is kept alive is looked at: it can't expire, but an operator can end it.
const PERMANENT_LOOK: Duration = Duration::from_secs(10);

/// A grant to look at, at a time.
struct Entry {
    at: BootInstant,
    grant: Weak<Grant>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Order {
        self.at.cmp(&other.at)
    }
}

#[derive(Default)]
struct Queue {
    entries: BinaryHeap<Reverse<Entry>>,
    running: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    earlier: Notify,
}

/// The timer. It runs while there is anything to look after.
#[derive(Default)]
pub(crate) struct KeepAlive {
    shared: Arc<Shared>,
}

impl KeepAlive {
    /// Looks after a grant from now on. Asked a second time, it looks at once.
    pub(crate) fn watch(&self, grant: &Arc<Grant>) {
        let first = !grant.watched.swap(true, Ordering::AcqRel);
        if !first && !grant.renewing.load(Ordering::Acquire) {
            return;
        }
        let at = if first { next_look(grant) } else { BootInstant::now() };
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if !first {
            // It was watched for its deadline alone until now: look anew.
            queue.entries.retain(|Reverse(entry)| !std::ptr::eq(entry.grant.as_ptr(), Arc::as_ptr(grant)));
        }
        queue.entries.push(Reverse(Entry { at, grant: Arc::downgrade(grant) }));
        if queue.running {
            drop(queue);
            self.shared.earlier.notify_one();
        } else {
            queue.running = true;
            drop(queue);
            let shared = Arc::clone(&self.shared);
            grant.pool.client().inner.runtime.spawn(async move { shared.run().await });
        }
    }
}

impl Shared {
    async fn run(self: Arc<Self>) {
        loop {
            let (due, next) = {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                let now = BootInstant::now();
                let mut due = Vec::new();
                while let Some(Reverse(entry)) = queue.entries.peek() {
                    if entry.at > now {
                        break;
                    }
                    let Some(Reverse(entry)) = queue.entries.pop() else { break };
                    due.extend(entry.grant.upgrade().filter(|grant| !grant.has_ended()));
                }
                // The nearest that are almost due come along, each saving a round trip of its own.
                while let Some(Reverse(entry)) = queue.entries.peek() {
                    let Some(grant) = entry.grant.upgrade() else {
                        queue.entries.pop();
                        continue;
                    };
                    let soon = grant.ttl().is_some_and(|ttl| entry.at <= now + ttl / 20);
                    if due.is_empty() || !soon || !grant.renewing.load(Ordering::Acquire) {
                        break;
                    }
                    queue.entries.pop();
                    due.push(grant);
                }
                if due.is_empty() && queue.entries.is_empty() {
                    queue.running = false;
                    return;
                }
                (due, queue.entries.peek().map(|Reverse(entry)| entry.at))
            };
            if due.is_empty() {
                let nap = next.map_or(NAP, |at| at.remaining().min(NAP));
                // Woken early when something nearer was added.
                let _ = tokio::time::timeout(nap, self.earlier.notified()).await;
                continue;
            }
            self.serve(due);
        }
    }

    /// Renews what is to be renewed, in tasks of their own: a server that does not answer must not keep anyone from
    /// hearing that a deadline has passed.
    fn serve(self: &Arc<Self>, due: Vec<Arc<Grant>>) {
        let mut by_pool: HashMap<PoolName, (Pool, Vec<Arc<Grant>>)> = HashMap::new();
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        for grant in due {
            grant.check_deadline();
            if grant.has_ended() {
                continue;
            }
            let renewing = grant.renewing.load(Ordering::Acquire);
            // One that was renewed meanwhile is not due any more.
            let due = renewing && grant.ttl().is_none_or(|ttl| next_look(&grant).remaining() <= ttl / 20);
            let at = if due { next_try(&grant) } else { next_look(&grant) };
            if due {
                by_pool
                    .entry(grant.pool.name().clone())
                    .or_insert_with(|| (grant.pool.clone(), Vec::new()))
                    .1
                    .push(Arc::clone(&grant));
            }
            if renewing || grant.deadline().is_some() {
                queue.entries.push(Reverse(Entry { at, grant: Arc::downgrade(&grant) }));
            }
        }
        drop(queue);
        for (pool, grants) in by_pool.into_values() {
            tokio::spawn(async move {
                for batch in grants.chunks(BATCH) {
                    let asked: Vec<_> = batch.iter().map(|grant| (grant, grant.ttl())).collect();
                    if let Err(error) = pool.renew_grants(&asked).await {
                        tracing::warn!(pool = %pool.name(), leases = batch.len(), %error, "leases were not renewed");
                    }
                }
            });
        }
    }
}

/// When to look at a grant again: when a third of its time has passed if it is kept alive, else at its deadline.
fn next_look(grant: &Grant) -> BootInstant {
    let (Some(deadline), Some(ttl)) = (grant.deadline(), grant.ttl()) else {
        return BootInstant::now() + PERMANENT_LOOK;
    };
    if !grant.renewing.load(Ordering::Acquire) {
        return deadline;
    }
    BootInstant::now() + deadline.remaining().saturating_sub(ttl * 2 / 3)
}

/// When to renew again if the renewal that is sent now brings nothing: after a twentieth of the time to live.
fn next_try(grant: &Grant) -> BootInstant {
    let Some(ttl) = grant.ttl() else { return BootInstant::now() + PERMANENT_LOOK };
    let at = BootInstant::now() + (ttl / 20).clamp(Duration::from_millis(10), NAP);
    grant.deadline().map_or(at, |deadline| at.min(deadline))
}
