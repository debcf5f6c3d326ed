//! The process that outlives a killed `redis-allocator malloc`, or stays awake while it is suspended, for long enough to
//! stop its command: nothing else could, because KILL and STOP can't be caught. It is this program again, with a hidden
//! command, and must not know about leases.
//!
//! It is told in words of eight bytes (little-endian) on standard input: the milliseconds for which the group may go on
//! if nothing more is told, or [`DISMISSED`]. The end of input means that whoever started it has died.

use std::{
    io::Read,
    process::{ExitCode, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    time::timeout,
};

/// The word that says that the group has ended.
const DISMISSED: u64 = u64::MAX;
/// How long a full pipe may keep a word waiting: nobody reads it then.
const READY: Duration = Duration::from_millis(100);

/// What the hidden command takes.
#[derive(Debug, clap::Args)]
pub(crate) struct WatchdogArgs {
    /// The process group to stop.
    group: i32,
    /// Milliseconds between TERM and KILL.
    grace_ms: u64,
    /// Milliseconds for which the group may go on if nothing is told.
    left_ms: u64,
}

/// A watchdog that stops a process group when this process dies, or sleeps for too long.
#[derive(Debug)]
pub(super) struct Watchdog {
    child: Child,
}

impl Watchdog {
    /// `left`: for how long the group may go on if nothing more is told.
    pub(super) fn start(group: Pid, grace: Duration, left: Duration) -> Result<Self> {
        let program = std::env::current_exe().context("finding this program's own file failed")?;
        let child = Command::new(program)
            .arg(super::WATCHDOG)
            .arg(group.as_raw_nonzero().to_string())
            .arg(millis(grace).to_string())
            .arg(millis(left).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Out of reach of the terminal's signals and of what is sent to this process' group.
            .process_group(0)
            .spawn()
            .context("starting the watchdog failed")?;
        Ok(Self { child })
    }

    /// Tells it for how long the group may go on if nothing more is told.
    pub(super) async fn tell(&mut self, left: Duration) {
        self.write(millis(left)).await;
    }

    /// Tells it that the group has ended. From then on the group's id may be somebody else's.
    pub(super) async fn dismiss(mut self) {
        if !self.write(DISMISSED).await {
            let _ = self.child.start_kill();
        }
        let _ = self.child.wait().await;
    }

    /// A word is much smaller than what a pipe takes as a whole, so none is written in part.
    async fn write(&mut self, word: u64) -> bool {
        let Some(pipe) = self.child.stdin.as_mut() else { return false };
        matches!(timeout(READY, pipe.write_all(&word.to_le_bytes())).await, Ok(Ok(())))
    }
}

/// A word that is not [`DISMISSED`].
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(DISMISSED - 1)
}

/// What the watchdog hears.
enum Heard {
    /// How long the group may go on.
    Left(Duration),
    /// The group has ended.
    Dismissed,
    /// Whoever started this has died.
    Died,
}

/// Waits until the group has ended, whoever started this has died, or the time it told last is over: then it sleeps.
pub(crate) fn run(args: &WatchdogArgs) -> Result<ExitCode> {
    let group = Pid::from_raw(args.group).filter(|group| *group != Pid::INIT).context("no such process group")?;
    let grace = Duration::from_millis(args.grace_ms);
    let words = listen();
    let mut deadline = Instant::now().checked_add(Duration::from_millis(args.left_ms));
    loop {
        let heard = match deadline {
            Some(at) => words.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => words.recv().map_err(RecvTimeoutError::from),
        };
        let (why, grace) = match heard {
            Ok(Heard::Left(left)) => {
                deadline = Instant::now().checked_add(left);
                continue;
            }
            Ok(Heard::Dismissed) => break,
            Ok(Heard::Died) | Err(RecvTimeoutError::Disconnected) => ("was killed", grace),
            // The other half has passed: whoever sleeps should have stopped the group then.
            Err(RecvTimeoutError::Timeout) => ("seems to be suspended and does not renew the lease", grace / 2),
        };
        if test_kill_process_group(group).is_ok() {
            super::say(format_args!("{why}: its command is stopped"));
            stop(group, grace);
        }
        break;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads standard input, in a thread because that can't be waited for with a timeout.
fn listen() -> Receiver<Heard> {
    let (tell, words) = mpsc::channel();
    std::thread::spawn(move || {
        loop {
            let mut word = [0; size_of::<u64>()];
            let heard = match std::io::stdin().read_exact(&mut word).map(|()| u64::from_le_bytes(word)) {
                Ok(DISMISSED) => Heard::Dismissed,
                Ok(left) => Heard::Left(Duration::from_millis(left)),
                Err(_) => Heard::Died,
            };
            let last = !matches!(heard, Heard::Left(_));
            if tell.send(heard).is_err() || last {
                return;
            }
        }
    });
    words
}

fn stop(group: Pid, grace: Duration) {
    let begun = Instant::now();
    // Errors mean that nobody is left.
    let _ = kill_process_group(group, Signal::TERM);
    let _ = kill_process_group(group, Signal::CONT);
    while begun.elapsed() < grace {
        if test_kill_process_group(group).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = kill_process_group(group, Signal::KILL);
}
