//! From what was observed of a pool to the conditions that people see. Pure: no clock but the one handed in.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use redis_allocator::{Error, Hold, Longest, Origin, PoolInfo};
use redis_allocator_crd::{ResourcePoolStatus, SourceState, SourceStatus};

use crate::discover::SourceReport;

/// What is known of a pool.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observed {
    /// Which edit of the declaration all this is about, where edits are counted.
    pub(crate) generation: Option<i64>,
    pub(crate) sync: Sync,
    /// As of the last look; absent before the first one.
    pub(crate) info: Option<PoolInfo>,
    /// Whether the pool was this declaration's then: what is to be remembered of another one's is that one's matter.
    pub(crate) ours: bool,
    /// Whether the declaration pauses granting.
    pub(crate) suspended: bool,
    pub(crate) probing: Probing,
    /// What is known of each source of the declaration.
    pub(crate) sources: BTreeMap<String, SourceReport>,
}

impl Observed {
    /// The sources that have brought a list to this agent.
    pub(super) fn brought(&self) -> BTreeSet<String> {
        self.sources.iter().filter(|(_, report)| report.items.is_some()).map(|(name, _)| name.clone()).collect()
    }
}

/// How far the last reconciliation came.
#[derive(Debug, Clone, Default)]
pub(crate) enum Sync {
    /// None has ended yet.
    #[default]
    Pending,
    Done,
    /// All but these was done.
    HeldBack(Vec<Shrink>),
    /// All but to empty these, which stay until each source has brought a list.
    Waiting(Vec<Origin>),
    Failed(Error),
    /// The pool is not declared any more, and goes when its leases have ended.
    Draining {
        leases_left: u64,
    },
}

/// An origin of which too much would have left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shrink {
    pub(crate) origin: Origin,
    pub(crate) found: u64,
    pub(crate) peak: u64,
    pub(crate) allowed_min: u64,
}

/// What the prober thinks of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Probing {
    /// Nothing is wrong with it, or nothing is probed.
    #[default]
    Fine,
    /// More resources fail than can be true.
    Suspected { failing: u64, total: u64, allowed_percent: u8 },
    /// The declaration asks for `exec`, and the agent was not allowed to.
    ExecNotAllowed,
}

/// A condition without its time.
struct Verdict {
    type_: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn new(type_: &'static str, status: bool, reason: &'static str, message: impl Into<String>) -> Self {
        Self { type_, status: if status { "True" } else { "False" }, reason, message: message.into() }
    }

    fn unknown(type_: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { type_, status: "Unknown", reason, message: message.into() }
    }
}

/// The status of a pool; `before` tells since when each condition is what it is.
pub(crate) fn status(observed: &Observed, before: Option<&ResourcePoolStatus>, now: Timestamp) -> ResourcePoolStatus {
    let mut verdicts = vec![ready(observed), synced(observed), degraded(observed), exhausted(observed)];
    verdicts.extend(discovered(observed));
    let before = before.map_or(&[][..], |before| &before.conditions);
    let conditions = with_times(verdicts, observed.generation, before, now);
    let observed_generation = observed.generation;
    let sources = sources(observed);
    let Some(info) = &observed.info else {
        return ResourcePoolStatus { observed_generation, conditions, sources, ..ResourcePoolStatus::default() };
    };
    let longest = observed.ours.then_some(info.longest);
    ResourcePoolStatus {
        observed_generation,
        conditions,
        total: count(info.counts.total),
        free: count(info.counts.free),
        leased: count(info.counts.leased),
        quarantined: count(info.counts.quarantined),
        reserved: count(info.counts.reserved),
        draining: count(info.counts.draining),
        waiting: count(info.counts.waiting),
        incarnation: observed.ours.then(|| info.incarnation.to_string()),
        longest_ttl: match longest {
            Some(Longest::For(duration)) => in_manifest_form(duration),
            Some(Longest::Permanent) | None => None,
        },
        permanent_leases: longest == Some(Longest::Permanent),
        sources,
    }
}

fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// When a source last succeeded is told only while it does not: otherwise each success would be a change of the status.
fn sources(observed: &Observed) -> Vec<SourceStatus> {
    let in_redis = |name: &String| {
        let origin = observed.info.as_ref()?.origins.get(&Origin::Source(name.clone()))?;
        Some(origin.count)
    };
    let status = |(name, report): (&String, &SourceReport)| SourceStatus {
        name: name.clone(),
        state: report.state,
        items: count(report.items.or_else(|| in_redis(name)).unwrap_or(0)),
        last_success: report.last_success.filter(|_| report.state != SourceState::Fresh).map(Time),
        message: report.message.clone(),
    };
    observed.sources.iter().map(status).collect()
}

