//! What `get` asks: the server about pools and what is in them, the agent's state directory about conditions. It must
//! not know how anything is printed.

use std::{collections::BTreeSet, fmt};

use anyhow::Result;
use redis_allocator::{
    Binding, Client, Error, Hold, LeaseInfo, ListedLease, Mark, Origin, Place, Pool, PoolInfo, PoolName, ResourceState,
};
use redis_allocator_crd::SourceStatus;

use super::view::{
    BindingView, CountersView, CountsView, HoldView, HolderView, LeaseView, MarkView, PoolView, ResourceView,
    SourceView, State, UNKNOWN,
};
use crate::{
    moment::moment,
    reconcile::SYSTEM_NAMESPACE,
    state::{StateDir, StatusFile},
};

/// Which pools.
#[derive(Debug)]
pub(super) enum Scope {
    Everywhere,
    Namespace(String),
    Pool(PoolName),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everywhere => f.write_str("any namespace"),
            Self::Namespace(namespace) => write!(f, "namespace {namespace}"),
            Self::Pool(pool) => write!(f, "pool {pool}"),
        }
    }
}

impl Scope {
    /// The pools that exist now, in order. One that is asked for by name is not looked up: using it says whether it is.
    async fn pools(&self, client: &Client) -> Result<Vec<PoolName>, Error> {
        let namespaces = match self {
            Self::Everywhere => client.namespaces().await?,
            Self::Namespace(namespace) => vec![namespace.clone()],
            Self::Pool(pool) => return Ok(vec![pool.clone()]),
        };
        let mut pools = Vec::new();
        for namespace in namespaces {
            // What agents keep for themselves is shown to those who ask for it by name.
            if matches!(self, Self::Everywhere) && namespace == SYSTEM_NAMESPACE {
                continue;
            }
            pools.extend(client.pools(&namespace).await?);
        }
        pools.sort();
        Ok(pools)
    }
}

/// What is asked.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) client: &'a Client,
    pub(super) scope: Scope,
    /// The one thing that is wanted; else all are.
    pub(super) name: Option<&'a str>,
    /// Where an agent on this machine says what it thinks.
    pub(super) state: Option<&'a StateDir>,
}

impl Ask<'_> {
    /// Asks each pool. One that was deleted since it was listed is passed over.
    /// One of several that can't be read does not hide the others, unless it is the server that does not answer.
    pub(super) async fn each<T>(&self, ask: impl AsyncFn(Pool) -> Result<Vec<T>, Error>) -> Result<Found<T>> {
        let mut found = Found { rows: Vec::new(), unread: Vec::new() };
        for name in self.scope.pools(self.client).await? {
            match ask(self.client.pool(name.as_str())?).await {
                Ok(rows) => found.rows.extend(rows),
                Err(error) if matches!(self.scope, Scope::Pool(_)) || error.is_transient() => return Err(error.into()),
                Err(Error::UnknownPool { .. }) => {}
                Err(error) => found.unread.push((name, error)),
            }
        }
        Ok(found)
    }

    /// Whether a thing of this name is wanted.
    pub(super) fn is_for(&self, name: &str) -> bool {
        self.name.is_none_or(|wanted| wanted == name)
    }

    /// What an agent on this machine wrote. A state directory that can't be read costs the conditions, not the list.
    fn status(&self) -> Option<StatusFile> {
        let state = self.state?;
        let mut status = state.status().unwrap_or_else(|error| {
            tracing::debug!(%error, "no conditions are shown");
            None
        })?;
        // Asked second: an agent that ended in between has written its last.
        let runs = state.running_agent().is_ok_and(|agent| agent.is_some());
        if !runs {
            doubt(&mut status, "AgentNotRunning", "the agent that said it does not run");
        } else if !status.leader {
            doubt(&mut status, "AgentNotLeading", "the agent that said it no longer leads");
        }
        Some(status)
    }
}

/// What was read.
#[derive(Debug)]
pub(super) struct Found<T> {
    pub(super) rows: Vec<T>,
    /// The pools that could not be read, and why.
    pub(super) unread: Vec<(PoolName, Error)>,
}

/// A kind of thing that can be listed.
pub(super) trait Fetch: Sized {
    const KIND: &'static str;
    const PLURAL: &'static str;
    /// Whether a name is that of one thing at the most. The number of those that have it must not change the shape of what
    /// programs read.
    const NAMED_ONCE: bool = true;

