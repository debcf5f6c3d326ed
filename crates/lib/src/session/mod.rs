//! Sessions: instances, and threads of them, that report alive, and keep their leases by that. Guarantees, assumptions
//! and caveats are on [`Session`].
//!
//! | file | idea |
//! |---|---|
//! | `membership` | a session in one pool: its time, its end |
//! | `roll` | which leases it has, compared with Redis' list |
//! | `beat` | the heartbeat: when, and of whom |

mod beat;
mod membership;
mod roll;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::join_all;

pub(crate) use self::{beat::Beats, membership::Membership};
use crate::{
    client::Client,
    error::{Error, LostReason, Result},
    names::PoolName,
    pool::{Heartbeat, Pool},
    time::BootInstant,
    to_the_end::ToTheEnd,
};

/// How long a session lasts from each heartbeat unless it says otherwise.
const DEFAULT_TTL: Duration = Duration::from_secs(30);
const SHORTEST_TTL: Duration = Duration::from_secs(1);
const LONGEST_TTL: Duration = Duration::from_hours(24);
/// Longest name, in bytes: with what tells it from others of its name, it is as long as a resource key may be.
const MAX_NAME_BYTES: usize = 500;
/// How often a session is begun anew whose heartbeat is answered when its time is over already.
const ATTEMPTS: usize = 3;

/// Something that reports alive: an instance, or a [`thread`](Self::thread) of one. Made by [`Client::session`]. Clones
/// are the same session.
///
/// A session lives in pools: it begins in one when it is first used there, by a request that names it
/// (`malloc().session(&session)`) or by [`join`](Self::join). From then on one task of the client reports it alive, three
/// times in its time to live, together with all others of this client that are due. Leases that were granted to it have
/// no time of their own: one heartbeat a pool keeps them all, however many they are.
///
/// ```no_run
/// # async fn example() -> Result<(), redis_allocator::Error> {
/// use std::time::Duration;
/// use redis_allocator::Client;
///
/// let client = Client::connect("redis://127.0.0.1:6379").await?;
/// let pool = client.pool("gpus")?;
/// let trainer = client.session("trainer-1").ttl(Duration::from_secs(30)).start().await?;
/// trainer.join(&pool).await?;
/// let loader = trainer.thread("loader-1")?;
/// loader.join(&pool).await?;
/// for session in pool.sessions().await? {
///     println!("{}: {}, {} leases", session.name, if session.alive { "alive" } else { "dead" }, session.leases);
/// }
/// loader.end().await?;
/// trainer.end().await?;
/// # Ok(())
/// # }
/// ```
///
/// # Guarantees
/// - A lease of the session may be used until the session's deadline in its pool, an instant of this host counted from
///   before the last answered heartbeat was sent; [`Lease::deadline`](crate::Lease::deadline) is that instant. While
///   Redis keeps what it acknowledged, nobody else is granted the resource before.
/// - Whoever dies loses its leases: they end when it has not been heard of for its time to live and
///   [`CLOCK_SLACK`](crate::CLOCK_SLACK) more, at the next [`gc`](Pool::gc), or when a request finds nothing free.
/// - All leases are told at once, as by [`Lease::lost`](crate::Lease::lost), when the session is over in their pool: its
///   deadline has passed without an answer, or Redis has forgotten it, or it was [ended](Self::end). One that an operator
///   ended, or that Redis lost, is told by the next heartbeat.
/// - What is over is never revived: a process that restarts under the same name, and a session whose time was over, are
///   known to Redis by another id, and find none of the earlier leases.
///
/// # Assumptions
/// - Those of a [`Lease`](crate::Lease).
/// - The runtime that the client was made in gets to run three times in the shortest time to live.
///
/// # Caveats
/// - It is the process that is reported alive, not progress: a thread that hangs while it keeps its session is alive.
/// - A session whose time was over begins anew, without its leases, at the next request that names it; where it was
///   joined, by itself.
/// - A grant whose reply was lost ([`Error::OutcomeUnknown`]) has no time of its own either: it is found at the heartbeats,
///   and given back after some two minutes.
/// - When the last clone is dropped, the session ends as by [`end`](Self::end), in the background, as well as it can.
///   Prefer `end`, which tells what happened.
#[derive(Clone)]
pub struct Session {
    handle: Arc<Handle>,
}

/// What all clones of a session share; ends it when the last one is dropped.
struct Handle(Arc<Inner>);

/// A session to be; made by [`Client::session`].
#[derive(Debug, Clone)]
#[must_use = "a session does not begin until it is started"]
pub struct SessionBuilder {
    client: Client,
    name: String,
    ttl: Duration,
}

