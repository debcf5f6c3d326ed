//! The border between declared objects and the library: a kind's object becomes settings, items and bindings once, here.
//!
//! It knows neither where the objects came from nor whether Redis already has them. What no single object can get wrong,
//! only several together, is judged here as well, the same for every source.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use redis_allocator::{
    BindOptions, BindPolicy, BindingName, Error, Item, Mode, Order, Origin, PoolName, PoolSettings, Removal,
    ResourceKey, SyncOptions,
};
use redis_allocator_crd as crd;
use redis_allocator_crd::{
    DeletionPolicy, HealthCheck, MAX_SOURCE_ITEMS, Object, ResourcePoolSpec, ResourceSource, SoftBinding,
};

/// Everything that is declared.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Desired {
    pub(crate) pools: BTreeMap<PoolName, Arc<DesiredPool>>,
    /// Bindings whose pool is not declared.
    pub(crate) unpooled: Vec<DesiredBinding>,
    /// Bindings that contradict others.
    pub(crate) refused: Vec<(DesiredBinding, Refusal)>,
    /// Pools that are being deleted, and how.
    pub(crate) deleting: BTreeMap<PoolName, DeletionPolicy>,
    /// Pools that are declared in a way that can't be used, or some of whose bindings are: what is not declared of them
    /// is not known to be undeclared.
    pub(crate) partial: BTreeSet<PoolName>,
}

/// A pool as it is to be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DesiredPool {
    pub(crate) name: PoolName,
    /// Which edit of its object this is, where objects count them.
    pub(crate) generation: Option<i64>,
    spec: ResourcePoolSpec,
    pub(crate) bindings: Vec<DesiredBinding>,
}

/// A declared source of resources, and how what it brings gets into the pool.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DesiredSource {
    pub(crate) source: ResourceSource,
    pub(crate) options: SyncOptions,
    /// The position of what it lists first, in a pool whose order asks for positions.
    pub(crate) first_position: Option<u64>,
}

/// A declared binding.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DesiredBinding {
    /// The name of the object, in the pool's namespace.
    pub(crate) object: String,
    /// Which edit of the object this is, where objects count them.
    pub(crate) generation: Option<i64>,
    pub(crate) pool: PoolName,
    pub(crate) name: BindingName,
    pub(crate) resource: ResourceKey,
    ttl: Option<Duration>,
    policy: BindPolicy,
}

/// Why an object is not applied though it is valid by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// For conditions and metrics.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// The name of the object that it contradicts, in the same namespace and of the same kind.
    pub(crate) other: String,
}

impl Desired {
    /// Whether anything is said of a pool.
    pub(crate) fn mentions(&self, pool: &PoolName) -> bool {
        self.pools.contains_key(pool) || self.deleting.contains_key(pool) || self.partial.contains(pool)
    }

    /// Puts objects together. Of two that contradict each other, the later one is refused.
    ///
    /// # Errors
    /// When an object has a name that the library refuses, which validation rules out.
    pub(crate) fn build<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Result<Self, Error> {
        let mut pools: BTreeMap<PoolName, DesiredPool> = BTreeMap::new();
        let mut bindings = Vec::new();
        for object in objects {
            match object {
                Object::ResourcePool(pool) => {
                    let name = PoolName::new(&object.namespace(), &object.name())?;
                    if let btree_map::Entry::Vacant(entry) = pools.entry(name) {
                        let name = entry.key().clone();
                        let generation = pool.metadata.generation;
                        entry.insert(DesiredPool { name, generation, spec: pool.spec.clone(), bindings: Vec::new() });
                    }
                }
                Object::SoftBinding(binding) => bindings.push(DesiredBinding::new(&object.namespace(), binding)?),
            }
        }
        let mut desired = Self::default();
        let mut claims = Claims::default();
        for binding in bindings {
            if let Err(refusal) = claims.claim(&binding) {
                desired.refused.push((binding, refusal));
            } else if let Some(pool) = pools.get_mut(&binding.pool) {
                pool.bindings.push(binding);
            } else {
                desired.unpooled.push(binding);
            }
        }
        for pool in pools.values_mut() {
            // The order of files says nothing about a pool: without this, renaming one would look like a change.
            pool.bindings.sort_by(|a, b| a.name.cmp(&b.name));
        }
        desired.pools = pools.into_iter().map(|(name, pool)| (name, Arc::new(pool))).collect();
        Ok(desired)
    }
}

/// Which names and resources are taken by the bindings seen so far, each with the object that took it.
#[derive(Default)]
struct Claims {
    names: HashMap<(PoolName, BindingName), String>,
    reserved: HashMap<(PoolName, ResourceKey), String>,
}

