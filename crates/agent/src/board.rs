//! The statuses of pools and bindings, as last observed: written by the reconcilers, read by whoever publishes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use redis_allocator::PoolName;
use redis_allocator_crd::{DeletionPolicy, ResourcePoolStatus, SoftBindingStatus};
use tokio::sync::{
    Notify,
    mpsc::{self, UnboundedReceiver, UnboundedSender},
};

use crate::{
    desired::DesiredBinding,
    reconcile::conditions::{self, Observed},
    state::{BindingReport, PoolReport},
};

/// How often counts are published, wherever that is.
pub(crate) const COUNTS: Duration = Duration::from_secs(10);

/// What is said of everything.
#[derive(Debug, Default)]
pub(crate) struct Board {
    state: Mutex<State>,
    /// A condition changed: people should see that at once.
    pub(crate) conditions_changed: Notify,
    /// Only counts changed, or times.
    pub(crate) counts_changed: Notify,
}

/// An object of which something else is to be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Touched {
    Pool(PoolName),
    Binding { namespace: String, name: String },
}

#[derive(Debug, Default)]
struct State {
    leader: bool,
    pools: BTreeMap<PoolName, ResourcePoolStatus>,
    bindings: Bindings,
    /// Those that no worker has: their pool is not declared, or they contradict others.
    idle_bindings: Bindings,
    /// Pools that are not looked after any more.
    gone: BTreeMap<PoolName, Gone>,
    /// Pools that could not be taken down in this way when it was tried last.
    stuck: BTreeMap<PoolName, DeletionPolicy>,
    subscriber: Option<UnboundedSender<Touched>>,
}

impl State {
    fn touch(&self, touched: impl IntoIterator<Item = Touched>) {
        if let Some(subscriber) = &self.subscriber {
            // Nobody listens any more: then nobody has to hear it.
            let _ = touched.into_iter().try_for_each(|touched| subscriber.send(touched));
        }
    }
}

/// By pool, and name of the object.
type Bindings = BTreeMap<PoolName, BTreeMap<String, BindingReport>>;

/// Why a pool is not looked after any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gone {
    TakenDown,
    /// It is another declaration's, and stays as it is.
    NotOurs,
}

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
        state.gone.remove(pool);
        state.touch([Touched::Pool(pool.clone())]);
        drop(state);
        if same_conditions { self.counts_changed.notify_one() } else { self.conditions_changed.notify_one() }
    }

    /// Takes over what its worker knows of the bindings of a pool.
    pub(crate) fn set_bindings(&self, pool: &PoolName, verdicts: Vec<(DesiredBinding, BindingVerdict)>) {
        let state = &mut *self.state();
        let touched = replace(&mut state.bindings, pool, verdicts);
        if !touched.is_empty() {
            state.touch(touched);
            self.conditions_changed.notify_one();
        }
    }

    /// Takes over what is known of all bindings that no worker has, by pool.
    pub(crate) fn set_idle_bindings(&self, verdicts: &BTreeMap<&PoolName, Vec<(DesiredBinding, BindingVerdict)>>) {
        let state = &mut *self.state();
        let pools: BTreeSet<PoolName> = state.idle_bindings.keys().chain(verdicts.keys().copied()).cloned().collect();
        let mut touched = Vec::new();
        for pool in pools {
            let verdicts = verdicts.get(&pool).cloned().unwrap_or_default();
            touched.extend(replace(&mut state.idle_bindings, &pool, verdicts));
        }
        if !touched.is_empty() {
            state.touch(touched);
            self.conditions_changed.notify_one();
        }
    }

    /// A pool is not looked after any more: it is forgotten, with its bindings.
    pub(crate) fn remove_pool(&self, pool: &PoolName, gone: Gone) {
        let mut state = self.state();
        state.pools.remove(pool);
        state.bindings.remove(pool);
        state.stuck.remove(pool);
        state.gone.insert(pool.clone(), gone);
        state.touch([Touched::Pool(pool.clone())]);
        drop(state);
        self.conditions_changed.notify_one();
    }

    /// Why a pool is not looked after any more, if that is so.
    pub(crate) fn gone(&self, pool: &PoolName) -> Option<Gone> {
        self.state().gone.get(pool).copied()
    }

    /// Nobody has to know any more how it went with taking a pool down.
    pub(crate) fn forget_end(&self, pool: &PoolName) {
        let mut state = self.state();
        state.gone.remove(pool);
        state.stuck.remove(pool);
    }

    /// A pool could not be taken down in this way.
    pub(crate) fn set_stuck(&self, pool: &PoolName, policy: DeletionPolicy) {
        let mut state = self.state();
        if state.stuck.insert(pool.clone(), policy) != Some(policy) {
            state.touch([Touched::Pool(pool.clone())]);
        }
    }

    /// Whether a pool could not be taken down in this way when it was tried last.
    pub(crate) fn is_stuck(&self, pool: &PoolName, policy: DeletionPolicy) -> bool {
        self.state().stuck.get(pool) == Some(&policy)
    }

    /// What is said of a pool, if anything is.
    pub(crate) fn pool(&self, pool: &PoolName) -> Option<ResourcePoolStatus> {
        self.state().pools.get(pool).cloned()
    }

    /// What is said of a declared binding, if anything is.
    pub(crate) fn binding(&self, pool: &PoolName, object: &str) -> Option<SoftBindingStatus> {
        let state = self.state();
        let mut reports =
            [&state.bindings, &state.idle_bindings].into_iter().filter_map(|all| all.get(pool)?.get(object));
        reports.next().map(|report| report.status.clone())
    }

    /// Hears of everything that changes from now on. There is one who does: an earlier one hears nothing more.
    pub(crate) fn subscribe(&self) -> UnboundedReceiver<Touched> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.state().subscriber = Some(sender);
        receiver
    }

    /// Forgets everything: someone else may have looked after it since.
    pub(crate) fn clear(&self) {
        let mut state = self.state();
        let (leader, subscriber) = (state.leader, state.subscriber.take());
        *state = State { leader, subscriber, ..State::default() };
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
        let bindings = state.bindings.values().chain(state.idle_bindings.values());
        let bindings = bindings.flat_map(BTreeMap::values).cloned().collect();
        (state.leader, state.pools.iter().map(pool).collect(), bindings)
    }
}

