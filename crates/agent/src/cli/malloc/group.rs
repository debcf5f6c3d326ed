//! A command in a process group of its own, from its start until its last process has ended. It must not know about
//! leases: what ends the command early is a future that its caller brings.

use std::{future::Future, io, os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, test_kill_process_group, waitpgid};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, sleep_until},
};

use super::{
    say,
    signals::{Signals, suspends},
    terminal::Foreground,
    watchdog::Watchdog,
};

/// How often a group whose leader has ended is asked whether anyone is left. There is no event for it.
const POLL: Duration = Duration::from_millis(50);

/// What is said instead of a pause.
const SUSPENDED: &str = "a command that holds a lease can't be suspended here: it goes on";

/// Why the command could not be started: codes and meaning are those of the shells.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("{command}: command not found")]
    NotFound { command: String },
    #[error("{command}: can't be run")]
    NotExecutable {
        command: String,
        #[source]
        source: io::Error,
    },
}

impl StartError {
    fn new(command: String, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { command },
            _ => Self::NotExecutable { command, source },
        }
    }

    /// The code to exit with.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } => 126,
        }
    }
}

/// An order to stop the command: TERM at once, KILL at this instant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stop {
    pub(super) kill_at: Instant,
}

/// How a command ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// The status of the command itself; its group is gone too.
    pub(super) status: ExitStatus,
    /// Whether it was told to stop by the caller's future (not by a signal) before it ended.
    pub(super) stopped: bool,
}

/// A running command and everything it started, except what left its process group.
#[derive(Debug)]
pub(super) struct Group {
    leader: Child,
    id: Pid,
    foreground: Option<Foreground>,
}

impl Group {
    /// Starts `command` in a group of its own. Standard streams are inherited unless it says otherwise.
    pub(super) fn start(mut command: Command) -> Result<Self, StartError> {
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        let failed = |error| StartError::new(name.clone(), error);
        // What the command's processes leave behind is reaped here: an ended process that nobody reaps still counts
        // as a member of its group, and process 1 of a container often reaps nobody.
        if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
            tracing::debug!(%error, "not reaping what the command leaves behind");
        }
        let foreground = Foreground::if_ours();
        let leader = command.process_group(0).spawn().map_err(failed)?;
        let id = leader
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
            .ok_or_else(|| failed(io::Error::other("it has no process id")))?;
        if let Some(foreground) = &foreground {
            foreground.hand_to(id);
        }
        Ok(Self { leader, id, foreground })
    }

    /// Has the group stopped, with `grace` between TERM and KILL, should this process be killed, or suspended for
    /// longer than `left`. Must be
    /// dismissed when the group has ended.
    pub(super) fn guard(&self, grace: Duration, left: Duration) -> Option<Watchdog> {
        match Watchdog::start(self.id, grace, left) {
            Ok(watchdog) => Some(watchdog),
            Err(error) => {
                say(format_args!("nobody would stop the command if redis-allocator itself were killed: {error:#}"));
                None
            }
        }
    }

    /// Waits until the command and its group have ended. Until then signals are forwarded: TERM is followed by KILL
    /// after `grace`. When `stop` resolves, the group is stopped.
    pub(super) async fn run(
        mut self,
        signals: &mut Signals,
        grace: Duration,
        stop: impl Future<Output = Stop>,
    ) -> Result<Ended> {
        tokio::pin!(stop);
        let mut status = None;
        let mut stopped = false;
        let mut kill_at: Option<Instant> = None;
        loop {
            if let Some(status) = status
                && self.is_gone()
            {
                self.end();
                return Ok(Ended { status, stopped });
            }
            tokio::select! {
                result = self.leader.wait(), if status.is_none() => {
                    status = Some(result.context("waiting for the command failed")?);
                }
                () = sleep(POLL), if status.is_some() => {}
                signal = signals.next() => match signal {
                    Signal::CHILD => self.resume_if_suspended(),
                    signal if suspends(signal) => say(SUSPENDED),
                    signal => {
                        self.send(signal);
                        if signal == Signal::TERM {
                            kill_at = Some(earliest(kill_at, Instant::now() + grace));
                        }
                    }
                },
                order = &mut stop, if !stopped => {
                    stopped = true;
                    self.send(Signal::TERM);
                    // A suspended process would sleep through TERM.
                    self.send(Signal::CONT);
                    kill_at = Some(earliest(kill_at, order.kill_at));
                }
                () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => {
                    self.send(Signal::KILL);
                    // Again, should anyone have been born meanwhile.
                    kill_at = Some(Instant::now() + POLL);
                }
            }
        }
    }

    fn send(&self, signal: Signal) {
        if let Err(error) = kill_process_group(self.id, signal) {
            // It has just ended, or it runs as somebody else (sudo), who passes signals on or not.
            tracing::debug!(%error, ?signal, "the signal did not reach the command");
        }
    }

    /// Whether no process of the group is left. Only asked once the leader was reaped: before that, reaping here
    /// would take its status away.
    fn is_gone(&self) -> bool {
        while let Ok(Some(_)) = waitpgid(self.id, WaitOptions::NOHANG) {}
        test_kill_process_group(self.id) == Err(rustix::io::Errno::SRCH)
    }

    /// A command with the terminal that suspends itself (Ctrl-Z) would leave nobody to talk to: the shell waits for
    /// this process, which can't be suspended because it renews the lease.
    fn resume_if_suspended(&self) {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        if self.foreground.is_none() {
            return;
        }
        if let Ok(Some(_)) = waitid(WaitId::Pid(self.id), WaitIdOptions::STOPPED | WaitIdOptions::NOHANG) {
            say(SUSPENDED);
            self.send(Signal::CONT);
        }
    }

    fn end(self) {
        if let Some(foreground) = &self.foreground {
            foreground.take_back();
        }
    }
}

