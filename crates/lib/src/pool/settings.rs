//! What a pool is: its settings, who manages it, what it counts, and its life from creation to removal.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Args, Pool, owned, sync::Removal, text};
use crate::{
    error::{Error, Result},
    names::{Origin, PoolName},
    reply::Reply,
    script,
    time::{Timestamp, millis, millis_or_zero},
};

/// Which free resource is granted next, among those of the highest priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Order {
    /// The one that has been free for longest.
    #[default]
    LeastRecentlyUsed,
    /// The one declared first.
    Sequential,
    /// Any, each as likely.
    Random,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::LeastRecentlyUsed => "LeastRecentlyUsed",
            Self::Sequential => "Sequential",
            Self::Random => "Random",
        })
    }
}

impl FromStr for Order {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "LeastRecentlyUsed" => Ok(Self::LeastRecentlyUsed),
            "Sequential" => Ok(Self::Sequential),
            "Random" => Ok(Self::Random),
            _ => Err(()),
        }
    }
}

/// How a pool grants. The defaults are those of a `ResourcePool` manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSettings {
    /// Which resource is next. Default `LeastRecentlyUsed`.
    pub order: Order,
    /// How long a lease lasts whose caller did not say. Default 2 min.
    pub default_ttl: Duration,
    /// The longest lease; more is refused. Default `None`: any, permanent ones too.
    pub max_ttl: Option<Duration>,
    /// How long a returned resource rests before it is granted again. Default 0.
    pub cooldown: Duration,
    /// How long a soft binding that a grant made outlives the grant; zero = for ever. Default 1 h.
    pub binding_ttl: Duration,
    /// Whether the pool grants nothing for now. Default `false`.
    pub suspended: bool,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            order: Order::default(),
            default_ttl: Duration::from_mins(2),
            max_ttl: None,
            cooldown: Duration::ZERO,
            binding_ttl: Duration::from_hours(1),
            suspended: false,
        }
    }
}

impl PoolSettings {
    fn fields(&self) -> Result<[(&'static str, String); 6]> {
        let default_ttl = millis("default TTL", self.default_ttl)?;
        let max_ttl = self.max_ttl.map_or(Ok(0), |max| millis("maximum TTL", max))?;
        if max_ttl != 0 && default_ttl > max_ttl {
            return Err(Error::Invalid {
                what: "default TTL",
                found: format!("{:?}", self.default_ttl),
                allowed: format!("at most the maximum TTL, {max_ttl} ms"),
            });
        }
        Ok([
            ("order", self.order.to_string()),
            ("cooldown", millis_or_zero("cooldown", self.cooldown)?.to_string()),
            ("suspended", u8::from(self.suspended).to_string()),
            ("default_ttl", default_ttl.to_string()),
            ("max_ttl", max_ttl.to_string()),
            ("binding_ttl", millis_or_zero("binding TTL", self.binding_ttl)?.to_string()),
        ])
    }
}

/// Tells one life of a pool from the next: a pool that was lost and made anew has another one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(String);

impl Incarnation {
    fn random() -> Result<Self> {
        let number = getrandom::u64().map_err(|error| Error::Unavailable {
            message: format!("the operating system gave no random number: {error}"),
            source: None,
        })?;
        Ok(Self(format!("{number:016x}")))
    }

    /// The text Redis keeps: 16 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The longest time for which a pool ever granted a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Longest {
    /// At most this long; zero when nothing was granted yet.
    For(Duration),
    /// A permanent lease was granted.
    Permanent,
}

impl Longest {
    fn from_millis(ms: i64) -> Self {
        u64::try_from(ms).map_or(Self::Permanent, |ms| Self::For(Duration::from_millis(ms)))
    }

    fn to_millis(self) -> i64 {
        match self {
            Self::For(duration) => i64::try_from(duration.as_millis()).unwrap_or(i64::MAX),
            Self::Permanent => -1,
        }
    }
}

/// What is remembered outside Redis of a pool, in case that Redis loses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The pool's life that was seen last.
    pub incarnation: Incarnation,
    /// The longest TTL it had granted by then.
    pub longest: Longest,
}

/// On whose behalf a pool is configured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ownership<'a> {
    /// A stable id of the declaration that manages the pool; another one is refused from then on.
    pub manager: Option<&'a str>,
    /// What is remembered of the pool. If Redis lost it, all that is refilled is held back until the leases of which
    /// Redis knows nothing any more are over.
    pub known: Option<&'a Known>,
}