/// Makes these the bindings of a pool; those not listed are gone. Which of them changed.
fn replace(bindings: &mut Bindings, pool: &PoolName, verdicts: Vec<(DesiredBinding, BindingVerdict)>) -> Vec<Touched> {
    let before = bindings.remove(pool).unwrap_or_default();
    let mut now = BTreeMap::new();
    for (binding, BindingVerdict { ready, reason, message }) in verdicts {
        let since = before.get(&binding.object).map_or(&[][..], |before| &before.status.conditions);
        let generation = binding.generation;
        let conditions = conditions::binding_ready(ready, reason, message, generation, since, Timestamp::now());
        let resource = ready.then(|| binding.resource.to_string());
        let report = BindingReport {
            namespace: pool.namespace().to_owned(),
            name: binding.object.clone(),
            pool: pool.name().to_owned(),
            binding_name: binding.name.to_string(),
            status: SoftBindingStatus { observed_generation: generation, conditions, resource },
        };
        now.insert(binding.object, report);
    }
    let gone = before.keys().filter(|&object| !now.contains_key(object));
    let changed = gone.chain(now.iter().filter(|&(key, report)| before.get(key) != Some(report)).map(|(key, _)| key));
    let touched =
        changed.map(|name| Touched::Binding { namespace: pool.namespace().to_owned(), name: name.clone() }).collect();
    if !now.is_empty() {
        bindings.insert(pool.clone(), now);
    }
    touched
}

#[cfg(test)]
impl Board {
    /// Has a pool's status be this, as if it had been observed.
    pub(crate) fn say(&self, pool: &PoolName, status: ResourcePoolStatus) {
        let mut state = self.state();
        state.gone.remove(pool);
        state.pools.insert(pool.clone(), status);
        state.touch([Touched::Pool(pool.clone())]);
    }
}

#[cfg(test)]
mod tests {
    use redis_allocator_crd::Kind;
    use serde_json::json;

    use super::*;
    use crate::{
        desired::{Desired, tests::object},
        reconcile::conditions::Sync,
    };

    fn gpus() -> PoolName {
        "gpus".parse().unwrap()
    }

    fn bindings<const N: usize>(names: [&str; N], message: &str) -> Vec<(DesiredBinding, BindingVerdict)> {
        let spec = json!({"poolRef": {"name": "gpus"}, "resourceName": "gpu-0"});
        let objects = names.map(|name| object(Kind::SoftBinding, name, &spec));
        let desired = Desired::build(&objects).unwrap().unpooled;
        desired.into_iter().map(|binding| (binding, BindingVerdict::failed("Reason", message))).collect()
    }

