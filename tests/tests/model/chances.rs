//! Steps that are worth taking from where the reference stands: those that do the rarer things, and those at the very
//! moments when something is over. Each list is as likely to be drawn from as its weight says.

use std::time::Duration;

use redis_allocator::{Cause, Order, Origin, PoolSettings, Removal, Ttl};

use crate::{
    reference::{
        Handle, PEAK_LASTS, Reference,
        pool::{Binding, Lease, Pool, SLACK, Spot, is_over},
    },
    step::{Decl, KEYS, MANAGERS, Memory, NAMES, Name, OWNERS, Step},
};

type Chances = Vec<(u32, Vec<Step>)>;

pub(crate) fn without_pool(state: &Reference) -> Chances {
    let fresh = |order, manager, memory| {
        let settings = PoolSettings { order, default_ttl: Duration::from_mins(1), ..PoolSettings::default() };
        Step::Configure { settings, manager, memory }
    };
    let mut configure = Vec::new();
    for order in [Order::LeastRecentlyUsed, Order::Sequential, Order::Random] {
        configure.push(fresh(order, None, Memory::Nothing));
        configure.push(fresh(order, Some(MANAGERS[0]), Memory::LastLost));
        configure.push(fresh(order, None, Memory::Nothing));
    }
    let mut chances = vec![(60, configure)];
    chances.extend(of_handles(state, None));
    chances
}

pub(crate) fn chances(state: &Reference, pool: &Pool) -> Chances {
    let mut chances = of_handles(state, Some(pool));
    chances.extend(of_bindings(pool));
    chances.extend(of_items(pool));
    chances.extend(of_settings(state, pool));
    chances.extend(of_time(state, pool));
    chances
}

fn malloc(bind: Option<Name>, ttl: Ttl) -> Step {
    Step::Malloc { owner: OWNERS[1], ttl, bind, n: 1 }
}

/// Renewing and freeing what the test holds, and what it holds no more.
fn of_handles(state: &Reference, pool: Option<&Pool>) -> Chances {
    let (mut renew, mut renew_for, mut above) = (vec![], vec![], vec![]);
    let (mut free, mut drained, mut marked) = (vec![], vec![], vec![]);
    let (mut adopt, mut expired, mut in_slack, mut late) = (vec![], vec![], vec![], vec![]);
    let (mut ended, mut taken, mut orphans) = (vec![], vec![], vec![]);
    let now = state.now();
    for (key, handles) in &state.handles {
        for (back, handle) in handles.iter().rev().enumerate() {
            let lease = pool.and_then(|pool| pool.leases.get(key));
            let mine = |lease: &&Lease| lease.token == handle.lease.token;
            let (again, done) = (Step::Renew { key, back }, Step::Free { key, back });
            if pool.is_some_and(|pool| could_adopt(pool, key, handle)) {
                adopt.push(again);
            } else if let (Some(pool), Some(lease)) = (pool, lease.filter(mine)) {
                renew.push(again.clone());
                if is_over(lease.expires.map(|at| at + SLACK), now) {
                    expired.push(done);
                    late.push(again);
                } else if is_over(lease.expires, now) {
                    in_slack.push(done);
                    late.push(again);
                } else if !pool.items.contains_key(key) {
                    drained.push(done);
                } else if pool.marks.contains_key(key) {
                    marked.push(done);
                } else {
                    free.push(done);
                }
                for ms in [60_000, 90_001, 300_000] {
                    renew_for.push(Step::RenewFor { key, back, ttl: Ttl::For(Duration::from_millis(ms)) });
                }
                renew_for.extend([Ttl::Permanent; 4].map(|ttl| Step::RenewFor { key, back, ttl }));
                if pool.settings.max_ttl.is_some() {
                    above.push(Step::RenewFor { key, back, ttl: Ttl::For(Duration::from_secs(301)) });
                }
            } else {
                if pool.is_none_or(|pool| pool.life != handle.life) && handle.is_believed(handle.life) {
                    orphans.push(again.clone());
                }
                ended.extend([again.clone(), done.clone()]);
                if lease.is_some() {
                    taken.extend([again, done]);
                }
            }
        }
    }
    let rollback = match (&state.saved, pool) {
        (Some(saved), Some(pool)) if saved.life == pool.life && saved.last < pool.last => 22,
        (Some(_), _) => 1,
        (None, _) => 0,
    };
    let by_key = |pool: &Pool| {
        let mine = |(key, token): &(&Name, &u64)| pool.leases.get(*key).is_some_and(|lease| lease.token == **token);
        state.key_grants.iter().filter(mine).map(|(key, _)| Step::FreeKeys { keys: vec![key, KEYS[0]] }).collect()
    };
    vec![
        (8, renew),
        (10, renew_for),
        (16, above),
        (7, free),
        (10, drained),
        (50, marked),
        (200, adopt),
        (46, expired),
        (46, in_slack),
        (3, late),
        (4, ended),
        (14, taken),
        (6, orphans),
        (rollback, vec![Step::Rollback]),
        (32, pool.map(by_key).unwrap_or_default()),
    ]
}

