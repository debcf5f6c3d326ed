//! What the servers say of themselves and what their user may do, for who looks for trouble before it comes. It judges
//! nothing.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use redis::from_redis_value;

use super::Client;
use crate::{
    connection::Connection,
    error::{Error, Result},
    names::PoolName,
    reply::Reply,
    script,
};

/// What a workload's calls run on a pool's keys.
const LEASING: [&str; 25] = [
    "HGET",
    "HMGET",
    "HGETALL",
    "HKEYS",
    "HLEN",
    "HEXISTS",
    "HSCAN",
    "HSET",
    "HDEL",
    "HINCRBY",
    "ZADD",
    "ZREM",
    "ZCARD",
    "ZCOUNT",
    "ZSCORE",
    "ZMSCORE",
    "ZRANGE",
    "ZRANGEBYSCORE",
    "ZRANGEBYLEX",
    "ZLEXCOUNT",
    "ZRANK",
    "ZPOPMIN",
    "ZSCAN",
    "EVALSHA",
    "TIME",
];
/// Times that a clock is read; the quickest answer is the most exact.
const READINGS: usize = 5;
/// Settings that matter.
const SETTINGS: [&str; 6] =
    ["maxmemory-policy", "save", "appendonly", "appendfsync", "min-replicas-to-write", "min-replicas-max-lag"];

/// What one server tells. Each part may be refused for itself: by an ACL, or by a managed service.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// Where it is, without user and password.
    pub address: String,
    /// Of a replica: the address of the server that told of it.
    pub replica_of: Option<String>,
    /// The fields of `INFO`.
    pub info: Result<BTreeMap<String, String>>,
    /// Those of the settings `maxmemory-policy`, `save`, `appendonly`, `appendfsync`, `min-replicas-to-write` and
    /// `min-replicas-max-lag` that it has.
    pub config: Result<BTreeMap<String, String>>,
    /// Its clock.
    pub clock: Result<ClockReading>,
}

/// A server's clock beside this host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockReading {
    /// By how many microseconds it is ahead of this host's; negative: behind.
    pub ahead_micros: i64,
    /// How far off that may be: half of the time that the answer took.
    pub uncertainty: Duration,
}

/// What the user of a connection lacks the permission for, as `COMMAND key`; empty where it has all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permissions {
    /// For leasing from the pool.
    pub denied_leasing: Vec<String>,
    /// For waking those who wait in line (`PUBLISH`), which whoever frees or declares resources does, and for being woken
    /// (`SUBSCRIBE`, and `PING`, by which a subscriber notices that its server is gone), with the channel in place of a
    /// key. Who lacks it, or waits for one who does, looks once a second instead.
    pub denied_waking: Vec<String>,
    /// What an ACL must allow for that, after a `&`: the channels of all clients.
    pub channels: String,
    /// For creating, listing and deleting it, which an agent needs beside the above.
    pub denied_managing: Vec<String>,
}

impl Client {
    /// What the server tells of itself, or every server of a Cluster that owns slots; and their replicas, where they can
    /// be reached at the addresses that they give.
    pub async fn examine(&self) -> Vec<ServerFacts> {
        let mut all = Vec::new();
        for server in self.inner.connection.servers() {
            let facts = examine(&server, None).await;
            let replicas = facts.info.as_ref().map(replicas).unwrap_or_default();
            let address = facts.address.clone();
            all.push(facts);
            for (host, port) in replicas {
                all.push(examine(&server.beside(&host, port), Some(address.clone())).await);
            }
        }
        all
    }

    /// What the user may not do with a pool, which need not exist. Only asked: nothing of it is done.
    ///
    /// # Errors
    /// [`Error::Server`] when the user may not even ask: it can't run scripts on the pool's keys.
    pub async fn permissions(&self, pool: &PoolName) -> Result<Permissions> {
        let keyspace = &self.inner.keyspace;
        let keys = keyspace.pool(pool);
        // The channels of clients that are not known yet: one stands for them.
        let (channel, none) = (keyspace.wake("0"), String::new());
        let (meta, namespaces, registry) = (&keys[0], keyspace.namespaces(), keyspace.registry(pool.namespace()));
        let managing = [
            ("UNLINK", meta),
            ("EVAL", &registry),
            ("SADD", &namespaces),
            ("SMEMBERS", &namespaces),
            ("HGET", &registry),
            ("HSET", &registry),
            ("HDEL", &registry),
            ("HKEYS", &registry),
        ];
        let denied = async |commands: Vec<(&str, &String)>| {
            let args: Vec<_> = commands
                .into_iter()
                .flat_map(|(command, key)| [command.as_bytes().into(), key.as_bytes().into()])
                .collect();
            let mut reply = self.run(self.form(&script::PERMISSIONS), pool.as_str(), &keys, &args, false).await?;
            reply.text()?;
            let pairs = reply.pairs()?.into_iter();
            Ok::<_, Error>(pairs.map(|(command, key)| format!("{command} {key}").trim_end().to_owned()).collect())
        };
        Ok(Permissions {
            denied_leasing: denied(LEASING.iter().map(|command| (*command, meta)).collect()).await?,
            denied_waking: denied(vec![("PUBLISH", &channel), ("SUBSCRIBE", &channel), ("PING", &none)]).await?,
            channels: keyspace.wake("*"),
            denied_managing: denied(managing.to_vec()).await?,
        })
    }
}

