//! Time as this library uses it: Redis' own clock for everything it stores, and a local clock that counts sleep for
//! how long a holder may act.

use std::{
    fmt,
    ops::Add,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Longest time to live, cooldown or quarantine: ten years.
pub const MAX_DURATION: Duration = Duration::from_hours(10 * 365 * 24);

/// A moment by Redis' clock, in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    pub(crate) const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The same moment as the standard library tells it.
    pub fn to_system_time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A local instant that goes on while the machine sleeps (`CLOCK_BOOTTIME` on Linux, so that a laptop which was closed
/// for an hour does not believe it still holds what expired).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootInstant(Duration);

impl BootInstant {
    /// The present moment.
    pub fn now() -> Self {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            // Neither is ever negative on this clock.
            Self(Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0)))
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        {
            static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
            Self(START.elapsed())
        }
    }

    /// How long until this moment; zero when it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_sub(Self::now().0)
    }

    /// Whether this moment has passed.
    pub fn is_past(self) -> bool {
        self.remaining().is_zero()
    }
}

impl Add<Duration> for BootInstant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

/// How long a lease lasts unless it is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Ttl {
    /// As long as the pool says: its `defaultTTL`.
    #[default]
    PoolDefault,
    /// This long, from 1 ms to ten years.
    For(Duration),
    /// Until it is freed. Refused by pools that have a `maxTTL`.
    Permanent,
}

impl From<Duration> for Ttl {
    fn from(duration: Duration) -> Self {
        Self::For(duration)
    }
}

impl Ttl {
    /// As scripts take it: milliseconds, 0 = the pool's default, -1 = permanent.
    pub(crate) fn to_arg(self) -> Result<i64> {
        match self {
            Self::PoolDefault => Ok(0),
            Self::For(duration) => millis("time to live", duration),
            Self::Permanent => Ok(-1),
        }
    }
}

/// A duration in whole milliseconds.
///
/// # Errors
/// [`Error::Invalid`] when it is shorter than a millisecond or longer than ten years.
pub(crate) fn millis(what: &'static str, duration: Duration) -> Result<i64> {
    let found = duration.as_millis();
    match i64::try_from(found) {
        Ok(ms) if ms >= 1 && duration <= MAX_DURATION => Ok(ms),
        _ => Err(Error::Invalid {
            what,
            found: format!("{duration:?}"),
            allowed: "1 ms to 10 years (315,360,000 s)".to_owned(),
        }),
    }
}

/// Like [`millis`], zero included.
pub(crate) fn millis_or_zero(what: &'static str, duration: Duration) -> Result<i64> {
    if duration.is_zero() { Ok(0) } else { millis(what, duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_between_a_millisecond_and_ten_years() {
        for bad in [Duration::ZERO, Duration::from_micros(999), MAX_DURATION + Duration::from_nanos(1), Duration::MAX] {
            assert!(Ttl::For(bad).to_arg().is_err(), "{bad:?}");
        }
        assert_eq!(Ttl::For(Duration::from_millis(1)).to_arg().unwrap(), 1);
        assert_eq!(Ttl::For(MAX_DURATION).to_arg().unwrap(), 315_360_000_000);
        assert_eq!((Ttl::PoolDefault.to_arg().unwrap(), Ttl::Permanent.to_arg().unwrap()), (0, -1));
    }

    #[test]
    fn an_instant_far_away_does_not_overflow() {
        let far = BootInstant::now() + Duration::MAX;
        assert!(!far.is_past());
        assert!((BootInstant::now() + Duration::ZERO).is_past());
    }
}
