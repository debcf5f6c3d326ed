//! What the objects of a cluster declare, kept up to date object by object. Synchronous, and blind to how they arrive.
//!
//! # Guarantees
//! - An object that can't be used keeps the last declaration of it that could; without one, nothing of what it is about is
//!   taken for undeclared.
//! - A pool counts from when it carries the [finalizer](super::object::FINALIZER): nothing is made in Redis that a deletion would not hear
//!   of.
//! - Of objects that contradict each other, the oldest one counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kube::{ResourceExt as _, core::DynamicObject};
use redis_allocator::PoolName;
use redis_allocator_crd::{DeletionPolicy, Kind, Object};

use super::object::{Key, Life, Refusal, deletion_policy, read};
use crate::{
    desired::Desired,
    source::{Declaration, SourceErrors},
};

#[derive(Debug)]
struct Entry {
    uid: Option<String>,
    created: Option<jiff::Timestamp>,
    generation: Option<i64>,
    life: Life,
    /// As it was when it last could be used.
    usable: Option<Arc<Object>>,
    refusal: Option<Refusal>,
    /// What a pool says now should become of it, however little else of it can be used.
    policy: DeletionPolicy,
    /// The pool it declares or is about, as far as that can be told.
    pool: Option<PoolName>,
}

/// All objects.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: BTreeMap<Key, Entry>,
}

impl Index {
    /// Takes an object over. Whether anything changed but its status.
    pub(super) fn apply(&mut self, kind: Kind, object: &DynamicObject) -> bool {
        let key = Key::of(kind, object);
        let (uid, generation, life) = (object.uid(), object.metadata.generation, Life::of(kind, object));
        let before = self.entries.get_mut(&key).filter(|before| before.uid == uid);
        if let Some(before) = &before
            && (before.generation, before.life) == (generation, life)
        {
            return false;
        }
        let last = before.and_then(|before| before.usable.take());
        let (usable, refusal) = match read(&key, object) {
            Ok(object) => (Some(Arc::new(object)), None),
            Err(refusal) => {
                tracing::error!(object = %key, "the object can't be used: {}", refusal.message());
                (last, Some(refusal))
            }
        };
        let pool = match kind {
            Kind::ResourcePool => key.pool(),
            Kind::SoftBinding => {
                object.data["spec"]["poolRef"]["name"].as_str().and_then(|it| PoolName::new(&key.namespace, it).ok())
            }
        };
        // What nobody can read is taken down in the way that takes nothing from anyone.
        let policy = deletion_policy(object);
        let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
        self.entries.insert(key, Entry { uid, created, generation, life, usable, refusal, policy, pool });
        true
    }

    /// An object is not there any more. Whether it was.
    pub(super) fn remove(&mut self, key: &Key) -> bool {
        self.entries.remove(key).is_some()
    }

