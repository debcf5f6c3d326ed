//! A child process that never outlives the test process. It must not know that it is a server.

use std::{
    ffi::OsStr,
    fs::File,
    io::Write,
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

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

/// A child process; it is killed when this value is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    watchdog: Option<ChildStdin>,
}

impl Process {
    /// Runs `binary` in `directory`, a temporary one; what it prints goes to the file `log` there.
    pub(crate) fn start(
        binary: &Path,
        directory: &Path,
        log: &str,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Self> {
        // Redis refuses its configuration before it opens its log, which is this file: both ends up there.
        let log = File::options().create(true).append(true).open(directory.join(log)).context("cannot open the log")?;
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(LAUNCH)
            .arg(binary)
            .arg(directory)
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let watchdog = child.stdin.take();
        Ok(Self { child, watchdog })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How the process ended, if it did.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub(crate) fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    pub(crate) fn resume(&self) -> Result<()> {
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
