//! A clock that tests set. Only with the feature `test-clock`: scripts then take the time as arguments, and production
//! clients have no way to send one.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// The time that scripts of a client see, in microseconds since the Unix epoch. Clones share it.
#[derive(Debug, Clone)]
pub struct TestClock(Arc<AtomicU64>);

impl TestClock {
    /// A clock that stands at this moment.
    pub fn at(since_epoch: Duration) -> Self {
        Self(Arc::new(AtomicU64::new(u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX))))
    }

    /// Moves on.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_micros()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// The moment it stands at, in microseconds since the Unix epoch.
    pub fn micros(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    pub(crate) fn before<'a>(&self, args: &[Cow<'a, [u8]>]) -> Vec<Cow<'a, [u8]>> {
        let now = self.micros();
        let (seconds, micros) = (now / 1_000_000, now % 1_000_000);
        let time = [seconds, micros].map(|part| Cow::Owned(part.to_string().into_bytes()));
        time.into_iter().chain(args.iter().cloned()).collect()
    }
}
