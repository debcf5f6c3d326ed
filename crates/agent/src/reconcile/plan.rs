//! What reconciling everything that is declared would do now, asked in the steps of [`supervise`](super::supervise),
//! [`apply`](super::apply) and [`delete`](super::delete), without writing anything.

pub(crate) mod origins;

use std::collections::{BTreeMap, BTreeSet};

use redis_allocator::{
    BindPolicy, Binding, Client, Error, Item, Mode, Origin, Ownership, PoolName, PoolSettings, ResourceKey, Timestamp,
};
use redis_allocator_crd::DeletionPolicy;
use serde::Serialize;

use self::origins::OriginPlan;
use super::{
    apply::{Turns, is_undeclared_binding},
    conditions::{in_manifest_form, reason, stays},
    supervise::existing_pools,
};
use crate::{
    desired::{DesiredBinding, DesiredPool},
    source::Declaration,
    state::RememberedPool,
};

/// On whose behalf is asked.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    pub(crate) client: &'a Client,
    pub(crate) declaration: &'a Declaration,
    /// The identity under which pools are managed.
    pub(crate) manager: &'a str,
    /// Whether pools that another declaration manages are taken over.
    pub(crate) takeover: bool,
    /// What the agent must remember of its pools.
    pub(crate) remembered: BTreeMap<PoolName, RememberedPool>,
}

/// What would become of one pool.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolPlan {
    pub(crate) pool: PoolName,
    pub(crate) action: Action,
    /// Why, where the rest does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) settings: Vec<Edit>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) origins: Vec<OriginPlan>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) bindings: Vec<BindingPlan>,
}

/// What is done to a pool, or to a binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) enum Action {
    /// It is not there yet.
    Create,
    /// Something of it is another than declared.
    Change,
    /// It is as declared, but for what is held back.
    HoldBack,
    /// It goes, at once or with its last lease.
    Delete,
    /// It stays, managed by nobody.
    Abandon,
    /// It can't be as declared.
    Refuse,
    /// It is as declared.
    Keep,
}

/// A setting that changes.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Edit {
    /// The field, as manifests call it.
    pub(crate) field: &'static str,
    pub(crate) from: String,
    pub(crate) to: String,
}

/// What would become of a binding.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct BindingPlan {
    pub(crate) binding: String,
    pub(crate) action: Action,
    /// What it is now; absent if it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<String>,
    /// What it would be; absent if it would go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
}

