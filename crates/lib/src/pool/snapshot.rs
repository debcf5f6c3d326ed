//! Looking at resources: where each is, who holds it, why it is out of circulation.

use std::{collections::BTreeMap, collections::HashSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Args, CLOCK_SLACK, Mark, Pool, quarantine::parse_marks, text};
use crate::{
    error::Result,
    item::{Facts, Record},
    names::{BindingName, Origin, ResourceKey},
    script,
    time::Timestamp,
};

/// `free` scores count within a priority's band of 2^42.
const BAND: u64 = 1 << 42;
/// Where a holder's record has the time of the grant, an offer that nobody has claimed yet has this.
const UNCLAIMED: &str = "0000000000000";

/// Where a resource is: in exactly one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Place {
    /// Free to be granted.
    Free {
        /// Since when; `None` in a pool of order `Sequential`, which does not remember it.
        since: Option<Timestamp>,
    },
    /// Of an exclusive pool: held by someone.
    Leased(LeaseInfo),
    /// Out of circulation; [`ResourceState::marks`] says why.
    Quarantined {
        /// `None`: until it is released.
        until: Option<Timestamp>,
    },
    /// Of a shared pool: nobody else may have it, as many hold it as may, or it is no longer declared.
    Full,
    /// Kept for the name that alone may have it: [`ResourceState::reserved_for`].
    Reserved,
    /// Nowhere: a broken invariant, which [`Pool::repair`] mends.
    Nowhere,
}

/// A lease as everyone may see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeaseInfo {
    /// Who holds it.
    pub owner: String,
    /// The soft-binding name it was asked for with.
    pub binding: Option<BindingName>,
    /// Its fencing token.
    pub token: u64,
    /// The session that it is part of.
    pub session: Option<String>,
    /// When it was granted or offered.
    pub granted_at: Timestamp,
    /// When it ends unless it is renewed or claimed; `None`: it is permanent, or ends with its session.
    pub expires_at: Option<Timestamp>,
    /// Whether it has only been offered to a caller in line, who has not claimed it yet.
    pub offered: bool,
}

/// One resource as it is now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResourceState {
    /// What names it.
    pub key: ResourceKey,
    /// Whether it is declared; what is held and not declared any more is draining.
    pub declared: bool,
    /// 0 to 1000.
    pub priority: u16,
    /// Its place in a pool of order `Sequential`.
    pub position: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its parameters.
    pub params: Map<String, Value>,
    /// Who declares it.
    pub origins: Vec<Origin>,
    /// Where it is.
    pub place: Place,
    /// Who holds it; in a shared pool the first 20 of them, and [`Pool::leases_on`] lists all.
    pub holders: Vec<LeaseInfo>,
    /// How many hold it.
    pub holder_count: u64,
    /// What keeps it, or will keep it when its lease ends, out of circulation.
    pub marks: Vec<Mark>,
    /// The name that alone may have it.
    pub reserved_for: Option<BindingName>,
}

/// Where the next page of a snapshot begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    part: String,
    cursor: String,
}

/// Some resources, and where to go on.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotPage {
    /// Resources in no order. One that moves between pages may come twice.
    pub resources: Vec<ResourceState>,
    /// `None`: this was the last page.
    pub next: Option<Cursor>,
}

#[derive(Deserialize, Default)]
struct StoredHolder {
    #[serde(default)]
    owner: String,
    bind: Option<String>,
    session: Option<String>,
}

/// Redis' text for a score, as a moment; `None` for `inf`.
pub(super) fn moment(score: &str) -> Option<Timestamp> {
    score.parse().ok().map(Timestamp::from_millis)
}

/// What Redis has of one lease.
pub(super) fn lease(expiry: &str, record: &str) -> Result<LeaseInfo> {
    let (token, granted_at, holder) = parse_holder(record);
    let offered = record.get(16..29) == Some(UNCLAIMED);
    let end = moment(expiry);
    Ok(LeaseInfo {
        owner: holder.owner,
        binding: holder.bind.map(BindingName::new).transpose()?,
        token,
        session: holder.session,
        // An offer has the time when it was made in place of an expiry, and lapses as an expired lease is reclaimed.
        granted_at: if offered { end.unwrap_or(granted_at) } else { granted_at },
        expires_at: if offered { end.map(lapse) } else { end },
        offered,
    })
}

fn lapse(offered_at: Timestamp) -> Timestamp {
    let slack = u64::try_from(CLOCK_SLACK.as_millis()).unwrap_or(0);
    Timestamp::from_millis(offered_at.as_millis().saturating_add(slack))
}

/// A holder's record: token (16 digits), granted at (ms, 13 digits), holder (JSON).
fn parse_holder(record: &str) -> (u64, Timestamp, StoredHolder) {
    let number = |range| record.get(range).and_then(|digits: &str| digits.parse().ok()).unwrap_or(0);
    let holder = record.get(29..).and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
    (number(0..16), Timestamp::from_millis(number(16..29)), holder)
}

/// Who a holder's record names.
pub(super) fn owner_of(record: &str) -> String {
    parse_holder(record).2.owner
}

