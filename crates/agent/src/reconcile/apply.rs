//! One reconciliation of a declared pool: settings, then what each origin declares, then bindings, then repairs.
//!
//! # Guarantees
//! - Each step leaves the pool usable; a step that fails is done again next time, and so are those after it.
//! - Nothing is written when everything is as declared.
//! - A live lease is never taken away, unless the declaration says `Revoke`.
//! - An origin is not emptied before each source has brought a list: what it had may be what that one is about to bring.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use redis_allocator::{Binding, Configured, Error, Known, Origin, Ownership, Pool, PoolInfo, SyncOptions, SyncOutcome};

use super::{
    Context,
    conditions::{self, Shrink, Sync},
};
use crate::{
    board::BindingVerdict,
    desired::{DesiredBinding, DesiredPool},
    state::RememberedPool,
};

/// Bindings that are looked after at once.
const CONCURRENT_BINDINGS: usize = 16;

/// What a reconciliation came to.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) sync: Sync,
    pub(super) info: PoolInfo,
}

/// How far a reconciliation goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    /// Whether bindings that are not declared are known to be undeclared: only then they are removed.
    pub(super) complete: bool,
    /// Whether the invariants are checked as well, which walks through the whole pool.
    pub(super) thorough: bool,
}

/// Reconciles a pool that [`configure`] has found to be this declaration's.
/// `brought`: sources that this agent has had a list of.
pub(super) async fn apply(
    ctx: &Context,
    desired: &DesiredPool,
    brought: &BTreeSet<String>,
    extent: Extent,
) -> Result<Applied, Error> {
    let pool = ctx.client.pool(desired.name.as_str())?;
    let sync = synchronise(&pool, desired, brought).await?;
    let verdicts = bind(&pool, desired, extent.complete).await?;
    if extent.thorough {
        repair(&pool).await?;
    }
    let info = pool.info().await?;
    ctx.memory.saw(&info, desired.deletion_policy());
    ctx.board.set_bindings(&desired.name, verdicts);
    Ok(Applied { sync, info })
}

/// Makes the pool exist as this declaration's, with the declared settings.
///
/// # Errors
/// `ManagerConflict` when it is another declaration's: then nothing was changed, and nothing else may be.
pub(super) async fn configure(ctx: &Context, desired: &DesiredPool) -> Result<Configured, Error> {
    let pool = ctx.client.pool(desired.name.as_str())?;
    let remembered = ctx.memory.get(pool.name());
    let known = remembered.as_ref().map(|remembered| &remembered.known);
    let ownership = Ownership { manager: Some(&ctx.manager), known };
    let settings = desired.settings();
    let configured = match pool.configure(&settings, &ownership).await {
        Err(Error::ManagerConflict { found, .. }) if ctx.takeover => {
            pool.takeover(&ctx.manager).await?;
            tracing::warn!(pool = %pool.name(), from = %found, "took the pool over from another declaration");
            pool.configure(&settings, &ownership).await?
        }
        other => other?,
    };
    if configured.recovered {
        tracing::error!(
            pool = %pool.name(),
            longest = ?known.map(|known| known.longest),
            "Redis had lost the pool: what is refilled is held back until the leases it forgot are over"
        );
    } else if configured.created {
        tracing::info!(pool = %pool.name(), "pool created");
    } else if configured.changed {
        tracing::info!(pool = %pool.name(), "the pool's settings changed");
    }
    // At once: should Redis lose the pool right now, this is the life that was lost.
    let known = Known { incarnation: configured.incarnation.clone(), longest: configured.longest };
    ctx.memory.remember(pool.name(), RememberedPool { known, deletion_policy: desired.deletion_policy() });
    Ok(configured)
}

/// Brings every origin of the declaration to what it declares, and those that left it to nothing; how far that came. What
/// sources bring is their own matter, see [`discover`](crate::discover).
async fn synchronise(pool: &Pool, desired: &DesiredPool, brought: &BTreeSet<String>) -> Result<Sync, Error> {
    let turns = Turns::new(&pool.info().await?, desired, brought);
    let options = desired.sync_options();
    let mut held_back = Vec::new();
    for origin in turns.now {
        let items = desired.items(&origin)?;
        held_back.extend(synchronise_one(pool, &origin, items, &options).await?);
    }
    Ok(if !held_back.is_empty() {
        Sync::HeldBack(held_back)
    } else if !turns.later.is_empty() {
        Sync::Waiting(turns.later)
    } else {
        Sync::Done
    })
}

/// Whose turn it is to be synchronised.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turns {
    /// In this order: those that grow first, so that what moves from one to another never leaves the pool.
    pub(super) now: Vec<Origin>,
    /// Those that would be left with nothing while there is a source that has not brought a list yet.
    pub(super) later: Vec<Origin>,
}

