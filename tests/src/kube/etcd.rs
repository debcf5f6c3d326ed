//! An etcd that forgets everything with its value, for one API server.

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::{ports, process::Process};

const LOG: &str = "etcd.log";

#[derive(Debug)]
pub(super) struct Etcd {
    port: u16,
    /// Dropped, and by that killed, before its directory goes.
    _process: Process,
    _directory: TempDir,
}

impl Etcd {
    /// Starts one; the API server itself waits until it answers.
    pub(super) fn start(binary: &std::path::Path) -> Result<Self> {
        let directory = TempDir::new()?;
        let (port, peer) = (ports::free()?, ports::free()?);
        let (url, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let arguments = [
            "--data-dir=data".to_owned(),
            "--unsafe-no-fsync".to_owned(),
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
        ];
        let process = Process::start(binary, directory.path(), LOG, arguments).context("cannot start etcd")?;
        Ok(Self { port, _process: process, _directory: directory })
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
