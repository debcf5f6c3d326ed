//! What the benchmarks share: a server, pools to drive, and figures that are medians of interleaved rounds.
//!
//! A machine is never quiet, so no figure stands alone: what is compared is measured in turn within each round, and the
//! ratio is taken per round. It must not know any key or script of the library.
//!
//! | variable | default | |
//! |---|---|---|
//! | `BENCH_SERVER` | `redis` | `valkey`: measure that one |
//! | `BENCH_ROUNDS` | 7 | how often everything is measured, at least 1 |

#![allow(dead_code, reason = "each benchmark is a program of its own and uses a part of this")]

pub(crate) mod children;
pub(crate) mod drive;
pub(crate) mod noop;

use std::{env, fmt::Display, time::Duration};

use anyhow::{Context, Result, bail};
use e2e::{Flavor, Server};
use futures::future::try_join_all;
use redis_allocator::{Client, Item, Ownership, Pool, PoolSettings, ResourceKey};

/// How many rounds to measure.
///
/// # Errors
/// When `BENCH_ROUNDS` is no number above 0.
pub(crate) fn rounds() -> Result<usize> {
    match env::var("BENCH_ROUNDS") {
        Ok(text) => text
            .parse()
            .ok()
            .filter(|&rounds| rounds > 0)
            .with_context(|| format!("BENCH_ROUNDS is {text:?}; it must be a number above 0")),
        Err(_) => Ok(7),
    }
}

/// The server to measure.
///
/// # Errors
/// When `BENCH_SERVER` names neither.
pub(crate) fn flavor() -> Result<Flavor> {
    match env::var("BENCH_SERVER").as_deref() {
        Err(_) | Ok("redis") => Ok(Flavor::Redis),
        Ok("valkey") => Ok(Flavor::Valkey),
        Ok(other) => bail!("BENCH_SERVER is {other:?}; it must be redis or valkey"),
    }
}

/// Starts the server and says which it is, as the first line of every table.
///
/// # Errors
/// When it does not start.
pub(crate) async fn server(what: &str) -> Result<Server> {
    let server = Server::start(flavor()?).await?;
    let info = Client::connect(&server.url()).await?.server_info().await?;
    let processors = std::thread::available_parallelism()?;
    println!("\n{what}: {} {}, loopback TCP, {processors} processors, {} rounds", info.flavor, info.version, rounds()?);
    Ok(server)
}

/// A pool of `size` resources named as a range of a manifest would name them.
///
/// # Errors
/// When the server refuses.
pub(crate) async fn pool_of(client: &Client, name: &str, size: usize) -> Result<Pool> {
    let pool = client.pool(name)?;
    pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
    pool.extend(items(size)?).await?;
    Ok(pool)
}

/// One pool as so many clients see it, each with a connection of its own.
///
/// # Errors
/// When the server refuses.
pub(crate) async fn apart(server: &Server, name: &str, clients: usize) -> Result<Vec<Pool>> {
    let url = server.url();
    try_join_all((0..clients).map(async |_| Ok(Client::connect(&url).await?.pool(name)?))).await
}

/// Resources named as a range of a manifest would name them.
///
/// # Errors
/// Never, for the names made here.
pub(crate) fn items(size: usize) -> Result<Vec<Item>> {
    (0..size)
        .map(|i| {
            let key: ResourceKey = format!("10.{}.{}.{}:8000", i >> 16, (i >> 8) & 255, i & 255).parse()?;
            Ok(Item::new(key).position(i as u64))
        })
        .collect()
}

/// The same figure, once a round.
#[derive(Debug, Default, Clone)]
pub(crate) struct Figures(Vec<f64>);

impl Figures {
    /// Adds one round's figure.
    pub(crate) fn add(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// The middle one.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn range(&self) -> (f64, f64) {
        (self.0.iter().copied().fold(f64::INFINITY, f64::min), self.0.iter().copied().fold(0.0, f64::max))
    }

    /// Prints one line of the table: what, median, range, and the target if there is one.
    pub(crate) fn print(&self, what: impl Display, unit: &str, target: Option<Target>) {
        let (low, high) = self.range();
        let digits = if self.median() >= 1000.0 { 0 } else { 2 };
        let verdict = target.map_or_else(String::new, |target| target.judge(self.median()));
        println!(
            "  {:<58} {:>10.digits$} {unit:<9} {:<21} {verdict}",
            what.to_string(),
            self.median(),
            format!("({low:.digits$} – {high:.digits$})"),
        );
    }
}

/// What a median should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// This at most.
    AtMost(f64),
    /// This at least.
    AtLeast(f64),
}

impl Target {
    fn judge(self, median: f64) -> String {
        let (sign, limit, met) = match self {
            Self::AtMost(limit) => ("≤", limit, median <= limit),
            Self::AtLeast(limit) => ("≥", limit, median >= limit),
        };
        format!("target {sign} {limit}: {}", if met { "met" } else { "MISSED" })
    }
}

/// As microseconds, for tables.
pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
