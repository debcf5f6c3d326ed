//! What would become of the resources that each origin of a pool declares: now, by a synchronisation, and later, by
//! itself.

use std::collections::BTreeMap;

use redis_allocator::{Departure, Leaving, Origin, ResourceKey, SyncForesight, SyncOutcome, Timestamp};
use serde::Serialize;

use crate::moment::moment;

/// How many of many names are told.
const TOLD: usize = 10;

/// What would become of an origin's resources.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OriginPlan {
    pub(crate) origin: String,
    #[serde(skip_serializing_if = "Names::is_empty")]
    pub(crate) added: Names,
    #[serde(skip_serializing_if = "Names::is_empty")]
    pub(crate) updated: Names,
    /// They are not leased, and go at once.
    #[serde(skip_serializing_if = "Names::is_empty")]
    pub(crate) removed: Names,
    /// They go with their leases.
    #[serde(skip_serializing_if = "Names::is_empty")]
    pub(crate) draining: Names,
    /// They go at once, and their leases end.
    #[serde(skip_serializing_if = "Names::is_empty")]
    pub(crate) revoked: Names,
    /// They stay, as another origin declares them as well.
    #[serde(skip_serializing_if = "Names::is_empty")]
    pub(crate) kept: Names,
    /// It lets go of them later, unless it declares them again: nothing that is done now.
    #[serde(skip_serializing_if = "Departures::is_empty")]
    pub(crate) later: Departures,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) held_back: Option<HeldBack>,
}

/// So many resources, and the first of them by name.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Names {
    pub(crate) count: usize,
    pub(crate) first: Vec<String>,
}

/// So many resources, and those of them that are the first to go.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Departures {
    pub(crate) count: usize,
    pub(crate) first: Vec<Departing>,
}

/// A resource that is let go of at a time.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Departing {
    pub(crate) name: String,
    pub(crate) at: jiff::Timestamp,
}

/// A shrink that goes too far.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HeldBack {
    /// How many resources are declared now.
    pub(crate) found: u64,
    /// The most that were declared lately.
    pub(crate) peak: u64,
    /// The fewest that would be let through.
    pub(crate) allowed_min: u64,
}

impl OriginPlan {
    /// Of an origin with which nothing is to be done.
    pub(crate) fn idle(origin: &Origin) -> Self {
        Self {
            origin: origin.to_string(),
            added: Names::default(),
            updated: Names::default(),
            removed: Names::default(),
            draining: Names::default(),
            revoked: Names::default(),
            kept: Names::default(),
            later: Departures::default(),
            held_back: None,
        }
    }

    fn of(foreseen: &SyncForesight) -> Self {
        let held_back = match foreseen.outcome {
            SyncOutcome::HeldBack { found, peak, allowed_min } => Some(HeldBack { found, peak, allowed_min }),
            _ => None,
        };
        let leaving = |how| foreseen.removed.iter().filter(move |(_, leaving)| *leaving == how).map(|(key, _)| key);
        Self {
            added: Names::of(&foreseen.added),
            updated: Names::of(&foreseen.updated),
            removed: Names::of(leaving(Leaving::AtOnce)),
            draining: Names::of(leaving(Leaving::Draining)),
            revoked: Names::of(leaving(Leaving::Revoked)),
            kept: Names::of(&foreseen.kept),
            held_back,
            ..Self::idle(&foreseen.origin)
        }
    }

    /// Whether anything would be written.
    pub(super) fn changes(&self) -> bool {
        let Self { added, updated, removed, draining, revoked, kept, .. } = self;
        [added, updated, removed, draining, revoked, kept].iter().any(|names| !names.is_empty())
    }
}

/// Of each origin; those with which nothing is to be done, now or later, are left out.
pub(super) fn plans(foreseen: Vec<SyncForesight>, departures: Vec<Departure>) -> Vec<OriginPlan> {
    let mut later = BTreeMap::<Origin, Departures>::new();
    for departure in departures {
        later.entry(departure.origin).or_default().add(&departure.key, departure.at);
    }
    let mut plans = Vec::new();
    for foreseen in foreseen {
        let mut plan = OriginPlan::of(&foreseen);
        let departures = later.remove(&foreseen.origin).unwrap_or_default();
        // A synchronisation settles it: what is declared stays, and the rest goes at once.
        if !matches!(foreseen.outcome, SyncOutcome::Applied { .. }) {
            plan.later = departures;
        }
        plans.push(plan);
    }
    plans.extend(later.into_iter().map(|(origin, later)| OriginPlan { later, ..OriginPlan::idle(&origin) }));
    plans.retain(|plan| plan.changes() || plan.held_back.is_some() || !plan.later.is_empty());
    plans
}

impl Names {
    fn of<'a>(keys: impl IntoIterator<Item = &'a ResourceKey>) -> Self {
        let mut names = Self::default();
        for key in keys {
            names.count += 1;
            if names.count <= TOLD {
                names.first.push(key.to_string());
            }
        }
        names
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl Departures {
    fn add(&mut self, key: &ResourceKey, at: Timestamp) {
        self.count += 1;
        if self.count <= TOLD {
            self.first.push(Departing { name: key.to_string(), at: moment(at) });
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }
}
