//! The settings a server is started with, written as its configuration file. It must not know how the server is run.

use std::{fmt::Write as _, fs};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{CONFIG, LOG, RDB, SOCKET, Server, launch};
use crate::{Flavor, life::Life, ports};

/// How often another port is tried when one was taken between the choice and the start.
const ATTEMPTS: usize = 5;

/// Collects settings for a [`Server`].
#[derive(Debug, Clone)]
pub struct Builder {
    flavor: Flavor,
    port: Option<u16>,
    unix_socket: bool,
    sentinel: bool,
    lines: Vec<String>,
}

impl Builder {
    pub(super) fn new(flavor: Flavor) -> Self {
        Self { flavor, port: None, unix_socket: false, sentinel: false, lines: Vec::new() }
    }

    /// Adds a line of configuration, as in `redis.conf`: `line("appendonly yes")`. A later line overrides a default.
    #[must_use]
    pub fn line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Listens on a Unix socket, too; see [`Server::unix_url`].
    #[must_use]
    pub fn unix_socket(mut self) -> Self {
        self.unix_socket = true;
        self
    }

    /// Listens on this port instead of a free one.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Follows the server on 127.0.0.1 that listens on `port`. [`Replica`](crate::replica::Replica) does more.
    #[must_use]
    pub fn replica_of(self, port: u16) -> Self {
        self.line(format!("replicaof 127.0.0.1 {port}"))
    }

    /// Runs as a Sentinel, without data.
    pub(crate) fn sentinel(mut self) -> Self {
        self.sentinel = true;
        self
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// When the binary is missing or the server does not answer; then with the end of its log.
    pub async fn start(self) -> Result<Server> {
        let mut attempt = 1;
        loop {
            let server = self.launch()?;
            match server.wait_until_it_answers().await {
                Ok(()) => return Ok(server),
                Err(_) if self.port.is_none() && attempt < ATTEMPTS && server.log().contains("already in use") => {
                    attempt += 1;
                }
                Err(reason) => return Err(reason),
            }
        }
    }

    fn launch(&self) -> Result<Server> {
        let port = self.port.map_or_else(ports::free, Ok)?;
        let directory = TempDir::with_prefix("e2e-")?;
        let config = directory.path().join(CONFIG);
        fs::write(&config, self.config(port)?).with_context(|| format!("cannot write {}", config.display()))?;
        let life = Life::new(format!("{} on 127.0.0.1:{port}", self.flavor), directory.path().join(LOG));
        life.begin(launch(self.flavor, directory.path(), self.sentinel)?);
        Ok(Server { flavor: self.flavor, port, sentinel: self.sentinel, life, directory })
    }

    fn config(&self, port: u16) -> Result<String> {
        let mut config = format!("bind 127.0.0.1\nport {port}\ndir .\nlogfile {LOG}\n");
        if self.unix_socket {
            writeln!(config, "unixsocket {SOCKET}")?;
        }
        if !self.sentinel {
            // Replicas that attach need not wait for others to share a transfer with.
            writeln!(
                config,
                "save \"\"\nappendonly no\ndbfilename {RDB}\nmaxmemory-policy noeviction\nrepl-diskless-sync-delay 0"
            )?;
        }
        for line in &self.lines {
            writeln!(config, "{line}")?;
        }
        Ok(config)
    }
}