    /// All that is asked for, in a stable order.
    async fn fetch(ask: &Ask<'_>) -> Result<Found<Self>>;
}

impl Fetch for PoolView {
    const KIND: &'static str = "pool";
    const PLURAL: &'static str = "pools";

    async fn fetch(ask: &Ask<'_>) -> Result<Found<Self>> {
        let status = ask.status();
        ask.each(async |pool| Ok(vec![pool_view(pool.info().await?, status.as_ref())])).await
    }
}

impl Fetch for ResourceView {
    const KIND: &'static str = "resource";
    const PLURAL: &'static str = "resources";

    async fn fetch(ask: &Ask<'_>) -> Result<Found<Self>> {
        ask.each(async |pool| {
            let states = match ask.name {
                Some(name) => pool.get(name).await?.into_iter().collect(),
                None => pool.snapshot().await?,
            };
            Ok(states.into_iter().map(|state| resource_view(pool.name(), state)).collect())
        })
        .await
    }
}

impl Fetch for LeaseView {
    const KIND: &'static str = "lease";
    const PLURAL: &'static str = "leases";
    const NAMED_ONCE: bool = false;

    async fn fetch(ask: &Ask<'_>) -> Result<Found<Self>> {
        ask.each(async |pool| {
            let leases = match ask.name {
                Some(name) => pool.leases_on(name).await?,
                None => pool.leases().await?,
            };
            Ok(leases.into_iter().map(|lease| lease_view(pool.name(), lease)).collect())
        })
        .await
    }
}

impl Fetch for BindingView {
    const KIND: &'static str = "binding";
    const PLURAL: &'static str = "bindings";

    async fn fetch(ask: &Ask<'_>) -> Result<Found<Self>> {
        let status = ask.status();
        ask.each(async |pool| {
            let mut bindings: Vec<_> = match ask.name {
                Some(name) => pool.binding(name).await?.into_iter().collect(),
                None => pool.bindings().await?,
            };
            bindings.sort_by(|a, b| a.name.cmp(&b.name));
            let about = match &status {
                Some(status) if pool.info().await?.manager.as_ref() == Some(&status.manager) => Some(status),
                _ => None,
            };
            let view = |binding| binding_view(pool.name(), binding, about);
            Ok(bindings.into_iter().map(view).collect())
        })
        .await
    }
}

impl Fetch for SourceView {
    const KIND: &'static str = "source";
    const PLURAL: &'static str = "sources";

