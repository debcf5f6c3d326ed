//! A child process that never outlives the test process. It must not know that it is a server.

use std::{
    fs::File,
    io::Write,
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::{CONFIG, LOG};

/// Becomes the server (`exec`), and leaves a watchdog behind that waits on a pipe from the test process. A line on the
/// pipe dismisses the watchdog; its end without one means that the test process died, and the server must follow, with
/// its directory. `$$` stays the shell's id in the watchdog, which is the server's. The system's own means
/// (`PDEATHSIG`) would end the server with the *thread* that started it.
const LAUNCH: &str = r#"
directory=$1
shift
exec 3<&0
{ read -r _ <&3 || { kill -KILL $$; rm -rf "$directory"; }; } >/dev/null 2>&1 &
exec "$0" "$@" 3<&- </dev/null
"#;

#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    watchdog: Option<ChildStdin>,
}

impl Process {
    /// Runs `binary` in `directory`, a temporary one, with the configuration file there.
    pub(super) fn start(binary: &Path, directory: &Path, sentinel: bool) -> Result<Self> {
        // A server that refuses its configuration says so before it opens its log: both end up in one file.
        let log = File::options().create(true).append(true).open(directory.join(LOG)).context("cannot open the log")?;
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(LAUNCH)
            .arg(binary)
            .arg(directory)
            .arg(CONFIG)
            .args(sentinel.then_some("--sentinel"))
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let watchdog = child.stdin.take();
        Ok(Self { child, watchdog })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How the process ended, if it did.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub(super) fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    pub(super) fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("cannot send {signal:?} to process {}", self.id()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Dismissed first: once the child is reaped, its id may be someone else's. Failures mean that it is gone.
        if let Some(mut watchdog) = self.watchdog.take() {
            let _ = watchdog.write_all(b"dismissed\n");
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
