//! A second Redis that every use of a resource is reported to, and that refuses what must never happen: a fencing token
//! below one it has seen, two holders at one time, one token for two grants; of what may be [shared](Witness::shared),
//! more holders than that. It must not know who grants, nor how.
//!
//! Time here is `CLOCK_BOOTTIME`, which all processes of a host share: *held* ends at a holder's own deadline, whatever
//! the granting side still believes.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use redis::{Script, aio::MultiplexedConnection};
use serde::{Deserialize, Serialize};

/// Reports one use.
///
/// KEYS: HASH resource → JSON of the last accepted use; HASH token → whose grant; LIST of refusals; HASH of counts.
/// ARGV: the use as JSON. Returns '' or the refusal as JSON.
const RECORD: &str = r"
local use = cjson.decode(ARGV[1])
local json = redis.call('HGET', KEYS[1], use.resource)
local last = json and cjson.decode(json)
local grant = use.holder .. ' ' .. use.resource
local known = redis.call('HGET', KEYS[2], use.token)
local why
if known and known ~= grant then
  why = 'token-repeated'
elseif last and tonumber(last.token) > tonumber(use.token) then
  why = 'token-below-last'
elseif last and last.token ~= use.token and last['until'] > use.at then
  why = 'overlap'
end
if why then
  local refusal = cjson.encode({ why = why, use = ARGV[1], last = json or '', grant = known or '' })
  redis.call('RPUSH', KEYS[3], refusal)
  return refusal
end
redis.call('HSET', KEYS[2], use.token, grant)
redis.call('HSET', KEYS[1], use.resource, ARGV[1])
redis.call('HINCRBY', KEYS[4], 'uses', 1)
if not known then redis.call('HINCRBY', KEYS[4], 'grants', 1) end
return ''
";

/// The same for what several may hold.
///
/// KEYS: as above; ZSET token → until when it may be used, of this resource.
/// ARGV: the use as JSON, the most holders at a time. Returns '' or the refusal as JSON.
const RECORD_SHARED: &str = r"
local use = cjson.decode(ARGV[1])
local grant = use.holder .. ' ' .. use.resource
local known = redis.call('HGET', KEYS[2], use.token)
local others = {}
for _, token in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], string.format('(%d', use.at), '+inf')) do
  if token ~= use.token then others[#others + 1] = token end
end
local why
if known and known ~= grant then
  why = 'token-repeated'
elseif #others >= tonumber(ARGV[2]) then
  why = 'crowded'
end
if why then
  local last = #others > 0 and redis.call('HGET', KEYS[1], use.resource .. ' ' .. others[#others]) or ''
  local refusal = cjson.encode({ why = why, use = ARGV[1], last = last, grant = known or '' })
  redis.call('RPUSH', KEYS[3], refusal)
  return refusal
end
redis.call('HSET', KEYS[2], use.token, grant)
redis.call('HSET', KEYS[1], use.resource .. ' ' .. use.token, ARGV[1])
redis.call('ZADD', KEYS[5], string.format('%d', use['until']), use.token)
redis.call('HINCRBY', KEYS[4], 'uses', 1)
if #others > 0 then redis.call('HINCRBY', KEYS[4], 'together', 1) end
if not known then redis.call('HINCRBY', KEYS[4], 'grants', 1) end
return ''
";

/// Ends a holder's time early, if it is still the last one's; of what is shared, in any case. KEYS: as above. ARGV:
/// resource, token, at.
const END: &str = r"
if KEYS[5] then
  redis.call('ZADD', KEYS[5], 'XX', 'LT', ARGV[3], ARGV[2])
  redis.call('HDEL', KEYS[1], ARGV[1] .. ' ' .. ARGV[2])
  return 0
end
local json = redis.call('HGET', KEYS[1], ARGV[1])
local last = json and cjson.decode(json)
if last and last.token == ARGV[2] and last['until'] > tonumber(ARGV[3]) then
  last['until'] = tonumber(ARGV[3])
  redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(last))
end
return 0
";

/// How long the witness may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

const KEYS: [&str; 4] = ["last", "grants", "refusals", "counts"];
const NOTES: &str = "notes";

