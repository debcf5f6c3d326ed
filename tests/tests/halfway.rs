//! Operations that fail half-way: a key of the wrong type, a user who lacks a command or the channels, a server that is
//! out of memory. Whatever fails, and wherever, no resource is ever in no place or in two, and all come back.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Flavor, Server, within};
use futures::future::BoxFuture;
use redis_allocator::{
    BindOptions, BindPolicy, Cause, Client, Error, Item, Lease, Order, Origin, Ownership, Place, Pool, PoolSettings,
    Removal, ResourceKey, SyncOptions, Ttl, test_clock::TestClock,
};

/// What names a pool's keys, as the library documents them.
const PARTS: [&str; 11] = [
    "meta",
    "items",
    "free",
    "leases",
    "holders",
    "quarantine",
    "marks",
    "reserved",
    "binds",
    "bind-expiry",
    "origins",
];
/// Every command that the scripts send.
const COMMANDS: [&str; 20] = [
    "time",
    "hget",
    "hmget",
    "hset",
    "hdel",
    "hlen",
    "hexists",
    "hincrby",
    "hkeys",
    "zadd",
    "zrem",
    "zpopmin",
    "zscore",
    "zmscore",
    "zrange",
    "zcount",
    "zcard",
    "zrangebyscore",
    "unlink",
    "publish",
];
const MINUTE: Duration = Duration::from_mins(1);

/// A pool with something in each place, and a lease for the operation to use.
struct Scene {
    pool: Pool,
    lease: Option<Lease>,
    /// The same pool, through a client that may do everything.
    sound: Pool,
}

type Operation = (&'static str, for<'a> fn(&'a mut Scene) -> BoxFuture<'a, Result<(), Error>>);

macro_rules! operations {
    ($($name:literal: |$scene:ident| $body:expr;)*) => {
        [$(($name, {
            fn operation(scene: &mut Scene) -> BoxFuture<'_, Result<(), Error>> {
                Box::pin(async move {
                    let $scene = scene;
                    $body;
                    Ok(())
                })
            }
            operation
        })),*]
    };
}

/// What is done while something is broken. What it grants is let go of at once, without being freed.
const OPERATIONS: [Operation; 33] = operations! {
    "malloc": |scene| scene.pool.malloc().await?.map(Lease::detach);
    "malloc permanent": |scene| scene.pool.malloc().permanent().await?.map(Lease::detach);
    "malloc all": |scene| scene.pool.malloc().up_to(50).await?.into_iter().for_each(Lease::detach);
    "malloc bound": |scene| scene.pool.malloc().bind("soft").await?.map(Lease::detach);
    "malloc bound to what expired": |scene| scene.pool.malloc().bind("to-expired").await?.map(Lease::detach);
    "malloc by an ended name": |scene| scene.pool.malloc().bind("ended").await?.map(Lease::detach);
    "malloc by a new name": |scene| scene.pool.malloc().bind("new").await?.map(Lease::detach);
    "malloc required": |scene| scene.pool.malloc().bind("vip").await?.map(Lease::detach);
    "renew": |scene| if let Some(lease) = &scene.lease { lease.renew().await? };
    "renew permanently": |scene| if let Some(lease) = &scene.lease { lease.renew_for(Ttl::Permanent).await? };
    "free": |scene| if let Some(lease) = scene.lease.take() { lease.free().await? };
    "force_free": |scene| scene.pool.force_free("leased-1").await?;
    "force_free what expired": |scene| scene.pool.force_free("expired-1").await?;
    "gc": |scene| scene.pool.gc(200).await?;
    "gc 1": |scene| scene.pool.gc(1).await?;
    "extend": |scene| scene.pool.extend(["new-1", "free-1", "leased-1"].map(|key| item(key).priority(7))).await?;
    "shrink": |scene| scene.pool.shrink(["free-1", "leased-1", "held-1", "reserved-1", "expired-1"]).await?;
    "assign": |scene| scene.pool.assign(["free-2", "leased-1", "new-1"].map(|key| item(key).priority(3))).await?;
    "clear": |scene| scene.pool.clear().await?;
    "sync": |scene| {
        let items = ["free-1", "new-1", "held-2"].map(item).to_vec();
        scene.pool.sync(&Origin::Spec, items, &SyncOptions::default()).await?
    };
    "sync, revoking": |scene| {
        let options = SyncOptions { removal: Removal::Revoke, ..SyncOptions::default() };
        scene.pool.sync(&Origin::Api, ["free-1"].map(item).to_vec(), &options).await?
    };
    "bind": |scene| scene.pool.bind("soft", "free-2", &BindOptions::default()).await?;
    "bind required": |scene| scene.pool.bind("other", "free-1", &REQUIRED).await?;
    "bind required elsewhere": |scene| scene.pool.bind("vip", "free-2", &REQUIRED).await?;
    "unbind": |scene| scene.pool.unbind("soft").await?;
    "unbind required": |scene| scene.pool.unbind("vip").await?;
    "quarantine": |scene| scene.pool.quarantine("free-1", Some(MINUTE), "x", Cause::Manual).await?;
    "quarantine what is reserved": |scene| scene.pool.quarantine("reserved-1", None, "x", Cause::Manual).await?;
    "unquarantine": |scene| scene.pool.unquarantine("held-1", None).await?;
    "end_recovery": |scene| scene.pool.end_recovery().await?;
    "change of order": |scene| {
        let settings = PoolSettings { order: Order::Sequential, cooldown: MINUTE, ..PoolSettings::default() };
        scene.pool.configure(&settings, &Ownership::default()).await?
    };
    "repair": |scene| scene.pool.repair().await?;
    "retire": |scene| scene.pool.retire(Removal::Revoke).await?;
};

