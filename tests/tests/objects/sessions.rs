//! The kind of object that these tests open: a session that notes what is done with it, on resources with flaws; and a
//! pool of such resources. It must not know what is tested.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::AsyncFn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Flavor, Server, eventually};
use redis_allocator::{
    Allocatable, Allocated, Client, Item, Mark, Open, Order, Ownership, Place, Pool, PoolSettings, ResourceKey,
    Waiting, test_clock::TestClock,
};
use serde_json::{Map, Value};
use tokio::time::sleep;

/// For what must happen soon, on a machine that may be busy.
pub(crate) const SOON: Duration = Duration::from_mins(1);
/// What takes this long hangs.
const HANGING: Duration = Duration::from_hours(1);

/// What a resource does to its sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    OpenFails,
    OpenHangs,
    OpenPanics,
    /// Opening takes as long as the resource has this flaw; what comes of it is what the next one says.
    OpenTakesLong,
    CheckFails,
    CheckHangs,
    CheckPanics,
    Unhealthy,
    CloseFails,
    CloseHangs,
    ClosePanics,
}

/// A kind of object that notes what is done with it, and waits a little in everything it does.
pub(crate) struct Sessions {
    pub(crate) name: Option<&'static str>,
    /// Where closing looks whether its resource is still held.
    pub(crate) pool: Pool,
    pub(crate) log: Arc<Log>,
}

#[derive(Default)]
pub(crate) struct Log {
    pub(crate) flaws: Mutex<BTreeMap<String, Flaw>>,
    /// What was begun, in order.
    pub(crate) events: Mutex<Vec<String>>,
    /// Resources with a session that lives.
    pub(crate) alive: Mutex<BTreeSet<String>>,
    /// How often each session that was opened was closed.
    pub(crate) closed: Mutex<Vec<usize>>,
    /// Sessions whose closing came to its end.
    pub(crate) ended: AtomicUsize,
    /// Sessions that met another one on their resource.
    pub(crate) overlaps: AtomicUsize,
    /// Sessions whose resource was given back before they were closed.
    pub(crate) late: AtomicUsize,
}

pub(crate) struct Session {
    pub(crate) key: String,
    pub(crate) number: usize,
    pub(crate) params: Map<String, Value>,
    pub(crate) log: Arc<Log>,
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    pub(crate) fn flaw(&self, key: &str) -> Option<Flaw> {
        locked(&self.flaws).get(key).copied()
    }

    pub(crate) fn break_with(&self, key: &str, flaw: Flaw) {
        locked(&self.flaws).insert(key.to_owned(), flaw);
    }

    pub(crate) fn mend(&self) {
        locked(&self.flaws).clear();
    }

    pub(crate) fn note(&self, event: &str, key: &str) {
        locked(&self.events).push(format!("{event} {key}"));
    }

    pub(crate) fn take_events(&self) -> Vec<String> {
        std::mem::take(&mut *locked(&self.events))
    }

    /// Every session that was opened was closed once, and is gone.
    pub(crate) fn ensure_over(&self) -> Result<()> {
        let (closed, alive) = (locked(&self.closed).clone(), locked(&self.alive).clone());
        ensure!(closed.iter().all(|times| *times == 1), "closed {closed:?} times");
        ensure!(alive.is_empty(), "sessions live on {alive:?}");
        let (overlaps, late) = (self.overlaps.load(Ordering::SeqCst), self.late.load(Ordering::SeqCst));
        ensure!((overlaps, late) == (0, 0), "{overlaps} overlapped, {late} were closed too late");
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        locked(&self.log.alive).remove(&self.key);
    }
}

/// Several awaits, of different kinds.
async fn a_while() {
    tokio::task::yield_now().await;
    sleep(Duration::from_millis(1)).await;
    tokio::task::yield_now().await;
}

impl Allocatable for Sessions {
    type Object = Session;
    type Error = anyhow::Error;

    async fn open(&self, key: &ResourceKey, params: &Map<String, Value>) -> Result<Session> {
        self.log.note("open", key.as_str());
        a_while().await;
        while self.log.flaw(key.as_str()) == Some(Flaw::OpenTakesLong) {
            a_while().await;
        }
        match self.log.flaw(key.as_str()) {
            Some(Flaw::OpenFails) => {
                let password = params.get("password").and_then(Value::as_str).unwrap_or_default();
                return Err(anyhow::anyhow!("{password} is wrong").context("login failed"));
            }
            Some(Flaw::OpenHangs) => sleep(HANGING).await,
            Some(Flaw::OpenPanics) => panic!("{key} panics"),
            _ => {}
        }
        if !locked(&self.log.alive).insert(key.to_string()) {
            self.log.overlaps.fetch_add(1, Ordering::SeqCst);
        }
        let number = {
            let mut closed = locked(&self.log.closed);
            closed.push(0);
            closed.len() - 1
        };
        Ok(Session { key: key.to_string(), number, params: params.clone(), log: Arc::clone(&self.log) })
    }