impl Claims {
    fn claim(&mut self, binding: &DesiredBinding) -> Result<(), Refusal> {
        let DesiredBinding { object, pool, name, resource, .. } = binding;
        let name_key = (pool.clone(), name.clone());
        if let Some(other) = self.names.get(&name_key) {
            return Err(Refusal {
                reason: "DuplicateBindingName",
                message: format!(
                    "spec.bindingName: found {name:?}, which SoftBinding {other} has already in pool {pool}, allowed is a \
                     name of its own",
                    name = name.as_str()
                ),
                other: other.clone(),
            });
        }
        if binding.policy == BindPolicy::Required {
            let resource_key = (pool.clone(), resource.clone());
            if let Some(other) = self.reserved.get(&resource_key) {
                return Err(Refusal {
                    reason: "BindingConflict",
                    message: format!(
                        "spec.resourceName: found {resource:?}, which SoftBinding {other} reserves already in pool {pool}, \
                         allowed is one Required binding for a resource",
                        resource = resource.as_str()
                    ),
                    other: other.clone(),
                });
            }
            self.reserved.insert(resource_key, object.clone());
        }
        self.names.insert(name_key, object.clone());
        Ok(())
    }
}

impl DesiredBinding {
    fn new(namespace: &str, binding: &SoftBinding) -> Result<Self, Error> {
        Ok(Self {
            object: binding.metadata.name.clone().unwrap_or_default(),
            generation: binding.metadata.generation,
            pool: PoolName::new(namespace, &binding.spec.pool_ref.name)?,
            name: BindingName::new(binding.binding_name())?,
            resource: ResourceKey::new(&binding.spec.resource_name)?,
            ttl: binding.spec.ttl.map(Into::into),
            policy: match binding.spec.policy {
                crd::BindingPolicy::Preferred => BindPolicy::Preferred,
                crd::BindingPolicy::Required => BindPolicy::Required,
            },
        })
    }

    pub(crate) fn options(&self) -> BindOptions {
        BindOptions { ttl: self.ttl, policy: self.policy, declared: true }
    }
}

impl DesiredPool {
    pub(crate) fn settings(&self) -> PoolSettings {
        let max_holders = self.spec.max_holders.and_then(|most| u32::try_from(most).ok()).and_then(NonZeroU32::new);
        PoolSettings {
            mode: match self.spec.mode {
                crd::Mode::Exclusive => Mode::Exclusive,
                crd::Mode::Shared => Mode::Shared { max_holders },
            },
            order: match self.spec.order {
                crd::Order::LeastRecentlyUsed => Order::LeastRecentlyUsed,
                crd::Order::Sequential => Order::Sequential,
                crd::Order::Random => Order::Random,
            },
            default_ttl: self.spec.lease.default_ttl.into(),
            max_ttl: self.spec.lease.max_ttl.map(Into::into),
            cooldown: self.spec.cooldown.into(),
            binding_ttl: self.spec.soft_binding.ttl.into(),
            suspended: self.spec.suspend,
            indexes: self.spec.indexes.clone(),
        }
    }

    /// Of what the declaration lists itself.
    pub(crate) fn sync_options(&self) -> SyncOptions {
        SyncOptions {
            removal: match self.spec.removal_policy {
                crd::RemovalPolicy::Drain => Removal::Drain,
                crd::RemovalPolicy::Revoke => Removal::Revoke,
            },
            max_shrink_percent: u8::try_from(self.spec.max_shrink_percent).unwrap_or(100).min(100),
            keep_missing: None,
        }
    }

    pub(crate) fn deletion_policy(&self) -> DeletionPolicy {
        self.spec.deletion_policy
    }

    pub(crate) fn gc_interval(&self) -> Duration {
        self.spec.gc.interval.into()
    }

    pub(crate) fn health_check(&self) -> Option<&HealthCheck> {
        self.spec.health_check.as_ref()
    }

    pub(crate) fn is_suspended(&self) -> bool {
        self.spec.suspend
    }

    /// Where resources come from that the declaration does not list itself.
    pub(crate) fn sources(&self) -> Vec<DesiredSource> {
        // Behind all that is listed here, and each with room for the most that it may bring.
        let listed =
            self.spec.resources.len() as u64 + self.spec.ranges.iter().map(crd::ResourceRange::len).sum::<u64>();
        let positions = (0..).map(|index| listed + index * MAX_SOURCE_ITEMS as u64);
        let in_order = self.spec.order == crd::Order::Sequential;
        let desired = |(source, first): (&ResourceSource, u64)| DesiredSource {
            source: source.clone(),
            options: SyncOptions {
                keep_missing: Some(source.ttl.into()).filter(|ttl: &Duration| !ttl.is_zero()),
                ..self.sync_options()
            },
            first_position: in_order.then_some(first),
        };
        self.spec.sources.iter().zip(positions).map(desired).collect()
    }