/// The status of a binding has one condition.
pub(crate) fn binding_ready(
    ready: bool,
    reason: &'static str,
    message: impl Into<String>,
    generation: Option<i64>,
    before: &[Condition],
    now: Timestamp,
) -> Vec<Condition> {
    with_times(vec![Verdict::new("Ready", ready, reason, message)], generation, before, now)
}

/// A condition keeps its time for as long as its status does not change, whatever its reason, and whoever wrote it first.
pub(crate) fn keep_times(conditions: &mut [Condition], before: &[Condition]) {
    for condition in conditions {
        if let Some(old) = before.iter().find(|old| old.type_ == condition.type_ && old.status == condition.status) {
            condition.last_transition_time = old.last_transition_time.clone();
        }
    }
}

fn with_times(verdicts: Vec<Verdict>, generation: Option<i64>, before: &[Condition], now: Timestamp) -> Vec<Condition> {
    let timed = |verdict: Verdict| Condition {
        last_transition_time: Time(now),
        message: verdict.message,
        observed_generation: generation,
        reason: verdict.reason.to_owned(),
        status: verdict.status.to_owned(),
        type_: verdict.type_.to_owned(),
    };
    let mut conditions: Vec<_> = verdicts.into_iter().map(timed).collect();
    keep_times(&mut conditions, before);
    conditions
}

fn ready(observed: &Observed) -> Verdict {
    let granting = || {
        if observed.suspended {
            Verdict::new("Ready", false, "Suspended", "spec.suspend is true: nothing is granted")
        } else {
            Verdict::new("Ready", true, "Ready", "resources are granted as declared")
        }
    };
    match &observed.sync {
        Sync::Pending => Verdict::unknown("Ready", "Pending", "not reconciled yet"),
        Sync::Done | Sync::HeldBack(_) | Sync::Waiting(_) => granting(),
        Sync::Failed(error) => Verdict::new("Ready", false, reason(error), error.to_string()),
        Sync::Draining { leases_left } => Verdict::new("Ready", false, "Draining", draining(*leases_left)),
    }
}

fn synced(observed: &Observed) -> Verdict {
    match &observed.sync {
        Sync::Pending => Verdict::unknown("Synced", "Pending", "not reconciled yet"),
        Sync::Done => Verdict::new("Synced", true, "Synced", "Redis has what is declared"),
        Sync::HeldBack(shrinks) => {
            let parts: Vec<_> = shrinks
                .iter()
                .map(|Shrink { origin, found, peak, allowed_min }| {
                    format!("{origin} declares {found} resources, lately {peak}: allowed are {allowed_min} or more")
                })
                .collect();
            let message =
                format!("{}; if that is meant, set spec.maxShrinkPercent to 100 until it is done", parts.join("; "));
            Verdict::new("Synced", false, "ShrinkHeldBack", message)
        }
        Sync::Waiting(origins) => Verdict::new("Synced", false, "SourcePending", stays(origins)),
        Sync::Failed(error) => Verdict::new("Synced", false, reason(error), error.to_string()),
        Sync::Draining { leases_left } => Verdict::new("Synced", false, "Draining", draining(*leases_left)),
    }
}

/// Of origins that wait to be emptied.
pub(super) fn stays(origins: &[Origin]) -> String {
    let names: Vec<_> = origins.iter().map(ToString::to_string).collect();
    format!("what {} had stays until each source has brought a list once", names.join(" and "))
}

fn draining(leases_left: u64) -> String {
    format!("the pool is not declared any more, and goes when its {leases_left} leases have ended")
}

fn degraded(observed: &Observed) -> Verdict {
    let degraded = |reason, message: String| Verdict::new("Degraded", true, reason, message);
    match (observed.info.as_ref().and_then(|info| info.hold), observed.probing) {
        (Some(Hold::Until(until)), _) => degraded(
            "RecoveredAfterDataLoss",
            format!(
                "Redis had lost the pool: its resources are held back until {}, when the leases it forgot are over",
                jiff::Timestamp::try_from(until.to_system_time())
                    .map_or_else(|_| until.to_string(), |time| time.to_string())
            ),
        ),
        (Some(Hold::Released), _) => degraded(
            "RecoveredAfterDataLoss",
            "Redis had lost the pool, and with it permanent leases: each resource is held back until `redis-allocator \
             unquarantine` says that nobody uses it"
                .to_owned(),
        ),
        (None, Probing::Suspected { failing, total, allowed_percent }) => degraded(
            "ProberSuspected",
            format!(
                "{failing} of {total} resources fail their probe, more than the {allowed_percent} % of \
                 spec.healthCheck.maxUnhealthyPercent: the prober is suspected, and nothing more is quarantined"
            ),
        ),
        (None, Probing::ExecNotAllowed) => degraded(
            "ExecNotAllowed",
            "spec.healthCheck.exec needs an agent that was started with --allow-exec: nothing is probed".to_owned(),
        ),
        (None, Probing::Fine) => Verdict::new("Degraded", false, "NothingWrong", ""),
    }
}