/// Whether a renewal would take the lease back that a rollback forgot.
fn could_adopt(pool: &Pool, key: Name, handle: &Handle) -> bool {
    handle.is_believed(pool.life)
        && handle.lease.token > pool.last
        && pool.items.contains_key(key)
        && !pool.leases.contains_key(key)
}

/// Asking under names, declaring bindings again, and fighting over reservations.
fn of_bindings(pool: &Pool) -> Chances {
    let now = pool.now();
    let (mut follow, mut reserved, mut waits, mut ended) = (vec![], vec![], vec![], vec![]);
    let (mut own, mut others, mut declared, mut reclaim) = (vec![], vec![], vec![], vec![]);
    let (mut again, mut conflict, mut takeover, mut unbind) = (vec![], vec![], vec![], vec![]);
    for (name, binding) in &pool.bindings {
        let ask = malloc(Some(name), Ttl::PoolDefault);
        unbind.push(Step::Unbind { name });
        if binding.declared {
            again.push(bind(name, binding));
        }
        if binding.ended {
            ended.extend([ask, bind(name, binding)]);
            continue;
        }
        if binding.required {
            let rival = NAMES.into_iter().find(|other| other != name).unwrap_or(NAMES[0]);
            if is_over(binding.expires, now) {
                takeover.push(bind(rival, binding));
            } else {
                conflict.push(bind(rival, binding));
            }
        }
        match (pool.leases.get(binding.resource), pool.spots.get(binding.resource)) {
            (Some(_), _) if pool.is_reclaimable(binding.resource) => reclaim.push(ask),
            (_, Some(Spot::Reserved)) => reserved.push(ask),
            _ if binding.required => waits.push(ask),
            (_, Some(Spot::Free { .. })) => follow.push(ask),
            _ if binding.declared => declared.push(ask),
            (Some(lease), _) if lease.binding == Some(name) => own.push(ask),
            _ => others.push(ask),
        }
    }
    vec![
        (18, follow),
        (38, reserved),
        (6, waits),
        (72, ended),
        (12, own),
        (32, others),
        (68, declared),
        (320, reclaim),
        (10, again),
        (8, conflict),
        (400, takeover),
        (3, unbind),
    ]
}

fn bind(name: Name, binding: &Binding) -> Step {
    Step::Bind {
        name,
        resource: binding.resource,
        required: binding.required,
        declared: binding.declared,
        ttl: (binding.ttl > 0).then(|| Duration::from_millis(binding.ttl)),
    }
}

