//! What a worker does with what it was granted: it uses it, tells the witness of each use, renews it or not, and gives it
//! back or goes away.

use std::time::Duration;

use anyhow::{Context, Result};
use e2e::witness::{self, Use};
use redis_allocator::{Error, Lease, Session};

use super::Worker;

impl Worker {
    /// Without a token nothing can be reported: it is only in the others' way.
    pub(super) async fn hold_key(&mut self) -> Result<()> {
        const TTL: Duration = Duration::from_secs(3);
        let asked = witness::now();
        let granted = self.pool.malloc_key(TTL).await;
        let Some(key) = self.answered("malloc_key", granted).await?.flatten() else {
            return Ok(());
        };
        self.pause(150).await;
        let freed = self.pool.free_keys([&key]).await;
        for freed in self.answered("free_keys", freed).await?.unwrap_or_default() {
            if let Err(error) = freed
                && witness::now() < asked + TTL
            {
                self.early(&format!("{key}, granted a moment ago: {error}")).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn ask_and_hold(&mut self) -> Result<()> {
        let (leases, terms) = self.ask().await?;
        if leases.is_empty() {
            self.pause(30).await;
            return Ok(());
        }
        // Some go on for longer than one time to live, some until it is over.
        let stay = if self.random.one_of(4) { 2500 } else { 400 };
        let end = witness::now() + Duration::from_millis(50 + self.random.below(stay));
        let mut renewed = witness::now();
        while witness::now() < end && !self.stop.is_cancelled() {
            for lease in &leases {
                self.report(lease).await?;
            }
            if terms.by_hand && terms.ttl.is_some_and(|ttl| witness::now() > renewed + ttl / 3) {
                renewed = witness::now();
                for lease in &leases {
                    self.renew(lease).await?;
                }
            }
            self.pause(60).await;
        }
        if let Some(session) = terms.own {
            return self.end(session, &leases).await;
        }
        for lease in leases {
            // What is part of a session goes on for as long as that: longer than a test would wait.
            self.give_back(lease, terms.ttl.is_some()).await?;
        }
        Ok(())
    }

    /// Gives everything back at once.
    async fn end(&mut self, session: Session, leases: &[Lease]) -> Result<()> {
        for lease in leases {
            self.witness.end(lease.key(), lease.fencing_token()).await?;
        }
        let ended = session.end().await;
        self.answered("end", ended).await?;
        if let Some(lease) = leases.iter().find(|lease| !lease.is_lost()) {
            self.witness.accuse(&format!("{} outlived its session", lease.key()), &self.holder).await?;
        }
        Ok(())
    }

    async fn report(&self, lease: &Lease) -> Result<()> {
        let at = witness::now();
        let remaining = lease.remaining().context("a lease without an end")?;
        if lease.is_lost() {
            return self.lost(lease).await;
        }
        let used = Use::new(lease.key(), lease.fencing_token(), &self.holder, at, remaining);
        if let Some(refusal) = self.witness.record(&used).await?
            && lease.remaining().is_none_or(|remaining| remaining.is_zero())
        {
            self.witness.excuse(&refusal).await?;
        }
        Ok(())
    }

    async fn renew(&mut self, lease: &Lease) -> Result<()> {
        match lease.renew().await {
            Err(Error::Lost { .. }) => self.lost(lease).await,
            renewed => self.answered("renew", renewed).await.map(drop),
        }
    }

    /// Nobody ends leases here: none may be lost before its deadline.
    async fn lost(&self, lease: &Lease) -> Result<()> {
        match lease.remaining() {
            Some(remaining) if !remaining.is_zero() => {
                let why = format!("{} was lost {remaining:?} early: {:?}", lease.key(), lease.lost_reason());
                self.early(&why).await
            }
            _ => Ok(()),
        }
    }

    /// A lease ended before its time: a fault, unless the server may forget.
    async fn early(&self, why: &str) -> Result<()> {
        if self.circumstances.forgetful {
            self.witness.note("lost early").await
        } else {
            self.witness.accuse(why, &self.holder).await
        }
    }

    async fn give_back(&mut self, lease: Lease, may_leave_it: bool) -> Result<()> {
        let (key, token, deadline) = (lease.key().clone(), lease.fencing_token(), lease.deadline());
        match self.random.below(8) {
            0 if may_leave_it => lease.detach(),
            0 | 1 => {
                self.witness.end(&key, token).await?;
                drop(lease);
            }
            _ => {
                self.witness.end(&key, token).await?;
                match lease.free().await {
                    Err(error @ Error::NotOwner { .. }) => {
                        if deadline.is_some_and(|deadline| !deadline.is_past()) {
                            self.early(&format!("freed too late, says {error}")).await?;
                        }
                    }
                    freed => drop(self.answered("free", freed).await?),
                }
            }
        }
        Ok(())
    }
}
