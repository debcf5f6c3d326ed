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
    pool::{BATCH, Pool, Renewal},
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

impl Entry {
    /// Whether its grant may as well be renewed now, or is gone.
    fn is_soon(&self, now: BootInstant) -> bool {
        self.grant.upgrade().is_none_or(|grant| {
            grant.renewing.load(Ordering::Acquire) && grant.ttl().is_some_and(|ttl| self.at <= now + ttl / 20)
        })
    }
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
    /// Size at which entries of grants that are gone are thrown out: they keep the grants' memory until then.
    compact_at: usize,
}

impl Queue {
    /// Has a grant looked at then, and not at the time that was set before.
    fn look(&mut self, grant: &Arc<Grant>, at: BootInstant) {
        grant.set_look(Some(at));
        if self.entries.len() >= self.compact_at {
            self.entries
                .retain(|Reverse(entry)| entry.grant.upgrade().is_some_and(|grant| grant.look() == Some(entry.at)));
            self.compact_at = (2 * self.entries.len()).max(1024);
        }
        self.entries.push(Reverse(Entry { at, grant: Arc::downgrade(grant) }));
    }

    /// The next entry's grant; `None` if it is gone, or is to be looked at another time.
    fn pop(&mut self) -> Option<Arc<Grant>> {
        let Reverse(entry) = self.entries.pop()?;
        let grant = entry.grant.upgrade().filter(|grant| grant.look() == Some(entry.at) && !grant.has_ended())?;
        grant.set_look(None);
        Some(grant)
    }
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
    /// Looks after a grant from now on. Called again whenever there may be reason to look at it sooner.
    pub(crate) fn watch(&self, grant: &Arc<Grant>) {
        grant.watched.store(true, Ordering::Release);
        let at = next_look(grant);
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if grant.look().is_some_and(|set| set <= at) {
            return;
        }
        queue.look(grant, at);
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
                while queue.entries.peek().is_some_and(|Reverse(entry)| entry.at <= now) {
                    due.extend(queue.pop());
                }
                // The nearest that are almost due come along, each saving a round trip of its own.
                while !due.is_empty() && queue.entries.peek().is_some_and(|Reverse(entry)| entry.is_soon(now)) {
                    due.extend(queue.pop());
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
                queue.look(&grant, at);
            }
        }
        drop(queue);
        for (pool, grants) in by_pool.into_values() {
            tokio::spawn(async move {
                for batch in grants.chunks(BATCH) {
                    let asked: Vec<_> = batch.iter().map(|grant| (Arc::clone(grant), grant.ttl())).collect();
                    match pool.renew_grants(&asked).await {
                        Err(error) => {
                            tracing::warn!(pool = %pool.name(), leases = batch.len(), %error, "leases were not renewed");
                        }
                        Ok(renewals) => {
                            let refused = renewals.iter().find_map(|renewal| match renewal {
                                Renewal::Refused(maximum) => Some(maximum),
                                _ => None,
                            });
                            if let Some(maximum) = refused {
                                tracing::warn!(pool = %pool.name(), ?maximum, "leases are longer than the pool now allows");
                            }
                        }
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