impl Pool {
    /// All resources, sorted by key, with what is leased and no longer declared. Of one moment when there are at most
    /// 200 of either; otherwise read in pages, each resource of one moment.
    pub async fn snapshot(&self) -> Result<Vec<ResourceState>> {
        let mut resources = Vec::new();
        let mut seen = HashSet::new();
        let mut next = None;
        loop {
            let page = self.snapshot_page(next.as_ref()).await?;
            resources.extend(page.resources.into_iter().filter(|resource| seen.insert(resource.key.clone())));
            next = page.next;
            if next.is_none() {
                resources.sort_by(|a, b| a.key.cmp(&b.key));
                return Ok(resources);
            }
        }
    }

    /// One page of a snapshot, from the beginning (`None`) or where the last one ended. A page has about a hundred
    /// resources, at most some hundreds.
    pub async fn snapshot_page(&self, from: Option<&Cursor>) -> Result<SnapshotPage> {
        let (part, cursor) = from.map_or(("items", "0"), |from| (&from.part, &from.cursor));
        self.states(vec![text(part), text(cursor)]).await
    }

    /// One resource; `None` when it is neither declared nor leased.
    pub async fn get(&self, key: impl AsRef<str>) -> Result<Option<ResourceState>> {
        let key = ResourceKey::new(key)?;
        let page = self.states(vec![text("keys"), text(key.as_str())]).await?;
        Ok(page.resources.into_iter().find(|state| state.declared || state.holder_count > 0))
    }

    /// The state of at most [`BATCH`](super::BATCH) resources, whether they are declared or not.
    pub(super) async fn states_of(&self, keys: &[ResourceKey]) -> Result<Vec<ResourceState>> {
        let args = std::iter::once(text("keys")).chain(keys.iter().map(|key| text(key.as_str()))).collect();
        Ok(self.states(args).await?.resources)
    }

    async fn states(&self, args: Args<'_>) -> Result<SnapshotPage> {
        let mut reply = self.call(&script::SNAPSHOT, &args).await?;
        let (part, cursor) = (reply.text()?, reply.text()?);
        let mut keys = reply.list()?;
        let mut records = reply.list()?;
        let mut expiries = reply.list()?;
        let mut holders = reply.list()?;
        let mut free = reply.list()?;
        let mut quarantine = reply.list()?;
        let mut marks = reply.list()?;
        let mut reserved = reply.list()?;
        let mut shares = reply.list()?;
        let is_shared = shares.len() > 0;
        let mut resources = Vec::with_capacity(keys.len());
        for _ in 0..keys.len() {
            let key = keys.text()?;
            let record = match records.optional_text()? {
                None => None,
                Some(text) => Some(
                    Record::parse(&text)
                        .and_then(|record| Some((record.facts()?, record)))
                        .ok_or_else(|| reply.broken(format!("the record of {key} can't be read: {text:?}")))?,
                ),
            };
            let expiry = expiries.optional_text()?;
            let holder = holders.optional_text()?.unwrap_or_default();
            let free = free.optional_text()?;
            let quarantine = quarantine.optional_text()?;
            let marks = marks.optional_text()?.map_or_else(Vec::new, |json| parse_marks(&json));
            let reserved_for = reserved.optional_text()?.map(BindingName::new).transpose()?;
            let (mut holders, mut holder_count) = (Vec::new(), 0);
            if is_shared {
                let mut held = shares.list()?;
                holder_count = held.count()?;
                while held.len() > 0 {
                    let (_id, expiry, holder) = (held.text()?, held.optional_text()?, held.optional_text()?);
                    holders.push(lease(&expiry.unwrap_or_default(), &holder.unwrap_or_default())?);
                }
            }
            let place = if let Some(expiry) = expiry {
                let lease = lease(&expiry, &holder)?;
                holders.push(lease.clone());
                holder_count = 1;
                Place::Leased(lease)
            } else if let Some(until) = quarantine {
                Place::Quarantined { until: moment(&until) }
            } else if let Some(score) = free {
                let since = moment(&score).map(|score| score.as_millis() % BAND).filter(|&ms| ms > BAND / 8);
                Place::Free { since: since.map(Timestamp::from_millis) }
            } else if reserved_for.is_some() && record.is_some() {
                Place::Reserved
            } else if holder_count > 0 {
                Place::Full
            } else {
                Place::Nowhere
            };
            let declared = record.is_some();
            let (facts, record) = record.unwrap_or_else(|| {
                (Facts::default(), Record { priority: 0, position: 0, origins: Vec::new(), facts: String::new() })
            });
            resources.push(ResourceState {
                key: ResourceKey::new(key)?,
                declared,
                priority: record.priority,
                position: record.position,
                labels: facts.labels,
                params: facts.params,
                origins: record.origins,
                place,
                holders,
                holder_count,
                marks,
                reserved_for,
            });
        }
        let next = (!part.is_empty()).then_some(Cursor { part, cursor });
        Ok(SnapshotPage { resources, next })
    }
}