async fn examine(server: &Connection, replica_of: Option<String>) -> ServerFacts {
    let address = server.describe().to_owned();
    let info = async {
        let value = server.command(None, true, "INFO", redis::cmd("INFO")).await?;
        let text: String = from_redis_value(value).map_err(|error| unexpected("INFO", &error))?;
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        Ok(fields.map(|(name, value)| (name.to_owned(), value.trim_end().to_owned())).collect())
    };
    let info = match info.await {
        // One that does not answer would not answer the rest, only later.
        Err(error) if Error::is_transient(&error) => {
            let (info, config, clock) = (Err(error.clone()), Err(error.clone()), Err(error));
            return ServerFacts { address, replica_of, info, config, clock };
        }
        info => info,
    };
    let config = async {
        let mut command = redis::cmd("CONFIG");
        command.arg("GET").arg(&SETTINGS);
        let value = server.command(None, true, "CONFIG GET", command).await?;
        from_redis_value(value).map_err(|error| unexpected("CONFIG GET", &error))
    };
    ServerFacts { address, replica_of, info, config: config.await, clock: read_clock(server).await }
}

async fn read_clock(server: &Connection) -> Result<ClockReading> {
    let micros = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    };
    let mut best: Option<ClockReading> = None;
    for _ in 0..READINGS {
        let before = SystemTime::now();
        let value = server.command(None, true, "TIME", redis::cmd("TIME")).await?;
        let after = SystemTime::now();
        let mut reply = Reply::new("TIME", value)?;
        let theirs = reply.int()?.saturating_mul(1_000_000).saturating_add(reply.int()?);
        let uncertainty = after.duration_since(before).unwrap_or_default() / 2;
        let middle = i64::midpoint(micros(before), micros(after));
        if best.is_none_or(|best| uncertainty < best.uncertainty) {
            best = Some(ClockReading { ahead_micros: theirs.saturating_sub(middle), uncertainty });
        }
    }
    best.ok_or_else(|| unexpected("TIME", &"no answer"))
}

/// Where the replicas of a server are, as it was told.
fn replicas(info: &BTreeMap<String, String>) -> Vec<(String, u16)> {
    let is_replica = |name: &str| name.strip_prefix("slave").is_some_and(|rest| rest.parse::<u32>().is_ok());
    let entries = info.iter().filter(|(name, _)| is_replica(name));
    entries
        .filter_map(|(_, entry)| {
            // ip=10.0.0.2,port=6379,state=online,offset=14,lag=0
            let field = |name: &str| entry.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
            Some((field("ip")?.to_owned(), field("port")?.parse().ok()?))
        })
        .collect()
}

fn unexpected(operation: &'static str, found: &dyn std::fmt::Display) -> Error {
    Error::Server { operation, subject: "its reply".to_owned(), message: found.to_string() }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// Every command that a script names, or takes by name.
    fn commands_of(directory: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                commands_of(&path, found);
                continue;
            }
            let script = fs::read_to_string(&path).unwrap();
            for (_, rest) in script.match_indices("call('").map(|(at, found)| script.split_at(at + found.len())) {
                found.insert(rest.split('\'').next().unwrap().to_owned());
            }
        }
    }

    #[test]
    fn every_command_of_the_scripts_is_asked_about() {
        let mut named = BTreeSet::new();
        commands_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/scripts"), &mut named);
        assert!(named.len() > 15, "{named:?}");
        let asked: BTreeSet<String> = LEASING.iter().chain(&["UNLINK", "PUBLISH"]).map(ToString::to_string).collect();
        let missing: Vec<_> = named.difference(&asked).collect();
        assert!(missing.is_empty(), "scripts run {missing:?}, which nobody asks the permission for");
    }

    #[test]
    fn replicas_are_found_by_their_addresses() {
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let info = BTreeMap::from([
            field("connected_slaves", "2"),
            field("slave0", "ip=10.0.0.2,port=6379,state=online,offset=14,lag=0"),
            field("slave1", "ip=::1,port=6380,state=wait_bgsave,offset=0,lag=0"),
            field("slave_repl_offset", "3"),
        ]);
        assert_eq!(replicas(&info), [("10.0.0.2".to_owned(), 6379), ("::1".to_owned(), 6380)]);
    }
}
