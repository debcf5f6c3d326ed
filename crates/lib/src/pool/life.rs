//! A pool's life: created, configured, handed from one manager to another, lost and noticed, taken down.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Args, BATCH, Pool, owned,
    settings::{Fields, Mode, PoolSettings},
    sync::Removal,
    text,
};
use crate::{
    error::{Error, Result},
    reply::Reply,
    script,
};

/// Tells one life of a pool from the next: a pool that was lost and made anew has another one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub(super) String);

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
    pub(super) fn from_millis(ms: i64) -> Self {
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

/// How far the removal of a pool has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retired {
    /// Leases that are still held.
    pub leases_left: u64,
    /// Whether the pool is gone.
    pub deleted: bool,
}

impl Pool {
    /// Creates the pool, or changes its settings; writes nothing when nothing differs. Whoever creates a pool by a call
    /// of their own fills it with [`extend`](Self::extend).
    ///
    /// # Errors
    /// [`Error::ManagerConflict`] when the pool is managed by another declaration, [`Error::ModeConflict`] when it was
    /// created with another mode, [`Error::Invalid`] for settings out of range.
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
        self.read_configured(&mut reply, manager, settings.mode)?;
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
            for batch in self.item_keys().await?.chunks(BATCH) {
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
        self.read_configured(&mut reply, ownership.manager.unwrap_or(""), settings.mode)?;
        Ok(ConfigureForesight { created: reply.int()? == 1, changed: reply.int()? == 1, recovered: reply.int()? == 1 })
    }

    /// The status of configuring.
    fn read_configured(&self, reply: &mut Reply, manager: &str, wanted: Mode) -> Result<()> {
        let status = reply.text()?;
        match status.as_str() {
            "manager" => Err(Error::ManagerConflict {
                pool: self.name().clone(),
                manager: manager.to_owned(),
                found: reply.text()?,
            }),
            "mode" => {
                Err(Error::ModeConflict { pool: self.name().clone(), found: reply.text()?, wanted: wanted.name() })
            }
            _ => self.status(&status, reply)?.map_or(Ok(()), Err),
        }
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
        for batch in self.item_keys().await?.chunks(BATCH) {
            self.remove_everywhere(batch, removal).await?;
        }
        if removal == Removal::Revoke {
            let leased: Vec<_> = self.snapshot().await?.into_iter().map(|resource| resource.key).collect();
            for batch in leased.chunks(BATCH) {
                // In a shared pool there may be more; nothing is granted meanwhile.
                while self.revoke(batch).await? >= BATCH as u64 {}
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

fn configure_args<'a>(incarnation: &'a str, fields: &'a Fields, ownership: &Ownership<'a>) -> Args<'a> {
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