/// Declaring and taking back: what is leased, what is shared, what has not changed.
fn of_items(pool: &Pool) -> Chances {
    let only = |key: Name, origin: &Origin| pool.items.get(key).is_some_and(|item| item.origins.iter().eq([origin]));
    let leased = |key: Name| pool.leases.contains_key(key);
    let (mut shrink, mut draining, mut share, mut force) = (vec![], vec![], vec![], vec![]);
    for key in pool.leases.keys() {
        force.push(Step::ForceFree { key });
        let decl = Decl { key, priority: 5, position: None, facts: 1 };
        if only(key, &Origin::Api) {
            shrink.push(Step::Shrink { keys: vec![key] });
        }
        if !pool.items.contains_key(key) {
            draining.push(Step::Extend { items: vec![decl] });
        }
    }
    let several =
        |item: &&Name| pool.items[*item].origins.len() > 1 && pool.items[*item].origins.contains(&Origin::Api);
    share.extend(pool.items.keys().filter(several).map(|key| Step::Shrink { keys: vec![key] }));

    let (mut same, mut back, mut drop, mut revoke, mut overtaken) = (vec![], vec![], vec![], vec![], vec![]);
    for (origin, entry) in &pool.origins {
        let Some(items) = entry.digest.clone() else { continue };
        let sync = |items: Vec<Decl>, removal, percent| Step::Sync { origin: origin.clone(), items, removal, percent };
        same.push(sync(items.clone(), Removal::Drain, 0));
        back.push(sync(items[1..].to_vec(), Removal::Drain, 0));
        // Nothing to write but its end, which comes too late.
        let (first, second) = (items.iter().rev().cloned().collect(), items[1..].to_vec());
        overtaken.push(Step::RacingSyncs { origin: origin.clone(), first, second });
        if let Some(at) = items.iter().position(|decl| leased(decl.key) && only(decl.key, origin)) {
            let mut fewer = items;
            fewer.remove(at);
            drop.push(sync(fewer.clone(), Removal::Drain, 100));
            revoke.push(sync(fewer, Removal::Revoke, 100));
        }
    }

    let (mut unmark, mut one_of, mut held) = (vec![], vec![], vec![]);
    for (key, marks) in &pool.marks {
        unmark.push(Step::Unquarantine { key, cause: None });
        for cause in marks.keys() {
            let step = Step::Unquarantine { key, cause: Some(*cause) };
            if marks.len() > 1 { one_of.push(step) } else { unmark.push(step) }
        }
        if marks.contains_key(&Cause::Recovery) {
            held.push(Step::EndRecovery);
        }
    }
    let others = pool.marks.iter().filter_map(|(key, marks)| {
        let other = [Cause::Probe, Cause::Manual].into_iter().find(|cause| !marks.contains_key(cause))?;
        Some(Step::Unquarantine { key, cause: Some(other) })
    });
    let quarantine = |(key, cause)| Step::Quarantine { key, cause, duration: None, reason: "again" };
    let in_use = pool.leases.keys().filter(|key| pool.items.contains_key(*key)).map(|key| (*key, Cause::Manual));
    let twice = pool
        .marks
        .iter()
        .filter(|(_, marks)| marks.len() == 1)
        .map(|(key, marks)| (*key, if marks.contains_key(&Cause::Probe) { Cause::Manual } else { Cause::Probe }));
    let silent =
        [Origin::Spec, Origin::Range("x".to_owned())].into_iter().filter(|origin| !pool.origins.contains_key(origin));
    let nothing = silent.map(|origin| Step::Sync { origin, items: vec![], removal: Removal::Revoke, percent: 0 });
    let clear = vec![Step::Clear];
    vec![
        (4, force),
        (11, shrink),
        (4, draining),
        (2, share),
        (4, same),
        (4, back),
        (4, drop),
        (9, revoke),
        (2, overtaken),
        (2, nothing.collect()),
        (if pool.items.values().any(|item| item.origins.contains(&Origin::Api)) { 4 } else { 0 }, clear),
        (12, unmark),
        (30, one_of),
        (11, held),
        (7, others.collect()),
        (6, twice.map(quarantine).collect()),
        (4, in_use.map(quarantine).collect()),
    ]
}

/// One setting at a time, managers, losses and the end.
fn of_settings(state: &Reference, pool: &Pool) -> Chances {
    let old = &pool.settings;
    let configure = |settings: PoolSettings| Step::Configure { settings, manager: None, memory: Memory::Nothing };
    let seconds = Duration::from_secs;
    let orders =
        [Order::LeastRecentlyUsed, Order::Sequential, Order::Random].into_iter().filter(|order| *order != old.order);
    let other = |present: Duration, choices: [u64; 2]| seconds(choices[usize::from(present == seconds(choices[0]))]);
    let one_setting = vec![
        configure(PoolSettings { default_ttl: other(old.default_ttl, [60, 120]), ..old.clone() }),
        configure(PoolSettings { max_ttl: old.max_ttl.xor(Some(seconds(300))), ..old.clone() }),
        configure(PoolSettings { max_ttl: old.max_ttl.xor(Some(seconds(300))), ..old.clone() }),
        configure(PoolSettings { cooldown: other(old.cooldown, [0, 30]), ..old.clone() }),
        configure(PoolSettings { binding_ttl: other(old.binding_ttl, [60, 0]), ..old.clone() }),
        configure(PoolSettings { suspended: !old.suspended, ..old.clone() }),
    ];
    let same = vec![
        configure(old.clone()),
        Step::Configure { settings: old.clone(), manager: pool.manager, memory: Memory::Present },
    ];
    let rival = MANAGERS.into_iter().find(|manager| pool.manager.is_some_and(|found| found != *manager));
    let rivals =
        rival.map(|manager| Step::Configure { settings: old.clone(), manager: Some(manager), memory: Memory::Nothing });
    let lost = state.lost.filter(|(life, _)| *life != pool.life && pool.recovered_from != Some(*life));
    let lost = lost.map(|_| Step::Configure { settings: old.clone(), manager: None, memory: Memory::LastLost });
    let retire = if pool.leases.is_empty() { Removal::Drain } else { Removal::Revoke };
    vec![
        (6, orders.map(|order| configure(PoolSettings { order, ..old.clone() })).collect()),
        (10, one_setting),
        (2, same),
        (6, rivals.into_iter().collect()),
        (if pool.items.is_empty() { 3 } else { 130 }, lost.into_iter().collect()),
        (2, MANAGERS.map(|manager| Step::Takeover { manager }).to_vec()),
        (6, if pool.manager.is_some() { vec![Step::Abandon] } else { vec![] }),
        (2, vec![Step::Suspend { suspended: true }]),
        (if old.suspended { 60 } else { 0 }, vec![Step::Suspend { suspended: false }]),
        (if old.suspended { 8 } else { 0 }, vec![malloc(None, Ttl::PoolDefault)]),
        (
            if old.max_ttl.is_some() { 4 } else { 0 },
            vec![malloc(None, Ttl::Permanent), malloc(None, Ttl::For(seconds(301)))],
        ),
        (2, vec![Step::Repair]),
        (1, KEYS.into_iter().zip(NAMES.into_iter().cycle()).map(|(key, name)| Step::Look { key, name }).collect()),
        (if pool.leases.is_empty() { 5 } else { 4 }, vec![Step::Retire { removal: retire }]),
        (if pool.leases.is_empty() { 0 } else { 5 }, vec![Step::Retire { removal: Removal::Drain }]),
        (2, vec![Step::FlushAll]),
        (3, vec![Step::Save]),
    ]
}

