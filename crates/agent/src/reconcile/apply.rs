//! One reconciliation of a declared pool: settings, then what each origin declares, then bindings, then repairs.
//!
//! # Guarantees
//! - Each step leaves the pool usable; a step that fails is done again next time, and so are those after it.
//! - Nothing is written when everything is as declared.
//! - A live lease is never taken away, unless the declaration says `Revoke`.

use std::collections::BTreeMap;

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use redis_allocator::{
    Binding, Configured, Error, Known, Origin, OriginInfo, Ownership, Pool, PoolInfo, SyncOptions, SyncOutcome,
};

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
pub(super) async fn apply(ctx: &Context, desired: &DesiredPool, extent: Extent) -> Result<Applied, Error> {
    let pool = ctx.client.pool(desired.name.as_str())?;
    let held_back = synchronise(&pool, desired).await?;
    let verdicts = bind(&pool, desired, extent.complete).await?;
    if extent.thorough {
        repair(&pool).await?;
    }
    let info = pool.info().await?;
    ctx.memory.saw(&info, desired.deletion_policy());
    ctx.board.set_bindings(&desired.name, verdicts);
    let sync = if held_back.is_empty() { Sync::Done } else { Sync::HeldBack(held_back) };
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

/// Brings every origin of the declaration to what it declares, and those that left it to nothing. What was held back. What
/// sources bring is their own matter, see [`discover`](crate::discover).
async fn synchronise(pool: &Pool, desired: &DesiredPool) -> Result<Vec<Shrink>, Error> {
    let declared = desired.origins();
    let options = desired.sync_options();
    let mut held_back = Vec::new();
    for origin in &declared {
        let items = desired.items(origin)?;
        held_back.extend(synchronise_one(pool, origin, items, &options).await?);
    }
    for origin in undeclared_origins(&pool.info().await?, desired) {
        held_back.extend(synchronise_one(pool, &origin, Vec::new(), &options).await?);
    }
    Ok(held_back)
}

/// The origins of declarations that the pool has resources of, and that are not declared any more.
pub(super) fn undeclared_origins(info: &PoolInfo, desired: &DesiredPool) -> Vec<Origin> {
    let mut declared = desired.origins();
    declared.extend(desired.source_origins());
    let is_undeclared = |origin: &Origin, seen: &OriginInfo| {
        let is_ours = matches!(origin, Origin::Spec | Origin::Range(_) | Origin::Source(_));
        let has_left = seen.count == 0 && seen.digest.is_some();
        is_ours && !has_left && !declared.contains(origin)
    };
    info.origins.iter().filter(|(origin, seen)| is_undeclared(origin, seen)).map(|(origin, _)| origin.clone()).collect()
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
