//! What is written of an object: pure, from what is known and what was written last.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use redis_allocator_crd::{ResourcePoolStatus, SoftBindingStatus, SourceState};
use serde::{Serialize, de::DeserializeOwned};

use super::object::Refusal;
use crate::reconcile::conditions::{self, Observed, keep_times};

/// A status with conditions.
pub(super) trait Status: Clone + PartialEq + Serialize + DeserializeOwned {
    /// Before anything is known.
    fn unknown() -> Self;
    /// Which edit it is about, and its conditions.
    fn parts(&self) -> (Option<i64>, &[Condition]);
    fn parts_mut(&mut self) -> (&mut Option<i64>, &mut Vec<Condition>);

    /// The same without what may be told a little later.
    fn without_counts(&self) -> Self {
        self.clone()
    }

    /// Has what was not looked at yet be what it was.
    fn fill_in(&mut self, _before: &Self) {}

    fn observed(&self) -> Option<i64> {
        self.parts().0
    }

    fn conditions(&self) -> &[Condition] {
        self.parts().1
    }

    fn conditions_mut(&mut self) -> &mut Vec<Condition> {
        self.parts_mut().1
    }
}

impl Status for ResourcePoolStatus {
    fn unknown() -> Self {
        conditions::status(&Observed::default(), None, Timestamp::now())
    }

    fn parts(&self) -> (Option<i64>, &[Condition]) {
        (self.observed_generation, &self.conditions)
    }

    fn parts_mut(&mut self) -> (&mut Option<i64>, &mut Vec<Condition>) {
        (&mut self.observed_generation, &mut self.conditions)
    }

    fn without_counts(&self) -> Self {
        // What is needed should Redis lose the pool is no count.
        Self {
            observed_generation: self.observed_generation,
            conditions: self.conditions.clone(),
            incarnation: self.incarnation.clone(),
            longest_ttl: self.longest_ttl,
            permanent_leases: self.permanent_leases,
            ..Self::default()
        }
    }

    fn fill_in(&mut self, before: &Self) {
        // Whoever leads anew asks the sources at once, and until they answer, what was said of them is true enough.
        for source in self.sources.iter_mut().filter(|source| source.state == SourceState::Pending) {
            if let Some(old) = before.sources.iter().find(|old| old.name == source.name) {
                source.clone_from(old);
            }
        }
        let is_discovered = |it: &&mut Condition| it.type_ == "Discovered" && it.status == "Unknown";
        if let Some(condition) = self.conditions.iter_mut().find(is_discovered)
            && let Some(old) = before.conditions.iter().find(|old| old.type_ == "Discovered")
            && self.sources.iter().all(|source| source.state != SourceState::Pending)
        {
            condition.clone_from(old);
            condition.observed_generation = self.observed_generation;
        }
        if self.incarnation.is_some() || before.incarnation.is_none() {
            return;
        }
        // Only how reconciling goes is known. What is remembered for the case that Redis loses the pool is needed most now.
        let mut conditions = std::mem::take(&mut self.conditions);
        for condition in &mut conditions {
            if matches!(condition.type_.as_str(), "Degraded" | "Exhausted")
                && let Some(old) = before.conditions.iter().find(|old| old.type_ == condition.type_)
            {
                condition.clone_from(old);
            }
        }
        let observed_generation = self.observed_generation.or(before.observed_generation);
        *self = Self { observed_generation, conditions, ..before.clone() };
    }
}

impl Status for SoftBindingStatus {
    fn unknown() -> Self {
        let conditions = conditions::binding_ready(false, "Pending", "not bound yet", None, &[], Timestamp::now());
        Self { conditions, ..Self::default() }
    }

    fn parts(&self) -> (Option<i64>, &[Condition]) {
        (self.observed_generation, &self.conditions)
    }

    fn parts_mut(&mut self) -> (&mut Option<i64>, &mut Vec<Condition>) {
        (&mut self.observed_generation, &mut self.conditions)
    }
}

/// What is known of an object.
pub(super) struct Known<'a, S> {
    /// Which edit of it the API server has.
    pub(super) generation: Option<i64>,
    pub(super) deleting: bool,
    /// As it was written last.
    pub(super) before: Option<&'a S>,
    /// As the reconcilers have it.
    pub(super) said: Option<S>,
    pub(super) refusal: Option<&'a Refusal>,
    /// Why no reconciler can say anything.
    pub(super) unreachable: Option<&'a str>,
}

