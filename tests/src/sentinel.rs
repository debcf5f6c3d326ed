//! Sentinels that watch a master and fail it over. It must not know how clients find the master.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::{Flavor, Server, wait::eventually};

/// How long Sentinels may take to find each other and the replicas: they announce themselves every two seconds and ask
/// the master for its replicas every ten.
const DISCOVERY: Duration = Duration::from_mins(1);
/// How long a failover may take, from its cause to its end.
const FAILOVER: Duration = Duration::from_secs(90);

/// A group of Sentinels around one master.
#[derive(Debug)]
pub struct Sentinels {
    name: String,
    sentinels: Vec<Server>,
}

impl Sentinels {
    /// Starts `count` Sentinels (1 to 3, say) that call `master` by `name`, and waits until each knows all others and
    /// `replicas` replicas. A majority decides, after the master was silent for three seconds.
    ///
    /// Replicas must follow the master directly ([`Builder::replica_of`](crate::server::Builder::replica_of)):
    /// Sentinels would soon point one that follows a proxy at the master itself.
    ///
    /// # Errors
    /// When one does not start, or they do not find everything within a minute.
    pub async fn start(flavor: Flavor, name: &str, master: &Server, replicas: usize, count: usize) -> Result<Self> {
        let quorum = count / 2 + 1;
        let mut sentinels = Vec::with_capacity(count);
        for _ in 0..count {
            let sentinel = Server::builder(flavor)
                .sentinel()
                .line(format!("sentinel monitor {name} 127.0.0.1 {} {quorum}", master.port()))
                .line(format!("sentinel down-after-milliseconds {name} 3000"))
                // Twice this must pass before the next failover may begin.
                .line(format!("sentinel failover-timeout {name} 3000"));
            sentinels.push(sentinel.start().await?);
        }
        let group = Self { name: name.to_owned(), sentinels };
        eventually(DISCOVERY, async || group.complete(replicas).await).await?;
        Ok(group)
    }

    /// `127.0.0.1:<port>` of each Sentinel.
    pub fn addresses(&self) -> Vec<String> {
        self.sentinels.iter().map(Server::address).collect()
    }

    /// The Sentinels themselves, to be killed or paused.
    pub fn servers(&self) -> &[Server] {
        &self.sentinels
    }

    /// The port of the master, as the first Sentinel that answers has it.
    ///
    /// # Errors
    /// When none answers.
    pub async fn master_port(&self) -> Result<u16> {
        for sentinel in &self.sentinels {
            if let Ok(port) = self.named_by(sentinel).await {
                return Ok(port);
            }
        }
        bail!("no Sentinel knows a master named {}", self.name)
    }

    /// Promotes a replica although the master lives, and waits until all is done.
    ///
    /// # Errors
    /// When there is no replica to promote, or it takes more than ninety seconds.
    pub async fn failover(&self) -> Result<u16> {
        let former = self.master_port().await?;
        let sentinel = self.sentinels.first().context("a failover needs a Sentinel")?;
        // Refused as long as the replica has not been seen in good health, which is looked at every few seconds, and while
        // one is under way. One that was begun may be given up, and is then ordered anew; one that has just ended can't be
        // followed by another by mistake: the former master has not been seen as a replica then.
        eventually(FAILOVER, async || {
            if self.named_by(sentinel).await? == former {
                sentinel.cmd::<()>(&["SENTINEL", "FAILOVER", &self.name]).await?;
                bail!("{sentinel} has begun a failover that is not over yet");
            }
            Ok(())
        })
        .await?;
        self.wait_for_failover_from(former).await
    }

    /// Waits until every living Sentinel names another master than the one on port `former`, and returns its port.
    ///
    /// # Errors
    /// When it takes more than ninety seconds.
    pub async fn wait_for_failover_from(&self, former: u16) -> Result<u16> {
        eventually(FAILOVER, async || {
            let mut port = None;
            for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.pid().is_ok()) {
                let named = self.named_by(sentinel).await?;
                ensure!(named != former, "{sentinel} still names the master on port {former}");
                ensure!(port.is_none_or(|port| port == named), "the Sentinels name different masters");
                port = Some(named);
            }
            port.context("no Sentinel is alive")
        })
        .await
    }

    /// The port of the master, as this Sentinel has it.
    async fn named_by(&self, sentinel: &Server) -> Result<u16> {
        let answer = sentinel.cmd::<(String, u16)>(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", &self.name]).await;
        answer.map(|(_, port)| port)
    }

    async fn complete(&self, replicas: usize) -> Result<()> {
        for sentinel in &self.sentinels {
            let others: Vec<redis::Value> = sentinel.cmd(&["SENTINEL", "SENTINELS", &self.name]).await?;
            let expected = self.sentinels.len() - 1;
            ensure!(others.len() == expected, "{sentinel} knows {} of {expected} other Sentinels", others.len());
            let known: Vec<redis::Value> = sentinel.cmd(&["SENTINEL", "REPLICAS", &self.name]).await?;
            ensure!(known.len() == replicas, "{sentinel} knows {} of {replicas} replicas", known.len());
            sentinel.cmd::<redis::Value>(&["SENTINEL", "CKQUORUM", &self.name]).await?;
        }
        Ok(())
    }
}
