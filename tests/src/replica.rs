//! A replica whose link to its master a test can stall, so that it lags by exactly what was written since. It must not
//! know what is replicated.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{Flavor, Proxy, Server, wait::eventually};

/// How long a replica may take to catch up with its master.
const CATCH_UP: Duration = Duration::from_mins(1);

/// A server that follows a master through a proxied link.
#[derive(Debug)]
pub struct Replica {
    server: Server,
    link: Proxy,
}

impl Replica {
    /// Starts a replica of `master`, of the same flavour, and waits until it holds the same data.
    ///
    /// # Errors
    /// When it does not start, or does not catch up within a minute.
    pub async fn of(master: &Server) -> Result<Self> {
        let link = Proxy::start_raw(master.port()).await?;
        let server = Self::configured(master.flavor(), link.port()).start().await?;
        let replica = Self { server, link };
        replica.wait_for(master).await?;
        Ok(replica)
    }

    fn configured(flavor: Flavor, link: u16) -> crate::server::Builder {
        Server::builder(flavor).replica_of(link)
    }

    /// The replica's own server.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Stops replication without either side noticing at once: what the master executes from now on is not known here.
    pub fn lag(&self) {
        self.link.hold();
    }

    /// Lets replication go on, and waits until the replica holds what `master` holds.
    ///
    /// # Errors
    /// When that takes more than a minute.
    pub async fn catch_up(&self, master: &Server) -> Result<()> {
        self.link.pass();
        self.wait_for(master).await
    }

    /// Makes the replica a master, with what it has received so far, also over restarts. What a lagging link held back
    /// is lost to it.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn promote(&self) -> Result<()> {
        // Before the link refuses: that lets go of what it held back.
        self.server.cmd::<()>(&["REPLICAOF", "NO", "ONE"]).await?;
        self.link.refuse();
        self.server.cmd(&["CONFIG", "REWRITE"]).await
    }

    /// Waits until the replica has received everything that `master` has executed.
    async fn wait_for(&self, master: &Server) -> Result<()> {
        let offset: u64 = master.info("replication", "master_repl_offset").await?.parse()?;
        eventually(CATCH_UP, async || {
            let link = self.server.info("replication", "master_link_status").await?;
            ensure!(link == "up", "the link of {} to {master} is {link}", self.server);
            let received: u64 = self.server.info("replication", "slave_repl_offset").await?.parse()?;
            ensure!(received >= offset, "{} is at offset {received}, {master} at {offset}", self.server);
            Ok(())
        })
        .await
    }
}