fn earliest(known: Option<Instant>, new: Instant) -> Instant {
    known.map_or(new, |known| known.min(new))
}

/// The code a shell would report: the command's own, or 128 + the signal that ended it.
pub(super) fn shell_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
    u8::try_from(code).unwrap_or(255)
}

#[cfg(test)]
mod tests {
    use std::{future::pending, path::Path};

    use tempfile::tempdir;

    use super::*;

    const GRACE: Duration = Duration::from_secs(20);

    fn sh(script: &str) -> Group {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Group::start(command).unwrap()
    }

    async fn appears(path: &Path) {
        while !path.exists() {
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn the_status_is_the_commands_own() {
        let mut signals = Signals::listen().unwrap();
        let ended = sh("exit 7").run(&mut signals, GRACE, pending()).await.unwrap();
        assert_eq!((shell_code(ended.status), ended.stopped), (7, false));
        let ended = sh("kill -USR1 $$").run(&mut signals, GRACE, pending()).await.unwrap();
        assert_eq!(shell_code(ended.status), 128 + 10);
    }

    #[tokio::test]
    async fn it_runs_until_the_last_of_the_group_has_ended() {
        let directory = tempdir().unwrap();
        let done = directory.path().join("done");
        let group = sh(&format!("(sleep 0.5; touch {}) & exit 3", done.display()));
        let ended = group.run(&mut Signals::listen().unwrap(), GRACE, pending()).await.unwrap();
        assert_eq!(shell_code(ended.status), 3);
        assert!(done.exists());
    }

    #[tokio::test]
    async fn a_stop_that_is_obeyed_needs_no_kill() {
        let directory = tempdir().unwrap();
        let ready = directory.path().join("ready");
        let group = sh(&format!("trap 'exit 5' TERM; touch {}; while :; do sleep 0.05; done", ready.display()));
        let stop = async {
            appears(&ready).await;
            Stop { kill_at: Instant::now() + GRACE }
        };
        let ended = group.run(&mut Signals::listen().unwrap(), GRACE, stop).await.unwrap();
        assert_eq!((shell_code(ended.status), ended.stopped), (5, true));
    }

    #[tokio::test]
    async fn a_stop_that_is_ignored_ends_in_kill_for_the_whole_group() {
        let directory = tempdir().unwrap();
        let ready = directory.path().join("ready");
        let script = format!("trap '' TERM; (while :; do sleep 0.05; done) & touch {}; wait", ready.display());
        let stop = async {
            appears(&ready).await;
            Stop { kill_at: Instant::now() + Duration::from_millis(100) }
        };
        let ended = sh(&script).run(&mut Signals::listen().unwrap(), GRACE, stop).await.unwrap();
        assert_eq!((shell_code(ended.status), ended.stopped), (128 + 9, true));
    }

    #[tokio::test]
    async fn a_command_that_does_not_exist_has_the_shells_code() {
        let error = Group::start(Command::new("/nonexistent/command")).unwrap_err();
        assert_eq!(error.code(), 127);
        let error = Group::start(Command::new("/etc/passwd")).unwrap_err();
        assert_eq!(error.code(), 126);
    }
}