/// The present moment, by the clock that all processes of this host share and that goes on during sleep.
pub fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// One moment at which someone used a resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Use {
    /// What was used.
    pub resource: String,
    /// Under which fencing token: in text, as a JSON number would lose digits.
    pub token: String,
    /// By whom: anything that no two processes share.
    pub holder: String,
    /// When, in whole ms of [`now`].
    pub at: u64,
    /// Until when the holder may go on, in whole ms of [`now`].
    pub until: u64,
}

impl Use {
    /// A use at `at` by someone who may go on for `remaining` from then on.
    pub fn new(resource: &impl ToString, token: u64, holder: &str, at: Duration, remaining: Duration) -> Self {
        Self {
            resource: resource.to_string(),
            token: token.to_string(),
            holder: holder.to_string(),
            at: millis(at),
            until: millis(at.saturating_add(remaining)),
        }
    }
}

/// A use that must not have happened, or an accusation by a holder.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Refusal {
    /// `token-repeated`, `token-below-last`, `overlap`, `crowded`, or what a holder said.
    pub why: String,
    /// The use, as JSON.
    #[serde(rename = "use")]
    pub used: String,
    /// The use that it contradicts, as JSON.
    pub last: String,
    /// Whose grant the token was known as.
    pub grant: String,
    /// As it is stored.
    #[serde(skip)]
    stored: String,
}

impl Refusal {
    /// When the later of the two uses happened that contradict each other, in whole ms of [`now`]; 0 for an accusation.
    /// The refused one may be the earlier: it was told late.
    pub fn at(&self) -> u64 {
        let at = |json: &str| serde_json::from_str::<Use>(json).map_or(0, |used| used.at);
        at(&self.used).max(at(&self.last))
    }

    fn parse(stored: String) -> Result<Self> {
        let mut refusal: Self = serde_json::from_str(&stored).with_context(|| format!("no refusal: {stored}"))?;
        refusal.stored = stored;
        Ok(refusal)
    }
}

/// What a witness has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accepted uses.
    pub uses: u64,
    /// Different grants among them.
    pub grants: u64,
    /// Refusals that came too late to matter: the holder's time was over when it heard of them.
    pub excused: u64,
    /// Accepted uses of something that others held at the same time.
    pub together: u64,
}

/// What was granted to a holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Under which fencing token.
    pub token: u64,
    /// To whom.
    pub holder: String,
    /// What.
    pub resource: String,
}

/// A connection to the witness. Cheap to clone.
#[derive(Clone)]
pub struct Witness {
    connection: MultiplexedConnection,
    record: Script,
    end: Script,
    /// The most holders at a time of what may be shared.
    most: Option<u32>,
}

impl Witness {
    /// Connects to the Redis that keeps the record, which holds nothing else.
    ///
    /// # Errors
    /// When nothing answers there.
    pub async fn connect(url: &str) -> Result<Self> {
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let connection = redis::Client::open(url)?
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .with_context(|| format!("cannot connect to the witness at {url}"))?;
        Ok(Self { connection, record: Script::new(RECORD), end: Script::new(END), most: None })
    }

    /// The same for resources that so many may hold at a time.
    #[must_use]
    pub fn shared(self, most: u32) -> Self {
        Self { record: Script::new(RECORD_SHARED), most: Some(most), ..self }
    }

    /// Reports a use; the refusal, if it is refused.
    ///
    /// # Errors
    /// When the witness does not answer.
    pub async fn record(&self, used: &Use) -> Result<Option<Refusal>> {
        let mut call = self.record.prepare_invoke();
        call.key(self.keys(&used.resource)).arg(serde_json::to_string(used)?).arg(self.most);
        let refusal: String =
            call.invoke_async(&mut self.connection.clone()).await.context("a use was not recorded")?;
        if refusal.is_empty() { Ok(None) } else { Refusal::parse(refusal).map(Some) }
    }

    /// Reports that a holder has stopped using its resource, *before* it gives it back.
    ///
    /// # Errors
    /// When the witness does not answer.
    pub async fn end(&self, resource: &impl ToString, token: u64) -> Result<()> {
        let mut call = self.end.prepare_invoke();
        call.key(self.keys(&resource.to_string())).arg(resource.to_string()).arg(token.to_string()).arg(millis(now()));
        call.invoke_async::<()>(&mut self.connection.clone()).await.context("an end was not recorded")
    }

