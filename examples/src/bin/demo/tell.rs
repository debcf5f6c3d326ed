//! Lines with the time since the start, and waiting for what must happen. It must not know what happens.

use std::{
    fmt::Display,
    io::{self, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use tokio::time::sleep;

/// How often is looked for what is awaited.
const LOOK: Duration = Duration::from_millis(50);

/// Tells the story on standard output.
pub(crate) struct Teller {
    start: Instant,
}

impl Teller {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// A headline: what is about to be shown.
    pub(crate) fn chapter(&self, title: impl Display) {
        self.write(format_args!("\n{title}\n"));
    }

    /// Something that was seen to happen.
    pub(crate) fn line(&self, text: impl Display) {
        self.write(format_args!("[{:5.1}s] {text}\n", self.start.elapsed().as_secs_f64()));
    }

    /// A line that somebody else printed.
    pub(crate) fn quote(&self, text: impl Display) {
        self.write(format_args!("         {text}\n"));
    }

    #[expect(clippy::unused_self, reason = "only a teller tells")]
    fn write(&self, text: std::fmt::Arguments<'_>) {
        let mut out = io::stdout().lock();
        // A reader that went away misses the rest; the demo still has to clean up.
        let _ = out.write_fmt(text).and_then(|()| out.flush());
    }
}

/// Waits until `look` finds what is awaited, and says in vain what it was and what was there instead.
pub(crate) async fn until<T>(
    awaited: impl Display,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<Result<T, String>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match look().await? {
            Ok(found) => return Ok(found),
            Err(instead) if start.elapsed() > limit => {
                bail!("waited {} s in vain for: {awaited}; instead: {instead}", limit.as_secs())
            }
            Err(_) => sleep(LOOK).await,
        }
    }
}