impl Question<'_> {
    /// What would become of each pool that is declared, or managed by this declaration, sorted by name.
    ///
    /// # Errors
    /// When the server can't be read. What concerns one pool alone is told in its plan.
    pub(crate) async fn answer(&self) -> Result<Vec<PoolPlan>, Error> {
        let mut plans = Vec::new();
        for desired in self.declaration.desired.pools.values() {
            match self.declared(desired).await {
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => plans.push(PoolPlan::refused(&desired.name, &error)),
                Ok(plan) => plans.push(plan),
            }
        }
        if self.declaration.complete {
            let mut found: BTreeSet<PoolName> = self.remembered.keys().cloned().collect();
            found.extend(existing_pools(self.client).await?);
            found.retain(|name| !self.declaration.desired.mentions(name));
            for name in found {
                plans.extend(self.undeclared(&name).await?);
            }
        }
        plans.sort_by(|a, b| a.pool.cmp(&b.pool));
        Ok(plans)
    }

    async fn declared(&self, desired: &DesiredPool) -> Result<PoolPlan, Error> {
        let pool = self.client.pool(desired.name.as_str())?;
        let known = self.remembered.get(&desired.name).map(|remembered| &remembered.known);
        let settings = desired.settings();
        let ownership = Ownership { manager: Some(self.manager), known };
        let configured = match pool.foresee_configure(&settings, &ownership).await {
            Err(Error::ManagerConflict { .. }) if self.takeover => {
                pool.foresee_configure(&settings, &Ownership { manager: None, known }).await?
            }
            other => other?,
        };
        let info = if configured.created { None } else { Some(pool.info().await?) };
        let mut plan = PoolPlan::new(&desired.name, if configured.created { Action::Create } else { Action::Keep });
        if configured.recovered {
            plan.why =
                Some("Redis has lost it: what is refilled is held back until its lost leases are over".to_owned());
        }

        // Of a source that Redis has nothing of, only the agent knows whether it has brought an empty list.
        let turns = match &info {
            Some(info) => Turns::new(info, desired, &BTreeSet::new()),
            None => Turns { now: desired.origins(), later: Vec::new() },
        };
        let mut syncs: Vec<(Origin, Vec<Item>)> = Vec::new();
        for origin in turns.now {
            let items = desired.items(&origin)?;
            syncs.push((origin, items));
        }
        let mut bound = Vec::new();
        let mut now = None;
        if let Some(info) = &info {
            plan.settings = edits(&info.settings, &settings);
            if info.manager.as_deref() != Some(self.manager) {
                let from = info.manager.clone().unwrap_or_else(|| "nobody".to_owned());
                plan.settings.push(Edit { field: "manager", from, to: self.manager.to_owned() });
            }
            bound = pool.bindings().await?;
            now = Some(info.now);
        }
        let foreseen = pool.foresee_syncs(syncs, &desired.sync_options()).await?;
        let departures = if info.is_some() { pool.foresee_departures().await? } else { Vec::new() };
        plan.origins = origins::plans(foreseen, departures);
        plan.bindings = bindings(desired, &bound, self.declaration.complete, now);
        if plan.action == Action::Keep {
            plan.action = plan.judge(configured.recovered);
        }
        if !turns.later.is_empty() {
            plan.why.get_or_insert_with(|| stays(&turns.later));
            if plan.action == Action::Keep {
                plan.action = Action::HoldBack;
            }
        }
        Ok(plan)
    }

    async fn undeclared(&self, name: &PoolName) -> Result<Option<PoolPlan>, Error> {
        let info = match self.client.pool(name.as_str())?.info().await {
            Ok(info) if info.manager.as_deref() == Some(self.manager) => info,
            Ok(_) | Err(Error::UnknownPool { .. }) => return Ok(None),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => return Ok(Some(PoolPlan::refused(name, &error))),
        };
        let remembered = self.remembered.get(name).map(|remembered| remembered.deletion_policy);
        let held = info.counts.leased;
        let leases = if held == 1 { "1 lease".to_owned() } else { format!("{held} leases") };
        let (action, why) = match remembered.unwrap_or(DeletionPolicy::Drain) {
            DeletionPolicy::Orphan => {
                (Action::Abandon, "deletionPolicy Orphan: it stays, managed by nobody".to_owned())
            }
            DeletionPolicy::Revoke => (Action::Delete, format!("deletionPolicy Revoke: at once, {leases} would end")),
            DeletionPolicy::Drain if held == 0 => (Action::Delete, "deletionPolicy Drain: at once".to_owned()),
            DeletionPolicy::Drain => (Action::Delete, format!("deletionPolicy Drain: when {leases} have ended")),
        };
        let unknown = if remembered.is_none() { ", as nobody remembers another" } else { "" };
        Ok(Some(PoolPlan { why: Some(format!("not declared; {why}{unknown}")), ..PoolPlan::new(name, action) }))
    }
}

impl PoolPlan {
    fn new(pool: &PoolName, action: Action) -> Self {
        let pool = pool.clone();
        Self { pool, action, why: None, settings: Vec::new(), origins: Vec::new(), bindings: Vec::new() }
    }

    fn refused(pool: &PoolName, error: &Error) -> Self {
        Self { why: Some(format!("{}: {error}", reason(error))), ..Self::new(pool, Action::Refuse) }
    }

    /// What is done to a pool that is there.
    fn judge(&self, recovered: bool) -> Action {
        let changes = recovered
            || !self.settings.is_empty()
            || self.origins.iter().any(OriginPlan::changes)
            || self.bindings.iter().any(|binding| binding.action != Action::Refuse);
        if changes {
            Action::Change
        } else if self.origins.iter().any(|origin| origin.held_back.is_some()) {
            Action::HoldBack
        } else {
            Action::Keep
        }
    }
}

