//! A lease: the right to use one resource until a deadline. Guarantees, assumptions and caveats are on [`Lease`].

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use serde_json::{Map, Value};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use crate::{
    error::{Error, LostReason, Result},
    item::Facts,
    names::{BindingName, PoolName, ResourceKey},
    pool::{Asker, KeyGrant, Pool, Renewal, ToBeFreed},
    session::Membership,
    time::{BootInstant, Timestamp, Ttl},
};

/// Tokens of what was granted by key alone, and until when they can matter.
pub(crate) type KeyGrants = HashMap<(PoolName, ResourceKey), Vec<KeyGrant>>;

/// The right to use one resource of a pool, until [`deadline`](Lease::deadline).
///
/// # Guarantees
/// - While Redis keeps what it acknowledged, nobody else is granted the resource before the deadline has passed.
/// - [`fencing_token`](Lease::fencing_token) is greater than that of every earlier grant of the pool: a store that
///   remembers the greatest token it has seen can refuse whoever comes late.
/// - [`lost`](Lease::lost) completes as soon as this process knows that the lease is not its own any more: a renewal
///   was refused, or the deadline has passed.
///
/// # Assumptions
/// - The holder stops using the resource at the deadline. Only the holder can do that: check
///   [`is_lost`](Lease::is_lost) or wait on [`lost`](Lease::lost) while working.
/// - The clocks of Redis' hosts agree within two seconds; the clocks of clients do not matter.
///
/// # Caveats
/// - Dropping a lease frees it as well as it can: a task is started that tells Redis, and tries again while the lease
///   could still be in force. If the process or the Tokio runtime ends before, the resource comes back when the lease
///   expires, a permanent one never: prefer [`free`](Lease::free), which tells what happened.
/// - An operator's `free --force`, and `removalPolicy: Revoke`, end a lease before its deadline.
/// - A lease that is part of a [`Session`](crate::Session) has no time of its own: it lasts as long as the session does in
///   its pool, whose deadline is its own. It ends with the session, however it is held.
pub struct Lease {
    grant: Arc<Grant>,
    /// Whether dropping this leaves the grant alone.
    keep: bool,
}

/// What was granted; shared with the keep-alive timer.
pub(crate) struct Grant {
    pub(crate) pool: Pool,
    pub(crate) key: ResourceKey,
    /// What the lease is called in Redis, if not like the resource.
    id: Option<String>,
    incarnation: Arc<str>,
    token: u64,
    granted_at: Timestamp,
    asker: Arc<Asker>,
    binding: Option<BindingName>,
    facts: Facts,
    /// What it lasts as long as, if it has no time of its own.
    session: Option<Arc<Membership>>,
    state: Mutex<State>,
    lost: CancellationToken,
    /// Whether the timer looks after it: to renew it, or only to tell when its time is over.
    pub(crate) watched: AtomicBool,
    /// When the timer looks at it next.
    look: Mutex<Option<BootInstant>>,
    pub(crate) renewing: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// When the renewal that counts was sent.
    renewed: Option<BootInstant>,
    /// `None`: permanent.
    ttl: Option<Duration>,
    deadline: Option<BootInstant>,
    ended: Option<Ended>,
    /// Whether Redis was ever asked to make it permanent, answered or not: its time then never ends it.
    may_be_permanent: bool,
}

#[derive(Debug, Clone, Copy)]
enum Ended {
    Freed,
    Lost(LostReason),
}

/// What a grant is made of.
pub(crate) struct Granted {
    pub(crate) pool: Pool,
    pub(crate) key: ResourceKey,
    /// `None`: the key is.
    pub(crate) id: Option<String>,
    pub(crate) incarnation: Arc<str>,
    pub(crate) token: u64,
    pub(crate) at: Timestamp,
    pub(crate) asker: Arc<Asker>,
    pub(crate) binding: Option<BindingName>,
    pub(crate) facts: Facts,
    pub(crate) ttl: Duration,
    pub(crate) deadline: BootInstant,
    /// Then `ttl` and `deadline` do not matter.
    pub(crate) session: Option<Arc<Membership>>,
}