/// What there is in a pool beside free resources, leases, and one binding.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Plain,
    /// Marks, reservations, bindings and a second origin.
    Rich,
    /// The operation's lease is forgotten, and its resource free again.
    RolledBack,
}

impl State {
    /// Those in which an operation is tried. What is forgotten concerns its holder alone; a poor pool takes the same ways
    /// on both servers.
    fn all(flavor: Flavor, operation: &str) -> Vec<Self> {
        let mut states = vec![Self::Rich];
        if flavor == Flavor::Redis {
            states.push(Self::Plain);
        }
        if ["renew", "free"].iter().any(|word| operation.starts_with(word)) {
            states.push(Self::RolledBack);
        }
        states
    }
}

const REQUIRED: BindOptions = BindOptions { ttl: Some(MINUTE), policy: BindPolicy::Required, declared: false };

fn item(key: &str) -> Item {
    Item::new(ResourceKey::new(key).expect("a key"))
}

/// A server, two clients of it (one that faults may concern, one that may do everything) and the time both see.
struct Stage {
    server: Server,
    client: Client,
    sound: Client,
    clock: TestClock,
    pools: usize,
}

impl Stage {
    /// `user` may do everything to begin with.
    async fn set(flavor: Flavor) -> Result<Self> {
        let server = Server::start(flavor).await?;
        server.cmd::<()>(&["ACL", "SETUSER", "user", "on", ">secret", "~*", "&*", "+@all"]).await?;
        let clock = TestClock::at(Duration::from_hours(500_000));
        let connect = |url: String| Client::builder(url).test_clock(clock.clone()).connect();
        let client = connect(format!("redis://user:secret@{}", server.address())).await?;
        let sound = connect(server.url()).await?;
        Ok(Self { server, client, sound, clock, pools: 0 })
    }

    /// A pool of its own.
    async fn scene(&mut self, state: State) -> Result<Scene> {
        self.pools += 1;
        let name = format!("pool-{}", self.pools);
        let (pool, sound) = (self.client.pool(&name)?, self.sound.pool(&name)?);
        sound.configure(&PoolSettings::default(), &Ownership::default()).await?;
        let items = [("expired-1", 9), ("expired-2", 9), ("leased-1", 8), ("leased-2", 7)];
        let others = ["free-1", "free-2", "free-3", "held-1", "held-2", "reserved-1", "reserved-2"];
        let items = items.into_iter().chain(others.map(|key| (key, 0)));
        sound.extend(items.map(|(key, priority)| item(key).priority(priority))).await?;
        sound.malloc().ttl(Duration::from_secs(1)).up_to(2).await?.into_iter().for_each(Lease::detach);
        sound.malloc().ttl(MINUTE * 10).await?.context("leased-1")?.detach();
        let lease = pool.malloc().ttl(MINUTE * 10).bind("soft").await?.context("leased-2")?;
        if state == State::Rich {
            let second = Some(Duration::from_secs(1));
            sound.sync(&Origin::Spec, ["free-1", "held-2"].map(item).to_vec(), &SyncOptions::default()).await?;
            sound.quarantine("held-1", None, "broken", Cause::Manual).await?;
            sound.quarantine("held-2", second, "warm", Cause::Probe).await?;
            sound.quarantine("leased-1", None, "later", Cause::Manual).await?;
            sound.bind("vip", "reserved-1", &BindOptions { ttl: None, ..REQUIRED }).await?;
            sound.bind("ended", "reserved-2", &BindOptions { ttl: second, ..REQUIRED }).await?;
            sound.bind("to-expired", "expired-1", &BindOptions::default()).await?;
        }
        if state == State::RolledBack {
            // As if the server had forgotten the last grant.
            let mut redis = self.server.connection().await?;
            let key = |part: &str| format!("ra:{{{}}}:{part}", pool.name());
            redis::pipe()
                .hset(key("meta"), "last", lease.fencing_token() - 1)
                .zrem(key("leases"), "leased-2")
                .hdel(key("holders"), "leased-2")
                .zadd(key("free"), "leased-2", (1000 - 7) * (1_i64 << 42) + 1_800_000_000_000)
                .exec_async(&mut redis)
                .await?;
        }
        // Time for what is called expired and due; before it, everything is in order.
        self.clock.advance(Duration::from_secs(10));
        ensure!(sound.check().await?.is_empty(), "{:?}", sound.check().await?);
        Ok(Scene { pool, lease: Some(lease), sound })
    }

