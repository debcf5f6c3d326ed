//! How sequences are made: at each step, any step at all, or one of those that `chances` finds worth taking from where
//! the reference stands.

use std::{cell::RefCell, collections::HashMap, time::Duration};

use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    sample::{select, subsequence},
    strategy::{BoxedStrategy, Union},
};
use proptest_state_machine::ReferenceStateMachine;
use redis_allocator::{Cause, Order, Origin, PoolSettings, Removal, Ttl};

use crate::{
    chances::{chances, without_pool},
    reference::Reference,
    step::{Decl, KEYS, MANAGERS, Memory, NAMES, Name, OWNERS, Step},
};

/// The reference as the driver of a sequence.
pub(crate) struct Machine;

impl ReferenceStateMachine for Machine {
    type State = Reference;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Reference> {
        Just(Reference::new()).boxed()
    }

    fn transitions(state: &Reference) -> BoxedStrategy<Step> {
        let (least, found) = match &state.pool {
            None => (25, without_pool(state)),
            Some(pool) => (68, chances(state, pool)),
        };
        let chances = found.into_iter().filter(|(weight, steps)| *weight > 0 && !steps.is_empty());
        let chances = chances.map(|(weight, steps)| (weight, select(steps).boxed()));
        let few = state.pool.as_ref().is_none_or(|pool| pool.items.len() < 4);
        let idle = state.pool.as_ref().is_some_and(|pool| pool.idle() > 0);
        Union::new_weighted(chances.chain([(least, anything(few, idle))]).collect()).boxed()
    }

    fn apply(mut state: Reference, step: &Step) -> Reference {
        state.apply(step, &[]);
        state
    }

    fn preconditions(state: &Reference, step: &Step) -> bool {
        match step {
            Step::Renew { key, back } | Step::RenewFor { key, back, .. } | Step::Free { key, back } => {
                state.handle(key, *back).is_some()
            }
            Step::Save => state.pool.is_some(),
            Step::Rollback => state.saved.is_some(),
            _ => true,
        }
    }
}

/// Steps that need no state. `few`: more resources are wanted; `idle`: some are free. Made once a thread: a step has no
/// time for more.
fn anything(few: bool, idle: bool) -> BoxedStrategy<Step> {
    thread_local! {
        static MADE: RefCell<HashMap<(bool, bool), BoxedStrategy<Step>>> = RefCell::new(HashMap::new());
    }
    MADE.with_borrow_mut(|made| made.entry((few, idle)).or_insert_with(|| make(few, idle)).clone())
}

fn make(few: bool, idle: bool) -> BoxedStrategy<Step> {
    let key = || select(KEYS.to_vec());
    let name = || select(NAMES.to_vec());
    let removal = || select(vec![Removal::Drain, Removal::Drain, Removal::Revoke]);
    let more = |weight| if few { 4 * weight } else { weight };
    let race = (origin(), distinct(), distinct()).prop_map(|(origin, first, second)| Step::RacingSyncs {
        origin,
        first,
        second,
    });
    let sync = (origin(), distinct(), removal(), select(vec![100, 100, 100, 50, 0]))
        .prop_map(|(origin, items, removal, percent)| Step::Sync { origin, items, removal, percent });
    let binding_ttl = select(vec![None, Some(Duration::from_secs(30)), Some(Duration::from_hours(1))]);
    let bind = (name(), key(), any::<bool>(), any::<bool>(), binding_ttl)
        .prop_map(|(name, resource, required, declared, ttl)| Step::Bind { name, resource, required, declared, ttl });
    let configure =
        (settings(), select(vec![None, Some(MANAGERS[0])]), select(vec![Memory::Nothing, Memory::LastLost]))
            .prop_map(|(settings, manager, memory)| Step::Configure { settings, manager, memory });
    Union::new_weighted(vec![
        (if idle { 36 } else { 8 }, malloc().boxed()),
        (if idle { 14 } else { 2 }, ttl().prop_map(|ttl| Step::MallocKey { ttl }).boxed()),
        (1, vec(key(), 1..3).prop_map(|keys| Step::FreeKeys { keys }).boxed()),
        (1, key().prop_map(|key| Step::ForceFree { key }).boxed()),
        (more(4), decls().prop_map(|items| Step::Extend { items }).boxed()),
        (2, vec(key(), 1..3).prop_map(|keys| Step::Shrink { keys }).boxed()),
        (3, distinct().prop_map(|items| Step::Assign { items }).boxed()),
        (more(4), sync.boxed()),
        (2, race.boxed()),
        (11, bind.boxed()),
        (1, name().prop_map(|name| Step::Unbind { name }).boxed()),
        (10, quarantine().boxed()),
        (1, (key(), causes()).prop_map(|(key, cause)| Step::Unquarantine { key, cause }).boxed()),
        (1, configure.boxed()),
        (1, Just(Step::Gc { count: 200 }).boxed()),
        (2, (key(), name()).prop_map(|(key, name)| Step::Look { key, name }).boxed()),
        (4, select(SOME_TIMES.to_vec()).prop_map(|us| Step::Pass { time: Duration::from_micros(us) }).boxed()),
    ])
    .boxed()
}