    /// The origins of what sources bring.
    pub(crate) fn source_origins(&self) -> Vec<Origin> {
        self.spec.sources.iter().map(|source| Origin::Source(source.name.clone())).collect()
    }

    /// The origins of what the declaration lists itself, in its order.
    pub(crate) fn origins(&self) -> Vec<Origin> {
        let ranges = self.spec.ranges.iter().map(|range| Origin::Range(range.name.clone()));
        std::iter::once(Origin::Spec).chain(ranges).collect()
    }

    /// The items of one origin, made when they are needed: a large pool's would double what the agent keeps in memory.
    /// Positions go on from one origin to the next, so that `Sequential` is the order of the declaration.
    pub(crate) fn items(&self, origin: &Origin) -> Result<Vec<Item>, Error> {
        let mut position = self.spec.resources.len() as u64;
        match origin {
            Origin::Spec => {
                let resources = self.spec.resources.iter().zip(0..);
                let item = |(resource, position): (&crd::Resource, u64)| {
                    Ok(Item {
                        key: ResourceKey::new(&resource.name)?,
                        priority: priority(resource.priority),
                        position: Some(position),
                        labels: resource.labels.clone(),
                        params: resource.params.clone(),
                    })
                };
                resources.map(item).collect()
            }
            Origin::Range(name) => {
                for range in &self.spec.ranges {
                    if range.name == *name {
                        let item = |(key, position): (String, u64)| {
                            Ok(Item {
                                key: ResourceKey::new(key)?,
                                priority: priority(range.priority),
                                position: Some(position),
                                labels: range.labels.clone(),
                                params: range.params.clone(),
                            })
                        };
                        return range.keys().zip(position..).map(item).collect();
                    }
                    position += range.len();
                }
                Ok(Vec::new())
            }
            Origin::Source(_) | Origin::Api => Ok(Vec::new()),
        }
    }

    /// How many [`items`](Self::items) an origin has.
    pub(crate) fn count(&self, origin: &Origin) -> u64 {
        match origin {
            Origin::Spec => self.spec.resources.len() as u64,
            Origin::Range(name) => {
                self.spec.ranges.iter().find(|range| range.name == *name).map_or(0, crd::ResourceRange::len)
            }
            Origin::Source(_) | Origin::Api => 0,
        }
    }

    /// Whether the declaration has this resource.
    pub(crate) fn declares(&self, key: &ResourceKey) -> bool {
        self.spec.resources.iter().any(|resource| resource.name == key.as_str())
            || self.spec.ranges.iter().any(|range| range.contains(key.as_str()))
    }
}

/// Validation keeps it between 0 and 1000.
fn priority(declared: i32) -> u16 {
    u16::try_from(declared).unwrap_or(0)
}

#[cfg(test)]
pub(crate) mod tests {
    use redis_allocator_crd::{Kind, validate};
    use serde_json::{Value, json};

    use super::*;

    /// A valid object, for tests anywhere in the crate.
    pub(crate) fn object(kind: Kind, name: &str, spec: &Value) -> Object {
        let object = json!({
            "apiVersion": redis_allocator_crd::API_VERSION, "kind": kind.as_str(), "metadata": {"name": name}, "spec": spec,
        });
        validate(kind, &object).unwrap()
    }

    pub(crate) fn pool(name: &str, spec: &Value) -> Object {
        object(Kind::ResourcePool, name, spec)
    }

    fn binding(name: &str, resource: &str, policy: &str) -> Object {
        object(
            Kind::SoftBinding,
            name,
            &json!({"poolRef": {"name": "gpus"}, "resourceName": resource, "policy": policy}),
        )
    }

    fn one(spec: &Value) -> Arc<DesiredPool> {
        let desired = Desired::build([&pool("gpus", spec)]).unwrap();
        Arc::clone(&desired.pools[&"gpus".parse::<PoolName>().unwrap()])
    }

    #[test]
    fn the_kinds_defaults_are_the_librarys() {
        let pool = one(&json!({}));
        assert_eq!(pool.settings(), PoolSettings::default());
        assert_eq!(pool.sync_options(), SyncOptions { max_shrink_percent: 50, ..SyncOptions::default() });
    }

    #[test]
    fn a_shared_pool_and_its_indexes_are_the_librarys() {
        let settings = one(&json!({"mode": "Shared", "maxHolders": 3, "indexes": [["zone", "model"]]})).settings();
        assert_eq!(settings.mode, Mode::Shared { max_holders: NonZeroU32::new(3) });
        assert_eq!(settings.indexes, [["zone", "model"]]);
        assert_eq!(one(&json!({"mode": "Shared"})).settings().mode, Mode::Shared { max_holders: None });
    }

