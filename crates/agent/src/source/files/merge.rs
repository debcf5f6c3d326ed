//! From files to one declaration, keeping what was last good.
//!
//! # Guarantees
//! - A file with any error keeps all the objects that it last declared without one.
//! - An object that stands in two places is not taken from either; what it was before stays.
//! - A file that is gone takes its objects with it, unless they stand elsewhere now.
//! - A file that was not looked for, or not found because a directory or link on the way to it can't be read, stays what
//!   it was.
//! - A binding that was edited into a contradiction stays what it was; the one that it contradicts is not touched.
//! - [`Merged::complete`] is false while something that can't be read may have declared what is missing.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use redis_allocator_crd::{Kind, Object, validate_update};

use super::{
    load::Declared,
    report::Problem,
    scan::{Files, Hides},
};
use crate::{
    desired::{Desired, DesiredBinding, Refusal},
    reconcile::SYSTEM_NAMESPACE,
};

/// What names an object: kind, namespace, name.
type Identity = (Kind, String, String);

fn identity(object: &Object) -> Identity {
    (object.kind(), object.namespace(), object.name())
}

/// What was good so far.
#[derive(Debug, Default)]
pub(crate) struct Merger {
    files: BTreeMap<Arc<Path>, Vec<Declared>>,
    effective: BTreeMap<Identity, Declared>,
    /// What of each of these was last found to contradict nothing that was there before it.
    accepted: BTreeMap<Identity, Arc<Object>>,
}

/// What the files say together.
#[derive(Debug)]
pub(crate) struct Merged {
    pub(crate) desired: Desired,
    pub(crate) problems: Vec<Problem>,
    pub(crate) complete: bool,
    /// Files that are taken as they stand.
    pub(crate) fine: usize,
    /// Whether there is any object at all, or any file that may have meant to declare one.
    pub(crate) empty: bool,
}

impl Merger {
    /// Takes what a scan found.
    pub(crate) fn update(&mut self, files: &Files) -> Merged {
        let mut problems = Vec::new();
        let mut complete = true;
        let mut fine = 0;
        let before = std::mem::take(&mut self.files);
        for (file, scanned) in files {
            let found = match &scanned.content {
                Err(found) => Err(found.clone()),
                Ok(declared) => self.check_file(declared).map(|()| declared.clone()),
            };
            match found {
                Ok(declared) => {
                    fine += 1;
                    self.files.insert(Arc::clone(file), declared);
                }
                Err(found) => {
                    problems.extend(found);
                    match before.get(file) {
                        Some(last_good) => drop(self.files.insert(Arc::clone(file), last_good.clone())),
                        None => complete = false,
                    }
                }
            }
            complete &= scanned.hides == Hides::Nothing;
        }
        let hiding: Vec<_> = files.iter().filter(|(_, scanned)| scanned.hides != Hides::Nothing).collect();
        for (file, last_good) in before {
            if hiding.iter().any(|(path, scanned)| scanned.hides.may_hide(path, &file)) {
                self.files.entry(file).or_insert(last_good);
            }
        }
        complete &= self.choose(&mut problems);

        let desired = self.build(&mut problems);
        complete &= desired.is_some();
        let desired = desired.unwrap_or_default();
        let empty = self.effective.is_empty() && problems.is_empty();
        Merged { desired, problems, complete, fine, empty }
    }

