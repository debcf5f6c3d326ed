//! Looking at the real pool: all that can be seen of it, in plain values. It must not know what is expected.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use futures::try_join;
use redis_allocator::{BindPolicy, Binding, Error, Hold, Known, Place, ResourceState, Timestamp};

use crate::{
    system::System,
    view::{BindingView, InfoView, PlaceView, PoolView, ResourceView, View},
};

impl System {
    /// All that can be seen; an error if an invariant is broken. The reads are under way together.
    pub(crate) async fn view(&mut self) -> Result<View> {
        let pool = self.pool.clone();
        let client = self.client.clone();
        let (listed, broken, found) = futures::join!(client.pools(pool.name().namespace()), self.check(), async {
            try_join!(pool.info(), pool.snapshot(), pool.bindings())
        });
        let listed = listed?.contains(pool.name());
        let (info, resources, bindings) = match found {
            Ok(found) => found,
            Err(Error::UnknownPool { .. }) => return Ok(View { listed, pool: None }),
            Err(error) => return Err(error.into()),
        };
        let broken = broken?;
        ensure!(broken.is_empty(), "check finds {broken:?}");
        self.last_seen = Some(Known { incarnation: info.incarnation.clone(), longest: info.longest });
        let hold = info.hold.map(|hold| match hold {
            Hold::Until(until) => Some(until.as_millis()),
            Hold::Released => None,
        });
        let origins = info
            .origins
            .iter()
            .map(|(origin, found)| (origin.to_string(), (found.count, found.peak, found.digest.is_some())));
        let info = InfoView {
            life: self.life(&info.incarnation),
            manager: info.manager,
            settings: info.settings,
            counts: info.counts,
            counters: info.counters,
            longest: info.longest,
            last_token: info.last_token,
            hold,
            origins: origins.collect(),
            now: info.now.as_millis(),
        };
        let resources = resources.into_iter().map(|state| (state.key.to_string(), resource_view(state))).collect();
        let bindings = bindings.into_iter().map(|binding| (binding.name.to_string(), binding_view(&binding))).collect();
        Ok(View { listed, pool: Some(PoolView { info, resources, bindings }) })
    }
}

/// Labels and params in the words of [`facts`](crate::step::facts).
pub(crate) fn told(labels: &BTreeMap<String, String>, params: &serde_json::Map<String, serde_json::Value>) -> String {
    let label = labels.first_key_value().map(|(name, value)| (name.as_str(), value.as_str()));
    let param = params.iter().next().map(|(name, value)| (name.as_str(), value.as_i64().unwrap_or(i64::MIN)));
    format!("{:?}", (label, param))
}

fn resource_view(state: ResourceState) -> ResourceView {
    let place = match state.place {
        Place::Free { since } => PlaceView::Free { since: since.map(Timestamp::as_millis) },
        Place::Leased(lease) => PlaceView::Leased {
            owner: lease.owner,
            binding: lease.binding.map(String::from),
            token: lease.token,
            granted_at: lease.granted_at.as_millis(),
            expires_at: lease.expires_at.map(Timestamp::as_millis),
        },
        Place::Quarantined { until } => PlaceView::Quarantined { until: until.map(Timestamp::as_millis) },
        Place::Reserved => PlaceView::Reserved,
        // There are no shared pools here.
        Place::Full | Place::Nowhere => PlaceView::Nowhere,
    };
    let marks = state
        .marks
        .into_iter()
        .map(|mark| (mark.cause.to_string(), (mark.until.map(Timestamp::as_millis), mark.reason)))
        .collect();
    ResourceView {
        declared: state.declared,
        priority: state.priority,
        position: state.position,
        facts: told(&state.labels, &state.params),
        origins: state.origins.iter().map(ToString::to_string).collect(),
        place,
        marks,
        reserved_for: state.reserved_for.map(String::from),
    }
}

fn binding_view(binding: &Binding) -> BindingView {
    BindingView {
        resource: binding.resource.to_string(),
        required: binding.policy == BindPolicy::Required,
        declared: binding.declared,
        ended: binding.ended,
        expires_at: binding.expires_at.map(Timestamp::as_millis),
    }
}
