//! A pool as it is now: its settings, how much is where, what it has counted, who declares what.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Incarnation, Longest, Pool, PoolSettings};
use crate::{
    error::Result,
    names::{Origin, PoolName},
    reply::Reply,
    script,
    time::Timestamp,
};

/// A pool as it is now.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PoolInfo {
    /// Its full name.
    pub name: PoolName,
    /// Its present life.
    pub incarnation: Incarnation,
    /// Who manages it.
    pub manager: Option<String>,
    /// How it grants.
    pub settings: PoolSettings,
    /// How many resources are where.
    pub counts: Counts,
    /// What has happened since it was created.
    pub counters: Counters,
    /// The longest TTL it has granted.
    pub longest: Longest,
    /// The fencing token of the last grant; 0 = none yet.
    pub last_token: u64,
    /// Until when refilled resources are held back after a loss of data; `None`: they are not.
    pub hold: Option<Hold>,
    /// What declares resources, and how many.
    pub origins: BTreeMap<Origin, OriginInfo>,
    /// Redis' clock when this was read.
    pub now: Timestamp,
}

/// How long refilled resources are held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Until this moment.
    Until(Timestamp),
    /// Until an operator says so: a permanent lease had been granted.
    Released,
}

/// How many resources are in each place, and who else has to do with the pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Declared ones.
    pub total: u64,
    /// Free to be granted; in a shared pool: not quarantined, with room for another holder.
    pub free: u64,
    /// Leased, draining ones included; in a shared pool: leases, of which a resource may have many.
    pub leased: u64,
    /// Quarantined or cooling down.
    pub quarantined: u64,
    /// Kept for the name that alone may have them, and not leased.
    pub reserved: u64,
    /// Leased and no longer declared.
    pub draining: u64,
    /// Soft bindings.
    pub bindings: u64,
    /// Callers that wait in line.
    pub waiting: u64,
    /// Sessions that are alive.
    pub sessions: u64,
}

/// What a pool has counted since it was created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Leases granted.
    pub granted: u64,
    /// Leases given back.
    pub freed: u64,
    /// Leases that expired.
    pub expired: u64,
    /// Leases that an operator, or the removal of their resource, ended.
    pub revoked: u64,
    /// Times that a resource was put into quarantine.
    pub quarantined: u64,
}

/// One origin of a pool's items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginInfo {
    /// How many items it declared when it was last synchronised.
    pub count: u64,
    /// The most it declared lately.
    pub peak: u64,
    /// What it declared, as a digest; `None` while a synchronisation is under way.
    pub digest: Option<String>,
}

#[derive(Deserialize)]
struct StoredOrigin {
    #[serde(default)]
    count: u64,
    #[serde(default)]
    peak: u64,
    digest: Option<String>,
}

impl Pool {
    /// What the pool is, has, and has counted. One round trip.
    pub async fn info(&self) -> Result<PoolInfo> {
        let mut reply = self.call(&script::INFO, &[]).await?;
        let meta: BTreeMap<String, String> = reply.pairs()?.into_iter().collect();
        let stored = reply.pairs()?;
        let total = reply.count()?;
        let free = reply.count()?;
        let leased = reply.count()?;
        let quarantined = reply.count()?;
        let bindings = reply.count()?;
        let reserved = reply.count()?;
        let draining = reply.count()?;
        let now = Timestamp::from_millis(reply.count()?);
        let waiting = reply.count()?;
        let sessions = reply.count()?;

        let number = |field: &str| meta.get(field).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        let count = |field: &str| u64::try_from(number(field)).unwrap_or(0);
        let counters = Counters {
            granted: count("granted"),
            // Whatever was granted and is not leased has been freed, has expired, or was ended.
            freed: count("granted").saturating_sub(count("expired") + count("revoked") + leased),
            expired: count("expired"),
            revoked: count("revoked"),
            quarantined: count("quarantined"),
        };
        let hold = match number("hold_until") {
            -1 => Some(Hold::Released),
            until => {
                u64::try_from(until).ok().map(Timestamp::from_millis).filter(|&until| until > now).map(Hold::Until)
            }
        };
        Ok(PoolInfo {
            name: self.name().clone(),
            incarnation: Incarnation(meta.get("incarnation").cloned().unwrap_or_default()),
            manager: meta.get("manager").filter(|manager| !manager.is_empty()).cloned(),
            settings: PoolSettings::read(&meta),
            counts: Counts { total, free, leased, quarantined, reserved, draining, bindings, waiting, sessions },
            counters,
            longest: Longest::from_millis(number("longest")),
            last_token: count("last"),
            hold,
            origins: origins(&stored, &reply)?,
            now,
        })
    }
}

fn origins(stored: &[(String, String)], reply: &Reply) -> Result<BTreeMap<Origin, OriginInfo>> {
    stored
        .iter()
        .map(|(origin, json)| {
            let entry: StoredOrigin = serde_json::from_str(json)
                .map_err(|error| reply.broken(format!("the entry of origin {origin} can't be read: {error}")))?;
            let info = OriginInfo { count: entry.count, peak: entry.peak, digest: entry.digest };
            Ok((origin.parse()?, info))
        })
        .collect()
}