/// Of a pool with sources: whether they bring what can be used.
fn discovered(observed: &Observed) -> Option<Verdict> {
    let in_state = |state| observed.sources.values().any(|report| report.state == state);
    let told: Vec<_> = observed
        .sources
        .iter()
        .filter(|(_, report)| !report.message.is_empty())
        .map(|(name, report)| format!("source {name}: {}", report.message))
        .collect();
    let kept = format!("{}; the pool stays as it was", told.join("; "));
    Some(if observed.sources.is_empty() {
        return None;
    } else if in_state(SourceState::Failing) {
        Verdict::new("Discovered", false, "SourceFailing", kept)
    } else if in_state(SourceState::HeldBack) {
        Verdict::new("Discovered", false, "SourceHeldBack", kept)
    } else if in_state(SourceState::Pending) {
        Verdict::unknown("Discovered", "SourcePending", "not all sources have answered yet")
    } else {
        Verdict::new("Discovered", true, "SourcesFresh", "the pool has what its sources bring")
    })
}

fn exhausted(observed: &Observed) -> Verdict {
    match &observed.info {
        None => Verdict::unknown("Exhausted", "Pending", "not seen yet"),
        Some(info) if info.counts.total == 0 => {
            Verdict::new("Exhausted", true, "NoResources", "the pool has no resource")
        }
        Some(info) if info.counts.free == 0 => {
            Verdict::new("Exhausted", true, "NothingFree", format!("none of {} resources is free", info.counts.total))
        }
        Some(_) => Verdict::new("Exhausted", false, "ResourcesFree", ""),
    }
}

/// The error's kind as a condition's reason.
pub(crate) fn reason(error: &Error) -> &'static str {
    match error {
        Error::ManagerConflict { .. } => "ManagerConflict",
        Error::ModeConflict { .. } => "ModeConflict",
        Error::BindingConflict { .. } => "BindingConflict",
        Error::UnsupportedSchema { .. } => "UnsupportedSchema",
        Error::UnknownPool { .. } => "PoolLost",
        Error::Superseded { .. } => "Superseded",
        Error::Invalid { .. } | Error::InvalidName { .. } | Error::TtlRefused { .. } => "InvalidSpec",
        Error::Server { .. } | Error::Evicting { .. } => "RedisRefused",
        error if error.is_transient() => "RedisUnavailable",
        _ => "SyncFailed",
    }
}

