//! A session in one pool: until when it is heard of there, and the leases that end with it. It must not know who beats,
//! nor when.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio_util::sync::CancellationToken;

use super::roll::Roll;
use crate::{
    error::{Error, LostReason, Result},
    lease::Grant,
    pool::{Heartbeat, Pool},
    time::BootInstant,
};

/// How much longer than its call's own limit a grant may be on its way before it counts as one that nobody will hear of:
/// replies are awaited for a minute.
const ON_ITS_WAY: Duration = Duration::from_secs(90);
/// Shortest and longest pause before a heartbeat is tried again that was not answered.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// One life of a session in one pool. What is over stays so: the session may begin another, under another id.
pub(crate) struct Membership {
    pool: Pool,
    id: Arc<str>,
    ttl: Duration,
    state: Mutex<State>,
    roll: Mutex<Roll>,
    /// One comparison with Redis at a time.
    comparing: tokio::sync::Mutex<()>,
    over: CancellationToken,
}

struct State {
    /// When the heartbeat that counts was sent.
    heard: BootInstant,
    /// When the next one is due.
    next: BootInstant,
    /// Until when Redis may keep it, should a heartbeat have been heard whose answer was not.
    promised: BootInstant,
    /// Until when Redis keeps it at least, in its own time (ms).
    acknowledged: u64,
    over: Option<LostReason>,
}

impl Membership {
    /// It began by a heartbeat sent then, and Redis keeps it until then (ms).
    pub(super) fn new(pool: Pool, id: Arc<str>, ttl: Duration, sent: BootInstant, until: u64) -> Arc<Self> {
        let state = State { heard: sent, next: sent + ttl / 3, promised: sent + ttl, acknowledged: until, over: None };
        Arc::new(Self {
            pool,
            id,
            ttl,
            state: Mutex::new(state),
            roll: Mutex::default(),
            comparing: tokio::sync::Mutex::default(),
            over: CancellationToken::new(),
        })
    }

    /// What Redis knows it by.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// How long it lasts from each heartbeat.
    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Until when its leases may be used: counted from before the last answered heartbeat was sent.
    pub(crate) fn deadline(&self) -> BootInstant {
        self.state().heard + self.ttl
    }

    /// Why it is over, if it is. One look at a clock, no round trip.
    pub(crate) fn over(&self) -> Option<LostReason> {
        let state = self.state();
        if state.over.is_some() {
            return state.over;
        }
        let is_past = (state.heard + self.ttl).is_past();
        drop(state);
        if is_past {
            self.lose(LostReason::Expired);
        }
        self.state().over
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over().is_some()
    }

    /// It is over, and nobody wanted that.
    fn lose(&self, reason: LostReason) {
        if self.end(reason) {
            tracing::warn!(pool = %self.pool.name(), session = self.id(), %reason, "a session is over");
        }
    }

    /// It is over from now on, and so are its leases. Whether it was not before.
    pub(super) fn end(&self, reason: LostReason) -> bool {
        let mut state = self.state();
        if state.over.is_some() {
            return false;
        }
        state.over = Some(reason);
        drop(state);
        self.over.cancel();
        let grants = self.roll().take();
        for grant in grants {
            grant.lose(reason);
        }
        true
    }

    /// A grant is part of it from now on.
    pub(crate) fn enter(&self, token: u64, grant: &Arc<Grant>) {
        self.roll().enter(token, grant);
        // It may have ended while the grant was on its way.
        if let Some(reason) = self.over() {
            grant.lose(reason);
        }
    }

    /// A grant is being given back.
    pub(crate) fn leave(&self, token: u64) {
        self.roll().leave(token);
    }

    /// Somebody else goes on with a grant.
    pub(crate) fn detach(&self, token: u64) {
        self.roll().detach(token);
    }

    /// When the next heartbeat is due.
    pub(super) fn next(&self) -> BootInstant {
        self.state().next
    }