    async fn fetch(ask: &Ask<'_>) -> Result<Found<Self>> {
        let status = ask.status();
        ask.each(async |pool| {
            let info = pool.info().await?;
            // What an agent wrote about a pool of the same name on another server is none of this pool's business.
            let about = status.as_ref().filter(|status| info.manager.as_ref() == Some(&status.manager));
            let said = about.map_or(&[][..], |status| status.pool_sources(&info.name));
            Ok(source_views(&info, said).into_iter().filter(|view| ask.is_for(&view.name)).collect())
        })
        .await
    }
}

/// Makes every condition one that nobody vouches for any more; of sources, the server has the numbers.
fn doubt(status: &mut StatusFile, reason: &str, why: &str) {
    status.pools.iter_mut().for_each(|report| report.status.sources.clear());
    let pools = status.pools.iter_mut().flat_map(|report| &mut report.status.conditions);
    let bindings = status.bindings.iter_mut().flat_map(|report| &mut report.status.conditions);
    for condition in pools.chain(bindings) {
        condition.message = format!("{why}: it was {} ({})", condition.status, condition.reason);
        UNKNOWN.clone_into(&mut condition.status);
        reason.clone_into(&mut condition.reason);
    }
}

fn pool_view(info: PoolInfo, status: Option<&StatusFile>) -> PoolView {
    let (counts, counters) = (info.counts, info.counters);
    // What an agent wrote about a pool of the same name on another server is none of this pool's business.
    let conditions = status.filter(|status| info.manager.as_ref() == Some(&status.manager));
    PoolView {
        namespace: info.name.namespace().to_owned(),
        name: info.name.name().to_owned(),
        order: info.settings.order.to_string(),
        suspended: info.settings.suspended,
        manager: info.manager,
        incarnation: info.incarnation.as_str().to_owned(),
        counts: CountsView {
            total: counts.total,
            free: counts.free,
            leased: counts.leased,
            quarantined: counts.quarantined,
            reserved: counts.reserved,
            draining: counts.draining,
            bindings: counts.bindings,
            waiting: counts.waiting,
            sessions: counts.sessions,
        },
        counters: CountersView {
            granted: counters.granted,
            freed: counters.freed,
            expired: counters.expired,
            revoked: counters.revoked,
            quarantined: counters.quarantined,
        },
        hold: info.hold.map(|hold| match hold {
            Hold::Until(until) => HoldView { until: Some(moment(until)) },
            Hold::Released => HoldView { until: None },
        }),
        origins: info.origins.iter().map(|(origin, known)| (origin.to_string(), known.count)).collect(),
        conditions: conditions.map(|status| status.pool_conditions(&info.name).to_vec()).unwrap_or_default(),
    }
}

/// Those that the server has resources of, and those that the agent says something of.
fn source_views(info: &PoolInfo, said: &[SourceStatus]) -> Vec<SourceView> {
    let in_redis = info.origins.keys().filter_map(|origin| match origin {
        Origin::Source(name) => Some(name.as_str()),
        _ => None,
    });
    let names: BTreeSet<&str> = in_redis.chain(said.iter().map(|source| source.name.as_str())).collect();
    let view = |name: &str| {
        let counted = info.origins.get(&Origin::Source(name.to_owned()));
        let said = said.iter().find(|source| source.name == name);
        SourceView {
            namespace: info.name.namespace().to_owned(),
            pool: info.name.name().to_owned(),
            name: name.to_owned(),
            items: counted.map_or(0, |counted| counted.count),
            peak: counted.map_or(0, |counted| counted.peak),
            state: said.map(|source| source.state),
            last_success: said.and_then(|source| source.last_success.as_ref()).map(|time| time.0),
            message: said.map(|source| source.message.clone()).unwrap_or_default(),
        }
    };
    names.into_iter().map(view).collect()
}

fn resource_view(pool: &PoolName, resource: ResourceState) -> ResourceView {
    let (state, since, lease, quarantined_until) = match resource.place {
        Place::Free { since } => (State::Free, since.map(moment), None, None),
        Place::Leased(lease) => {
            let state = match (resource.declared, lease.offered) {
                (false, _) => State::Draining,
                (true, true) => State::Offered,
                (true, false) => State::Leased,
            };
            (state, Some(moment(lease.granted_at)), Some(holder_view(lease)), None)
        }
        Place::Quarantined { until } => (State::Quarantined, None, None, until.map(moment)),
        Place::Full => (if resource.declared { State::Full } else { State::Draining }, None, None, None),
        Place::Reserved => (State::Reserved, None, None, None),
        Place::Nowhere => (State::Nowhere, None, None, None),
    };
    ResourceView {
        namespace: pool.namespace().to_owned(),
        pool: pool.name().to_owned(),
        name: resource.key.into(),
        state,
        since,
        lease,
        holders: resource.holder_count,
        quarantined_until,
        marks: resource.marks.into_iter().map(mark_view).collect(),
        reserved_for: resource.reserved_for.map(Into::into),
        priority: resource.priority,
        origins: resource.origins.iter().map(ToString::to_string).collect(),
        labels: resource.labels,
        params: resource.params,
    }
}

fn mark_view(mark: Mark) -> MarkView {
    MarkView { cause: mark.cause.to_string(), reason: mark.reason, until: mark.until.map(moment) }
}

fn lease_view(pool: &PoolName, lease: ListedLease) -> LeaseView {
    LeaseView {
        namespace: pool.namespace().to_owned(),
        pool: pool.name().to_owned(),
        resource: lease.key.into(),
        id: lease.id,
        holder: holder_view(lease.lease),
        draining: !lease.declared,
    }
}

fn holder_view(lease: LeaseInfo) -> HolderView {
    HolderView {
        owner: lease.owner,
        binding: lease.binding.map(Into::into),
        session: lease.session,
        fencing_token: lease.token,
        granted_at: moment(lease.granted_at),
        expires_at: lease.expires_at.map(moment),
        offered: lease.offered,
    }
}

fn binding_view(pool: &PoolName, binding: Binding, status: Option<&StatusFile>) -> BindingView {
    let conditions = status.filter(|_| binding.declared);
    let conditions = conditions.map(|status| status.binding_conditions(pool, binding.name.as_ref()).to_vec());
    BindingView {
        namespace: pool.namespace().to_owned(),
        pool: pool.name().to_owned(),
        name: binding.name.into(),
        resource: binding.resource.into(),
        policy: format!("{:?}", binding.policy),
        declared: binding.declared,
        ended: binding.ended,
        expires_at: binding.expires_at.map(moment),
        conditions: conditions.unwrap_or_default(),
    }
}
