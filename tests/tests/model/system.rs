//! The real pool: does each step through the library's public calls, on a server whose scripts see the test's clock,
//! and tells what came of it and what can be seen. It must not know what is expected.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use e2e::Server;
use futures::try_join;
use redis_allocator::{
    BindOptions, BindPolicy, Client, Error, Incarnation, Item, Known, Lease, Origin, Ownership, Pool, PoolSettings,
    SyncOptions, SyncOutcome, Ttl, test_clock::TestClock,
};

use crate::{
    looks::{HEAD, check_all},
    observe::told,
    reference::{CLIENT, KEPT, START_US, key_of},
    step::{Decl, Grant, Memory, Name, Outcome, Step, facts},
};

const POOL: &str = "model/pool";

/// Copies the pool's keys to where no client looks, or, with `1`, back if there is a copy.
const COPY: &str = "
if ARGV[1] == '1' and redis.call('EXISTS', 'saved:1') == 0 then return end
for i, key in ipairs(KEYS) do
  local from, to = key, 'saved:' .. i
  if ARGV[1] == '1' then from, to = to, from end
  redis.call('DEL', to)
  redis.call('COPY', from, to)
end";

/// One server, used by one sequence after the other.
pub(crate) struct Bench {
    url: String,
    raw: redis::aio::MultiplexedConnection,
    /// Of the script that looks for broken invariants everywhere.
    check: String,
    _server: Server,
}

impl Bench {
    pub(crate) async fn start(flavor: e2e::Flavor) -> Result<Self> {
        let server = Server::builder(flavor).unix_socket().start().await?;
        let url = server.unix_url().context("the server has no socket")?;
        let mut raw = server.connection().await?;
        let pool = Client::connect(&url).await?.pool(POOL)?;
        let code = format!("{HEAD}{}return check_all(ARGV)", check_all(&pool)?);
        let check = redis::cmd("SCRIPT").arg("LOAD").arg(code).query_async(&mut raw).await?;
        Ok(Self { url, raw, check, _server: server })
    }
}

/// What the library answered, or what went wrong around it.
enum Trouble {
    Refused(Error),
    Broken(anyhow::Error),
}

type Answer = Result<Outcome, Trouble>;

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self::Broken(error)
    }
}

/// The pool of one sequence, and the leases in the test's hands.
pub(crate) struct System {
    pub(crate) client: Client,
    pub(crate) pool: Pool,
    clock: TestClock,
    /// Of the script that looks for broken invariants.
    check: String,
    raw: redis::aio::MultiplexedConnection,
    handles: BTreeMap<Name, Vec<Lease>>,
    /// The incarnations seen, in the order of their creation.
    lives: Vec<Incarnation>,
    pub(crate) last_seen: Option<Known>,
    last_lost: Option<Known>,
    highest_token: u64,
}

impl System {
    pub(crate) async fn begin(bench: &Bench) -> Result<Self> {
        let mut raw = bench.raw.clone();
        redis::cmd("FLUSHALL").exec_async(&mut raw).await?;
        let clock = TestClock::at(Duration::from_micros(START_US));
        let client = Client::builder(&bench.url).owner(CLIENT).test_clock(clock.clone()).connect().await?;
        let pool = client.pool(POOL)?;
        Ok(Self {
            client,
            pool,
            clock,
            check: bench.check.clone(),
            raw,
            handles: BTreeMap::new(),
            lives: Vec::new(),
            last_seen: None,
            last_lost: None,
            highest_token: 0,
        })
    }

    /// Looks for broken invariants in one call, where the library's own needs one for each key.
    pub(crate) fn check(&self) -> impl Future<Output = Result<Vec<String>>> + use<> {
        let (keys, now) = (self.pool.script_keys(), self.clock.micros());
        let mut check = redis::cmd("EVALSHA");
        check.arg(&self.check).arg(keys.len()).arg(keys).arg(now / 1_000_000).arg(now % 1_000_000);
        let mut raw = self.raw.clone();
        async move { Ok(check.query_async(&mut raw).await?) }
    }