/// What the heartbeat has of a session, too.
struct Inner {
    client: Client,
    name: String,
    id: Arc<str>,
    ttl: Duration,
    /// A std mutex: it is never held across an await.
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    ended: bool,
    /// Whether the heartbeat knows of it.
    entered: bool,
    by_pool: HashMap<PoolName, Arc<Place>>,
}

/// A pool that the session is used in.
struct Place {
    pool: Pool,
    /// One at a time.
    beginning: tokio::sync::Mutex<()>,
    state: Mutex<PlaceState>,
}

struct PlaceState {
    current: Option<Arc<Membership>>,
    /// The id to begin with, unless it was used already.
    id: Option<Arc<str>>,
    /// Whether it is begun anew when it is over.
    joined: bool,
    /// When to try that.
    next: BootInstant,
}

impl Client {
    /// Names a session: what reports alive, and keeps leases by that. Nothing is written before it is used in a pool.
    pub fn session(&self, name: impl Into<String>) -> SessionBuilder {
        SessionBuilder { client: self.clone(), name: name.into(), ttl: DEFAULT_TTL }
    }
}

impl SessionBuilder {
    /// How long it is believed to be alive from each heartbeat, and thus how long its leases outlive a process that
    /// dies: 1 s to 24 h, default 30 s. Not counting [`CLOCK_SLACK`](crate::CLOCK_SLACK).
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// [`Error::InvalidName`] unless the name has 1 to 500 bytes and no NUL, [`Error::Invalid`] for a time to live out of
    /// its range.
    #[expect(clippy::unused_async, reason = "what makes it known to a server may come to be part of it")]
    pub async fn start(self) -> Result<Session> {
        if !(SHORTEST_TTL..=LONGEST_TTL).contains(&self.ttl) {
            return Err(Error::Invalid {
                what: "session's time to live",
                found: format!("{:?}", self.ttl),
                allowed: "1 s to 24 h".to_owned(),
            });
        }
        Session::new(self.client, self.name, self.ttl)
    }
}

impl Session {
    fn new(client: Client, name: String, ttl: Duration) -> Result<Self> {
        let name = check_name(name)?;
        let id = new_id(&name)?;
        let inner = Inner { client, name, id, ttl, places: Mutex::default() };
        Ok(Self { handle: Arc::new(Handle(Arc::new(inner))) })
    }

    /// The name it was given; of a thread's, the instance's before it, with a slash between.
    pub fn name(&self) -> &str {
        &self.handle.0.name
    }

    /// What Redis knows it by from its start on: its name, `#`, and 8 hexadecimal digits, others at each start.
    pub fn id(&self) -> &str {
        &self.handle.0.id
    }

    /// How long it lasts from each heartbeat.
    pub fn ttl(&self) -> Duration {
        self.handle.0.ttl
    }

    /// A session for a part of this instance, such as a thread: `<name>/<part>`, with the same time to live. It has its
    /// own leases and its own end: neither ends the other.
    ///
    /// # Errors
    /// [`Error::InvalidName`] when the part is empty or has a NUL, or the whole name is longer than 500 bytes.
    pub fn thread(&self, part: impl AsRef<str>) -> Result<Self> {
        let Inner { client, name, ttl, .. } = &*self.handle.0;
        let part = check_name(part.as_ref().to_owned())?;
        Self::new(client.clone(), format!("{name}/{part}"), *ttl)
    }

    /// Has it reported alive in a pool from now on, whether it has leases there or not. Should it be over there one day, as
    /// Redis was not to be reached or has lost its data, it is begun anew by itself, under another id.
    ///
    /// # Errors
    /// [`Error::UnknownPool`], [`Error::SessionOver`] when it was ended, [`Error::TtlRefused`] when its time to live is above
    /// the pool's `maxTTL`, [`Error::Invalid`] for a pool of another client.
    pub async fn join(&self, pool: &Pool) -> Result<()> {
        let inner = &self.handle.0;
        inner.in_pool(pool).await?;
        if let Some(place) = inner.places().by_pool.get(pool.name()) {
            place.state().joined = true;
        }
        Ok(())
    }

    /// Ends it and all its leases, in all pools, 200 leases a call. From this call on the leases are lost here, and clones
    /// of this session can't be used any more.
    ///
    /// # Errors
    /// The first one of any pool. There it goes on in the background, and if that is in vain, the leases end by the
    /// session's time.
    pub async fn end(self) -> Result<()> {
        let runtime = self.handle.0.client.inner.runtime.clone();
        let ended = self.handle.0.stop();
        let tell = {
            let runtime = runtime.clone();
            async move {
                let mut outcome = Ok(());
                let told = join_all(ended.iter().map(|ended| ended.pool().end_session(ended.id()))).await;
                for (ended, told) in ended.into_iter().zip(told) {
                    if told.is_err() {
                        runtime.spawn(ended.end_in_the_end());
                        outcome = outcome.and(told);
                    }
                }
                outcome
            }
        };
        ToTheEnd::new(runtime, tell).await
    }