    /// What a file must obey beside its own rules: no object twice, nothing immutable changed.
    fn check_file(&self, declared: &[Declared]) -> Result<(), Vec<Problem>> {
        let mut problems = Vec::new();
        let mut seen: BTreeMap<Identity, &Declared> = BTreeMap::new();
        for one in declared {
            let identity = identity(&one.object);
            if identity.1 == SYSTEM_NAMESPACE {
                let message = format!(
                    "metadata.namespace: found {SYSTEM_NAMESPACE:?}, which agents use among themselves, allowed is any \
                     other namespace"
                );
                problems.push(Problem::at(&one.location, message));
            }
            if let Some(old) = self.effective.get(&identity)
                && old.object != one.object
                && let Ok(json) = as_json(&one.object)
                && let Err(violations) = validate_update(&old.object, &json)
            {
                problems.extend(violations.iter().map(|violation| Problem::at(&one.location, violation.to_string())));
            }
            if let Some(first) = seen.insert(identity, one) {
                problems.push(twice(one, first));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    /// Settles which of the places that name an object counts. Whether every object is known.
    fn choose(&mut self, problems: &mut Vec<Problem>) -> bool {
        let mut places: BTreeMap<Identity, Vec<&Declared>> = BTreeMap::new();
        for declared in self.files.values().flatten() {
            places.entry(identity(&declared.object)).or_default().push(declared);
        }
        let mut complete = true;
        let mut effective = BTreeMap::new();
        for (identity, places) in places {
            if let [only] = places[..] {
                effective.insert(identity, only.clone());
                continue;
            }
            let old = self.effective.get(&identity);
            // The newcomer is told of the one that counts, not the other way round.
            let counts = places.iter().find(|place| old.is_some_and(|old| old.location.file == place.location.file));
            let first = counts.or(places.first());
            for place in &places {
                if let Some(first) = first
                    && place.location != first.location
                {
                    problems.push(twice(place, first));
                }
            }
            match old {
                Some(old) => drop(effective.insert(identity, old.clone())),
                None => complete = false,
            }
        }
        self.effective = effective;
        complete
    }

    /// Puts the objects together; what contradicts others is a problem. What was accepted before comes first and what is
    /// new comes last, so that of two that contradict each other the newcomer is refused, whatever its file is called.
    /// `None` when they can't be put together.
    fn build(&mut self, problems: &mut Vec<Problem>) -> Option<Desired> {
        let mut objects: BTreeMap<Identity, Arc<Object>> = self
            .effective
            .iter()
            .map(|(identity, declared)| (identity.clone(), Arc::clone(&declared.object)))
            .collect();
        loop {
            let desired = self.put_together(&objects, problems)?;
            // An edit that is refused leaves what was accepted before it, and what that is may refuse others.
            let mut taken_back = false;
            for (binding, refusal) in &desired.refused {
                let identity = binding_identity(binding, &binding.object);
                if let Some(accepted) = self.accepted.get(&identity)
                    && objects.get(&identity) != Some(accepted)
                {
                    problems.extend(self.refused(binding, refusal));
                    objects.insert(identity, Arc::clone(accepted));
                    taken_back = true;
                }
            }
            if taken_back {
                continue;
            }
            for (binding, refusal) in &desired.refused {
                objects.remove(&binding_identity(binding, &binding.object));
                problems.extend(self.refused(binding, refusal));
            }
            self.accepted = objects;
            return Some(desired);
        }
    }

    fn put_together(&self, objects: &BTreeMap<Identity, Arc<Object>>, problems: &mut Vec<Problem>) -> Option<Desired> {
        let mut order: Vec<_> = objects.iter().collect();
        order.sort_by_key(|(identity, object)| {
            let seniority = match self.accepted.get(*identity) {
                Some(accepted) if accepted == *object => 0,
                Some(_) => 1,
                None => 2,
            };
            (seniority, self.effective.get(*identity).map(|declared| &declared.location))
        });
        match Desired::build(order.iter().map(|(_, object)| &***object)) {
            Ok(desired) => Some(desired),
            // Validation lets no such name through.
            Err(error) => {
                let first = self.effective.values().next();
                problems.extend(first.map(|one| Problem::of_file(&one.location.file, error.to_string())));
                None
            }
        }
    }

    /// What is wrong with a binding that contradicts another one, at the place where it stands.
    fn refused(&self, binding: &DesiredBinding, refusal: &Refusal) -> Option<Problem> {
        let place = |object: &str| self.effective.get(&binding_identity(binding, object)).map(|one| &one.location);
        let mut problem = Problem::at(place(&binding.object)?, &refusal.message);
        problem.also = place(&refusal.other).map(|other| (other.clone(), "the other one".to_owned()));
        Some(problem)
    }
}

/// What names the binding `object` in the namespace of another one.
fn binding_identity(binding: &DesiredBinding, object: &str) -> Identity {
    (Kind::SoftBinding, binding.pool.namespace().to_owned(), object.to_owned())
}

fn twice(second: &Declared, first: &Declared) -> Problem {
    let (kind, namespace, name) = identity(&second.object);
    let mut problem = Problem::at(
        &second.location,
        format!("{kind} {namespace}/{name} is declared twice: allowed is once; remove one"),
    );
    problem.also = Some((first.location.clone(), "it is declared here, too".to_owned()));
    problem
}

fn as_json(object: &Object) -> serde_json::Result<serde_json::Value> {
    match object {
        Object::ResourcePool(pool) => serde_json::to_value(pool),
        Object::SoftBinding(binding) => serde_json::to_value(binding),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use redis_allocator::PoolName;
    use rstest::rstest;
    use tempfile::TempDir;

    use super::*;
    use crate::source::files::scan::{Scanned, scan};

    /// A directory that is scanned again and again by one agent.
    struct Agent {
        dir: TempDir,
        files: Files,
        merger: Merger,
    }

    impl Agent {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), files: Files::new(), merger: Merger::default() }
        }

        fn write(&self, file: &str, text: impl AsRef<[u8]>) {
            fs::write(self.dir.path().join(file), text).unwrap();
        }

        fn look(&mut self) -> Merged {
            self.files = scan(self.dir.path(), &self.files).unwrap();
            self.merger.update(&self.files)
        }
    }

    fn pool(name: &str, resources: &[&str]) -> String {
        let list: Vec<_> = resources.iter().map(|key| format!("{{name: '{key}'}}")).collect();
        format!(
            "apiVersion: redis-allocator.dev/v1alpha1\nkind: ResourcePool\nmetadata: {{name: {name}}}\nspec: {{resources: \
             [{}]}}\n---\n",
            list.join(", ")
        )
    }

    fn binding(name: &str, pool: &str, resource: &str) -> String {
        format!(
            "apiVersion: redis-allocator.dev/v1alpha1\nkind: SoftBinding\nmetadata: {{name: {name}}}\nspec: {{poolRef: \
             {{name: {pool}}}, resourceName: {resource}, policy: Required}}\n---\n"
        )
    }

    /// The declared pools, each with its resources.
    fn pools(merged: &Merged) -> Vec<(String, Vec<String>)> {
        let keys = |pool: &crate::desired::DesiredPool| {
            pool.items(&redis_allocator::Origin::Spec).unwrap().iter().map(|item| item.key.to_string()).collect()
        };
        merged.desired.pools.values().map(|pool| (pool.name.name().to_owned(), keys(pool))).collect()
    }

    fn lines(merged: &Merged) -> Vec<String> {
        merged.problems.iter().map(ToString::to_string).collect()
    }

    #[rstest]
    #[case::malformed(b"a: [".to_vec())]
    #[case::unknown_field(b"apiVersion: redis-allocator.dev/v1alpha1\nkind: ResourcePool\nmetadata: {name: a}\nspec: {x: 1}".to_vec())]
    #[case::unknown_kind(b"apiVersion: redis-allocator.dev/v1alpha1\nkind: Pool".to_vec())]
    #[case::not_utf_8(vec![b'#', 0xff])]
    #[case::brackets(vec![b'['; 20_000])]
    #[case::large(vec![b' '; 17 << 20])]
    #[case::one_good_and_one_bad([pool("a", &["changed"]).into_bytes(), b"kind: ResourcePool".to_vec()].concat())]
    fn a_bad_edit_keeps_what_the_file_last_declared_and_touches_no_other_file(#[case] bad: Vec<u8>) {
        let mut agent = Agent::new();
        agent.write("a.yaml", pool("a", &["a1"]));
        agent.write("b.yaml", pool("b", &["b1"]));
        assert!(agent.look().complete);

        agent.write("a.yaml", bad);
        agent.write("b.yaml", pool("b", &["b1", "b2"]));
        let merged = agent.look();
        let expected = [("a", vec!["a1"]), ("b", vec!["b1", "b2"])]
            .map(|(name, keys)| (name.to_owned(), keys.into_iter().map(str::to_owned).collect::<Vec<_>>()));
        assert_eq!(pools(&merged), expected);
        assert!(!merged.problems.is_empty() && merged.problems.iter().all(|problem| problem.file.ends_with("a.yaml")));
        assert!(merged.complete, "all that was ever declared is known");

        agent.write("a.yaml", pool("a", &["a3"]));
        let merged = agent.look();
        assert_eq!(pools(&merged)[0].1, ["a3"]);
        assert!(merged.problems.is_empty());
    }

    #[test]
    fn a_file_that_was_never_good_may_have_declared_anything() {
        let mut agent = Agent::new();
        agent.write("a.yaml", "a: [");
        agent.write("b.yaml", pool("b", &[]));
        let merged = agent.look();
        assert!(!merged.complete && !merged.empty);
        assert_eq!(pools(&merged).len(), 1);
    }

    #[test]
    fn a_removed_file_takes_its_objects_with_it_unless_they_moved() {
        let mut agent = Agent::new();
        agent.write("a.yaml", pool("a", &[]) + &pool("b", &[]));
        agent.look();
        fs::remove_file(agent.dir.path().join("a.yaml")).unwrap();
        agent.write("moved.yaml", pool("b", &["b1"]));
        let merged = agent.look();
        assert_eq!(pools(&merged), [("b".to_owned(), vec!["b1".to_owned()])]);
        assert!(merged.complete && merged.problems.is_empty());
    }

    #[test]
    fn without_any_object_the_directory_is_empty() {
        let mut agent = Agent::new();
        assert!(agent.look().empty);
        agent.write("notes.yaml", "# nothing yet\n");
        assert!(agent.look().empty);
        agent.write("a.yaml", pool("a", &[]));
        assert!(!agent.look().empty);
    }

    #[test]
    fn an_object_in_two_files_stays_what_it_was_and_both_places_are_named() {
        let mut agent = Agent::new();
        agent.write("b.yaml", pool("a", &["old"]));
        agent.look();
        agent.write("a.yaml", pool("a", &["new"]));
        agent.write("b.yaml", pool("a", &["newer"]));
        let merged = agent.look();
        assert_eq!(pools(&merged), [("a".to_owned(), vec!["old".to_owned()])]);
        let lines = lines(&merged);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].contains("a.yaml:1:1: ResourcePool default/a is declared twice")
                && lines[0].contains("b.yaml:1:1")
        );
        assert!(merged.complete);

