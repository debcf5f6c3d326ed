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
    pool::{Pool, Renewal},
    time::{BootInstant, Timestamp, Ttl},
};

/// Tokens of what was granted by key alone, and until when they can matter.
pub(crate) type KeyGrants = HashMap<(PoolName, ResourceKey), (String, Option<BootInstant>)>;

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
pub struct Lease {
    grant: Arc<Grant>,
    /// Whether dropping this leaves the grant alone.
    keep: bool,
}

/// What was granted; shared with the keep-alive timer.
pub(crate) struct Grant {
    pub(crate) pool: Pool,
    pub(crate) key: ResourceKey,
    /// As `holders` has it: token (16 digits), granted at (13 digits), holder (JSON).
    pub(crate) record: String,
    incarnation: Arc<str>,
    token: u64,
    granted_at: Timestamp,
    owner: String,
    binding: Option<BindingName>,
    facts: Facts,
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
    pub(crate) record: String,
    pub(crate) incarnation: Arc<str>,
    pub(crate) token: u64,
    pub(crate) at: Timestamp,
    pub(crate) owner: String,
    pub(crate) binding: Option<BindingName>,
    pub(crate) facts: Facts,
    pub(crate) ttl: Duration,
    pub(crate) deadline: BootInstant,
}

impl Lease {
    pub(crate) fn new(granted: Granted) -> Self {
        let Granted { pool, key, record, incarnation, token, at, owner, binding, facts, ttl, deadline } = granted;
        let grant = Grant {
            pool,
            key,
            record,
            incarnation,
            token,
            granted_at: at,
            owner,
            binding,
            facts,
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
        Self { grant: Arc::new(grant), keep: false }
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
        &self.grant.owner
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

    /// How long it lasts from each renewal; `None` when it is permanent.
    pub fn ttl(&self) -> Option<Duration> {
        self.grant.state().ttl
    }

    /// Until when the resource may be used; `None` when it is permanent. Counted from *before* the request was sent, so
    /// that it is never later than Redis' own idea.
    pub fn deadline(&self) -> Option<BootInstant> {
        self.grant.state().deadline
    }

    /// Time left until the deadline: zero when it has passed, `None` when the lease is permanent.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline().map(BootInstant::remaining)
    }

    /// Whether the resource may not be used any more. One look at a clock, no round trip.
    pub fn is_lost(&self) -> bool {
        self.grant.check_deadline();
        self.grant.lost.is_cancelled()
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
        self.grant.pool.client().inner.keep_alive.watch(&self.grant);
        self.grant.lost.cancelled()
    }

    /// A token that is cancelled when the lease is lost, to hand to tasks that must stop then.
    pub fn lost_token(&self) -> CancellationToken {
        self.grant.pool.client().inner.keep_alive.watch(&self.grant);
        self.grant.lost.child_token()
    }

    /// Extends the lease by its own time to live, from now on.
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
    /// # Errors
    /// As [`Lease::renew`], and [`Error::TtlRefused`] when the pool's maximum is shorter.
    pub async fn renew_for(&self, ttl: impl Into<Ttl>) -> Result<()> {
        let ttl = ttl.into();
        ttl.to_arg()?;
        match ttl {
            Ttl::PoolDefault => self.renew().await,
            Ttl::For(duration) => self.grant.renew(Some(duration)).await,
            Ttl::Permanent => self.grant.renew(None).await,
        }
    }

    /// Has the lease renewed from now on, when a third of its time has passed, together with all others of this client
    /// that are due: one round trip a pool. It goes on until the lease is freed, dropped or lost.
    pub fn keep_alive(&self) {
        self.grant.renewing.store(true, Ordering::Release);
        self.grant.pool.client().inner.keep_alive.watch(&self.grant);
    }

    /// Gives the resource back.
    ///
    /// # Errors
    /// [`Error::NotOwner`] when it was not held any more: it had expired and been reclaimed, or an operator ended it.
    /// Nothing is changed then. [`Error::Unavailable`], [`Error::OutcomeUnknown`]: it may still be held; dropping goes
    /// on trying in the background.
    pub async fn free(self) -> Result<()> {
        let freed = self.grant.pool.free_grant(self.grant.to_be_freed()).await?;
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
    pub fn detach(mut self) {
        self.keep = true;
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
        self.state().deadline
    }

    pub(crate) fn ttl(&self) -> Option<Duration> {
        self.state().ttl
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

    pub(crate) fn incarnation(&self) -> &Arc<str> {
        &self.incarnation
    }

    pub(crate) fn token_text(&self) -> String {
        format!("{:016}", self.token)
    }

    /// As [`Pool::free_grants`] takes it.
    pub(crate) fn to_be_freed(&self) -> (ResourceKey, String, Option<BootInstant>) {
        (self.key.clone(), self.token_text(), self.deadline())
    }

    pub(crate) fn ttl_arg(ttl: Option<Duration>) -> Result<i64> {
        ttl.map_or(Ok(-1), |ttl| Ttl::For(ttl).to_arg())
    }

    /// Notices that the time is over, if it is.
    pub(crate) fn check_deadline(&self) {
        let over = self.state().deadline.is_some_and(BootInstant::is_past);
        if over {
            self.end(Ended::Lost(LostReason::Expired));
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
        self.check_deadline();
        if let Some(Ended::Lost(reason)) = self.state().ended {
            return Err(self.lost_error(reason));
        }
        let ending = ttl.filter(|_| self.ttl().is_none());
        if ending.is_some() {
            // Giving a permanent lease an end: should the reply be lost, it may have one already.
            self.renewed(BootInstant::now(), ending);
        }
        let outcome = self.pool.renew_grants(&[(self, ttl)]).await?;
        match outcome.first() {
            Some(Renewal::Extended) => Ok(()),
            Some(Renewal::Refused(maximum)) => {
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
            Some(Renewal::Lost(reason)) => Err(self.lost_error(*reason)),
            None => Err(self.lost_error(LostReason::Ended)),
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