const SOME_TIMES: [u64; 8] = [100, 1_500, 700_000, 1_999_000, 5_000_000, 30_000_000, 61_000_000, 3_600_000_000];

fn ttl() -> impl Strategy<Value = Ttl> + Clone {
    let seconds = |seconds| Just(Ttl::For(Duration::from_secs(seconds)));
    // Never so short that the test itself could run into a deadline of its real clock.
    prop_oneof![
        6 => Just(Ttl::PoolDefault),
        4 => seconds(60),
        1 => Just(Ttl::For(Duration::from_millis(90_001))),
        2 => seconds(300),
        1 => seconds(301),
        5 => Just(Ttl::Permanent),
    ]
}

fn malloc() -> impl Strategy<Value = Step> {
    let bind = prop_oneof![2 => Just(None), 3 => select(NAMES.to_vec()).prop_map(Some)];
    (select(OWNERS.to_vec()), ttl(), bind, prop_oneof![4 => Just(1_usize), 1 => 2_usize..5])
        .prop_map(|(owner, ttl, bind, n)| Step::Malloc { owner, ttl, bind, n })
}

fn decl(key: impl Strategy<Value = Name>) -> impl Strategy<Value = Decl> {
    let position = prop_oneof![3 => Just(None), 1 => (0_u64..12).prop_map(Some)];
    (key, select(vec![0, 0, 5, 1000]), position, 0_u8..4).prop_map(|(key, priority, position, facts)| Decl {
        key,
        priority,
        position,
        facts,
    })
}

/// A resource may be named twice.
fn decls() -> impl Strategy<Value = Vec<Decl>> {
    vec(decl(select(KEYS.to_vec())), 1..5)
}

fn distinct() -> impl Strategy<Value = Vec<Decl>> {
    subsequence(KEYS.to_vec(), 1..=6)
        .prop_flat_map(|keys| keys.into_iter().map(|key| decl(Just(key))).collect::<Vec<_>>())
}

fn origin() -> impl Strategy<Value = Origin> {
    select(vec![Origin::Spec, Origin::Range("x".to_owned()), Origin::Range("y".to_owned()), Origin::Api])
}

fn quarantine() -> impl Strategy<Value = Step> {
    let cause = prop_oneof![4 => Just(Cause::Manual), 4 => Just(Cause::Probe), 1 => Just(Cause::Recovery), 1 => Just(Cause::Cooldown)];
    let duration = select(vec![None, Some(10), Some(10), Some(300)]).prop_map(|end| end.map(Duration::from_secs));
    (select(KEYS.to_vec()), cause, duration, select(vec!["smoke", "", "\"é\"\\"]))
        .prop_map(|(key, cause, duration, reason)| Step::Quarantine { key, cause, duration, reason })
}

fn causes() -> impl Strategy<Value = Option<Cause>> {
    select(vec![None, Some(Cause::Manual), Some(Cause::Probe), Some(Cause::Recovery), Some(Cause::Cooldown)])
}

fn settings() -> impl Strategy<Value = PoolSettings> {
    let seconds = |all: &[u64]| select(all.iter().map(|seconds| Duration::from_secs(*seconds)).collect::<Vec<_>>());
    (
        select(vec![Order::LeastRecentlyUsed, Order::Sequential, Order::Random]),
        seconds(&[60, 120]),
        select(vec![None, None, Some(Duration::from_mins(5))]),
        seconds(&[0, 0, 0, 30]),
        seconds(&[0, 60, 3600]),
    )
        .prop_map(|(order, default_ttl, max_ttl, cooldown, binding_ttl)| PoolSettings {
            order,
            default_ttl,
            max_ttl,
            cooldown,
            binding_ttl,
            ..PoolSettings::default()
        })
}
