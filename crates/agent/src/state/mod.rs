//! The state directory: what one agent leaves on disk for its next run and for the command line beside it.
//!
//! | file | content | written |
//! |---|---|---|
//! | `agent.lock` | locked for as long as an agent lives | never |
//! | `agent.json` | how to reach the agent and its embedded server ([`AgentFile`]) | at start |
//! | `pools.json` | what it must know of its pools if Redis forgets them ([`Memory`]) | when that changes |
//! | `status.json` | conditions and counts ([`StatusFile`]) | conditions at once, counts at most every 10 s |
//!
//! It knows nothing of Redis' keys, and nothing in it is needed to use a pool: deleting the directory loses no lease, only
//! the protection that is described at [`Memory`].

mod file;
mod memory;
mod status;

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use redis_allocator::PoolName;
use serde::{Deserialize, Serialize};

pub(crate) use self::{
    memory::{Memory, RememberedPool},
    status::{BindingReport, FileReport, PoolReport, StatusFile},
};

/// Overrides where the state directory is.
pub(crate) const ENV: &str = "REDIS_ALLOCATOR_STATE_DIR";

const LOCK: &str = "agent.lock";
const AGENT: &str = "agent.json";
const STATUS: &str = "status.json";

/// How long a starting agent waits for the lock: a command that looks whether an agent runs holds it for an instant.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// Why the state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error(
        "no place for the state directory: neither --state-dir, {ENV}, XDG_STATE_HOME nor HOME is set; give --state-dir"
    )]
    NoHome,
    #[error("another agent{} is running on the state directory {}: stop it, or give this one its own --state-dir",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), dir.display())]
    Taken { dir: PathBuf, pid: Option<u32> },
    #[error("{doing} {} failed", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} does not hold what an agent writes there: remove it, or give another --state-dir", path.display())]
    Garbled {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// Turns an I/O error into one that says what was being done to which path.
fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::Io { doing, path: path.to_owned(), source }
}

/// How to reach a running agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AgentFile {
    /// The agent's process.
    pub(crate) pid: u32,
    /// The embedded server's URL. Absent without one: another server's URL may hold a password, and stays out of files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) redis_url: Option<String>,
    /// The embedded server's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) server_pid: Option<u32>,
    /// Where it serves `/healthz`, `/readyz` and `/metrics`, as `host:port`.
    pub(crate) http: String,
    /// The directory of manifests it watches, if that is where pools are declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<PathBuf>,
    pub(crate) started_at: Timestamp,
}

/// A state directory that may or may not exist, and that an agent may or may not be running on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// The directory given, else `$REDIS_ALLOCATOR_STATE_DIR` (clap reads it into `given`), else the user's.
    pub(crate) fn locate(given: Option<PathBuf>) -> Result<Self, StateError> {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let path = given
            .or_else(|| var(ENV))
            .or_else(|| Some(var("XDG_STATE_HOME")?.join("redis-allocator")))
            .or_else(|| Some(var("HOME")?.join(".local/state/redis-allocator")))
            .ok_or(StateError::NoHome)?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The agent that runs on this directory, if one does. What a dead agent left behind is not reported.
    pub(crate) fn running_agent(&self) -> Result<Option<AgentFile>, StateError> {
        if !self.is_locked()? {
            return Ok(None);
        }
        file::read(&self.path.join(AGENT))
    }

    /// What the agent last wrote about its pools, whether it still runs or not; absent if none ever ran here.
    pub(crate) fn status(&self) -> Result<Option<StatusFile>, StateError> {
        file::read(&self.path.join(STATUS))
    }

    /// What an agent of this directory that manages pools under this identity must remember of them, whether it still
    /// runs or not.
    pub(crate) fn remembered(&self, manager: &str) -> Result<BTreeMap<PoolName, RememberedPool>, StateError> {
        if self.status()?.is_some_and(|status| status.manager != manager) {
            return Ok(BTreeMap::new());
        }
        memory::look(&self.path)
    }

    fn is_locked(&self) -> Result<bool, StateError> {
        let path = self.path.join(LOCK);
        match File::open(&path) {
            Ok(lock) => match lock.try_lock_shared() {
                Ok(()) => Ok(false),
                Err(TryLockError::WouldBlock) => Ok(true),
                Err(TryLockError::Error(error)) => Err(failed("looking at the lock", &path)(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("opening the lock", &path)(error)),
        }
    }

    /// Takes the directory for this process, creating it if need be.
    pub(crate) async fn occupy(&self) -> Result<OccupiedDir, StateError> {
        create_private(&self.path).map_err(failed("creating the state directory", &self.path))?;
        let path = self.path.join(LOCK);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed("opening the lock", &path))?;
        let give_up = tokio::time::Instant::now() + LOCK_PATIENCE;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if tokio::time::Instant::now() < give_up => {
                    tokio::time::sleep(LOCK_PATIENCE / 20).await;
                }
                Err(TryLockError::WouldBlock) => {
                    let agent: Option<AgentFile> = file::read(&self.path.join(AGENT)).ok().flatten();
                    return Err(StateError::Taken { dir: self.path.clone(), pid: agent.map(|agent| agent.pid) });
                }
                Err(TryLockError::Error(error)) => return Err(failed("locking", &path)(error)),
            }
        }
        // Whatever lies here is a dead agent's: until this one has written its own, nobody must be led to that.
        file::remove(&self.path.join(AGENT))?;
        Ok(OccupiedDir { dir: self.clone(), _lock: lock })
    }
}