    #[test]
    fn positions_go_on_from_origin_to_origin() {
        let pool = one(&json!({
            "resources": [{"name": "a", "priority": 3}, {"name": "b", "labels": {"zone": "x"}, "params": {"i": 1}}],
            "ranges": [
                {"name": "r", "template": "r{}", "from": 1, "to": 3},
                {"name": "s", "template": "s{:02}", "from": 9, "to": 10, "priority": 5},
            ],
        }));
        let all: Vec<_> = pool
            .origins()
            .iter()
            .flat_map(|origin| pool.items(origin).unwrap())
            .map(|item| (item.key.as_str().to_owned(), item.priority, item.position))
            .collect();
        let expected = [("a", 3), ("b", 0), ("r1", 0), ("r2", 0), ("r3", 0), ("s09", 5), ("s10", 5)];
        let expected: Vec<_> = expected
            .iter()
            .zip(0..)
            .map(|(&(key, priority), position)| (key.to_owned(), priority, Some(position)))
            .collect();
        assert_eq!(all, expected);
        assert!(pool.declares(&"r2".parse().unwrap()) && pool.declares(&"b".parse().unwrap()));
        assert!(!pool.declares(&"r4".parse().unwrap()));
    }

    #[test]
    fn sources_follow_what_is_listed_and_have_positions_only_if_these_count() {
        let spec = |order: &str| {
            json!({
                "order": order, "maxShrinkPercent": 20, "resources": [{"name": "a"}],
                "ranges": [{"name": "r", "template": "r{}", "from": 1, "to": 3}],
                "sources": [{"name": "x", "dns": {"name": "h"}}, {"name": "y", "ttl": "0s", "http": {"url": "http://h"}}],
            })
        };
        let in_order = one(&spec("Sequential"));
        let sources = in_order.sources();
        assert_eq!(sources[0].options.keep_missing, Some(Duration::from_hours(1)));
        assert_eq!(sources[1].options.keep_missing, None, "it leaves at once");
        assert_eq!(in_order.sync_options().keep_missing, None, "what is edited is meant");
        let positions: Vec<_> = sources.iter().map(|it| (it.source.name.as_str(), it.first_position)).collect();
        assert_eq!(positions, [("x", Some(4)), ("y", Some(100_004))]);
        assert_eq!(sources[0].options.max_shrink_percent, 20);
        assert!(one(&spec("Random")).sources().iter().all(|it| it.first_position.is_none()));
        let origins = [Origin::Source("x".to_owned()), Origin::Source("y".to_owned())];
        assert_eq!(in_order.source_origins(), origins);
        assert!(in_order.origins().iter().all(|origin| !origins.contains(origin)), "nobody fetches to list these");
    }

    #[test]
    fn a_second_required_binding_of_a_resource_is_refused_and_names_the_first() {
        let objects = [
            pool("gpus", &json!({})),
            binding("x", "gpu-0", "Required"),
            binding("y", "gpu-0", "Preferred"),
            binding("z", "gpu-0", "Required"),
        ];
        let desired = Desired::build(&objects).unwrap();
        let names = |bindings: &[DesiredBinding]| bindings.iter().map(|it| it.object.clone()).collect::<Vec<_>>();
        assert_eq!(names(&desired.pools[&"gpus".parse::<PoolName>().unwrap()].bindings), ["x", "y"]);
        let (refused, refusal) = &desired.refused[0];
        assert_eq!((refused.object.as_str(), refusal.reason, refusal.other.as_str()), ("z", "BindingConflict", "x"));
        assert!(refusal.message.contains("SoftBinding x"), "{}", refusal.message);
    }

    #[test]
    fn a_binding_name_belongs_to_one_object_of_a_pool() {
        let spec = json!({"poolRef": {"name": "gpus"}, "resourceName": "gpu-1", "bindingName": "x"});
        let objects = [binding("x", "gpu-0", "Preferred"), object(Kind::SoftBinding, "other", &spec)];
        let desired = Desired::build(&objects).unwrap();
        assert_eq!(desired.unpooled.len(), 1, "its pool is not declared, which is no contradiction");
        assert_eq!(desired.refused[0].1.reason, "DuplicateBindingName");
    }

    #[test]
    fn the_order_of_the_objects_is_no_difference() {
        let objects = [pool("gpus", &json!({})), binding("a", "1", "Preferred"), binding("b", "2", "Preferred")];
        let reversed: Vec<_> = objects.iter().rev().collect();
        assert_eq!(Desired::build(&objects).unwrap(), Desired::build(reversed).unwrap());
    }
}