    /// Its life in a pool, begun if need be: what a lease is to be tied to.
    ///
    /// # Errors
    /// As [`Session::join`].
    pub(crate) async fn in_pool(&self, pool: &Pool) -> Result<Arc<Membership>> {
        self.handle.0.in_pool(pool).await
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        for ended in self.0.stop() {
            self.0.client.inner.runtime.spawn(ended.end_in_the_end());
        }
    }
}

impl Inner {
    fn places(&self) -> MutexGuard<'_, Places> {
        // Nothing that is done under it can panic half-way.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is over here; what Redis is to be told of.
    fn stop(&self) -> Vec<Arc<Membership>> {
        let mut places = self.places();
        places.ended = true;
        let places = std::mem::take(&mut places.by_pool);
        let current: Vec<_> = places.into_values().filter_map(|place| place.state().current.take()).collect();
        for membership in &current {
            membership.end(LostReason::Ended);
        }
        current
    }

    fn is_ended(&self) -> bool {
        self.places().ended
    }

    fn over(&self, pool: &Pool) -> Error {
        Error::SessionOver { pool: pool.name().clone(), session: self.id.to_string() }
    }

    async fn in_pool(self: &Arc<Self>, pool: &Pool) -> Result<Arc<Membership>> {
        if !Arc::ptr_eq(&pool.client().inner, &self.client.inner) {
            return Err(Error::Invalid {
                what: "session",
                found: self.id.to_string(),
                allowed: format!("one of the same client as the pool {}", pool.name()),
            });
        }
        let place = {
            let mut places = self.places();
            if places.ended {
                return Err(self.over(pool));
            }
            let place = places.by_pool.entry(pool.name().clone()).or_insert_with(|| {
                let state = PlaceState {
                    current: None,
                    id: Some(Arc::clone(&self.id)),
                    joined: false,
                    next: BootInstant::now(),
                };
                Arc::new(Place {
                    pool: pool.clone(),
                    beginning: tokio::sync::Mutex::default(),
                    state: Mutex::new(state),
                })
            });
            Arc::clone(place)
        };
        self.in_place(&place).await
    }

    async fn in_place(self: &Arc<Self>, place: &Place) -> Result<Arc<Membership>> {
        if let Some(current) = place.current() {
            return Ok(current);
        }
        let _alone = place.beginning.lock().await;
        if let Some(current) = place.current() {
            return Ok(current);
        }
        let begun = self.begin(place).await?;
        let mut places = self.places();
        if places.ended {
            drop(places);
            begun.end(LostReason::Ended);
            self.client.inner.runtime.spawn(begun.end_in_the_end());
            return Err(self.over(&place.pool));
        }
        place.state().current = Some(Arc::clone(&begun));
        let entered = std::mem::replace(&mut places.entered, true);
        drop(places);
        self.client.inner.beats.look(self, !entered);
        Ok(begun)
    }

    async fn begin(&self, place: &Place) -> Result<Arc<Membership>> {
        for _ in 0..ATTEMPTS {
            let id = place.state().id.clone();
            let id = match id {
                Some(id) => id,
                None => new_id(&self.name)?,
            };
            place.state().id = Some(Arc::clone(&id));
            let sent = BootInstant::now();
            // Should the answer be lost, the same id is tried again: no lease can be part of it yet.
            let answer = place.pool.heartbeat(&id, self.ttl, true).await?;
            place.state().id = None;
            if let Heartbeat::Alive { until, .. } = answer {
                let begun = Membership::new(place.pool.clone(), id, self.ttl, sent, until);
                if !begun.is_over() {
                    return Ok(begun);
                }
            }
        }
        Err(Error::Timeout { waited_for: "a heartbeat that is answered within the session's time", after: self.ttl })
    }
}

impl Place {
    fn state(&self) -> MutexGuard<'_, PlaceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life that is not over.
    fn current(&self) -> Option<Arc<Membership>> {
        self.state().current.clone().filter(|current| !current.is_over())
    }
}

fn check_name(name: String) -> Result<String> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains('\0') {
        return Err(Error::InvalidName {
            what: "session name",
            found: name.chars().take(80).collect(),
            allowed: "1 to 500 bytes of UTF-8 without NUL",
        });
    }
    Ok(name)
}

fn new_id(name: &str) -> Result<Arc<str>> {
    let number = getrandom::u32().map_err(|error| Error::Unavailable {
        message: format!("the operating system gave no random number: {error}"),
        source: None,
    })?;
    Ok(format!("{name}#{number:08x}").into())
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("id", &self.id()).field("ttl", &self.ttl()).finish_non_exhaustive()
    }
}
