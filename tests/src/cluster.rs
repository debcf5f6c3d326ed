//! A three-master Cluster whose slots a test can move, with proxies before its nodes if wanted. It must not know which
//! keys are stored in it.

use std::{ops::RangeInclusive, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use crate::{Flavor, Proxy, Server, ports, stats, wait::eventually};

/// Slots of a Cluster, split evenly among the masters.
const SLOTS: u16 = 16_384;
const MASTERS: u16 = 3;
/// How long the nodes may take to agree with each other.
const AGREEMENT: Duration = Duration::from_mins(1);

/// Three masters that share the slots, without replicas.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
}

/// A master of a [`Cluster`].
#[derive(Debug)]
pub struct Node {
    server: Server,
    proxy: Option<Proxy>,
    id: String,
}

impl Node {
    /// The node's server; its own port is the real one, not a proxy's.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The proxy that the Cluster sends clients to, if it was started with proxies.
    pub fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// The port that clients use: the proxy's, if there is one.
    pub fn client_port(&self) -> u16 {
        self.proxy.as_ref().map_or(self.server.port(), Proxy::port)
    }

    async fn start(flavor: Flavor, proxied: bool) -> Result<Self> {
        let (port, bus) = (ports::free()?, ports::free()?);
        let mut builder = Server::builder(flavor)
            .port(port)
            .line("cluster-enabled yes")
            .line("cluster-config-file nodes.conf")
            .line(format!("cluster-port {bus}"))
            .line("cluster-announce-ip 127.0.0.1")
            // A node that is paused by a test should be missed soon, but not because the machine is busy.
            .line("cluster-node-timeout 5000");
        let proxy = if proxied { Some(Proxy::start(port).await?) } else { None };
        if let Some(proxy) = &proxy {
            builder = builder
                .line(format!("cluster-announce-port {}", proxy.port()))
                .line(format!("cluster-announce-bus-port {bus}"));
        }
        let server = builder.start().await?;
        let id = server.cmd(&["CLUSTER", "MYID"]).await?;
        Ok(Self { server, proxy, id })
    }

    /// Who serves what, as this node sees it, in the order of the slots.
    async fn shares(&self) -> Result<Vec<Share>> {
        // Beyond address, port and id, newer servers tell more about a node.
        type Entry = (u16, u16, (String, u16, String, redis::Value));
        let entries: Vec<Entry> = self.server.cmd(&["CLUSTER", "SLOTS"]).await?;
        let mut shares: Vec<Share> = entries
            .into_iter()
            .map(|(first, last, (_, port, owner, _))| Share { slots: first..=last, owner, port })
            .collect();
        shares.sort_by_key(|share| *share.slots.start());
        Ok(shares)
    }

    async fn state(&self) -> Result<String> {
        let info: String = self.server.cmd(&["CLUSTER", "INFO"]).await?;
        stats::info_field(&info, "cluster_state").map(str::to_owned).context("CLUSTER INFO tells no cluster_state")
    }
}

/// Consecutive slots of one node.
#[derive(Debug, PartialEq, Eq)]
struct Share {
    slots: RangeInclusive<u16>,
    owner: String,
    port: u16,
}

impl Cluster {
    /// Starts a Cluster and waits until every node accepts every slot.
    ///
    /// # Errors
    /// When a node does not start, or they do not agree within a minute.
    pub async fn start(flavor: Flavor) -> Result<Self> {
        Self::form(flavor, false).await
    }