    /// Keeps of a kind what `is_there` says is there. Whether that is less than it was.
    pub(super) fn retain(&mut self, kind: Kind, is_there: impl Fn(&Key) -> bool) -> bool {
        let before = self.entries.len();
        self.entries.retain(|key, _| key.kind != kind || is_there(key));
        before != self.entries.len()
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    pub(super) fn refusal(&self, key: &Key) -> Option<Refusal> {
        self.entries.get(key)?.refusal.clone()
    }

    /// The pool that an object declares or is about.
    pub(super) fn pool(&self, key: &Key) -> Option<PoolName> {
        self.entries.get(key)?.pool.clone()
    }

    /// What should become of a pool in Redis when its object goes.
    pub(super) fn deletion_policy(&self, key: &Key) -> DeletionPolicy {
        self.entries.get(key).map_or(DeletionPolicy::Drain, Entry::deletion_policy)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.entries.keys()
    }

    /// What all of them declare together. Without any pool, what is managed is not taken for undeclared, unless
    /// `allow_empty`.
    pub(super) fn declaration(&self, allow_empty: bool) -> Declaration {
        // What is said of a binding would be wrong a moment later, when its pool carries the finalizer.
        let unborn: BTreeSet<&PoolName> =
            self.entries.values().filter(|it| it.life == Life::Unborn).filter_map(|it| it.pool.as_ref()).collect();
        let is_awaited = |entry: &Entry| entry.pool.as_ref().is_some_and(|pool| unborn.contains(pool));
        let mut live: Vec<(&Key, &Entry)> =
            self.entries.iter().filter(|(_, entry)| entry.life == Life::Live && !is_awaited(entry)).collect();
        live.sort_by_key(|&(key, entry)| (entry.created, key));
        let mut complete = allow_empty || self.entries.keys().any(|key| key.kind == Kind::ResourcePool);
        let mut errors = Vec::new();
        let mut desired = match Desired::build(live.iter().filter_map(|(_, entry)| entry.usable.as_deref())) {
            Ok(desired) => desired,
            Err(error) => {
                // Names were validated: not known to happen, and no reason to take anything down.
                errors.push(SourceErrors { place: "objects".into(), errors: vec![error.to_string()] });
                complete = false;
                Desired::default()
            }
        };
        for (key, entry) in &self.entries {
            match (entry.life, &entry.pool) {
                (Life::Deleting { .. }, Some(pool)) => {
                    desired.deleting.insert(pool.clone(), entry.deletion_policy());
                }
                (Life::Unborn, Some(pool)) => {
                    desired.partial.insert(pool.clone());
                }
                (Life::Live, Some(pool)) if entry.usable.is_none() => {
                    desired.partial.insert(pool.clone());
                }
                (Life::Live, None) => complete = false,
                _ => {}
            }
            if let Some(refusal) = &entry.refusal {
                errors.push(SourceErrors { place: key.to_string().into(), errors: refusal.violations.clone() });
            }
        }
        let fine = self.entries.len() - errors.len().min(self.entries.len());
        Declaration { desired: Arc::new(desired), complete, trouble: None, empty: false, errors, fine }
    }
}

impl Entry {
    fn deletion_policy(&self) -> DeletionPolicy {
        let policy = match self.usable.as_deref() {
            Some(Object::ResourcePool(pool)) => pool.spec.deletion_policy,
            _ => self.policy,
        };
        match (self.life, policy) {
            // What was to stay takes nothing from anyone, and there is nothing to wait for.
            (Life::Deleting { forced: true }, DeletionPolicy::Drain) => DeletionPolicy::Revoke,
            (_, policy) => policy,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::source::kubernetes::{
        fixtures::{Otherwise as _, binding, gpus, object, pool},
        object::FINALIZER,
    };

    /// An index of these objects, brought by a watch one after the other.
    fn index<const N: usize>(objects: [DynamicObject; N]) -> Index {
        let mut index = Index::default();
        for object in objects {
            assert!(apply(&mut index, &object), "{object:?}");
        }
        index
    }

    fn apply(index: &mut Index, object: &DynamicObject) -> bool {
        let kind =
            if object.types.as_ref().unwrap().kind == "SoftBinding" { Kind::SoftBinding } else { Kind::ResourcePool };
        index.apply(kind, object)
    }

    fn key(object: &DynamicObject) -> Key {
        Key::of(Kind::ResourcePool, object)
    }

    /// What is declared of the pool `gpus`: its edit, and its bindings.
    fn declared(index: &Index) -> Option<(Option<i64>, Vec<String>)> {
        let desired = index.declaration(false).desired;
        let pool = desired.pools.get(&gpus())?;
        Some((pool.generation, pool.bindings.iter().map(|it| it.object.clone()).collect()))
    }

    fn unborn() -> DynamicObject {
        object(Kind::ResourcePool, "gpus", json!({}))
    }

    fn refused() -> DynamicObject {
        pool("gpus").spec(json!({"cooldown": "-1s"}))
    }

    #[test]
    fn a_pool_counts_from_when_it_carries_the_finalizer() {
        let mut index = index([unborn(), binding("trainer")]);
        assert_eq!(declared(&index), None);
        let Declaration { desired, complete, .. } = index.declaration(false);
        assert!(desired.partial.contains(&gpus()), "what Redis may have of it is not undeclared");
        assert!(complete, "of others it is");
        assert!(desired.unpooled.is_empty(), "nobody has to hear that the binding has no pool, for a moment");

        assert!(apply(&mut index, &unborn().finalizer(FINALIZER)), "though its generation is the same");
        assert_eq!(declared(&index), Some((Some(1), vec!["trainer".to_owned()])));
        assert!(index.declaration(false).desired.partial.is_empty());
    }

    #[test]
    fn an_edit_is_told_by_its_generation() {
        let mut index = index([pool("gpus").generation(7), binding("trainer").generation(3)]);
        assert!(apply(&mut index, &pool("gpus").generation(8)));
        let desired = index.declaration(false).desired;
        let pool = &desired.pools[&gpus()];
        assert_eq!((pool.generation, pool.bindings[0].generation), (Some(8), Some(3)));
    }

    #[test]
    fn a_write_of_the_status_changes_nothing() {
        let mut index = index([pool("gpus"), binding("trainer")]);
        let before = index.declaration(false);
        assert!(!apply(&mut index, &pool("gpus").status(json!({"total": 1})).version("2")));
        assert!(!apply(&mut index, &binding("trainer").status(json!({"resource": "gpu-0"})).version("3")));
        let labelled = pool("gpus").change(|it| it.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into()));
        assert!(!apply(&mut index, &labelled));
        assert_eq!(index.declaration(false).desired, before.desired);
    }

    #[test]
    fn a_refused_edit_leaves_the_last_good_one() {
        let mut index = index([pool("gpus").spec(json!({"deletionPolicy": "Orphan"})), binding("trainer")]);
        assert!(apply(&mut index, &refused().generation(2)));
        assert_eq!(declared(&index), Some((Some(1), vec!["trainer".to_owned()])));
        let Declaration { desired, complete, errors, fine, .. } = index.declaration(false);
        assert!(desired.partial.is_empty() && complete, "nothing of it is unknown");
        assert_eq!((errors.len(), fine), (1, 1));
        assert_eq!(errors[0].place.to_str(), Some("ResourcePool lab/gpus"));
        assert!(errors[0].errors[0].contains("spec.cooldown: found"), "{errors:?}");
        let refusal = index.refusal(&key(&pool("gpus"))).unwrap();
        assert_eq!((refusal.generation, refusal.message()), (Some(2), errors[0].errors[0].clone()));
        assert_eq!(index.deletion_policy(&key(&pool("gpus"))), DeletionPolicy::Orphan);

        // Another bad one, and a good one.
        assert!(apply(&mut index, &refused().generation(3)));
        assert_eq!(declared(&index).unwrap().0, Some(1));
        assert!(apply(&mut index, &pool("gpus").generation(4)));
        assert_eq!(declared(&index).unwrap().0, Some(4));
        assert_eq!(index.refusal(&key(&pool("gpus"))), None);
        assert!(index.declaration(false).errors.is_empty());
    }

    #[test]
    fn of_a_refused_pool_without_a_good_edit_nothing_is_undeclared() {
        let index = index([refused(), binding("trainer"), pool("others")]);
        assert_eq!(declared(&index), None);
        let Declaration { desired, complete, .. } = index.declaration(false);
        assert!(desired.partial.contains(&gpus()) && desired.mentions(&gpus()));
        assert!(complete, "what is not about it can be told");
        assert_eq!(desired.unpooled[0].pool, gpus(), "its binding waits");
    }

    #[test]
    fn of_the_pool_of_a_refused_binding_no_binding_is_undeclared() {
        let bad = || binding("trainer").spec(json!({"poolRef": {"name": "gpus"}, "resourceName": ""}));
        let mut index = index([pool("gpus"), bad()]);
        assert_eq!(declared(&index), Some((Some(1), Vec::new())), "the pool itself is fine");
        assert!(index.declaration(false).desired.partial.contains(&gpus()));

        assert!(apply(&mut index, &binding("trainer").generation(2)));
        assert!(index.declaration(false).desired.partial.is_empty());
        // From now on there is a good one.
        assert!(apply(&mut index, &bad().generation(3)));
        assert_eq!(declared(&index), Some((Some(1), vec!["trainer".to_owned()])));
        assert!(index.declaration(false).desired.partial.is_empty());
    }

    #[test]
    fn a_binding_of_nobody_knows_which_pool_leaves_everything_in_doubt() {
        let index = index([pool("gpus"), binding("trainer").spec(json!({"poolRef": "gpus", "resourceName": "gpu-0"}))]);
        assert!(!index.declaration(true).complete);
    }

    #[rstest]
    #[case("Drain", DeletionPolicy::Drain)]
    #[case("Revoke", DeletionPolicy::Revoke)]
    #[case("Orphan", DeletionPolicy::Orphan)]
    fn a_pool_that_is_being_deleted_goes_as_it_said(#[case] word: &str, #[case] policy: DeletionPolicy) {
        let object = pool("gpus").spec(json!({"deletionPolicy": word}));
        let mut index = index([object.clone(), binding("trainer")]);
        assert!(apply(&mut index, &object.clone().deleting()));
        let Declaration { desired, complete, .. } = index.declaration(false);
        assert_eq!((desired.pools.len(), desired.deleting.get(&gpus())), (0, Some(&policy)));
        assert!(complete && desired.mentions(&gpus()));
        assert_eq!(index.deletion_policy(&key(&object)), policy);

        // Somebody loses patience, for which there is no reason where nothing is waited for.
        assert!(apply(&mut index, &object.deleting().forced()), "though its generation is the same");
        let forced = if policy == DeletionPolicy::Drain { DeletionPolicy::Revoke } else { policy };
        assert_eq!(index.declaration(false).desired.deleting.get(&gpus()), Some(&forced));
    }

    #[test]
    fn a_refused_pool_that_is_being_deleted_goes_as_its_last_good_edit_said() {
        let mut index = index([pool("gpus").spec(json!({"deletionPolicy": "Revoke"}))]);
        assert!(apply(&mut index, &refused().generation(2)));
        assert!(apply(&mut index, &refused().generation(2).deleting()));
        assert_eq!(index.declaration(false).desired.deleting.get(&gpus()), Some(&DeletionPolicy::Revoke));

        // Without a good one: in the way that takes nothing from anyone.
        let index = self::index([refused().deleting()]);
        assert_eq!(index.declaration(false).desired.deleting.get(&gpus()), Some(&DeletionPolicy::Drain));
    }

    #[test]
    fn a_deletion_that_others_hold_up_is_over_for_the_agent() {
        let mut index = index([pool("gpus"), binding("trainer")]);
        assert!(apply(&mut index, &binding("trainer").finalizer("example.com/theirs").deleting()));
        assert_eq!(declared(&index), Some((Some(1), Vec::new())));
        assert!(apply(&mut index, &unborn().finalizer("example.com/theirs").deleting()));
        let Declaration { desired, complete, .. } = index.declaration(false);
        assert!(!desired.mentions(&gpus()) && complete);
    }

    #[test]
    fn of_bindings_that_contradict_each_other_the_oldest_counts() {
        // By their names, and as they come, it would be the other one.
        let required = |name| {
            let spec = json!({"poolRef": {"name": "gpus"}, "resourceName": "gpu-0", "policy": "Required"});
            binding(name).spec(spec)
        };
        let mut index = index([pool("gpus").created(9), required("a").created(3), required("b").created(2)]);
        assert_eq!(declared(&index).unwrap().1, ["b"]);
        let refused = &index.declaration(false).desired.refused;
        assert_eq!((refused.len(), refused[0].0.object.as_str(), refused[0].1.reason), (1, "a", "BindingConflict"));

        assert!(index.remove(&Key::of(Kind::SoftBinding, &required("b"))));
        assert_eq!(declared(&index).unwrap().1, ["a"]);
        // Another one of that name is young.
        assert!(apply(&mut index, &required("b").uid("another").created(4)));
        assert_eq!(declared(&index).unwrap().1, ["a"]);
    }

    #[test]
    fn an_object_that_was_made_anew_inherits_nothing() {
        let mut index = index([pool("gpus").spec(json!({"deletionPolicy": "Revoke"}))]);
        assert!(apply(&mut index, &refused().uid("another")), "though its generation is the same");
        assert_eq!(declared(&index), None);
        assert!(index.declaration(false).desired.partial.contains(&gpus()));
        assert_eq!(index.deletion_policy(&key(&pool("gpus"))), DeletionPolicy::Drain);
    }

    #[test]
    fn a_cluster_without_pools_is_no_order_to_delete() {
        let mut index = Index::default();
        assert!(!index.declaration(false).complete);
        assert!(index.declaration(true).complete, "unless it is said to be");
        assert!(apply(&mut index, &binding("trainer")));
        assert!(!index.declaration(false).complete, "a binding is no pool");
        assert!(apply(&mut index, &pool("gpus")));
        assert!(index.declaration(false).complete);
        assert!(index.remove(&key(&pool("gpus"))) && !index.remove(&key(&pool("gpus"))));
        assert!(!index.declaration(false).complete);
    }

    #[test]
    fn what_a_list_does_not_name_is_not_there_any_more() {
        let mut index = index([pool("gpus"), pool("others"), binding("gpus")]);
        let named = key(&pool("others"));
        assert!(index.retain(Kind::ResourcePool, |key| *key == named));
        let keys: Vec<_> = index.keys().map(ToString::to_string).collect();
        assert_eq!(keys, ["ResourcePool lab/others", "SoftBinding lab/gpus"], "the other kind has its own list");
        assert!(!index.retain(Kind::ResourcePool, |key| *key == named), "that is no news");
    }

    #[test]
    fn namespaces_are_kept_apart() {
        let elsewhere = || pool("gpus").namespace("elsewhere");
        let index = index([pool("gpus"), elsewhere(), binding("trainer").namespace("elsewhere")]);
        assert_eq!(declared(&index), Some((Some(1), Vec::new())));
        let desired = index.declaration(false).desired;
        assert_eq!(desired.pools[&key(&elsewhere()).pool().unwrap()].bindings.len(), 1);
    }
}