    /// What a sequence leaves behind is in order in the library's own eyes, too.
    pub(crate) async fn end(&self) -> Result<()> {
        match self.pool.check().await {
            Ok(violations) => ensure!(violations.is_empty(), "in the end, check finds {violations:?}"),
            Err(Error::UnknownPool { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    pub(crate) async fn run(&mut self, step: &Step) -> Result<Outcome> {
        self.clock.advance(step.takes());
        match Box::pin(self.act(step)).await {
            Ok(outcome) => Ok(outcome),
            Err(Trouble::Refused(error)) => refusal(error),
            Err(Trouble::Broken(error)) => Err(error),
        }
    }

    fn remove(&mut self, key: Name, back: usize) -> Option<Lease> {
        let handles = self.handles.get_mut(key)?;
        let at = handles.len().checked_sub(back + 1)?;
        Some(handles.remove(at))
    }

    fn handle(&self, key: Name, back: usize) -> Option<&Lease> {
        let handles = self.handles.get(key)?;
        handles.get(handles.len().checked_sub(back + 1)?)
    }

    async fn renew(&self, key: Name, back: usize, ttl: Ttl) -> Answer {
        let Some(lease) = self.handle(key, back) else { return Ok(Outcome::Skipped) };
        lease.renew_for(ttl).await?;
        Ok(Outcome::Done)
    }

    async fn act(&mut self, step: &Step) -> Answer {
        let pool = self.pool.clone();
        Ok(match step {
            Step::Malloc { owner, ttl, bind, n } => {
                let malloc = pool.malloc().owner(*owner).ttl(*ttl);
                let malloc = bind.iter().fold(malloc, |malloc, name| malloc.bind(*name));
                let leases = malloc.up_to(*n).await?;
                self.keep(leases)?
            }
            Step::MallocKey { ttl } => Outcome::Key(pool.malloc_key(*ttl).await?.map(String::from)),
            Step::FreeKeys { keys } => {
                let results = pool.free_keys(keys).await?;
                let mut errors = results.iter().filter_map(|result| result.as_ref().err());
                if let Some(error) = errors.find(|error| error.category() != "not_owner") {
                    return Err(Trouble::Refused(error.clone()));
                }
                Outcome::Keys(results.iter().map(Result::is_ok).collect())
            }
            Step::Renew { key, back } => {
                let Some(lease) = self.handle(key, *back) else { return Ok(Outcome::Skipped) };
                lease.renew().await?;
                Outcome::Done
            }
            Step::RenewFor { key, back, ttl } => self.renew(key, *back, *ttl).await?,
            Step::Free { key, back } => {
                let Some(lease) = self.remove(key, *back) else { return Ok(Outcome::Skipped) };
                lease.free().await?;
                Outcome::Done
            }
            Step::ForceFree { key } => Outcome::Flag(pool.force_free(key).await?),
            Step::Extend { items: decls } => Outcome::Count(pool.extend(items(decls)?).await?),
            Step::Shrink { keys } => Outcome::Count(pool.shrink(keys).await?),
            Step::Assign { items: decls } => Outcome::Synced(pool.assign(items(decls)?).await?),
            Step::Clear => Outcome::Count(pool.clear().await?),
            Step::Sync { origin, items: decls, removal, percent } => {
                let options = SyncOptions { removal: *removal, max_shrink_percent: *percent, ..SyncOptions::default() };
                Outcome::Synced(pool.sync(origin, items(decls)?, &options).await?)
            }
            Step::RacingSyncs { origin, first, second } => self.race(origin, items(first)?, items(second)?).await?,
            Step::Bind { name, resource, required, declared, ttl } => {
                let policy = if *required { BindPolicy::Required } else { BindPolicy::Preferred };
                let options = BindOptions { ttl: *ttl, policy, declared: *declared };
                Outcome::Flag(pool.bind(name, resource, &options).await?)
            }
            Step::Unbind { name } => Outcome::Flag(pool.unbind(name).await?),
            Step::Quarantine { key, cause, duration, reason } => {
                Outcome::Flag(pool.quarantine(key, *duration, reason, *cause).await?.in_effect)
            }
            Step::Unquarantine { key, cause } => Outcome::Flag(pool.unquarantine(key, *cause).await?),
            Step::EndRecovery => Outcome::Count(pool.end_recovery().await?),
            Step::Suspend { suspended } => {
                pool.suspend(*suspended).await?;
                Outcome::Done
            }
            Step::Configure { settings, manager, memory } => self.configure(settings, *manager, *memory).await?,
            Step::Takeover { manager } => Outcome::Former(pool.takeover(manager).await?),
            Step::Abandon => {
                pool.abandon().await?;
                Outcome::Done
            }
            Step::Gc { count } => {
                let report = pool.gc(*count).await?;
                Outcome::Reclaimed {
                    expired: report.expired.into_iter().map(|(key, owner)| (key.into(), owner)).collect(),
                    recovered: report.recovered.into_iter().map(String::from).collect(),
                    unbound: report.unbound.into_iter().map(String::from).collect(),
                    more: report.more,
                }
            }
            Step::Repair => Outcome::Count(pool.repair().await?),
            Step::Retire { removal } => {
                let retired = pool.retire(*removal).await?;
                if retired.deleted {
                    self.last_lost = self.last_seen.take();
                }
                Outcome::Retired { leases_left: retired.leases_left, deleted: retired.deleted }
            }
            Step::FlushAll => {
                redis::cmd("FLUSHALL").exec_async(&mut self.raw).await.map_err(anyhow::Error::from)?;
                self.last_lost = self.last_seen.take().or(self.last_lost.take());
                Outcome::Done
            }
            Step::Save | Step::Rollback => self.copy(matches!(step, Step::Rollback)).await?,
            Step::Pass { .. } => Outcome::Done,
            Step::Look { key, name } => Box::pin(self.look(key, name)).await?,
        })
    }

    async fn configure(&mut self, settings: &PoolSettings, manager: Option<Name>, memory: Memory) -> Answer {
        let known = match memory {
            Memory::Nothing => None,
            Memory::LastLost => self.last_lost.as_ref(),
            Memory::Present => self.last_seen.as_ref(),
        };
        let done = self.pool.configure(settings, &Ownership { manager, known }).await?;
        Ok(Outcome::Configured {
            created: done.created,
            changed: done.changed,
            recovered: done.recovered,
            life: self.life(&done.incarnation),
            longest: done.longest,
        })
    }

    fn keep(&mut self, leases: Vec<Lease>) -> Result<Outcome> {
        let mut grants = Vec::new();
        let mut repeated = None;
        for lease in leases {
            if lease.fencing_token() <= self.highest_token {
                repeated = Some((lease.fencing_token(), self.highest_token));
            }
            self.highest_token = lease.fencing_token();
            grants.push(Grant {
                key: lease.key().to_string(),
                owner: lease.owner().to_owned(),
                binding: lease.binding().map(ToString::to_string),
                token: lease.fencing_token(),
                granted_at: lease.granted_at().as_millis(),
                ttl: lease.ttl().map(|ttl| u64::try_from(ttl.as_millis())).transpose()?,
                facts: told(lease.labels(), lease.params()),
            });
            let key = key_of(lease.key().as_str()).context("a resource that no step declares")?;
            let handles = self.handles.entry(key).or_default();
            handles.push(lease);
            if handles.len() > KEPT {
                handles.remove(0).detach();
            }
        }
        if let Some((token, highest)) = repeated {
            bail!("the token {token} is not greater than {highest}, which was granted before");
        }
        Ok(Outcome::Granted(grants))
    }

    /// The first one's first call leaves before the second one's, on one connection; all others come later.
    async fn race(&self, origin: &Origin, first: Vec<Item>, second: Vec<Item>) -> Result<Outcome> {
        let options = SyncOptions::default();
        let (first, second) =
            futures::join!(self.pool.sync(origin, first, &options), self.pool.sync(origin, second, &options));
        let outcome = |result: Result<SyncOutcome, Error>| match result {
            Ok(outcome) => Ok(Outcome::Synced(outcome)),
            Err(error) => refusal(error),
        };
        let (first, second) = (outcome(first)?, outcome(second)?);
        // Of a pool that does not exist, both say the same.
        if matches!(first, Outcome::Refused("unknown_pool", _)) {
            return Ok(first);
        }
        Ok(Outcome::Both(Box::new(first), Box::new(second)))
    }

    async fn copy(&mut self, back: bool) -> Result<Outcome> {
        if !back && self.last_seen.is_none() {
            return Ok(Outcome::Refused("unknown_pool", String::new()));
        }
        let keys = self.pool.script_keys();
        let mut copy = redis::cmd("EVAL");
        copy.arg(COPY).arg(keys.len()).arg(keys).arg(u8::from(back)).exec_async(&mut self.raw).await?;
        Ok(Outcome::Done)
    }

    async fn look(&self, key: Name, name: Name) -> Answer {
        let pool = &self.pool;
        let (keys, declared, state, len, bindings_of, binding) = try_join!(
            pool.keys(),
            pool.contains(key),
            pool.get(key),
            pool.len(),
            pool.bindings_of(key),
            pool.binding(name)
        )?;
        let mut keys: Vec<String> = keys.into_iter().map(String::from).collect();
        keys.sort_unstable();
        Ok(Outcome::Looked {
            keys,
            declared,
            known: state.is_some(),
            len,
            bindings_of: bindings_of.into_iter().map(|binding| binding.name.into()).collect(),
            bound_to: binding.map(|binding| binding.resource.into()),
        })
    }

    /// The number of an incarnation: they are counted as they are first seen.
    pub(crate) fn life(&mut self, incarnation: &Incarnation) -> usize {
        self.lives.iter().position(|seen| seen == incarnation).unwrap_or_else(|| {
            self.lives.push(incarnation.clone());
            self.lives.len() - 1
        })
    }
}

impl Drop for System {
    /// A lease that is dropped is freed in the background, where it would disturb the next sequence.
    fn drop(&mut self) {
        for lease in std::mem::take(&mut self.handles).into_values().flatten() {
            lease.detach();
        }
    }
}

/// An error that a step may be answered with; any other one is a failure of the test.
fn refusal(error: Error) -> Result<Outcome> {
    let detail = match &error {
        Error::UnknownPool { .. }
        | Error::UnknownResource { .. }
        | Error::NotOwner { .. }
        | Error::TtlRefused { .. } => String::new(),
        Error::Lost { reason, .. } => reason.to_string(),
        Error::Superseded { origin, .. } => origin.clone(),
        Error::ManagerConflict { found, .. } => found.clone(),
        Error::BindingConflict { holder, .. } => holder.to_string(),
        _ => return Err(error.into()),
    };
    Ok(Outcome::Refused(error.category(), detail))
}

fn items(decls: &[Decl]) -> Result<Vec<Item>> {
    decls.iter().map(item).collect()
}

fn item(decl: &Decl) -> Result<Item> {
    let (label, param) = facts(decl.facts);
    let mut item = Item::new(decl.key.parse()?).priority(decl.priority);
    item.position = decl.position;
    if let Some((name, value)) = label {
        item = item.label(name, value);
    }
    if let Some((name, value)) = param {
        item = item.param(name, value);
    }
    Ok(item)
}