/// What is to be written; `None` while there is nothing to say that is not said.
pub(super) fn compose<S: Status>(known: Known<'_, S>) -> Option<S> {
    let Known { generation, deleting, before, said, refusal, unreachable } = known;
    let last = || before.filter(|before| !before.conditions().is_empty()).cloned().unwrap_or_else(S::unknown);
    let is_news = |said: &S| {
        let observed = said.observed();
        let last = before.and_then(Status::observed);
        // A refused edit and a deletion are what the last status is about, and no reconciler's.
        let is_late = observed < last && refusal.is_none() && !deleting;
        // That nothing is known yet is none. Nor is what was said of an earlier edit than the last status is about, or of
        // an object that was there before under this name; or, of one that is being deleted, how it was before that.
        ready(said).is_none_or(|ready| ready.reason != "Pending" && !(deleting && ready.status == "True"))
            && (observed.is_none() || !is_late && (generation.is_none() || observed <= generation))
    };
    let mut said = said.filter(is_news);
    if let (Some(said), Some(before)) = (&mut said, before) {
        said.fill_in(before);
    }
    // Of an object that is being deleted, how that goes is what counts.
    let mut status = if let Some(refusal) = refusal.filter(|_| !deleting) {
        let mut status = said.unwrap_or_else(last);
        put(&mut status, "InvalidSpec", &refusal.message());
        observe(&mut status, refusal.generation);
        status
    } else if let Some(said) = said {
        said
    } else if let Some(trouble) = unreachable {
        let mut status = last();
        put(&mut status, "RedisUnavailable", trouble);
        observe(&mut status, generation);
        status
    } else {
        return None;
    };
    let has_begun = status.observed() < before.and_then(Status::observed);
    if deleting && (has_begun || ready(&status).is_some_and(|ready| ready.reason == "Draining")) {
        // The deletion is an edit, too, and it is what this is about.
        observe(&mut status, generation);
    }
    keep_times(status.conditions_mut(), before.map_or(&[], |before| before.conditions()));
    (before != Some(&status)).then_some(status)
}

fn ready<S: Status>(status: &S) -> Option<&Condition> {
    status.conditions().iter().find(|condition| condition.type_ == "Ready")
}

/// Says why the object is not ready.
fn put<S: Status>(status: &mut S, reason: &str, message: &str) {
    let now = Timestamp::now();
    for condition in status.conditions_mut() {
        if matches!(condition.type_.as_str(), "Ready" | "Synced") {
            if condition.status != "False" {
                "False".clone_into(&mut condition.status);
                condition.last_transition_time.0 = now;
            }
            reason.clone_into(&mut condition.reason);
            message.clone_into(&mut condition.message);
        }
    }
}

fn observe<S: Status>(status: &mut S, generation: Option<i64>) {
    let (observed, conditions) = status.parts_mut();
    *observed = generation;
    for condition in conditions {
        condition.observed_generation = generation;
    }
}

/// Whether it must be written at once: everything but counts, and what only says them in words.
pub(super) fn is_urgent<S: Status>(before: Option<&S>, after: &S) -> bool {
    let essence = |status: &S| {
        let mut status = status.without_counts();
        // A pool at the brim is exhausted and is not with every lease.
        status.conditions_mut().retain(|condition| condition.type_ != "Exhausted");
        status.conditions_mut().iter_mut().for_each(|condition| condition.message.clear());
        status
    };
    before.is_none_or(|before| essence(before) != essence(after))
}

#[cfg(test)]
mod tests {
    use redis_allocator_crd::SourceStatus;
    use serde_json::json;

    use super::*;
    use crate::source::kubernetes::fixtures::{SINCE, condition, ready, summary, with};