    async fn is_healthy(&self, session: &mut Session) -> Result<bool> {
        self.log.note("check", &session.key);
        a_while().await;
        match self.log.flaw(&session.key) {
            Some(Flaw::CheckFails) => bail!("no answer"),
            Some(Flaw::CheckHangs) => sleep(HANGING).await,
            Some(Flaw::CheckPanics) => panic!("{} panics", session.key),
            _ => {}
        }
        Ok(self.log.flaw(&session.key) != Some(Flaw::Unhealthy))
    }

    async fn close(&self, session: Session) -> Result<()> {
        self.log.note("close", &session.key);
        locked(&self.log.closed)[session.number] += 1;
        let held = |place: &Place| matches!(place, Place::Leased(_));
        if !self.pool.get(&session.key).await?.is_some_and(|state| held(&state.place)) {
            self.log.late.fetch_add(1, Ordering::SeqCst);
        }
        a_while().await;
        match self.log.flaw(&session.key) {
            Some(Flaw::CloseFails) => bail!("it does not hang up"),
            Some(Flaw::CloseHangs) => sleep(HANGING).await,
            Some(Flaw::ClosePanics) => panic!("{} panics", session.key),
            _ => {}
        }
        self.log.ended.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn name(&self) -> Option<&str> {
        self.name
    }
}

/// A pool of `a`, `b` and `c`, granted in this order, on a clock that only the test moves.
pub(crate) struct Scene {
    pub(crate) server: Server,
    pub(crate) pool: Pool,
    pub(crate) clock: TestClock,
    pub(crate) log: Arc<Log>,
}

impl Scene {
    pub(crate) fn kind(&self) -> Sessions {
        Sessions { name: None, pool: self.pool.clone(), log: Arc::clone(&self.log) }
    }

    pub(crate) fn open(&self) -> Open<Sessions> {
        self.pool.malloc().open(self.kind())
    }

    pub(crate) fn open_in_time(&self, at_most: Duration) -> Open<Sessions, Waiting> {
        self.pool.malloc().wait(at_most).open(self.kind())
    }

    pub(crate) async fn opened(&self) -> Result<Allocated<Sessions>> {
        self.open().await?.context("nothing is free")
    }

    pub(crate) async fn is_leased(&self, key: &str) -> Result<bool> {
        Ok(matches!(self.pool.get(key).await?.context("no such resource")?.place, Place::Leased(_)))
    }

    pub(crate) async fn marks(&self, key: &str) -> Result<Vec<Mark>> {
        Ok(self.pool.get(key).await?.context("no such resource")?.marks)
    }

    /// Waits until so many are in line.
    pub(crate) async fn in_line(&self, waiting: u64) -> Result<()> {
        eventually(SOON, async || {
            let counts = self.pool.info().await?.counts;
            ensure!(counts.waiting == waiting, "{counts:?}");
            Ok(())
        })
        .await
    }

    /// Waits until nothing is leased, nobody waits, everything is closed, and no place is amiss.
    pub(crate) async fn settled(&self) -> Result<()> {
        eventually(SOON, async || {
            self.log.ensure_over()?;
            let info = self.pool.info().await?;
            ensure!((info.counts.leased, info.counts.waiting) == (0, 0), "{:?}", info.counts);
            // On this clock, leases expire only by the end of their session.
            let ended = info.counters.freed + info.counters.revoked + info.counters.expired;
            ensure!(info.counters.granted == ended, "{:?}", info.counters);
            Ok(())
        })
        .await?;
        let violations = self.pool.check().await?;
        ensure!(violations.is_empty(), "{violations:?}");
        Ok(())
    }

    /// Nothing is in quarantine but these.
    pub(crate) async fn ensure_quarantined(&self, keys: &[&str]) -> Result<()> {
        for state in self.pool.snapshot().await? {
            let expected = keys.contains(&state.key.as_str());
            ensure!(state.marks.is_empty() != expected, "{state:?}");
            ensure!(matches!(state.place, Place::Quarantined { .. }) == expected, "{state:?}");
        }
        Ok(())
    }
}

/// Runs a scenario on Redis and on Valkey; after it, nothing may be left behind.
pub(crate) async fn everywhere(scenario: impl AsyncFn(&Scene) -> Result<()>) -> Result<()> {
    for flavor in Flavor::ALL {
        let server = Server::start(flavor).await?;
        let clock = TestClock::at(Duration::from_hours(500_000));
        let client = Client::builder(server.url()).owner("tester").test_clock(clock.clone()).connect().await?;
        let pool = client.pool("devices")?;
        let settings = PoolSettings { order: Order::Sequential, ..PoolSettings::default() };
        pool.configure(&settings, &Ownership::default()).await?;
        let items = ["a", "b", "c"].map(|key| Ok(Item::new(key.parse()?).param("password", "hunter2")));
        pool.extend(items.into_iter().collect::<Result<Vec<_>>>()?).await?;
        let scene = Scene { server, pool, clock, log: Arc::default() };
        scenario(&scene).await.with_context(|| flavor.to_string())?;
        scene.settled().await.with_context(|| flavor.to_string())?;
    }
    Ok(())
}
