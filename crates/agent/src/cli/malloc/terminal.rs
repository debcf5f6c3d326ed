//! The terminal's foreground, lent to a command in a process group of its own: without it, the command would be
//! stopped as soon as it reads a key. It must not know what the command is.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal as Blocked};
use rustix::{
    process::{Pid, Signal, getpgrp, kill_process_group},
    stdio::{stdin, stdout},
    termios::{isatty, tcgetpgrp, tcsetpgrp},
};

/// This process' right to the terminal it was started from.
#[derive(Debug)]
pub(super) struct Foreground {
    ours: Pid,
}

impl Foreground {
    /// The foreground, if this process has it and shares it with nobody: in a pipeline the neighbours need it too, and
    /// a command without it can still write to the terminal.
    pub(super) fn if_ours() -> Option<Self> {
        let ours = getpgrp();
        let interactive = isatty(stdin()) && isatty(stdout());
        (interactive && tcgetpgrp(stdin()).ok()? == ours).then_some(Self { ours })
    }

    /// Lends it: what is typed, Ctrl-C included, goes to the process group `to`.
    #[expect(clippy::unused_self, reason = "only who has the foreground can lend it")]
    pub(super) fn hand_to(&self, to: Pid) {
        if let Err(error) = give(to) {
            tracing::debug!(%error, "the command does not get the terminal");
        }
        // It may have read before it was allowed to, and been stopped for it.
        let _ = kill_process_group(to, Signal::CONT);
    }

    /// Takes it back, for whoever reads from the terminal next.
    pub(super) fn take_back(&self) {
        if let Err(error) = give(self.ours) {
            tracing::debug!(%error, "the terminal was not taken back");
        }
    }
}

fn give(to: Pid) -> io::Result<()> {
    Ok(despite_background(|| tcsetpgrp(stdin(), to))??)
}

/// Does something that a process in the background gets TTOU for, unless it blocks that: taking the foreground, or
/// writing to a terminal that is set so (`stty tostop`). A handler for TTOU would be called for ever.
pub(crate) fn despite_background<T>(act: impl FnOnce() -> T) -> io::Result<T> {
    let before = SigSet::from(Blocked::SIGTTOU).thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let done = act();
    before.thread_set_mask()?;
    Ok(done)
}