    /// The same, with a [`Proxy`] before each node that the Cluster announces instead of it.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with_proxies(flavor: Flavor) -> Result<Self> {
        Self::form(flavor, true).await
    }

    async fn form(flavor: Flavor, proxied: bool) -> Result<Self> {
        let mut nodes = Vec::new();
        for number in 0..MASTERS {
            let node = Node::start(flavor, proxied).await?;
            let first = SLOTS / MASTERS * number;
            let last = if number + 1 == MASTERS { SLOTS - 1 } else { SLOTS / MASTERS * (number + 1) - 1 };
            let server = &node.server;
            server.cmd::<()>(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]).await?;
            // Each its own: otherwise they first quarrel about who has which, for seconds.
            server.cmd::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]).await?;
            nodes.push(node);
        }
        for node in &nodes[1..] {
            let bus = node.server.cmd::<Vec<String>>(&["CONFIG", "GET", "cluster-port"]).await?;
            let bus = bus.last().context("the server knows no cluster-port")?;
            let meet = ["CLUSTER", "MEET", "127.0.0.1", &node.server.port().to_string(), bus];
            nodes[0].server.cmd::<()>(&meet).await?;
        }
        let cluster = Self { nodes };
        cluster.wait_until_agreed().await?;
        Ok(cluster)
    }

    /// The nodes, in the order of their first slots.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// `127.0.0.1:<port>` of each node, as clients use it.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.client_port())).collect()
    }

    /// The slot that `key` belongs to.
    ///
    /// # Errors
    /// When the first node does not answer.
    pub async fn slot_of(&self, key: &str) -> Result<u16> {
        self.nodes[0].server.cmd(&["CLUSTER", "KEYSLOT", key]).await
    }

    /// The node that owns `slot` by its own account, which is right also just after a move.
    ///
    /// # Errors
    /// When none does, or a node does not answer.
    pub async fn owner_of(&self, slot: u16) -> Result<&Node> {
        for node in &self.nodes {
            if node.shares().await?.iter().any(|share| share.slots.contains(&slot) && share.owner == node.id) {
                return Ok(node);
            }
        }
        bail!("no node owns slot {slot}")
    }

    /// Begins to move `slot` to `target`. Until [`finish`](Migration::finish) the present owner answers ASK for keys it
    /// no longer has, and TRYAGAIN for a command of which it has some keys but not all.
    ///
    /// # Errors
    /// When a node refuses.
    pub async fn migrate<'a>(&'a self, slot: u16, target: &'a Node) -> Result<Migration<'a>> {
        let source = self.owner_of(slot).await?;
        ensure!(source.id != target.id, "slot {slot} is already owned by {}", target.server);
        let number = slot.to_string();
        target.server.cmd::<()>(&["CLUSTER", "SETSLOT", &number, "IMPORTING", &source.id]).await?;
        source.server.cmd::<()>(&["CLUSTER", "SETSLOT", &number, "MIGRATING", &target.id]).await?;
        Ok(Migration { cluster: self, slot, source, target })
    }

    /// Waits until every node sees all slots served, by the same owners, at the ports that clients use.
    ///
    /// # Errors
    /// When they do not agree within a minute.
    pub async fn wait_until_agreed(&self) -> Result<()> {
        eventually(AGREEMENT, async || {
            let expected = self.nodes[0].shares().await?;
            for node in &self.nodes {
                let server = &node.server;
                let state = node.state().await?;
                ensure!(state == "ok", "{server} says that the Cluster's state is {state}");
                let shares = node.shares().await?;
                let slots: usize = shares.iter().map(|share| share.slots.len()).sum();
                ensure!(slots == usize::from(SLOTS), "{server} knows owners of {slots} slots");
                ensure!(shares == expected, "{server} and {} disagree about owners", self.nodes[0].server);
                let port = node.client_port();
                let announced = shares.iter().filter(|share| share.owner == node.id).all(|share| share.port == port);
                ensure!(announced, "{server} is not announced on port {port}");
            }
            Ok(())
        })
        .await
    }
}

/// A slot on its way from one node to another.
#[derive(Debug)]
pub struct Migration<'a> {
    cluster: &'a Cluster,
    slot: u16,
    source: &'a Node,
    target: &'a Node,
}

impl Migration<'_> {
    /// Moves at most `count` of the slot's keys, and returns how many it moved.
    ///
    /// # Errors
    /// When a node refuses.
    pub async fn move_keys(&self, count: usize) -> Result<usize> {
        let source = &self.source.server;
        let keys: Vec<Vec<u8>> =
            source.cmd(&["CLUSTER", "GETKEYSINSLOT", &self.slot.to_string(), &count.to_string()]).await?;
        if !keys.is_empty() {
            redis::cmd("MIGRATE")
                .arg("127.0.0.1")
                .arg(self.target.server.port())
                .arg("")
                .arg(0)
                .arg(30_000)
                .arg("KEYS")
                .arg(&keys)
                .exec_async(&mut source.connection().await?)
                .await
                .with_context(|| format!("{source} cannot move keys of slot {}", self.slot))?;
        }
        Ok(keys.len())
    }

    /// Moves the remaining keys, hands the slot over, and waits until every node knows.
    ///
    /// # Errors
    /// When a node refuses, or they do not agree within a minute.
    pub async fn finish(self) -> Result<()> {
        while self.move_keys(100).await? > 0 {}
        let others = self.cluster.nodes.iter().filter(|node| node.id != self.target.id && node.id != self.source.id);
        // The target first: were the source told first and the target lost, the slot would have no owner.
        for node in [self.target, self.source].into_iter().chain(others) {
            let slot = self.slot.to_string();
            node.server.cmd::<()>(&["CLUSTER", "SETSLOT", &slot, "NODE", &self.target.id]).await?;
        }
        self.cluster.wait_until_agreed().await
    }
}
