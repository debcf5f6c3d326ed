//! Looking at the line: who waits for resources of a pool, for what, and how far each has come.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{BATCH, Pool, Selector, owned};
use crate::{
    error::{Error, Result},
    script,
    time::Timestamp,
};

/// How many places a step of priority is worth.
const STEP: u64 = 100;

/// One caller in line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WaiterInfo {
    /// What names it: its client's id and a number.
    pub id: String,
    /// Whom the lease is for.
    pub owner: String,
    /// The soft-binding name it asks with.
    pub binding: Option<String>,
    /// The session that the lease is to be part of.
    pub session: Option<String>,
    /// 0 to 100; higher ones come before lower ones that came a little earlier.
    pub priority: u8,
    /// How many resources it wants, all at once.
    pub count: u64,
    /// What would do for it, the first one preferred; empty: whatever there is.
    pub selectors: Vec<Selector>,
    /// Since when it waits.
    pub since: Timestamp,
    /// When it is thought dead, unless it is heard of.
    pub alive_until: Timestamp,
    /// Whether something has been offered to it that it has not claimed yet.
    pub offered: bool,
    /// How many are before it.
    pub place: u64,
}

/// Some of the callers in line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WaiterPage {
    /// In turn.
    pub waiters: Vec<WaiterInfo>,
    /// How many wait in all.
    pub total: u64,
    /// Redis' clock when this was read.
    pub now: Timestamp,
}

/// What a waiter asked for, as `wait.lua` keeps it.
#[derive(Deserialize, Default)]
struct StoredRequest {
    #[serde(default)]
    n: u64,
    selectors: Option<Vec<Vec<String>>>,
    session: Option<String>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    holder: String,
    #[serde(default)]
    places: u64,
    #[serde(default)]
    since: u64,
}

#[derive(Deserialize, Default)]
struct StoredHolder {
    #[serde(default)]
    owner: String,
}

impl Pool {
    /// The callers in line, in turn, from a place on (0 = the first), at most `count` (1 to 200) of them.
    ///
    /// # Errors
    /// [`Error::UnknownPool`], and [`Error::Invalid`] for another count.
    pub async fn waiters(&self, from: u64, count: u32) -> Result<WaiterPage> {
        if count == 0 || count as usize > BATCH {
            return Err(Error::Invalid {
                what: "number of waiters",
                found: count.to_string(),
                allowed: format!("1 to {BATCH}"),
            });
        }
        // Beyond what a sorted set can have, Redis would not understand the number.
        let from = from.min(u64::from(u32::MAX));
        let mut reply = self.call(&script::WAITERS, &[owned(from), owned(count)]).await?;
        let mut listed = reply.list()?;
        let mut waiters = Vec::with_capacity(listed.len() / 4);
        while listed.len() > 0 {
            let (id, request) = (listed.text()?, listed.text()?);
            let (alive_until, offered) = (Timestamp::from_millis(listed.count()?), listed.int()? == 1);
            let request: StoredRequest = serde_json::from_str(&request)
                .map_err(|error| reply.broken(format!("the request of waiter {id} can't be read: {error}")))?;
            let holder: StoredHolder = serde_json::from_str(&request.holder).unwrap_or_default();
            waiters.push(WaiterInfo {
                owner: holder.owner,
                binding: Some(request.name).filter(|name| !name.is_empty()),
                session: request.session,
                priority: u8::try_from(request.places / STEP).unwrap_or(u8::MAX),
                count: request.n.max(1),
                selectors: request.selectors.unwrap_or_default().iter().map(|it| selector(it)).collect(),
                since: Timestamp::from_millis(request.since),
                alive_until,
                offered,
                place: from + waiters.len() as u64,
                id,
            });
        }
        Ok(WaiterPage { waiters, total: reply.count()?, now: Timestamp::from_millis(reply.count()?) })
    }
}

/// The selector that these probes were made of: the index, then what its entries begin with, for each combination of
/// values one.
fn selector(probes: &[String]) -> Selector {
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let index = probes.first().map_or("", String::as_str);
    for probe in probes.iter().skip(1) {
        let values = probe.split('\0').skip(1);
        for (label, value) in index.split(',').zip(values) {
            labels.entry(label).or_default().insert(value);
        }
    }
    labels.into_iter().fold(Selector::new(), |selector, (label, values)| selector.one_of(label, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_read_back_from_its_probes() {
        for text in ["zone=eu", "model in (a100,h100),zone=eu", "a in (x,y),b in (x,y)"] {
            let asked: Selector = text.parse().unwrap();
            assert_eq!(selector(&asked.probes().unwrap()), asked);
        }
    }
}