    fn heard(receiver: &mut UnboundedReceiver<Touched>) -> Vec<String> {
        let mut heard: Vec<_> = std::iter::from_fn(|| receiver.try_recv().ok())
            .map(|touched| match touched {
                Touched::Pool(pool) => pool.to_string(),
                Touched::Binding { namespace, name } => format!("binding {namespace}/{name}"),
            })
            .collect();
        heard.sort();
        heard
    }

    #[test]
    fn whoever_listens_hears_of_what_changed_and_of_nothing_else() {
        let board = Board::default();
        let mut touched = board.subscribe();
        board.set_pool(&gpus(), &Observed::default());
        assert_eq!(heard(&mut touched), ["default/gpus"]);
        board.set_pool(&gpus(), &Observed::default());
        assert!(heard(&mut touched).is_empty(), "it is the same");
        board.set_pool(&gpus(), &Observed { sync: Sync::Done, ..Observed::default() });
        assert_eq!(heard(&mut touched), ["default/gpus"]);

        board.set_bindings(&gpus(), bindings(["a", "b"], "this is why"));
        assert_eq!(heard(&mut touched), ["binding default/a", "binding default/b"]);
        board.set_bindings(&gpus(), bindings(["a", "b"], "this is why"));
        assert!(heard(&mut touched).is_empty());
        board.set_bindings(&gpus(), bindings(["b"], "that is why"));
        assert_eq!(heard(&mut touched), ["binding default/a", "binding default/b"], "one has gone, one is otherwise");

        let pool = gpus();
        let idle = |verdicts| BTreeMap::from([(&pool, verdicts)]);
        board.set_idle_bindings(&idle(bindings(["c"], "this is why")));
        assert_eq!(heard(&mut touched), ["binding default/c"]);
        board.set_idle_bindings(&idle(bindings(["c"], "this is why")));
        assert!(heard(&mut touched).is_empty());
        board.set_idle_bindings(&BTreeMap::new());
        assert_eq!(heard(&mut touched), ["binding default/c"]);
        assert_eq!(board.binding(&gpus(), "c"), None);
    }

    #[test]
    fn a_pool_that_was_taken_down_is_gone_until_someone_looks_after_it_again() {
        let board = Board::default();
        let mut touched = board.subscribe();
        assert_eq!(board.gone(&gpus()), None, "nothing is known of it");
        board.set_pool(&gpus(), &Observed::default());
        board.set_bindings(&gpus(), bindings(["a"], ""));
        heard(&mut touched);
        board.remove_pool(&gpus(), Gone::TakenDown);
        assert_eq!(board.gone(&gpus()), Some(Gone::TakenDown));
        assert!(board.pool(&gpus()).is_none() && board.binding(&gpus(), "a").is_none());
        assert_eq!(heard(&mut touched), ["default/gpus"]);
        board.set_pool(&gpus(), &Observed::default());
        assert_eq!(board.gone(&gpus()), None);
    }

    #[test]
    fn that_a_pool_is_stuck_is_about_one_way_of_taking_it_down() {
        let board = Board::default();
        let mut touched = board.subscribe();
        board.set_stuck(&gpus(), DeletionPolicy::Drain);
        board.set_stuck(&gpus(), DeletionPolicy::Drain);
        assert_eq!(heard(&mut touched), ["default/gpus"], "once");
        assert!(board.is_stuck(&gpus(), DeletionPolicy::Drain) && !board.is_stuck(&gpus(), DeletionPolicy::Revoke));
        board.set_stuck(&gpus(), DeletionPolicy::Revoke);
        assert!(board.is_stuck(&gpus(), DeletionPolicy::Revoke) && !board.is_stuck(&gpus(), DeletionPolicy::Drain));
        board.remove_pool(&gpus(), Gone::TakenDown);
        assert!(!board.is_stuck(&gpus(), DeletionPolicy::Revoke));
        board.forget_end(&gpus());
        assert_eq!(board.gone(&gpus()), None, "another one of its name has nothing to do with it");
    }

    #[test]
    fn who_leads_anew_knows_nothing_of_before() {
        let board = Board::default();
        let before = board.subscribe();
        board.set_leader(true);
        board.set_pool(&gpus(), &Observed::default());
        board.remove_pool(&"others".parse().unwrap(), Gone::NotOurs);
        board.clear();
        assert!(board.pool(&gpus()).is_none() && board.gone(&"others".parse().unwrap()).is_none());
        assert!(board.reports().0, "whether it leads is for the election to say");
        let mut now = board.subscribe();
        board.set_pool(&gpus(), &Observed::default());
        assert!(before.is_closed() && heard(&mut now).len() == 1, "one listens");
    }
}