/// What [`Pool::configure`] found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configured {
    /// Whether the pool is new.
    pub created: bool,
    /// Whether anything was written.
    pub changed: bool,
    /// Whether Redis had lost the remembered pool: what is refilled is held back for a while.
    pub recovered: bool,
    /// The pool's present life.
    pub incarnation: Incarnation,
    /// The longest TTL it has granted.
    pub longest: Longest,
}

/// What [`Pool::foresee_configure`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigureForesight {
    /// Whether the pool does not exist yet.
    pub created: bool,
    /// Whether anything would be written.
    pub changed: bool,
    /// Whether Redis has lost the remembered pool: what is refilled would be held back for a while.
    pub recovered: bool,
}

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

/// How many resources are in each place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Declared ones.
    pub total: u64,
    /// Free to be granted.
    pub free: u64,
    /// Leased, draining ones included.
    pub leased: u64,
    /// Quarantined or cooling down.
    pub quarantined: u64,
    /// Kept for the name that alone may have them, and not leased.
    pub reserved: u64,
    /// Leased and no longer declared.
    pub draining: u64,
    /// Soft bindings.
    pub bindings: u64,
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

/// How far the removal of a pool has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retired {
    /// Leases that are still held.
    pub leases_left: u64,
    /// Whether the pool is gone.
    pub deleted: bool,
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
    /// Creates the pool, or changes its settings; writes nothing when nothing differs. Whoever creates a pool by a call
    /// of their own fills it with [`extend`](Self::extend).
    ///
    /// # Errors
    /// [`Error::ManagerConflict`] when the pool is managed by another declaration, [`Error::Invalid`] for settings out of
    /// range.
    pub async fn configure(&self, settings: &PoolSettings, ownership: &Ownership<'_>) -> Result<Configured> {
        let fields = settings.fields()?;
        let manager = ownership.manager.unwrap_or("");
        let registered = self.client().registered(self.name()).await?;
        // Listed before it is created: a pool that exists can always be found.
        let fresh = Incarnation::random()?;
        if registered.is_none() {
            self.client().register(self.name(), fresh.as_str()).await?;
        }
        let args = configure_args(fresh.as_str(), &fields, ownership);
        let mut reply = self.send(&script::CONFIGURE, &args, false).await?;
        self.read_configured(&mut reply, manager)?;
        let (created, changed, recovered) = (reply.int()? == 1, reply.int()? == 1, reply.int()? == 1);
        let incarnation = Incarnation(reply.text()?);
        let longest = Longest::from_millis(reply.int()?);
        let (reorder, hold_back) = (reply.int()? == 1, reply.int()? == 1);
        if registered.as_deref().unwrap_or(fresh.as_str()) != incarnation.as_str() {
            self.client().register(self.name(), incarnation.as_str()).await?;
        }
        // Both are remembered until they are done, as whoever began may not have lived to end it.
        if hold_back {
            self.hold_back().await?;
            self.set_meta(&[("hold_back", "0")]).await?;
        }
        if reorder {
            for batch in self.item_keys().await?.chunks(super::BATCH) {
                self.resettle(batch).await?;
            }
            self.set_meta(&[("reorder", "0")]).await?;
        }
        Ok(Configured { created, changed, recovered, incarnation, longest })
    }

    /// What [`configure`](Self::configure) would do now. Writes nothing.
    ///
    /// # Errors
    /// As `configure`.
    pub async fn foresee_configure(
        &self,
        settings: &PoolSettings,
        ownership: &Ownership<'_>,
    ) -> Result<ConfigureForesight> {
        let fields = settings.fields()?;
        let args = configure_args("", &fields, ownership);
        let mut reply = self.send(&script::FORESEE_CONFIGURE, &args, false).await?;
        self.read_configured(&mut reply, ownership.manager.unwrap_or(""))?;
        Ok(ConfigureForesight { created: reply.int()? == 1, changed: reply.int()? == 1, recovered: reply.int()? == 1 })
    }

    /// The status of configuring.
    fn read_configured(&self, reply: &mut Reply, manager: &str) -> Result<()> {
        let status = reply.text()?;
        if status == "manager" {
            return Err(Error::ManagerConflict {
                pool: self.name().clone(),
                manager: manager.to_owned(),
                found: reply.text()?,
            });
        }
        self.status(&status, reply)?.map_or(Ok(()), Err)
    }

    /// Makes this declaration the pool's manager, whoever it was before, and returns that.
    pub async fn takeover(&self, manager: &str) -> Result<Option<String>> {
        if manager.is_empty() {
            return Err(Error::Invalid {
                what: "manager",
                found: "an empty text".to_owned(),
                allowed: "a stable id of the declaration that manages the pool".to_owned(),
            });
        }
        let former = self.set_meta(&[("manager", manager)]).await?;
        Ok(Some(former).filter(|former| !former.is_empty()))
    }

    /// Leaves the pool as it is, managed by nobody.
    pub async fn abandon(&self) -> Result<()> {
        self.set_meta(&[("manager", "")]).await.map(drop)
    }

    /// Stops or resumes granting. What is leased stays leased.
    pub async fn suspend(&self, suspended: bool) -> Result<()> {
        self.set_meta(&[("suspended", if suspended { "1" } else { "0" })]).await.map(drop)
    }

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

        let number = |field: &str| meta.get(field).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        let count = |field: &str| u64::try_from(number(field)).unwrap_or(0);
        let duration = |field: &str| Duration::from_millis(count(field));
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
            settings: PoolSettings {
                order: meta.get("order").and_then(|order| order.parse().ok()).unwrap_or_default(),
                default_ttl: duration("default_ttl"),
                max_ttl: Some(duration("max_ttl")).filter(|max| !max.is_zero()),
                cooldown: duration("cooldown"),
                binding_ttl: duration("binding_ttl"),
                suspended: count("suspended") == 1,
            },
            counts: Counts { total, free, leased, quarantined, reserved, draining, bindings },
            counters,
            longest: Longest::from_millis(number("longest")),
            last_token: count("last"),
            hold,
            origins: origins(&stored, &reply)?,
            now,
        })
    }

    /// Takes the pool down: grants nothing more, drops every item whoever declared it, and removes the pool as soon as
    /// no lease is left. `Revoke` ends the leases; with `Drain`, call again until [`Retired::deleted`].
    pub async fn retire(&self, removal: Removal) -> Result<Retired> {
        if let Err(error) = self.suspend(true).await {
            if let (Error::UnknownPool { .. }, Some(listed)) = (&error, self.client().registered(self.name()).await?) {
                // Whoever removed it did not live to take it off the list.
                self.client().unregister(self.name(), &listed).await?;
            }
            return Err(error);
        }
        let incarnation = self.info().await?.incarnation;
        for batch in self.item_keys().await?.chunks(super::BATCH) {
            self.remove_everywhere(batch, removal).await?;
        }
        if removal == Removal::Revoke {
            let leased = self.snapshot().await?;
            for batch in leased.chunks(super::BATCH) {
                let args: Args<'_> = batch.iter().map(|resource| text(resource.key.as_str())).collect();
                self.call(&script::REVOKE, &args).await?;
            }
        }
        let mut reply = self.call(&script::DESTROY, &[text(incarnation.as_str())]).await?;
        let (leases_left, items_left) = (reply.count()?, reply.count()?);
        let deleted = leases_left == 0 && items_left == 0;
        if deleted {
            self.client().unregister(self.name(), incarnation.as_str()).await?;
        }
        Ok(Retired { leases_left, deleted })
    }

    pub(super) async fn set_meta(&self, fields: &[(&str, &str)]) -> Result<String> {
        let args: Args<'_> = fields.iter().flat_map(|(field, value)| [text(field), text(value)]).collect();
        self.call(&script::SET_META, &args).await?.text()
    }
}

fn configure_args<'a>(
    incarnation: &'a str,
    fields: &'a [(&'static str, String); 6],
    ownership: &Ownership<'a>,
) -> Args<'a> {
    let mut args: Args<'_> = vec![text(incarnation), text(ownership.manager.unwrap_or(""))];
    match ownership.known {
        Some(known) => args.extend([text(known.incarnation.as_str()), owned(known.longest.to_millis())]),
        None => args.extend([text(""), text("")]),
    }
    for (field, value) in fields {
        args.extend([text(field), text(value)]);
    }
    args
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