/// The state directory of this very process, locked for as long as this value lives.
#[derive(Debug)]
pub(crate) struct OccupiedDir {
    dir: StateDir,
    _lock: File,
}

impl OccupiedDir {
    pub(crate) fn path(&self) -> &Path {
        &self.dir.path
    }

    pub(crate) fn write_agent(&self, agent: &AgentFile) -> Result<(), StateError> {
        file::write(&self.dir.path.join(AGENT), agent)
    }

    pub(crate) fn write_status(&self, status: &StatusFile) -> Result<(), StateError> {
        file::write(&self.dir.path.join(STATUS), status)
    }
}

impl Drop for OccupiedDir {
    fn drop(&mut self) {
        // Readers check the lock as well: a file that stays behind misleads nobody.
        let _ = fs::remove_file(self.dir.path.join(AGENT));
    }
}

/// Creates a directory that only its owner can enter: it names sockets, owners and resources.
fn create_private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(pid: u32) -> AgentFile {
        AgentFile {
            pid,
            redis_url: Some("unix:///tmp/x.sock".to_owned()),
            server_pid: Some(2),
            http: "127.0.0.1:9464".to_owned(),
            config: Some("/etc/pools".into()),
            started_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn a_second_agent_is_refused_and_told_whose_directory_it_is() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::locate(Some(temp.path().join("state"))).unwrap();
        let occupied = dir.occupy().await.unwrap();
        occupied.write_agent(&agent(4711)).unwrap();

        let refused = dir.occupy().await.unwrap_err();
        assert!(matches!(refused, StateError::Taken { pid: Some(4711), .. }), "{refused}");
        assert!(refused.to_string().contains("--state-dir"), "{refused}");

        drop(occupied);
        dir.occupy().await.unwrap();
    }

    #[tokio::test]
    async fn what_a_dead_agent_left_is_not_taken_for_a_running_one() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::locate(Some(temp.path().to_owned())).unwrap();
        assert_eq!(dir.running_agent().unwrap(), None);

        let occupied = dir.occupy().await.unwrap();
        occupied.write_agent(&agent(1)).unwrap();
        assert_eq!(dir.running_agent().unwrap(), Some(agent(1)));

        drop(occupied);
        file::write(&temp.path().join(AGENT), &agent(1)).unwrap();
        assert_eq!(dir.running_agent().unwrap(), None);
        dir.occupy().await.unwrap();
        assert!(!temp.path().join(AGENT).exists(), "a new agent clears it away");
    }

    #[tokio::test]
    async fn a_garbled_file_is_an_error_that_names_it() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::locate(Some(temp.path().to_owned())).unwrap();
        fs::write(temp.path().join(STATUS), "{").unwrap();
        let error = dir.status().unwrap_err();
        assert!(error.to_string().contains("status.json"), "{error}");
    }
}
