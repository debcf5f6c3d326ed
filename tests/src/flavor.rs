//! The servers that everything must work with, and where their binaries are.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::wait::within;

/// Of a test on both: many times what it takes.
const LIMIT: Duration = Duration::from_mins(5);

/// Which server a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavor {
    /// `redis-server`, 7 or newer: `$REDIS_SERVER`, else PATH.
    Redis,
    /// `valkey-server`, 9 or newer: `$VALKEY_SERVER`, else the one that `make test` unpacks under `target/`, else PATH.
    Valkey,
}

impl Flavor {
    /// Both, for tests that run once on each.
    pub const ALL: [Self; 2] = [Self::Redis, Self::Valkey];

    /// Path of the server's binary.
    ///
    /// # Errors
    /// Says where it looked and how to get the binary, when there is none.
    pub fn binary(self) -> Result<PathBuf> {
        let variable = self.variable();
        if let Some(given) = env::var_os(variable).filter(|value| !value.is_empty()) {
            let given = PathBuf::from(given);
            if !given.is_file() {
                bail!("{variable} is {}, which is no file; unset it or name a server binary", given.display());
            }
            // The server runs in a directory of its own.
            return std::path::absolute(&given).with_context(|| format!("cannot resolve {}", given.display()));
        }
        let unpacked = (self == Self::Valkey).then(|| workspace().join("target/valkey/valkey-server"));
        unpacked
            .into_iter()
            .chain(on_path(self.program()))
            .find(|candidate| candidate.is_file())
            .with_context(|| format!("no {} found: run `make servers`, or set {variable} to its path", self.program()))
    }

    /// Runs a test on both, side by side.
    ///
    /// # Errors
    /// That of one of them, and on which; or that they did not end within five minutes.
    pub async fn both<F: Future<Output = Result<()>>>(test: impl Fn(Self) -> F) -> Result<()> {
        let both = async {
            let (redis, valkey) = tokio::join!(Box::pin(test(Self::Redis)), Box::pin(test(Self::Valkey)));
            redis.context("on Redis").and(valkey.context("on Valkey"))
        };
        within(LIMIT, both).await
    }

    fn program(self) -> &'static str {
        match self {
            Self::Redis => "redis-server",
            Self::Valkey => "valkey-server",
        }
    }

    fn variable(self) -> &'static str {
        match self {
            Self::Redis => "REDIS_SERVER",
            Self::Valkey => "VALKEY_SERVER",
        }
    }
}

impl fmt::Display for Flavor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.program())
    }
}

fn workspace() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

fn on_path(program: &str) -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|directory| directory.join(program)).collect()
}