/// Which settings differ.
fn edits(from: &PoolSettings, to: &PoolSettings) -> Vec<Edit> {
    let time = |time| in_manifest_form(time).map_or_else(|| format!("{time:?}"), |time| time.to_string());
    let max = |max: Option<_>| max.map_or_else(|| "none".to_owned(), time);
    let holders = |mode| match mode {
        Mode::Exclusive => "1".to_owned(),
        Mode::Shared { max_holders } => max_holders.map_or_else(|| "any".to_owned(), |most| most.to_string()),
    };
    let all = [
        ("mode", from.mode.to_string(), to.mode.to_string()),
        ("maxHolders", holders(from.mode), holders(to.mode)),
        ("indexes", indexes(from), indexes(to)),
        ("order", from.order.to_string(), to.order.to_string()),
        ("lease.defaultTTL", time(from.default_ttl), time(to.default_ttl)),
        ("lease.maxTTL", max(from.max_ttl), max(to.max_ttl)),
        ("cooldown", time(from.cooldown), time(to.cooldown)),
        ("softBinding.ttl", time(from.binding_ttl), time(to.binding_ttl)),
        ("suspend", from.suspended.to_string(), to.suspended.to_string()),
    ];
    all.into_iter().filter(|(_, from, to)| from != to).map(|(field, from, to)| Edit { field, from, to }).collect()
}

/// The order of indexes and of their label keys means nothing.
fn indexes(settings: &PoolSettings) -> String {
    let names = |index: &Vec<String>| {
        let mut names = index.clone();
        names.sort();
        format!("[{}]", names.join(", "))
    };
    let mut indexes: Vec<_> = settings.indexes.iter().map(names).collect();
    indexes.sort();
    if indexes.is_empty() { "none".to_owned() } else { indexes.join(", ") }
}

/// What would become of a pool's bindings: those that go first, as in [`apply`](super::apply).
fn bindings(desired: &DesiredPool, bound: &[Binding], complete: bool, now: Option<Timestamp>) -> Vec<BindingPlan> {
    let mut plans = Vec::new();
    let mut bound: BTreeMap<_, _> = bound.iter().map(|binding| (&binding.name, binding)).collect();
    bound.retain(|_, binding| {
        let is_gone = complete && is_undeclared_binding(desired, binding);
        if is_gone {
            let from = Some(describe_bound(binding));
            let binding = binding.name.to_string();
            plans.push(BindingPlan { binding, action: Action::Delete, from, to: None, why: None });
        }
        !is_gone
    });
    let is_past = |moment| now.is_some_and(|now| moment <= now);
    let is_over = |binding: &Binding| binding.ended || binding.expires_at.is_some_and(is_past);
    let mut reserved: BTreeMap<_, _> = bound
        .values()
        .filter(|binding| binding.policy == BindPolicy::Required && !is_over(binding))
        .map(|binding| (&binding.resource, &binding.name))
        .collect();
    for declared in &desired.bindings {
        let DesiredBinding { name, resource, .. } = declared;
        let options = declared.options();
        let before = bound.get(name).copied();
        if before.is_some_and(|before| before.is_as_declared(resource, &options)) {
            continue;
        }
        let mut plan = BindingPlan {
            binding: name.to_string(),
            action: if before.is_some() { Action::Change } else { Action::Create },
            from: before.map(describe_bound),
            to: Some(describe(resource, options.policy, options.ttl)),
            why: None,
        };
        if options.policy == BindPolicy::Required
            && let Some(holder) = reserved.get(resource).filter(|holder| **holder != name)
        {
            plan.action = Action::Refuse;
            plan.why = Some(format!("BindingConflict: {resource} is reserved for {holder}"));
        } else {
            reserved.retain(|_, holder| *holder != name);
            if options.policy == BindPolicy::Required {
                reserved.insert(resource, name);
            }
        }
        plans.push(plan);
    }
    plans
}

fn describe_bound(binding: &Binding) -> String {
    let text = describe(&binding.resource, binding.policy, binding.ttl);
    if binding.declared { text } else { format!("{text}, made by a call") }
}

fn describe(resource: &ResourceKey, policy: BindPolicy, ttl: Option<std::time::Duration>) -> String {
    let policy = if policy == BindPolicy::Required { "Required" } else { "Preferred" };
    match ttl.and_then(in_manifest_form) {
        Some(ttl) => format!("{resource} ({policy}, ttl {ttl})"),
        None => format!("{resource} ({policy})"),
    }
}