    fn keys(&self, resource: &str) -> Vec<String> {
        let holders = self.most.map(|_| format!("holders {resource}"));
        KEYS.into_iter().map(str::to_owned).chain(holders).collect()
    }

    /// Takes a refusal back: its holder's own time was over before it was heard, so that fencing did what it is for.
    ///
    /// # Errors
    /// When the witness does not answer.
    pub async fn excuse(&self, refusal: &Refusal) -> Result<()> {
        redis::pipe()
            .lrem(KEYS[2], 1, &refusal.stored)
            .hincr(KEYS[3], "excused", 1)
            .exec_async(&mut self.connection.clone())
            .await
            .context("a refusal was not excused")
    }

    /// Reports something that must not happen and that only the holder could see.
    ///
    /// # Errors
    /// When the witness does not answer.
    pub async fn accuse(&self, why: &str, holder: &str) -> Result<()> {
        let json = serde_json::json!({"why": why, "use": "", "last": "", "grant": holder}).to_string();
        redis::cmd("RPUSH").arg(KEYS[2]).arg(json).exec_async(&mut self.connection.clone()).await?;
        Ok(())
    }

    /// Everything that was refused and not excused, oldest first.
    ///
    /// # Errors
    /// When the witness does not answer.
    pub async fn refusals(&self) -> Result<Vec<Refusal>> {
        let stored: Vec<String> =
            redis::cmd("LRANGE").arg(KEYS[2]).arg(0).arg(-1).query_async(&mut self.connection.clone()).await?;
        stored.into_iter().map(Refusal::parse).collect()
    }

    /// What `holder` may still use, as far as it was reported.
    ///
    /// # Errors
    /// When the witness does not answer.
    pub async fn held_by(&self, holder: &str) -> Result<Vec<Use>> {
        let now = millis(now());
        let last: BTreeMap<String, String> =
            redis::cmd("HGETALL").arg(KEYS[0]).query_async(&mut self.connection.clone()).await?;
        let uses: Vec<Use> =
            last.values().map(|json| serde_json::from_str(json)).collect::<Result<_, _>>().context("no use")?;
        Ok(uses.into_iter().filter(|used| used.holder == holder && used.until > now).collect())
    }

    /// All that was granted, as far as it was reported, in the order of the fencing tokens.
    ///
    /// # Errors
    /// When the witness does not answer.
    pub async fn grants(&self) -> Result<Vec<Grant>> {
        let known: BTreeMap<u64, String> =
            redis::cmd("HGETALL").arg(KEYS[1]).query_async(&mut self.connection.clone()).await?;
        let grant = |(token, grant): (u64, String)| {
            let (holder, resource) = grant.split_once(' ').with_context(|| format!("no grant: {grant}"))?;
            Ok(Grant { token, holder: holder.to_owned(), resource: resource.to_owned() })
        };
        known.into_iter().map(grant).collect()
    }

    /// Counts something that only holders can see, under a name of their own.
    ///
    /// # Errors
    /// When the witness does not answer.
    pub async fn note(&self, what: &str) -> Result<()> {
        Ok(redis::cmd("HINCRBY").arg(NOTES).arg(what).arg(1).exec_async(&mut self.connection.clone()).await?)
    }

    /// How often that was noted.
    ///
    /// # Errors
    /// When the witness does not answer.
    pub async fn noted(&self, what: &str) -> Result<u64> {
        let noted: Option<u64> =
            redis::cmd("HGET").arg(NOTES).arg(what).query_async(&mut self.connection.clone()).await?;
        Ok(noted.unwrap_or_default())
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// When the witness does not answer.
    pub async fn counts(&self) -> Result<Counts> {
        let counts: BTreeMap<String, u64> =
            redis::cmd("HGETALL").arg(KEYS[3]).query_async(&mut self.connection.clone()).await?;
        let count = |name| counts.get(name).copied().unwrap_or_default();
        Ok(Counts {
            uses: count("uses"),
            grants: count("grants"),
            excused: count("excused"),
            together: count("together"),
        })
    }
}

fn millis(moment: Duration) -> u64 {
    u64::try_from(moment.as_millis()).unwrap_or(u64::MAX)
}