/// Until just before, at, or just after the moment when something is over; and reclaiming what is.
fn of_time(state: &Reference, pool: &Pool) -> Chances {
    let now = state.now();
    let leases: Vec<_> =
        pool.leases.values().filter_map(|lease| lease.expires).flat_map(|at| [at, at + SLACK]).collect();
    let marks: Vec<_> = pool.marks.values().flat_map(|marks| marks.values().filter_map(|mark| mark.until)).collect();
    let bindings: Vec<_> = pool.bindings.values().filter_map(|binding| binding.expires).collect();
    let reserving = pool.bindings.values().filter(|binding| binding.required && !binding.ended);
    let reservations = reserving.filter_map(|binding| binding.expires).collect();
    let others: Vec<_> =
        pool.origins.values().map(|entry| entry.peak_at + PEAK_LASTS).chain(pool.hold.flatten()).collect();
    let over = |ends: &[u64]| ends.iter().filter(|end| **end <= now).count();
    let due = over(&marks) + over(&bindings) + pool.leases.keys().filter(|key| pool.is_reclaimable(key)).count();
    let until = |ends: Vec<u64>| {
        let ahead = ends.into_iter().filter(|end| *end > now + 1);
        ahead
            .flat_map(|end| [end - 1, end, end + 1])
            .map(|moment| Step::Pass { time: Duration::from_millis(moment - now) })
            .collect()
    };
    let gc = |count| Step::Gc { count };
    let bindings_due = over(&bindings);
    let spots = pool.spots.values();
    let quarantined = |spot: &Spot| match spot {
        Spot::Quarantined { until } => *until,
        _ => None,
    };
    let held = pool.spots.values().filter_map(quarantined).map(|end| end + 1).collect();
    let quarantines_due =
        spots.filter(|spot| matches!(spot, Spot::Quarantined { until } if is_over(*until, now))).count();
    // One more than are free: what is over must be reclaimed for it.
    let enough = Step::Malloc { owner: OWNERS[2], ttl: Ttl::PoolDefault, bind: None, n: pool.idle() + 1 };
    vec![
        (14, until(leases)),
        (26, until(marks)),
        (26, until(held)),
        (6, until(bindings)),
        (12, until(reservations)),
        (1, until(others)),
        (if due > 0 { 6 } else { 0 }, vec![gc(200)]),
        (if due > 1 { 75 } else { 0 }, vec![gc(1), gc(1), gc(2)]),
        (if quarantines_due > 0 { 330 } else { 0 }, vec![gc(200)]),
        (if quarantines_due > 0 { 330 } else { 0 }, vec![enough.clone()]),
        (if bindings_due > 0 { 50 } else { 0 }, vec![gc(16)]),
        (if due > 0 { 20 } else { 0 }, vec![enough]),
    ]
}