    /// Nothing is in a wrong place now, and all comes back when it may.
    async fn judge(&self, pool: &Pool) -> Result<()> {
        let Some(info) = exists(pool).await? else { return Ok(()) };
        let broken = pool.check().await?;
        ensure!(broken.is_empty(), "broken: {broken:?}");
        let counts = info.counts;
        let placed = counts.free + counts.leased + counts.quarantined + counts.reserved - counts.draining;
        ensure!(placed == counts.total, "{placed} of {} are somewhere: {counts:?}", counts.total);

        // An hour passes, and an operator lifts whatever has no end of its own.
        if info.settings.suspended {
            pool.suspend(false).await?;
        }
        for resource in pool.snapshot().await? {
            match resource.place {
                Place::Leased(lease) if lease.expires_at.is_none() => drop(pool.force_free(&resource.key).await?),
                _ => {}
            }
        }
        for binding in pool.bindings().await? {
            pool.unbind(&binding.name).await?;
        }
        self.clock.advance(MINUTE * 60);
        while pool.gc(200).await?.more {}
        for resource in pool.snapshot().await? {
            if !resource.marks.is_empty() {
                pool.unquarantine(&resource.key, None).await?;
            }
        }
        let info = pool.info().await?;
        ensure!(info.counts.free == info.counts.total, "not all come back: {:?}", info.counts);
        ensure!(pool.check().await?.is_empty(), "{:?}", pool.check().await?);
        let all = pool.malloc().ttl(MINUTE).up_to(200).await?;
        ensure!(all.len() as u64 == info.counts.total, "{} of {} can be had", all.len(), info.counts.total);
        all.into_iter().for_each(Lease::detach);
        Ok(())
    }
}

