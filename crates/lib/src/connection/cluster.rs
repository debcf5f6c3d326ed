//! Who owns which slot of a Redis Cluster, learnt from CLUSTER SLOTS and corrected by MOVED. It sends no request of a
//! caller: it only says where to send it.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::select_ok;
use redis::{ConnectionInfo, Value, cluster_routing::Slot, from_redis_value};
use tokio::time;

use super::{
    endpoint::at,
    link::{Link, Target, Trouble},
    refusal::Address,
};

/// Servers asked at once for the map. The next few are asked when none of these answers.
const ASKED_AT_ONCE: usize = 5;
/// Least time between two refreshes, so that a Cluster in trouble is not kept busy by questions.
const PAUSE: Duration = Duration::from_millis(100);

/// A Cluster, as far as it is known.
pub(super) struct Cluster {
    seeds: Vec<Arc<Link>>,
    /// How to log in to each of the servers.
    server: ConnectionInfo,
    limit: Duration,
    /// A std lock: it is never held across an await.
    map: RwLock<Map>,
    refreshing: AtomicBool,
}

#[derive(Default)]
struct Map {
    owners: HashMap<Slot, Arc<Link>>,
    /// Every owner, and every server that a redirection has named since the last refresh.
    links: HashMap<Address, Arc<Link>>,
}

/// A run of slots and the server that owns them.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    first: u16,
    last: u16,
    owner: Address,
}

impl Cluster {
    /// Learns the map from the first seed that answers.
    pub(super) async fn open(seeds: Vec<ConnectionInfo>, limit: Duration) -> Result<Arc<Self>, Trouble> {
        let server = seeds.first().cloned().ok_or_else(|| Trouble::passing("no server is named".to_owned()))?;
        let seeds = seeds.into_iter().map(|seed| Arc::new(Link::new(Target::Server(seed), limit))).collect();
        let cluster =
            Arc::new(Self { seeds, server, limit, map: RwLock::default(), refreshing: AtomicBool::default() });
        cluster.refresh().await?;
        Ok(cluster)
    }

    /// The owner of the key's slot, as far as is known; any server when there is no key.
    pub(super) fn known(&self, key: Option<&[u8]>) -> Option<Arc<Link>> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        match key {
            Some(key) => map.owners.get(&Slot::for_key(key)).cloned(),
            None => map.links.values().max_by_key(|link| link.is_connected()).cloned(),
        }
    }

    /// Every server that owns a slot, as far as is known, sorted by address.
    pub(super) fn owners(&self) -> Vec<Arc<Link>> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        let mut owners: Vec<_> = map.owners.values().cloned().collect();
        owners.sort_by(|a, b| a.name().cmp(b.name()));
        owners.dedup_by(|a, b| Arc::ptr_eq(a, b));
        owners
    }

    /// How to log in to each of the servers.
    pub(super) fn server(&self) -> &ConnectionInfo {
        &self.server
    }

    /// Believes a MOVED at once, and asks for the whole map: slots seldom move alone.
    pub(super) fn moved(self: &Arc<Self>, key: Option<&[u8]>, address: Address, by: &Link) {
        let link = self.link(address, by);
        if let Some(key) = key {
            let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
            map.owners.insert(Slot::for_key(key), link);
        }
        self.refresh_soon();
    }

    /// The server that a redirection of server `by` names.
    pub(super) fn link(&self, mut address: Address, by: &Link) -> Arc<Link> {
        if address.host.is_empty() {
            address.host = by.host();
        }
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(map.links.entry(address).or_insert_with_key(|address| self.new_link(address)))
    }

    fn new_link(&self, address: &Address) -> Arc<Link> {
        Arc::new(Link::new(Target::Server(at(&self.server, &address.host, address.port)), self.limit))
    }

    /// Has the map renewed by a task, unless one is at it.
    pub(super) fn refresh_soon(self: &Arc<Self>) {
        if self.refreshing.swap(true, Ordering::AcqRel) {
            return;
        }
        let cluster = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(trouble) = cluster.refresh().await {
                tracing::debug!(error = trouble.message, "can't learn who owns which slot");
            }
            time::sleep(PAUSE).await;
            cluster.refreshing.store(false, Ordering::Release);
        });
    }

    async fn refresh(&self) -> Result<(), Trouble> {
        let mut candidates: Vec<Arc<Link>> = {
            let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
            map.links.values().chain(&self.seeds).cloned().collect()
        };
        candidates.sort_by_key(|link| !link.is_connected());
        let mut trouble = Trouble::passing("no server of the Cluster is known".to_owned());
        for some in candidates.chunks(ASKED_AT_ONCE) {
            match select_ok(some.iter().map(|link| Box::pin(self.ask(link)))).await {
                Ok((ranges, _)) => {
                    self.learn(&ranges);
                    return Ok(());
                }
                Err(why) => trouble = why,
            }
        }
        Err(trouble)
    }

    async fn ask(&self, link: &Arc<Link>) -> Result<Vec<Range>, Trouble> {
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        let ask = async {
            let trouble = |error| Trouble::of(&format!("can't ask {} for the map of slots", link.name()), error);
            let wire = link.wire().await?;
            let reply = wire.send(&command, false).await.and_then(Value::extract_error).map_err(trouble)?;
            ranges(reply, &link.host()).filter(|ranges| !ranges.is_empty()).ok_or_else(|| {
                Trouble::passing(format!("{} knows no owner of any slot: it is not part of a Cluster", link.name()))
            })
        };
        time::timeout(self.limit, ask).await.unwrap_or_else(|_| {
            let limit = self.limit.as_millis();
            Err(Trouble::passing(format!("{} did not tell the map of slots within {limit} ms", link.name())))
        })
    }

    fn learn(&self, ranges: &[Range]) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let mut owners = HashMap::new();
        for range in ranges {
            let link = map.links.entry(range.owner.clone()).or_insert_with_key(|address| self.new_link(address));
            for slot in (range.first..=range.last).filter_map(Slot::new) {
                owners.insert(slot, Arc::clone(link));
            }
        }
        let named: HashSet<&Address> = ranges.iter().map(|range| &range.owner).collect();
        map.links.retain(|address, _| named.contains(address));
        map.owners = owners;
    }
}

