//! All leases of a command as one thing: it lasts as long as the one that ends first, and is lost with any of them. It
//! must not know the command.

use std::time::Duration;

use futures::future::{join_all, select_all};
use redis_allocator::{Error, Lease, Session};
use tokio::time::{Instant, timeout_at};

use super::say;

/// How long returning the leases may take; after that they end by themselves, when their time is over.
const FREE: Duration = Duration::from_secs(5);

/// What a command holds.
#[derive(Debug)]
pub(super) struct Held {
    /// At least one.
    leases: Vec<Lease>,
    session: Option<Session>,
}

impl Held {
    /// `session`: the one that the leases are part of.
    pub(super) fn new(leases: Vec<Lease>, session: Option<Session>) -> Self {
        Self { leases, session }
    }

    pub(super) fn leases(&self) -> &[Lease] {
        &self.leases
    }

    pub(super) fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// For how long they are held without a renewal; `None`: for ever.
    pub(super) fn ttl(&self) -> Option<Duration> {
        self.leases.iter().filter_map(Lease::ttl).min()
    }

    /// How much of that is left.
    pub(super) fn remaining(&self) -> Option<Duration> {
        self.leases.iter().filter_map(Lease::remaining).min()
    }

    /// Resolves when one of them is lost.
    pub(super) async fn lost(&self) {
        select_all(self.leases.iter().map(|lease| Box::pin(lease.lost()))).await;
    }

    /// What has happened to them, as the end of a sentence about the one that it happened to.
    pub(super) fn trouble(&self) -> String {
        let lost = self.leases.iter().find_map(|lease| Some((lease, lease.lost_reason()?)));
        if let Some((lease, reason)) = lost {
            return format!("{} is lost, because {reason}", subject(lease));
        }
        let first = self.leases.iter().min_by_key(|lease| lease.remaining().unwrap_or(Duration::MAX));
        format!("{} could not be renewed in time", first.map(subject).unwrap_or_default())
    }

    /// Returns them all, and ends the session.
    pub(super) async fn give_back(self) {
        let until = Instant::now() + FREE;
        let freed = self.leases.into_iter().map(async |lease| {
            let (subject, lost) = (subject(&lease), lease.is_lost());
            match timeout_at(until, lease.free()).await {
                Ok(Ok(())) => {}
                // Said before, or nobody's any more.
                Ok(Err(_)) if lost => {}
                Ok(Err(error)) => say(format_args!("returning {subject} failed, its lease ends by itself: {error}")),
                Err(_) => say(format_args!("returning {subject} takes too long, its lease ends by itself")),
            }
        });
        join_all(freed).await;
        if let Some(session) = self.session {
            end(session, until).await;
        }
    }
}

/// Ends a session that has no leases any more, or never had any.
pub(super) async fn end_session(session: Option<Session>) {
    if let Some(session) = session {
        end(session, Instant::now() + FREE).await;
    }
}

async fn end(session: Session, until: Instant) {
    let id = session.id().to_owned();
    let told = match timeout_at(until, session.end()).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => Error::to_string(&error),
        Err(_) => "it takes too long".to_owned(),
    };
    say(format_args!("ending session {id} failed, it ends by itself: {told}"));
}

fn subject(lease: &Lease) -> String {
    format!("{} of pool {}", lease.key(), lease.pool())
}