impl Lease {
    pub(crate) fn new(granted: Granted) -> Self {
        let Granted { pool, key, id, incarnation, token, at, asker, binding, facts, ttl, deadline, session } = granted;
        let grant = Grant {
            pool,
            key,
            id,
            incarnation,
            token,
            granted_at: at,
            asker,
            binding,
            facts,
            session,
            state: Mutex::new(State {
                renewed: None,
                ttl: Some(ttl),
                deadline: Some(deadline),
                ended: None,
                may_be_permanent: false,
            }),
            lost: CancellationToken::new(),
            watched: AtomicBool::new(false),
            look: Mutex::new(None),
            renewing: AtomicBool::new(false),
        };
        let grant = Arc::new(grant);
        if let Some(session) = &grant.session {
            session.enter(token, &grant);
        }
        Self { grant, keep: false }
    }

    /// The pool that granted it.
    pub fn pool(&self) -> &PoolName {
        self.grant.pool.name()
    }

    /// The resource that is held.
    pub fn key(&self) -> &ResourceKey {
        &self.grant.key
    }

    /// What the declaration says about the resource, as of the grant.
    pub fn params(&self) -> &Map<String, Value> {
        &self.grant.facts.params
    }

    /// The resource's labels, as of the grant.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.grant.facts.labels
    }

    /// Who holds it, as people see it in `redis-allocator get leases`.
    pub fn owner(&self) -> &str {
        &self.grant.asker.owner
    }

    /// The soft-binding name it was asked for with.
    pub fn binding(&self) -> Option<&BindingName> {
        self.grant.binding.as_ref()
    }

    /// Greater than the token of every earlier grant of this pool. Hand it to whatever the resource writes to.
    pub fn fencing_token(&self) -> u64 {
        self.grant.token
    }

    /// When it was granted, by Redis' clock.
    pub fn granted_at(&self) -> Timestamp {
        self.grant.granted_at
    }

    /// How long it lasts from each renewal; `None` when it is permanent. Of a session's lease: from each heartbeat.
    pub fn ttl(&self) -> Option<Duration> {
        self.grant.ttl()
    }

    /// Until when the resource may be used; `None` when it is permanent. Counted from *before* the request was sent, so
    /// that it is never later than Redis' own idea.
    pub fn deadline(&self) -> Option<BootInstant> {
        self.grant.deadline()
    }

    /// Time left until the deadline: zero when it has passed, `None` when the lease is permanent.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline().map(BootInstant::remaining)
    }

    /// Whether the resource may not be used any more. One look at a clock, no round trip.
    pub fn is_lost(&self) -> bool {
        self.lost_reason().is_some()
    }

    /// Why the lease is lost; `None` while it is held.
    pub fn lost_reason(&self) -> Option<LostReason> {
        self.grant.check_deadline();
        match self.grant.state().ended {
            Some(Ended::Lost(reason)) => Some(reason),
            _ => None,
        }
    }

    /// Completes when the lease is lost. Never completes for a lease that is freed in time.
    pub fn lost(&self) -> WaitForCancellationFuture<'_> {
        self.watch();
        self.grant.lost.cancelled()
    }

    /// A token that is cancelled when the lease is lost, to hand to tasks that must stop then.
    pub fn lost_token(&self) -> CancellationToken {
        self.watch();
        self.grant.lost.child_token()
    }

    /// Extends the lease by its own time to live, from now on. Of a session's lease, it is the session that is extended,
    /// with all its leases in this pool.
    ///
    /// # Errors
    /// [`Error::Lost`] when it has ended, from then on always; [`Error::Unavailable`], [`Error::OutcomeUnknown`] when
    /// Redis does not answer: the lease then lasts until its deadline at least.
    pub async fn renew(&self) -> Result<()> {
        self.grant.renew(self.grant.ttl()).await
    }

    /// Extends the lease to a time to live of its own, from now on, or makes it permanent. A shorter time shortens
    /// what this holder may do at once; Redis keeps the resource for as long as it had promised before.
    ///
    /// A session's lease has no time to live of its own: this changes nothing then, and only tells whether it is lost.
    ///
    /// # Errors
    /// As [`Lease::renew`], and [`Error::TtlRefused`] when the pool's maximum is shorter.
    pub async fn renew_for(&self, ttl: impl Into<Ttl>) -> Result<()> {
        let ttl = ttl.into();
        ttl.to_arg()?;
        if self.grant.session.is_some() {
            return self.grant.check();
        }
        match ttl {
            Ttl::PoolDefault => self.renew().await,
            Ttl::For(duration) => self.grant.renew(Some(duration)).await,
            Ttl::Permanent => self.grant.renew(None).await,
        }
    }

    /// Has the lease renewed from now on, when a third of its time has passed, together with all others of this client
    /// that are due: one round trip a pool. It goes on until the lease is freed, dropped or lost.
    ///
    /// A session's lease is kept alive by the session already: this changes nothing then.
    pub fn keep_alive(&self) {
        self.grant.renewing.store(true, Ordering::Release);
        self.watch();
    }

    /// Has it told when it is lost. A session's is told by the session.
    fn watch(&self) {
        if self.grant.session.is_none() {
            self.grant.pool.client().inner.keep_alive.watch(&self.grant);
        }
    }

    /// Gives the resource back.
    ///
    /// # Errors
    /// [`Error::NotOwner`] when it was not held any more: it had expired and been reclaimed, or an operator ended it.
    /// Nothing is changed then. [`Error::Unavailable`], [`Error::OutcomeUnknown`]: it may still be held; dropping goes
    /// on trying in the background.
    pub async fn free(self) -> Result<()> {
        let freed = self.grant.pool.free_grant(Arc::clone(&self.grant)).await?;
        self.freed(freed)
    }

    /// Redis was told to free it, and this came of it. When that is not known, dropping goes on trying.
    pub(crate) fn freed(self, freed: Result<()>) -> Result<()> {
        if !matches!(freed, Err(Error::OutcomeUnknown { .. })) {
            self.grant.end(Ended::Freed);
        }
        freed
    }

    /// Lets go of the lease without freeing it: it stays in force until it expires, and is not renewed any more. Use it
    /// when another process goes on with the resource, under the same token.
    ///
    /// A session's lease stays part of the session: it ends with it.
    pub fn detach(mut self) {
        self.keep = true;
        if let Some(session) = &self.grant.session {
            session.detach(self.grant.token);
        }
    }

    pub(crate) fn grant(&self) -> &Arc<Grant> {
        &self.grant
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let over = match self.grant.state().ended {
            // Its time is over here. Redis may know of a renewal whose reply came too late, or never.
            Some(Ended::Lost(LostReason::Expired)) | None => false,
            Some(_) => true,
        };
        if self.keep || over {
            return;
        }
        self.grant.end(Ended::Freed);
        let grant = Arc::clone(&self.grant);
        self.grant.pool.client().inner.runtime.spawn(async move { grant.free_in_the_end().await });
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("pool", self.pool())
            .field("key", self.key())
            .field("token", &self.grant.token)
            .field("state", &*self.grant.state())
            .finish_non_exhaustive()
    }
}

