//! The statuses of pools and bindings, as last observed: written by the reconcilers, read by whoever publishes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use redis_allocator::PoolName;
use redis_allocator_crd::{ResourcePoolStatus, SoftBindingStatus};
use tokio::sync::Notify;

use crate::{
    desired::DesiredBinding,
    reconcile::conditions::{self, Observed},
    state::{BindingReport, PoolReport},
};

/// What is said of everything.
#[derive(Debug, Default)]
pub(crate) struct Board {
    state: Mutex<State>,
    /// A condition changed: people should see that at once.
    pub(crate) conditions_changed: Notify,
    /// Only counts changed, or times.
    pub(crate) counts_changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    leader: bool,
    pools: BTreeMap<PoolName, ResourcePoolStatus>,
    bindings: Bindings,
    /// Those that no worker has: their pool is not declared, or they contradict others.
    idle_bindings: Bindings,
}

/// By pool and name of the object.
type Bindings = BTreeMap<(PoolName, String), BindingReport>;

/// What is known of one declared binding.
#[derive(Debug, Clone)]
pub(crate) struct BindingVerdict {
    pub(crate) ready: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl BindingVerdict {
    pub(crate) fn failed(reason: &'static str, message: impl Into<String>) -> Self {
        Self { ready: false, reason, message: message.into() }
    }
}

impl Board {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_leader(&self, leader: bool) {
        self.state().leader = leader;
        self.conditions_changed.notify_one();
    }

    /// Takes over what was observed of a pool.
    pub(crate) fn set_pool(&self, pool: &PoolName, observed: &Observed) {
        let mut state = self.state();
        let before = state.pools.get(pool);
        let status = conditions::status(observed, before, Timestamp::now());
        let same_conditions = before.is_some_and(|before| before.conditions == status.conditions);
        if before == Some(&status) {
            return;
        }
        state.pools.insert(pool.clone(), status);
        drop(state);
        if same_conditions { self.counts_changed.notify_one() } else { self.conditions_changed.notify_one() }
    }

    /// Takes over what its worker knows of the bindings of a pool.
    pub(crate) fn set_bindings(&self, pool: &PoolName, verdicts: Vec<(DesiredBinding, BindingVerdict)>) {
        let state = &mut *self.state();
        if replace(&mut state.bindings, pool, verdicts) {
            self.conditions_changed.notify_one();
        }
    }

    /// Takes over what is known of all bindings that no worker has, by pool.
    pub(crate) fn set_idle_bindings(&self, verdicts: &BTreeMap<&PoolName, Vec<(DesiredBinding, BindingVerdict)>>) {
        let state = &mut *self.state();
        let pools: BTreeSet<PoolName> = state
            .idle_bindings
            .keys()
            .map(|key| key.0.clone())
            .chain(verdicts.keys().map(|&pool| pool.clone()))
            .collect();
        let mut changed = false;
        for pool in pools {
            let verdicts = verdicts.get(&pool).cloned().unwrap_or_default();
            changed |= replace(&mut state.idle_bindings, &pool, verdicts);
        }
        if changed {
            self.conditions_changed.notify_one();
        }
    }

    /// Forgets a pool and its bindings.
    pub(crate) fn remove_pool(&self, pool: &PoolName) {
        let mut state = self.state();
        state.pools.remove(pool);
        state.bindings.retain(|key, _| key.0 != *pool);
        drop(state);
        self.conditions_changed.notify_one();
    }

    /// Whether every pool that is looked after has been reconciled, or was found to be impossible.
    pub(crate) fn is_settled(&self) -> bool {
        let pending = |status: &ResourcePoolStatus| {
            status.conditions.iter().any(|it| it.type_ == "Ready" && it.reason == "Pending")
        };
        !self.state().pools.values().any(pending)
    }

    /// Everything, for publishing.
    pub(crate) fn reports(&self) -> (bool, Vec<PoolReport>, Vec<BindingReport>) {
        let state = self.state();
        let pool = |(name, status): (&PoolName, &ResourcePoolStatus)| PoolReport {
            namespace: name.namespace().to_owned(),
            name: name.name().to_owned(),
            status: status.clone(),
        };
        let bindings = state.bindings.values().chain(state.idle_bindings.values()).cloned().collect();
        (state.leader, state.pools.iter().map(pool).collect(), bindings)
    }
}

/// Makes these the bindings of a pool; those not listed are gone. Whether anything changed.
fn replace(bindings: &mut Bindings, pool: &PoolName, verdicts: Vec<(DesiredBinding, BindingVerdict)>) -> bool {
    let (before, mut others): (Bindings, Bindings) =
        std::mem::take(bindings).into_iter().partition(|(key, _)| key.0 == *pool);
    let mut now = Bindings::new();
    for (binding, BindingVerdict { ready, reason, message }) in verdicts {
        let key = (pool.clone(), binding.object.clone());
        let since = before.get(&key).map_or(&[][..], |before| &before.status.conditions);
        let conditions = conditions::binding_ready(ready, reason, message, since, Timestamp::now());
        let resource = ready.then(|| binding.resource.to_string());
        let report = BindingReport {
            namespace: pool.namespace().to_owned(),
            name: binding.object,
            pool: pool.name().to_owned(),
            binding_name: binding.name.to_string(),
            status: SoftBindingStatus { conditions, resource, ..SoftBindingStatus::default() },
        };
        now.insert(key, report);
    }
    let changed = before != now;
    others.extend(now);
    *bindings = others;
    changed
}