impl Turns {
    /// `brought`: sources that are known to have brought a list, apart from those that Redis has a list of.
    pub(super) fn new(info: &PoolInfo, desired: &DesiredPool, brought: &BTreeSet<String>) -> Self {
        let is_awaited = |origin: &Origin| {
            let is_known = info.origins.get(origin).is_some_and(|seen| seen.count > 0 || seen.digest.is_some());
            !is_known && !matches!(origin, Origin::Source(name) if brought.contains(name))
        };
        let awaits = desired.source_origins().iter().any(is_awaited);
        let mut now = desired.origins();
        now.extend(undeclared_origins(info, desired));
        let is_emptied = |origin: &Origin| desired.count(origin) == 0 && info.origins.contains_key(origin);
        let later = now.extract_if(.., |origin| awaits && is_emptied(origin)).collect();
        let had = |origin: &Origin| info.origins.get(origin).map_or(0, |seen| seen.count);
        now.sort_by_cached_key(|origin| Reverse(desired.count(origin).cmp(&had(origin))));
        Self { now, later }
    }
}

/// The origins of declarations that the pool has resources of, and that are not declared any more.
fn undeclared_origins(info: &PoolInfo, desired: &DesiredPool) -> Vec<Origin> {
    let mut declared = desired.origins();
    declared.extend(desired.source_origins());
    // One that counts nothing may have something all the same: what is kept for a while, or what was written half-way.
    let is_undeclared = |origin: &&Origin| *origin != &Origin::Api && !declared.contains(origin);
    info.origins.keys().filter(is_undeclared).cloned().collect()
}

/// Whether a binding is to be removed, where what is not declared is known to be undeclared.
pub(super) fn is_undeclared_binding(desired: &DesiredPool, binding: &Binding) -> bool {
    binding.declared && desired.bindings.binary_search_by(|declared| declared.name.cmp(&binding.name)).is_err()
}

async fn synchronise_one(
    pool: &Pool,
    origin: &Origin,
    items: Vec<redis_allocator::Item>,
    options: &SyncOptions,
) -> Result<Option<Shrink>, Error> {
    match pool.sync(origin, items, options).boxed().await? {
        SyncOutcome::Unchanged | SyncOutcome::Applied { added: 0, updated: 0, removed: 0, .. } => {}
        SyncOutcome::Applied { added, updated, removed, draining, revoked } => {
            tracing::info!(pool = %pool.name(), %origin, added, updated, removed, draining, revoked, "pool synced");
        }
        SyncOutcome::HeldBack { found, peak, allowed_min } => {
            return Ok(Some(Shrink { origin: origin.clone(), found, peak, allowed_min }));
        }
    }
    Ok(None)
}

/// Makes the declared bindings so, and removes those that are not declared any more if that is known of them.
async fn bind(
    pool: &Pool,
    desired: &DesiredPool,
    complete: bool,
) -> Result<Vec<(DesiredBinding, BindingVerdict)>, Error> {
    let bound: BTreeMap<_, _> =
        pool.bindings().await?.into_iter().map(|binding| (binding.name.clone(), binding)).collect();
    let gone = bound.values().filter(|binding| complete && is_undeclared_binding(desired, binding));
    // Before the new ones: a resource may be reserved for another name from now on.
    for binding in gone {
        pool.unbind(binding.name.as_str()).await?;
        tracing::info!(pool = %pool.name(), binding = %binding.name, resource = %binding.resource, "unbound");
    }
    let binding_all = desired.bindings.iter().map(|binding| {
        // Boxed: the compiler can't see that a closure's future may be sent to another thread.
        let before = bound.get(&binding.name);
        async move { Ok((binding.clone(), bind_one(pool, desired, binding, before).await?)) }.boxed()
    });
    stream::iter(binding_all.collect::<Vec<_>>()).buffered(CONCURRENT_BINDINGS).try_collect().await
}

async fn bind_one(
    pool: &Pool,
    desired: &DesiredPool,
    binding: &DesiredBinding,
    before: Option<&Binding>,
) -> Result<BindingVerdict, Error> {
    let changed = match pool.bind(binding.name.as_str(), binding.resource.as_str(), &binding.options()).await {
        Ok(changed) => changed,
        Err(error @ Error::BindingConflict { .. }) => {
            return Ok(BindingVerdict::failed(conditions::reason(&error), error.to_string()));
        }
        Err(error) => return Err(error),
    };
    if changed {
        tracing::info!(pool = %pool.name(), binding = %binding.name, resource = %binding.resource, "bound");
    } else if before.is_some_and(|before| before.ended) {
        return Ok(BindingVerdict::failed("Expired", "its time to live is over; edit or delete the declaration"));
    }
    if !desired.declares(&binding.resource) && !pool.contains(binding.resource.as_str()).await? {
        let message =
            format!("pool {} has no resource {}: the binding takes effect when it has", pool.name(), binding.resource);
        return Ok(BindingVerdict::failed("ResourceNotFound", message));
    }
    Ok(BindingVerdict { ready: true, reason: "Bound", message: format!("bound to {}", binding.resource) })
}

async fn repair(pool: &Pool) -> Result<(), Error> {
    let violations = pool.check().await?;
    let Some(first) = violations.first() else { return Ok(()) };
    let repaired = pool.repair().await?;
    tracing::warn!(
        pool = %pool.name(),
        violations = violations.len(),
        first = ?first,
        repaired,
        "found broken invariants, as a script that failed half-way leaves them"
    );
    Ok(())
}
