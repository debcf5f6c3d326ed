//! The life of a server's process: ended, paused, started again, and waited for until it is ready. It must not know
//! what it serves.

use std::{
    fmt, fs,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{process::Process, wait::eventually};

/// How much of a log is told when a start fails.
const LAST_LINES: usize = 12;

/// A process that may have been killed, and is then replaced by another with the same log.
#[derive(Debug)]
pub(crate) struct Life {
    /// What errors call it.
    name: String,
    log: PathBuf,
    /// A std mutex: held for the length of a signal, never over an `await`.
    process: Mutex<Option<Process>>,
}

impl Life {
    /// Before its first process.
    pub(crate) fn new(name: String, log: PathBuf) -> Self {
        Self { name, log, process: Mutex::new(None) }
    }

    /// Goes on with this process; an earlier one is killed.
    pub(crate) fn begin(&self, process: Process) {
        *self.lock() = Some(process);
    }

    /// SIGKILL. Killing what is dead is no error.
    pub(crate) fn kill(&self) {
        drop(self.lock().take());
    }

    /// SIGSTOP: connections stay open, nothing is answered.
    pub(crate) fn pause(&self) -> Result<()> {
        self.with(Process::pause)
    }

    /// SIGCONT: what was sent meanwhile is executed.
    pub(crate) fn resume(&self) -> Result<()> {
        self.with(Process::resume)
    }

    /// The process's id.
    pub(crate) fn id(&self) -> Result<u32> {
        self.with(|process| Ok(process.id()))
    }

    /// What was logged so far, by all processes.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the process, whose id is given to `is_ready`, is ready; not any longer if it ends. An error has the end
    /// of the log.
    pub(crate) async fn ready(&self, within: Duration, mut is_ready: impl AsyncFnMut(u32) -> Result<()>) -> Result<()> {
        let ready = eventually(within, async || match self.id() {
            Ok(id) => is_ready(id).await.map(Ok),
            Err(reason) => Ok(Err(reason)),
        });
        ready.await.and_then(|outcome| outcome).with_context(|| {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
            format!("{self} did not start; its log ends:\n{last}")
        })
    }

    /// Does something with the process, if it was started and has not ended by itself.
    fn with<T>(&self, act: impl FnOnce(&Process) -> Result<T>) -> Result<T> {
        let mut process = self.lock();
        let Some(process) = process.as_mut() else { bail!("{self} was killed and not restarted") };
        if let Some(status) = process.ended()? {
            bail!("{self} has ended by itself: {status}");
        }
        act(process)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Life {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}
