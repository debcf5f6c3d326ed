//! What happens to single resources and an operator must know, as it happens. Who makes it known, and how, is not known
//! here; without anyone, it is only logged where it happens.

use redis_allocator::PoolName;
use tokio::sync::mpsc;

/// So many are kept for whoever makes them known; more are dropped, since the log has them.
const KEPT: usize = 4096;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) pool: PoolName,
    pub(crate) what: What,
    /// The resource it happened to, and why.
    pub(crate) about: String,
}

/// The kinds of what happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum What {
    /// A resource failed its probe and is not granted any more.
    Quarantined,
    /// A resource that had failed its probe works again.
    Recovered,
}

/// Where notices go. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notices(Option<mpsc::Sender<Notice>>);

impl Notices {
    /// Notices that somebody makes known.
    pub(crate) fn channel() -> (Self, mpsc::Receiver<Notice>) {
        let (sender, receiver) = mpsc::channel(KEPT);
        (Self(Some(sender)), receiver)
    }

    /// Never waits: whatever happens goes on.
    pub(crate) fn send(&self, pool: &PoolName, what: What, about: impl Into<String>) {
        if let Some(sender) = &self.0 {
            let _ = sender.try_send(Notice { pool: pool.clone(), what, about: about.into() });
        }
    }
}