async fn exists(pool: &Pool) -> Result<Option<redis_allocator::PoolInfo>> {
    match pool.info().await {
        Ok(info) => Ok(Some(info)),
        Err(Error::UnknownPool { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// How an operation ended: `ok`, or the kind of its error and the server's first word.
fn ending(outcome: &Result<(), Error>) -> String {
    match outcome {
        Ok(()) => "ok".to_owned(),
        Err(Error::Server { message, .. }) => format!("server: {}", message.split(' ').next().unwrap_or_default()),
        Err(error) => error.category().to_owned(),
    }
}

/// Collects what went wrong instead of stopping at the first, so that one run tells all.
#[derive(Default)]
struct Findings {
    endings: BTreeMap<String, usize>,
    wrong: Vec<String>,
}

impl Findings {
    fn note(&mut self, case: &str, outcome: &Result<(), Error>, judgement: Result<()>) {
        *self.endings.entry(ending(outcome)).or_default() += 1;
        if let Err(reason) = judgement {
            self.wrong.push(format!("{case} ({}): {reason:#}", ending(outcome)));
        }
    }

    fn report(self, what: &str) -> Result<BTreeMap<String, usize>> {
        println!("{what}: {:?}", self.endings);
        if self.wrong.is_empty() {
            return Ok(self.endings);
        }
        bail!("{} cases of {what} went wrong:\n{}", self.wrong.len(), self.wrong.join("\n"))
    }
}

/// Many times what it takes, which is most of a minute on a machine that has no time.
const LIMIT: Duration = Duration::from_mins(10);

async fn keys_of_the_wrong_type(flavor: Flavor) -> Result<()> {
    let mut stage = Stage::set(flavor).await?;
    let mut redis = stage.server.connection().await?;
    let mut findings = Findings::default();
    for (name, operation) in OPERATIONS {
        for part in PARTS {
            for state in State::all(flavor, name) {
                let mut scene = stage.scene(state).await?;
                let key = format!("ra:{{{}}}:{part}", scene.sound.name());
                let aside = format!("ra:{{{}}}:aside", scene.sound.name());
                let existed: bool = redis::cmd("EXISTS").arg(&key).query_async(&mut redis).await?;
                if existed {
                    redis::cmd("RENAME").arg(&key).arg(&aside).exec_async(&mut redis).await?;
                }
                redis::cmd("SET").arg(&key).arg("of another type").exec_async(&mut redis).await?;
                let outcome = operation(&mut scene).await;
                if existed {
                    redis::cmd("RENAME").arg(&aside).arg(&key).exec_async(&mut redis).await?;
                } else {
                    redis::cmd("DEL").arg(&key).exec_async(&mut redis).await?;
                }
                let case = format!("{name}, {part}, {state:?}");
                findings.note(&case, &outcome, stage.judge(&scene.sound).await);
            }
        }
    }
    let endings = findings.report(&format!("{flavor}: operations on keys of the wrong type"))?;
    ensure!(endings.get("server: WRONGTYPE").is_some_and(|&refused| refused > 200), "{endings:?}");
    Ok(())
}

async fn users_without_a_command(flavor: Flavor) -> Result<()> {
    let mut stage = Stage::set(flavor).await?;
    let mut redis = stage.server.connection().await?;
    let mut findings = Findings::default();
    for (name, operation) in OPERATIONS {
        for command in COMMANDS {
            for state in State::all(flavor, name) {
                let mut scene = stage.scene(state).await?;
                redis::cmd("ACL").arg(&["SETUSER", "user", &format!("-{command}")]).exec_async(&mut redis).await?;
                let outcome = operation(&mut scene).await;
                redis::cmd("ACL").arg(&["SETUSER", "user", "+@all"]).exec_async(&mut redis).await?;
                let case = format!("{name}, -{command}, {state:?}");
                findings.note(&case, &outcome, stage.judge(&scene.sound).await);
            }
        }
    }
    let endings = findings.report(&format!("{flavor}: operations without a command"))?;
    let refused: usize = endings.iter().filter(|(ending, _)| ending.starts_with("server")).map(|(_, n)| n).sum();
    ensure!(refused > 150, "{endings:?}");
    Ok(())
}

async fn users_without_channels(flavor: Flavor) -> Result<()> {
    let mut stage = Stage::set(flavor).await?;
    let mut findings = Findings::default();
    stage.server.cmd::<()>(&["ACL", "SETUSER", "user", "resetchannels"]).await?;
    for (name, operation) in OPERATIONS {
        let mut scene = stage.scene(State::Rich).await?;
        let outcome = operation(&mut scene).await;
        let judgement = stage.judge(&scene.sound).await;
        findings.note(name, &outcome, judgement.and_then(|()| Ok(outcome.clone()?)));
    }
    findings.report(&format!("{flavor}: operations without channels")).map(drop)
}

async fn a_server_out_of_memory(flavor: Flavor) -> Result<()> {
    let mut stage = Stage::set(flavor).await?;
    let mut findings = Findings::default();
    for (name, operation) in OPERATIONS {
        for state in State::all(flavor, name) {
            let mut scene = stage.scene(state).await?;
            stage.server.config_set("maxmemory", "1").await?;
            let outcome = operation(&mut scene).await;
            stage.server.config_set("maxmemory", "0").await?;
            // What grants and declares is refused, what gives back goes on.
            let refused = ["malloc", "extend", "assign", "clear", "sync", "bind", "change"]
                .iter()
                .any(|word| name.starts_with(word));
            let expected = match (name, state) {
                ("free", State::RolledBack) => "not_owner",
                _ if refused => "server: OOM",
                _ => "ok",
            };
            let judgement = stage.judge(&scene.sound).await.and_then(|()| {
                ensure!(ending(&outcome) == expected, "expected {expected}: {outcome:?}");
                Ok(())
            });
            findings.note(&format!("{name}, {state:?}"), &outcome, judgement);
        }
    }
    findings.report(&format!("{flavor}: operations without memory")).map(drop)
}

macro_rules! everywhere {
    ($($name:ident: $redis:ident, $valkey:ident;)*) => {
        $(
            #[tokio::test]
            async fn $redis() -> Result<()> {
                within(LIMIT, $name(Flavor::Redis)).await
            }

            #[tokio::test]
            async fn $valkey() -> Result<()> {
                within(LIMIT, $name(Flavor::Valkey)).await
            }
        )*
    };
}

everywhere! {
    keys_of_the_wrong_type: a_key_of_the_wrong_type_loses_nothing, a_key_of_the_wrong_type_loses_nothing_on_valkey;
    users_without_a_command: a_missing_permission_loses_nothing, a_missing_permission_loses_nothing_on_valkey;
    users_without_channels: channels_are_not_needed, channels_are_not_needed_on_valkey;
    a_server_out_of_memory: without_memory_what_gives_back_goes_on, without_memory_what_gives_back_goes_on_on_valkey;
}