    /// A heartbeat is sent now: should it bring nothing, the next one is due soon.
    pub(super) fn put_off(&self) {
        self.state().next = BootInstant::now() + retry(self.ttl);
    }

    /// Says once that it is alive. Why it is over, if it is.
    ///
    /// # Errors
    /// When Redis does not say: it then lasts until its deadline at least.
    pub(crate) async fn beat(&self) -> Result<Option<LostReason>> {
        if let Some(reason) = self.over() {
            return Ok(Some(reason));
        }
        let changes = self.roll().changes();
        let sent = BootInstant::now();
        self.state().promised = sent + self.ttl;
        let answer = tokio::select! {
            answer = self.pool.heartbeat(&self.id, self.ttl, false) => answer,
            () = self.over.cancelled() => return Ok(self.over()),
        };
        match answer {
            Ok(Heartbeat::Alive { leases, before, until }) => {
                if self.is_alive(sent, before, until) && self.roll().is_doubtful(changes, leases) {
                    self.compare(changes, leases).await?;
                }
            }
            Ok(Heartbeat::Over) => self.lose(LostReason::Ended),
            Ok(Heartbeat::Unknown) | Err(Error::UnknownPool { .. }) => self.lose(LostReason::PoolLost),
            Err(error) => return Err(error),
        }
        Ok(self.over())
    }

    /// A heartbeat was answered. Whether that was heard in time: what is over stays over.
    fn is_alive(&self, sent: BootInstant, before: u64, until: u64) -> bool {
        if self.is_over() {
            return false;
        }
        let mut state = self.state();
        // The answers to two may be heard in any order; the later one sent is the one that counts.
        if state.heard <= sent {
            state.heard = sent;
            state.next = sent + self.ttl / 3;
        }
        let rolled_back = before < state.acknowledged && until >= state.acknowledged;
        state.acknowledged = state.acknowledged.max(until);
        drop(state);
        if rolled_back {
            // Redis had promised more: it has lost what it acknowledged, and perhaps leases.
            self.roll().distrust();
        }
        true
    }

    /// Looks whether Redis has the leases that are held here, and no others: an operator may have ended one, Redis may
    /// have lost one, the reply to a grant may have been lost.
    async fn compare(&self, changes: u64, leases: u64) -> Result<()> {
        let _alone = self.comparing.lock().await;
        if !self.roll().is_doubtful(changes, leases) {
            // Somebody else has looked while this one waited.
            return Ok(());
        }
        let expected = self.roll().tokens();
        let listed = self.pool.session_leases(&self.id).await?;
        let patience = self.pool.client().inner.timeout + ON_ITS_WAY;
        let difference = self.roll().compare(&expected, listed, (changes, leases), patience, BootInstant::now());
        for grant in difference.ended {
            grant.lose(LostReason::Ended);
        }
        self.pool.free_stray(&difference.stray).await
    }

    /// Tells Redis in the background that it is over, as long as Redis could think otherwise.
    pub(super) async fn end_in_the_end(self: Arc<Self>) {
        let mut delays = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(5))
            .without_max_times()
            .with_jitter()
            .build();
        loop {
            let Err(error) = self.pool.end_session(&self.id).await else { return };
            let past = self.state().promised.is_past();
            if past || !(error.is_transient() || matches!(error, Error::Server { .. })) {
                tracing::warn!(
                    pool = %self.pool.name(), session = self.id(), %error,
                    "a session was not ended; its leases end by its time"
                );
                return;
            }
            tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(5))).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it; a poisoned state is as good as any.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn roll(&self) -> MutexGuard<'_, Roll> {
        self.roll.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pause before something is tried again that a session of this time to live needs.
pub(super) fn retry(ttl: Duration) -> Duration {
    (ttl / 20).clamp(PAUSE.0, PAUSE.1)
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership").field("pool", &self.pool).field("id", &self.id).finish_non_exhaustive()
    }
}