/// Reads the reply of CLUSTER SLOTS: `[first, last, [host, port, …], replicas…]` each. A server that does not know a
/// host (its own, usually) leaves it empty or null, or writes `?`: it is the host that was asked.
fn ranges(reply: Value, asked: &str) -> Option<Vec<Range>> {
    let Value::Array(entries) = reply else { return None };
    entries
        .into_iter()
        .map(|entry| {
            let Value::Array(entry) = entry else { return None };
            let mut entry = entry.into_iter();
            let first = from_redis_value(entry.next()?).ok()?;
            let last = from_redis_value(entry.next()?).ok()?;
            let Value::Array(master) = entry.next()? else { return None };
            let mut master = master.into_iter();
            let host = from_redis_value::<Option<String>>(master.next()?).ok()?;
            let host = host.filter(|host| !host.is_empty() && host != "?").unwrap_or_else(|| asked.to_owned());
            let port = from_redis_value(master.next()?).ok()?;
            Some(Range { first, last, owner: Address { host, port } })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use redis::parse_redis_value;

    use super::*;

    #[test]
    fn an_unknown_host_is_the_one_that_was_asked() {
        let reply = parse_redis_value(
            b"*4\r\n*3\r\n:0\r\n:99\r\n*3\r\n$1\r\na\r\n:1\r\n$2\r\nid\r\n*3\r\n:100\r\n:199\r\n*3\r\n$0\r\n\r\n:2\r\n$2\r\nid\r\n\
              *3\r\n:200\r\n:299\r\n*3\r\n$-1\r\n:3\r\n$2\r\nid\r\n*4\r\n:300\r\n:399\r\n*3\r\n$1\r\n?\r\n:4\r\n$2\r\nid\r\n*1\r\n:9\r\n",
        )
        .unwrap();
        let owners: Vec<_> = ranges(reply, "me").unwrap().into_iter().map(|r| (r.owner.host, r.owner.port)).collect();
        assert_eq!(owners, [("a".into(), 1), ("me".into(), 2), ("me".into(), 3), ("me".into(), 4)]);
    }

    #[test]
    fn what_is_not_a_map_is_refused() {
        for reply in
            [&b"+OK\r\n"[..], b"*1\r\n:1\r\n", b"*1\r\n*2\r\n:0\r\n:1\r\n", b"*1\r\n*3\r\n:0\r\n:70000\r\n*0\r\n"]
        {
            assert_eq!(ranges(parse_redis_value(reply).unwrap(), "me"), None);
        }
    }
}