impl Grant {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it; a poisoned state is as good as any.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn deadline(&self) -> Option<BootInstant> {
        match &self.session {
            Some(session) => Some(session.deadline()),
            None => self.state().deadline,
        }
    }

    pub(crate) fn ttl(&self) -> Option<Duration> {
        match &self.session {
            Some(session) => Some(session.ttl()),
            None => self.state().ttl,
        }
    }

    pub(crate) fn look(&self) -> Option<BootInstant> {
        *self.look.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_look(&self, at: Option<BootInstant>) {
        *self.look.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// Whether it is over, by being freed or lost.
    pub(crate) fn has_ended(&self) -> bool {
        self.state().ended.is_some()
    }

    /// What the lease is called in Redis.
    pub(crate) fn id(&self) -> &str {
        self.id.as_deref().unwrap_or(self.key.as_str())
    }

    /// As `holders` has it: token (16 digits), granted at (13 digits), holder (JSON).
    pub(crate) fn record(&self) -> String {
        format!("{:016}{:013}{}", self.token, self.granted_at.as_millis(), self.asker.holder)
    }

    pub(crate) fn incarnation(&self) -> &Arc<str> {
        &self.incarnation
    }

    /// As [`Pool::free_grants`] takes it. From now on its session does not look for it any more.
    pub(crate) fn to_be_freed(&self) -> ToBeFreed<'_> {
        if let Some(session) = &self.session {
            session.leave(self.token);
        }
        let token = format!("{:016}", self.token).into();
        ToBeFreed { key: &self.key, id: self.id(), token, deadline: self.deadline() }
    }

    pub(crate) fn ttl_arg(ttl: Option<Duration>) -> Result<i64> {
        ttl.map_or(Ok(-1), |ttl| Ttl::For(ttl).to_arg())
    }

    /// Notices that the time is over, if it is.
    pub(crate) fn check_deadline(&self) {
        let reason = match &self.session {
            Some(session) => session.over(),
            None => self.state().deadline.is_some_and(BootInstant::is_past).then_some(LostReason::Expired),
        };
        if let Some(reason) = reason {
            self.end(Ended::Lost(reason));
        }
    }

    /// # Errors
    /// [`Error::Lost`] when it is.
    fn check(&self) -> Result<()> {
        self.check_deadline();
        match self.state().ended {
            Some(Ended::Lost(reason)) => Err(self.lost_error(reason)),
            _ => Ok(()),
        }
    }

    pub(crate) fn lose(&self, reason: LostReason) {
        self.end(Ended::Lost(reason));
    }

    fn end(&self, how: Ended) {
        let mut state = self.state();
        if state.ended.is_some() {
            return;
        }
        state.ended = Some(how);
        drop(state);
        if matches!(how, Ended::Lost(_)) {
            self.lost.cancel();
        }
    }

    /// A renewal is about to be asked for.
    pub(crate) fn renewing_for(&self, ttl: Option<Duration>) {
        self.state().may_be_permanent |= ttl.is_none();
    }

    /// A renewal, asked for before `sent`, was granted. Whether that was heard in time: what is lost stays lost.
    pub(crate) fn renewed(self: &Arc<Self>, sent: BootInstant, ttl: Option<Duration>) -> bool {
        let mut state = self.state();
        if state.ended.is_some() {
            return false;
        }
        // The replies of two renewals may be heard in any order; the later request is the one that counts.
        if state.renewed.is_none_or(|latest| latest <= sent) {
            state.renewed = Some(sent);
            state.ttl = ttl;
            state.deadline = ttl.map(|ttl| sent + ttl);
        }
        drop(state);
        if self.watched.load(Ordering::Acquire) {
            // The deadline may be nearer now than the timer knows.
            self.pool.client().inner.keep_alive.watch(self);
        }
        true
    }

    fn lost_error(&self, reason: LostReason) -> Error {
        Error::Lost { pool: self.pool.name().clone(), resource: self.key.clone(), reason }
    }

    pub(crate) async fn renew(self: &Arc<Self>, ttl: Option<Duration>) -> Result<()> {
        self.check()?;
        if let Some(session) = &self.session {
            session.beat().await?;
            return self.check();
        }
        let ending = ttl.filter(|_| self.ttl().is_none());
        if ending.is_some() {
            // Giving a permanent lease an end: should the reply be lost, it may have one already.
            self.renewed(BootInstant::now(), ending);
        }
        match self.pool.renew_grant(Arc::clone(self), ttl).await? {
            Renewal::Extended => Ok(()),
            Renewal::Refused(maximum) => {
                if ending.is_some() {
                    // It stays what it was.
                    self.renewed(BootInstant::now(), None);
                }
                Err(Error::TtlRefused {
                    pool: self.pool.name().clone(),
                    found: ttl.map_or_else(|| "unlimited time".to_owned(), |ttl| format!("{ttl:?}")),
                    allowed: format!("at most {maximum:?}"),
                })
            }
            Renewal::Lost(reason) => Err(self.lost_error(reason)),
        }
    }

    /// Frees in the background, as long as the grant could be in force. The token makes every repetition harmless.
    async fn free_in_the_end(self: Arc<Self>) {
        let mut delays = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(5))
            .without_max_times()
            .with_jitter()
            .build();
        let named = [self.to_be_freed()];
        loop {
            match self.pool.free_grants(&named).await {
                Err(error) if error.is_transient() => {}
                // Out of permission or order, which an operator may mend while the lease could be in force.
                Err(error @ Error::Server { .. }) => {
                    tracing::warn!(pool = %self.pool.name(), resource = %self.key, %error, "a dropped lease was not freed yet");
                }
                Err(error) => {
                    tracing::warn!(pool = %self.pool.name(), resource = %self.key, %error, "a dropped lease was not freed");
                    return;
                }
                Ok(_) => return,
            }
            if !self.state().may_be_permanent && self.deadline().is_some_and(BootInstant::is_past) {
                return;
            }
            tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(5))).await;
        }
    }
}