    /// Of an object's second edit, nothing is known yet.
    fn known(before: Option<&ResourcePoolStatus>) -> Known<'_, ResourcePoolStatus> {
        Known { generation: Some(2), deleting: false, before, said: None, refusal: None, unreachable: None }
    }

    fn refusal(generation: i64) -> Refusal {
        Refusal {
            generation: Some(generation),
            violations: vec!["spec.a: found 1".to_owned(), "spec.b: found 2".to_owned()],
        }
    }

    fn draining() -> ResourcePoolStatus {
        with(ready(), condition("Ready", "False", "Draining", "2 leases are left", SINCE))
    }

    fn pending() -> ResourcePoolStatus {
        Status::unknown()
    }

    #[test]
    fn what_is_said_already_is_not_said_again() {
        let before = ready();
        assert_eq!(compose(known(Some(&before))), None);
        assert_eq!(compose(Known { said: Some(ready()), ..known(Some(&before)) }), None);
        assert_eq!(compose(Known { said: Some(pending()), ..known(Some(&before)) }), None);
        assert_eq!(compose(Known { said: Some(pending()), ..known(None) }), None);

        let refusal = refusal(2);
        let refused = compose(Known { refusal: Some(&refusal), ..known(Some(&before)) }).unwrap();
        assert_eq!(compose(Known { refusal: Some(&refusal), ..known(Some(&refused)) }), None);
        let away = compose(Known { unreachable: Some("away"), ..known(Some(&before)) }).unwrap();
        assert_eq!(compose(Known { unreachable: Some("away"), ..known(Some(&away)) }), None);
    }

    #[test]
    fn a_refusal_is_about_the_edit_that_was_refused() {
        let (before, refusal) = (ready(), refusal(2));
        // A label was changed since, say.
        let status = compose(Known { generation: Some(9), refusal: Some(&refusal), ..known(Some(&before)) }).unwrap();
        assert_eq!(status.observed_generation, Some(2));
        assert_eq!(status.conditions[0].message, "spec.a: found 1; spec.b: found 2");
        assert_eq!(
            summary(&status.conditions),
            [
                "Ready=False/InvalidSpec",
                "Synced=False/InvalidSpec",
                "Degraded=False/NothingWrong",
                "Exhausted=False/ResourcesFree"
            ]
        );
    }

    #[test]
    fn a_refusal_is_told_whether_redis_was_reached_or_not() {
        let refusal = refusal(2);
        for said in [None, Some(ready()), Some(pending())] {
            let status =
                compose(Known { said, refusal: Some(&refusal), unreachable: Some("away"), ..known(None) }).unwrap();
            assert_eq!(summary(&status.conditions)[0], "Ready=False/InvalidSpec");
        }
    }

    #[test]
    fn of_a_deletion_a_refusal_is_no_news_and_the_drain_is() {
        let (before, refusal) = (ready(), refusal(1));
        let deleting = Known { deleting: true, refusal: Some(&refusal), ..known(Some(&before)) };
        let status = compose(Known { said: Some(draining()), ..deleting }).unwrap();
        assert_eq!(summary(&status.conditions)[0], "Ready=False/Draining");
        assert_eq!(status.observed_generation, Some(2));
    }

    #[test]
    fn while_an_edit_is_refused_the_pool_goes_on_and_so_do_its_counts() {
        let refusal = refusal(2);
        let ready = ready();
        let refused =
            compose(Known { said: Some(ready.clone()), refusal: Some(&refusal), ..known(Some(&ready)) }).unwrap();
        let counted = ResourcePoolStatus { leased: 2, permanent_leases: true, ..ready };
        let status = compose(Known { said: Some(counted), refusal: Some(&refusal), ..known(Some(&refused)) }).unwrap();
        assert_eq!((status.leased, status.permanent_leases, status.observed_generation), (2, true, Some(2)));
        assert_eq!(summary(&status.conditions), summary(&refused.conditions));
    }

    #[test]
    fn how_a_deletion_goes_on_is_told() {
        let before = ready();
        let begun = compose(Known { deleting: true, said: Some(draining()), ..known(Some(&before)) }).unwrap();
        let on =
            |condition| compose(Known { deleting: true, said: Some(with(ready(), condition)), ..known(Some(&begun)) });
        let status = on(condition("Ready", "False", "Draining", "1 lease is left", SINCE)).unwrap();
        assert_eq!((status.conditions[0].message.as_str(), status.observed_generation), ("1 lease is left", Some(2)));
        let status = on(condition("Ready", "False", "RedisUnavailable", "away", SINCE)).unwrap();
        assert_eq!(summary(&status.conditions)[0], "Ready=False/RedisUnavailable");
        assert_eq!(status.observed_generation, Some(2), "it does not go back");
    }

    #[test]
    fn that_a_deletion_is_seen_is_not_claimed_before_it_is() {
        let before = ready();
        let counted = ResourcePoolStatus { leased: 2, ..ready() };
        let status = compose(Known { deleting: true, said: Some(counted), ..known(Some(&before)) });
        assert_eq!(status, None, "how it was before that is no news");
        let status = compose(Known { deleting: true, said: Some(draining()), ..known(Some(&before)) }).unwrap();
        assert_eq!(status.observed_generation, Some(2));
        assert!(status.conditions.iter().all(|it| it.observed_generation == Some(2)));
    }

    #[test]
    fn the_time_of_a_condition_is_when_its_status_changed() {
        let later = "2026-03-01T00:00:00Z";
        let before = ready();
        let said = with(ready(), condition("Ready", "True", "AnotherReason", "", later));
        let said = with(said, condition("Synced", "False", "ShrinkHeldBack", "", later));
        let status = compose(Known { said: Some(said), ..known(Some(&before)) }).unwrap();
        let times: Vec<_> = status.conditions.iter().map(|it| it.last_transition_time.0.to_string()).collect();
        assert_eq!(times, [SINCE, later, SINCE, SINCE]);
    }

    #[test]
    fn what_was_seen_replaces_what_was_seen_before() {
        let before = ready();
        let another = ResourcePoolStatus {
            incarnation: Some("fedcba9876543210".to_owned()),
            longest_ttl: None,
            total: 1,
            ..ready()
        };
        assert_eq!(compose(Known { said: Some(another.clone()), ..known(Some(&before)) }), Some(another));
    }

    #[test]
    fn counts_are_not_urgent_and_everything_else_is() {
        let before = ready();
        for field in ["total", "free", "leased", "quarantined", "reserved", "draining", "waiting"] {
            let mut counted = serde_json::to_value(ready()).unwrap();
            counted[field] = json!(77);
            let counted: ResourcePoolStatus = serde_json::from_value(counted).unwrap();
            assert_ne!(counted, before);
            assert!(!is_urgent(Some(&before), &counted), "{field}");
        }
        assert!(is_urgent(None, &before));
        let binding = SoftBindingStatus { resource: Some("gpu-0".to_owned()), ..Status::unknown() };
        assert!(is_urgent(Some(&binding), &SoftBindingStatus { resource: None, ..binding.clone() }));
    }

    #[test]
    fn until_a_new_leader_has_asked_the_sources_what_was_said_of_them_stays() {
        let source = |state, message: &str| {
            vec![SourceStatus {
                name: "eu".to_owned(),
                state,
                items: 3,
                message: message.to_owned(),
                ..SourceStatus::default()
            }]
        };
        let said = |status: &str, reason: &str, sources| {
            let mut said = ResourcePoolStatus { sources, ..ready() };
            let condition = condition("Discovered", status, reason, "", SINCE);
            said.conditions.push(serde_json::from_value(condition).unwrap());
            said
        };
        let before = said("False", "SourceFailing", source(SourceState::Failing, "no answer"));
        let mut pending = said("Unknown", "SourcePending", source(SourceState::Pending, ""));
        assert_eq!(compose(Known { said: Some(pending.clone()), ..known(Some(&before)) }), None);
        let fresh = said("True", "SourcesFresh", source(SourceState::Fresh, ""));
        let written = compose(Known { said: Some(fresh.clone()), ..known(Some(&before)) }).unwrap();
        assert_eq!(written.sources, fresh.sources);
        // Of a source that is new, nothing was said.
        pending.sources[0].name = "us".to_owned();
        let written = compose(Known { said: Some(pending), ..known(Some(&before)) }).unwrap();
        assert_eq!(summary(&written.conditions)[4], "Discovered=Unknown/SourcePending");
    }

    #[test]
    fn an_object_without_conditions_says_nothing_worth_keeping() {
        let empty = SoftBindingStatus::default();
        let known = Known {
            generation: Some(4),
            deleting: false,
            before: Some(&empty),
            said: None,
            refusal: None,
            unreachable: Some("away"),
        };
        let status = compose(known).unwrap();
        assert_eq!(summary(&status.conditions), ["Ready=False/RedisUnavailable"]);
        assert_eq!((status.observed_generation, status.conditions[0].observed_generation), (Some(4), Some(4)));
    }
}