        fs::remove_file(agent.dir.path().join("a.yaml")).unwrap();
        assert_eq!(pools(&agent.look())[0].1, ["newer"]);
    }

    #[test]
    fn two_places_from_the_start_declare_nothing_for_sure() {
        let mut agent = Agent::new();
        agent.write("a.yaml", pool("a", &["1"]));
        agent.write("b.yaml", pool("a", &["2"]));
        let merged = agent.look();
        assert!(pools(&merged).is_empty() && !merged.complete && !merged.empty);
    }

    #[test]
    fn an_object_twice_in_one_file_is_an_error_of_the_file() {
        let mut agent = Agent::new();
        agent.write("a.yaml", pool("a", &["1"]) + &pool("a", &["2"]) + &pool("b", &[]));
        let merged = agent.look();
        assert!(pools(&merged).is_empty());
        assert!(lines(&merged)[0].contains("a.yaml:6:1"), "{:?}", lines(&merged));
    }

    #[test]
    fn of_two_contradicting_bindings_the_newcomer_is_refused_whatever_its_file_is_called() {
        let mut agent = Agent::new();
        agent.write("p.yaml", pool("gpus", &["gpu-0"]));
        agent.write("z.yaml", binding("first", "gpus", "gpu-0"));
        agent.look();
        agent.write("a.yaml", binding("second", "gpus", "gpu-0"));
        for _ in 0..2 {
            let merged = agent.look();
            let bindings = &merged.desired.pools[&"gpus".parse::<PoolName>().unwrap()].bindings;
            assert_eq!(bindings.iter().map(|it| it.object.as_str()).collect::<Vec<_>>(), ["first"]);
            let lines = lines(&merged);
            assert!(lines[0].contains("a.yaml:1:1: spec.resourceName") && lines[0].contains("z.yaml:1:1"), "{lines:?}");
        }
        fs::remove_file(agent.dir.path().join("z.yaml")).unwrap();
        assert!(agent.look().problems.is_empty());
    }

    #[test]
    fn an_edit_that_contradicts_another_binding_leaves_both_as_they_were() {
        let bound = |merged: &Merged| {
            let bindings = &merged.desired.pools[&"gpus".parse::<PoolName>().unwrap()].bindings;
            bindings.iter().map(|it| format!("{}={}", it.object, it.resource)).collect::<Vec<_>>()
        };
        let mut agent = Agent::new();
        agent.write("p.yaml", pool("gpus", &["gpu-0", "gpu-1", "gpu-2"]));
        agent.write("a.yaml", binding("a", "gpus", "gpu-0"));
        agent.write("z.yaml", binding("z", "gpus", "gpu-1"));
        agent.look();
        // The third takes what the edit of the first would have freed.
        agent.write("a.yaml", binding("a", "gpus", "gpu-1"));
        agent.write("b.yaml", binding("b", "gpus", "gpu-0"));
        for _ in 0..2 {
            let merged = agent.look();
            assert_eq!(bound(&merged), ["a=gpu-0", "z=gpu-1"]);
            let lines = lines(&merged);
            assert_eq!(lines.len(), 2, "{lines:?}");
            assert!(lines[0].contains("a.yaml:1:1: spec.resourceName") && lines[0].contains("z.yaml:1:1"), "{lines:?}");
            assert!(lines[1].contains("b.yaml:1:1: spec.resourceName") && lines[1].contains("a.yaml:1:1"), "{lines:?}");
        }
        agent.write("z.yaml", binding("z", "gpus", "gpu-2"));
        let merged = agent.look();
        assert_eq!(bound(&merged), ["a=gpu-1", "b=gpu-0", "z=gpu-2"]);
        assert!(merged.problems.is_empty());
    }

    #[test]
    fn what_was_below_a_directory_that_can_not_be_read_stays() {
        let mut agent = Agent::new();
        fs::create_dir(agent.dir.path().join(".v1")).unwrap();
        std::os::unix::fs::symlink(".v1", agent.dir.path().join("team")).unwrap();
        agent.write("b.yaml", pool("b", &["b1"]));
        agent.write("team/a.yaml", pool("a", &["a1"]) + &binding("x", "a", "a1"));
        assert!(agent.look().complete);

        fs::rename(agent.dir.path().join(".v1"), agent.dir.path().join(".v2")).unwrap();
        agent.write("b.yaml", pool("b", &["b1", "b2"]));
        for _ in 0..2 {
            let merged = agent.look();
            assert!(!merged.complete && lines(&merged)[0].contains("team"), "{:?}", lines(&merged));
            let expected = [("a", vec!["a1"]), ("b", vec!["b1", "b2"])]
                .map(|(name, keys)| (name.to_owned(), keys.into_iter().map(str::to_owned).collect::<Vec<_>>()));
            assert_eq!(pools(&merged), expected);
            assert_eq!(merged.desired.pools.values().next().unwrap().bindings.len(), 1);
        }

        fs::remove_file(agent.dir.path().join("team")).unwrap();
        let merged = agent.look();
        assert!(merged.complete && pools(&merged).len() == 1, "gone for sure");
    }

    #[test]
    fn what_is_cut_off_stays_and_nothing_is_known_to_be_complete() {
        let mut agent = Agent::new();
        agent.write("a.yaml", pool("a", &[]));
        agent.write("z.yaml", pool("z", &[]));
        agent.look();
        let path: Arc<Path> = agent.dir.path().join("m.yaml").into();
        let cut = Scanned::failed(Problem::of_file(&path, "too many"), Hides::Rest);
        let merged = agent.merger.update(&Files::from([(path, cut)]));
        assert!(!merged.complete);
        assert_eq!(pools(&merged).into_iter().map(|pool| pool.0).collect::<Vec<_>>(), ["z"], "a was looked for");
    }

    #[test]
    fn the_namespace_of_the_agents_own_pools_is_refused() {
        let mut agent = Agent::new();
        agent.write("a.yaml", pool("a", &[]).replace("{name: a}", "{name: a, namespace: redis-allocator-system}"));
        let merged = agent.look();
        assert!(lines(&merged)[0].contains("a.yaml:1:1: metadata.namespace: found"), "{:?}", lines(&merged));
        assert!(pools(&merged).is_empty() && !merged.complete);
    }

    #[test]
    fn a_bindings_pool_can_not_be_changed() {
        let mut agent = Agent::new();
        agent.write("b.yaml", binding("x", "gpus", "gpu-0"));
        agent.look();
        agent.write("b.yaml", binding("x", "other", "gpu-0"));
        let merged = agent.look();
        assert!(lines(&merged)[0].contains("spec.poolRef"), "{:?}", lines(&merged));
        assert_eq!(merged.desired.unpooled[0].pool.name(), "gpus");
    }
}
