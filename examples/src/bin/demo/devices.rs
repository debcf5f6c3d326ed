//! Test devices for the agent to probe: ports of this machine that accept connections, or don't. It must not know the
//! agent.

use std::io;

use anyhow::{Context, Result};
use tokio::{net::TcpListener, task::JoinHandle};

/// A device that answers while it is switched on.
pub(crate) struct Device {
    address: String,
    answering: Option<JoinHandle<()>>,
}

impl Device {
    /// A device at a free port, switched on.
    pub(crate) async fn new() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port for a test device")?;
        let address = listener.local_addr()?.to_string();
        Ok(Self { address, answering: Some(answer(listener)) })
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// From now on connections are refused.
    pub(crate) async fn switch_off(&mut self) {
        if let Some(answering) = self.answering.take() {
            answering.abort();
            // The port is closed when the task is gone, which takes a moment.
            let _ = answering.await;
        }
    }

    /// From now on connections are accepted again.
    pub(crate) async fn switch_on(&mut self) -> Result<()> {
        let listener = TcpListener::bind(&self.address).await;
        self.answering = Some(answer(listener.with_context(|| format!("{} was taken meanwhile", self.address))?));
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(answering) = &self.answering {
            answering.abort();
        }
    }
}

fn answer(listener: TcpListener) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let accepted: io::Result<_> = listener.accept().await;
            drop(accepted);
        }
    })
}
