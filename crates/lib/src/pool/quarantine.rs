//! Taking resources out of circulation, and why.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Args, BATCH, Pool, owned, text};
use crate::{
    error::{Error, Result},
    keys,
    names::ResourceKey,
    script,
    time::{Timestamp, millis},
};

/// Longest reason, in bytes.
const MAX_REASON: usize = 1024;

/// Who or what keeps a resource out of circulation. Each cause has a mark of its own; a resource is back when none is
/// left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// An operator, or a workload that found it broken.
    Manual,
    /// A health check.
    Probe,
    /// A loss of data: someone whom Redis does not know any more may still use it.
    Recovery,
    /// The pause after each lease.
    Cooldown,
}

impl Cause {
    fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Probe => "probe",
            Self::Recovery => "recovery",
            Self::Cooldown => "cooldown",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Cause {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Manual, Self::Probe, Self::Recovery, Self::Cooldown]
            .into_iter()
            .find(|cause| cause.as_str() == text)
            .ok_or(())
    }
}

/// One reason why a resource is, or will be, out of circulation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// Who set it.
    pub cause: Cause,
    /// When it ends; `None`: when it is taken back.
    pub until: Option<Timestamp>,
    /// Why, for people.
    pub reason: String,
}

/// What [`Pool::quarantine`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quarantined {
    /// `false`: the resource is leased, and goes into quarantine when its lease ends.
    pub in_effect: bool,
}

#[derive(Deserialize)]
struct StoredMark {
    until: i64,
    reason: String,
}

/// The marks of a resource as Redis has them: JSON, cause → {until (ms, -1 = without end), reason}.
pub(super) fn parse_marks(json: &str) -> Vec<Mark> {
    let stored: BTreeMap<String, StoredMark> = serde_json::from_str(json).unwrap_or_default();
    stored
        .into_iter()
        .filter_map(|(cause, mark)| {
            let until = u64::try_from(mark.until).ok().map(Timestamp::from_millis);
            Some(Mark { cause: cause.parse().ok()?, until, reason: mark.reason })
        })
        .collect()
}

impl Pool {
    /// Takes a resource out of circulation for a time (`None`: until [`unquarantine`](Self::unquarantine)). A leased one
    /// is left to its holder and goes when the lease ends. Done again for the same cause, it replaces time and reason.
    ///
    /// # Errors
    /// [`Error::UnknownResource`] unless the resource is declared, [`Error::Invalid`] for a time out of range or a reason
    /// above 1 KiB.
    pub async fn quarantine(
        &self,
        key: impl AsRef<str>,
        duration: Option<Duration>,
        reason: &str,
        cause: Cause,
    ) -> Result<Quarantined> {
        let key = ResourceKey::new(key)?;
        self.mark(&key, duration, reason, cause, false).await
    }

    /// Like [`quarantine`](Self::quarantine) for [`Cause::Manual`], but what an operator has quarantined for longer is
    /// left as it is: a program that found it broken knows less.
    pub(crate) async fn quarantine_at_least(&self, key: &ResourceKey, duration: Duration, reason: &str) -> Result<()> {
        self.mark(key, Some(duration), reason, Cause::Manual, true).await.map(drop)
    }

    async fn mark(
        &self,
        key: &ResourceKey,
        duration: Option<Duration>,
        reason: &str,
        cause: Cause,
        at_least: bool,
    ) -> Result<Quarantined> {
        let duration = duration.map_or(Ok(-1), |duration| millis("duration of the quarantine", duration))?;
        if reason.len() > MAX_REASON {
            return Err(Error::Invalid {
                what: "reason",
                found: format!("{} bytes", reason.len()),
                allowed: format!("at most {MAX_REASON} bytes"),
            });
        }
        let args = [text(key.as_str()), text(cause.as_str()), owned(duration), text(reason), owned(u8::from(at_least))];
        let mut reply = self.call(&script::QUARANTINE, &args).await?;
        Ok(Quarantined { in_effect: reply.int()? == 1 })
    }

    /// Ends the quarantine of a resource for one cause, or for every cause; whether there was such a mark.
    pub async fn unquarantine(&self, key: impl AsRef<str>, cause: Option<Cause>) -> Result<bool> {
        let key = ResourceKey::new(key)?;
        Ok(self.end_marks(&[key], cause).await? == 1)
    }

    /// Ends the hold that a loss of data put on the pool: an operator knows that nobody uses its resources any more.
    /// Returns how many resources were held back.
    pub async fn end_recovery(&self) -> Result<u64> {
        self.set_meta(&[("hold_until", "0")]).await?;
        let mut marked = Vec::new();
        self.scan(keys::MARKS, |key, _| {
            marked.push(ResourceKey::new(key)?);
            Ok(())
        })
        .await?;
        let mut ended = 0;
        for batch in marked.chunks(BATCH) {
            ended += self.end_marks(batch, Some(Cause::Recovery)).await?;
        }
        Ok(ended)
    }

    async fn end_marks(&self, keys: &[ResourceKey], cause: Option<Cause>) -> Result<u64> {
        let mut args: Args<'_> = vec![text(cause.map_or("", Cause::as_str))];
        args.extend(keys.iter().map(|key| text(key.as_str())));
        self.call(&script::UNQUARANTINE, &args).await?.count()
    }

    /// Holds back what is in the pool already when a loss of data is noticed.
    pub(super) async fn hold_back(&self) -> Result<()> {
        for batch in self.item_keys().await?.chunks(BATCH) {
            let args: Args<'_> = batch.iter().map(|key| text(key.as_str())).collect();
            self.call(&script::HOLD, &args).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_read_back() {
        let marks =
            parse_marks(r#"{"probe":{"until":-1,"reason":"down"},"manual":{"until":1763733600000,"reason":""}}"#);
        assert_eq!(marks.len(), 2);
        assert_eq!((marks[1].cause, marks[1].until), (Cause::Probe, None));
        assert_eq!(marks[0].until, Some(Timestamp::from_millis(1_763_733_600_000)));
        assert!(parse_marks("rubbish").is_empty());
    }
}