/// A duration as manifests write it.
pub(super) fn in_manifest_form(duration: std::time::Duration) -> Option<redis_allocator_crd::Duration> {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{hours}h{minutes}m{seconds}s{}ms", duration.subsec_millis()).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn condition<'a>(status: &'a ResourcePoolStatus, type_: &str) -> &'a Condition {
        status.conditions.iter().find(|condition| condition.type_ == type_).unwrap()
    }

    fn summary(observed: &Observed) -> Vec<String> {
        let status = status(observed, None, at(0));
        status.conditions.iter().map(|it| format!("{}={}/{}", it.type_, it.status, it.reason)).collect()
    }

    #[test]
    fn before_anything_is_known_nothing_is_claimed() {
        assert_eq!(
            summary(&Observed::default()),
            [
                "Ready=Unknown/Pending",
                "Synced=Unknown/Pending",
                "Degraded=False/NothingWrong",
                "Exhausted=Unknown/Pending"
            ]
        );
    }

    #[test]
    fn what_is_held_back_says_how_to_let_it_through() {
        let shrink = Shrink { origin: Origin::Spec, found: 1, peak: 10, allowed_min: 5 };
        let observed = Observed { sync: Sync::HeldBack(vec![shrink]), ..Observed::default() };
        let status = status(&observed, None, at(0));
        assert_eq!(condition(&status, "Ready").status, "True", "the pool goes on as it was");
        let synced = condition(&status, "Synced");
        assert_eq!((synced.status.as_str(), synced.reason.as_str()), ("False", "ShrinkHeldBack"));
        assert!(
            synced.message.contains("spec declares 1") && synced.message.contains("maxShrinkPercent"),
            "{}",
            synced.message
        );
    }

    #[test]
    fn what_waits_for_a_source_is_not_in_sync_and_says_so() {
        let origins = vec![Origin::Spec, Origin::Source("old".to_owned())];
        let observed = Observed { sync: Sync::Waiting(origins), ..Observed::default() };
        assert_eq!(summary(&observed)[..2], ["Ready=True/Ready", "Synced=False/SourcePending"]);
        let status = status(&observed, None, at(0));
        assert_eq!(
            condition(&status, "Synced").message,
            "what spec and source/old had stays until each source has brought a list once"
        );
    }

    #[test]
    fn a_suspended_pool_is_in_sync_and_not_ready() {
        let observed = Observed { sync: Sync::Done, suspended: true, ..Observed::default() };
        assert_eq!(summary(&observed)[..2], ["Ready=False/Suspended", "Synced=True/Synced"]);
    }

    #[test]
    fn a_pool_without_sources_says_nothing_of_them_and_one_with_tells_the_worst() {
        let report =
            |state, message: &str| SourceReport { state, message: message.to_owned(), ..SourceReport::default() };
        let mut observed = Observed { sync: Sync::Done, ..Observed::default() };
        assert_eq!(summary(&observed).len(), 4);
        let mut told = |name: &str, source: SourceReport| {
            observed.sources.insert(name.to_owned(), source);
            summary(&observed)[4].clone()
        };
        assert_eq!(told("a", report(SourceState::Fresh, "")), "Discovered=True/SourcesFresh");
        assert_eq!(told("b", report(SourceState::Pending, "")), "Discovered=Unknown/SourcePending");
        assert_eq!(told("c", report(SourceState::HeldBack, "too few")), "Discovered=False/SourceHeldBack");
        assert_eq!(told("d", report(SourceState::Failing, "no answer")), "Discovered=False/SourceFailing");
        let status = status(&observed, None, at(0));
        assert_eq!(
            condition(&status, "Discovered").message,
            "source c: too few; source d: no answer; the pool stays as it was"
        );
    }

    #[test]
    fn each_success_of_a_source_is_no_change_of_the_status() {
        let mut report = SourceReport {
            state: SourceState::Fresh,
            items: Some(3),
            last_success: Some(at(10)),
            message: String::new(),
        };
        let seen = |report: &SourceReport| {
            let sources = BTreeMap::from([("a".to_owned(), report.clone())]);
            status(&Observed { sources, ..Observed::default() }, None, at(0))
        };
        let first = seen(&report);
        report.last_success = Some(at(20));
        assert_eq!(seen(&report), first);
        report.state = SourceState::Failing;
        assert_eq!(seen(&report).sources[0].last_success, Some(Time(at(20))), "now people want to know");
    }

    #[test]
    fn an_error_is_the_reason() {
        let conflict = Error::ManagerConflict {
            pool: "gpus".parse().unwrap(),
            manager: "files:/a".to_owned(),
            found: "files:/b".to_owned(),
        };
        let observed = Observed { sync: Sync::Failed(conflict), ..Observed::default() };
        assert_eq!(summary(&observed)[..2], ["Ready=False/ManagerConflict", "Synced=False/ManagerConflict"]);
    }

    #[test]
    fn the_time_of_a_condition_changes_with_its_status_alone() {
        let mut observed = Observed { sync: Sync::Done, ..Observed::default() };
        let first = status(&observed, None, at(10));
        observed.probing = Probing::Suspected { failing: 3, total: 4, allowed_percent: 40 };
        let second = status(&observed, Some(&first), at(20));
        observed.probing = Probing::ExecNotAllowed;
        let third = status(&observed, Some(&second), at(30));
        let times = |status: &ResourcePoolStatus| {
            ["Ready", "Degraded"].map(|type_| condition(status, type_).last_transition_time.0.as_second())
        };
        assert_eq!([times(&first), times(&second), times(&third)], [[10, 10], [10, 20], [10, 20]]);
        assert_eq!(condition(&third, "Degraded").reason, "ExecNotAllowed");
    }

    #[test]
    fn a_long_time_has_the_manifests_form() {
        for (secs, text) in [(0, "0s"), (90, "1m30s"), (315_360_000, "87600h")] {
            assert_eq!(in_manifest_form(std::time::Duration::from_secs(secs)).unwrap().to_string(), text);
        }
    }
}
