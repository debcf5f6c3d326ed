//! What a worker asks for, and how: at once or in line, one or several, by a name or by labels, for a time or for as long
//! as its session lives.

use std::time::Duration;

use anyhow::{Context, Result};
use redis_allocator::{Error, Lease, Selector, Session};

use super::Worker;

/// What the leases of a request are like.
pub(super) struct Terms {
    /// `None`: as long as the session lives.
    pub(super) ttl: Option<Duration>,
    /// Whether the worker has to renew them itself.
    pub(super) by_hand: bool,
    /// The session that is theirs alone.
    pub(super) own: Option<Session>,
}

impl Worker {
    /// Leases on their terms; none, if it was in vain.
    pub(super) async fn ask(&mut self) -> Result<(Vec<Lease>, Terms)> {
        let ttl = Duration::from_millis(1000 + self.random.below(2000));
        let mut request = self.pool.malloc();
        let n = 1 + usize::from(self.random.one_of(6)) + usize::from(self.random.one_of(12));
        let bound = n == 1 && self.random.below(5) < 2;
        if bound {
            request = request.bind(self.name());
        }
        let selector = (self.random.one_of(3)).then(|| self.selector());
        if let Some(selector) = &selector {
            request = request.select(selector.clone());
        }
        let mut terms = Terms { ttl: Some(ttl), by_hand: false, own: None };
        request = match self.random.below(4) {
            0 => request.ttl(ttl).keep_alive(),
            1 => {
                terms.ttl = None;
                if self.random.one_of(4) {
                    terms.own = Some(self.session.thread(format!("{:x}", self.random.below(u64::MAX)))?);
                }
                request.session(terms.own.as_ref().unwrap_or(&self.session))
            }
            renewal => {
                terms.by_hand = renewal == 2;
                request.ttl(ttl)
            }
        };

        let asked = if self.random.one_of(2) {
            let wait = Duration::from_millis(1 + self.random.below(2000));
            let priority = u8::try_from(self.random.below(3))?;
            // Now and then it goes away in the midst of it.
            let patience = if self.random.one_of(6) { wait / 2 } else { 2 * wait + Duration::from_mins(1) };
            let request = request.wait(wait).priority(priority);
            let waits =
                async move { if n > 1 { request.count(n).await } else { request.await.map(|lease| vec![lease]) } };
            self.until_stopped(patience, waits).await.unwrap_or_else(|| Ok(Vec::new()))
        } else if n > 1 && self.random.one_of(2) {
            request.count(n).await.map(Option::unwrap_or_default)
        } else {
            request.up_to(n).await
        };
        let leases = match asked {
            // Waited in vain, or for more than there are just now; or the session had no time to beat, and begins anew.
            Err(
                Error::Timeout { .. }
                | Error::NotServed { .. }
                | Error::ImpossibleCount { .. }
                | Error::SessionOver { .. },
            ) => Vec::new(),
            asked => self.answered("malloc", asked).await?.unwrap_or_default(),
        };
        if let Some(selector) = selector {
            self.prove(&selector, &leases).await?;
        }
        Ok((leases, terms))
    }

    fn selector(&mut self) -> Selector {
        let zone = ["eu", "us"][usize::from(self.random.one_of(2))];
        let selector = Selector::new().equals("zone", zone);
        if self.random.one_of(2) { selector.one_of("model", ["a", "b"]) } else { selector }
    }

    /// That what was granted is what was asked for.
    async fn prove(&self, selector: &Selector, leases: &[Lease]) -> Result<()> {
        for lease in leases {
            let label = |name: &str| lease.labels().get(name).map(String::as_str);
            let zone = label("zone").context("a lease without a zone")?;
            let told = selector.to_string();
            let fits = told.contains(&format!("zone={zone}"))
                && (!told.contains("model") || label("model").is_some_and(|model| ["a", "b"].contains(&model)));
            if !fits {
                let why = format!("{} with {:?} was granted for {told}", lease.key(), lease.labels());
                self.witness.accuse(&why, &self.holder).await?;
            }
        }
        Ok(())
    }
}
