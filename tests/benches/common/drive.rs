//! Drives pairs (take one, give it back) from many callers at once, and says how many there were and what they cost.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use e2e::Server;
use redis_allocator::Pool;

/// What driving came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Driven {
    /// How many pairs were completed.
    pub(crate) pairs: u64,
    /// For how long.
    pub(crate) took: Duration,
    /// Processor time the server used meanwhile.
    pub(crate) server: Duration,
}

impl Driven {
    /// Pairs per second.
    pub(crate) fn rate(&self) -> f64 {
        as_float(self.pairs) / self.took.as_secs_f64()
    }

    /// The server's processor time for each pair, in microseconds.
    pub(crate) fn cost(&self) -> f64 {
        self.server.as_secs_f64() * 1e6 / as_float(self.pairs)
    }
}

/// Has `callers` tasks do what `pair` makes: pairs, again and again, for a while; it says how many.
///
/// # Errors
/// The first that a pair met.
pub(crate) async fn callers<F>(server: &Server, callers: usize, pair: impl FnMut() -> F) -> Result<Driven>
where
    F: Future<Output = Result<u64>> + Send + 'static,
{
    let before = server.cpu_time().await?;
    let (pairs, took) = run(callers, pair).await?;
    Ok(Driven { pairs, took, server: server.cpu_time().await?.saturating_sub(before) })
}

/// Like [`callers`], blind to the server.
///
/// # Errors
/// The first that a pair met.
pub(crate) async fn run<F>(callers: usize, mut pair: impl FnMut() -> F) -> Result<(u64, Duration)>
where
    F: Future<Output = Result<u64>> + Send + 'static,
{
    let started = Instant::now();
    let tasks: Vec<_> = (0..callers).map(|_| tokio::spawn(pair())).collect();
    let mut pairs = 0;
    for task in tasks {
        pairs += task.await.context("a caller panicked")??;
    }
    let took = started.elapsed();
    Ok((pairs, took))
}

/// Repeats `pair` until the time is over; how many there were.
///
/// # Errors
/// The first that a pair met.
pub(crate) async fn repeat<F: Future<Output = Result<()>>>(
    length: Duration,
    mut pair: impl FnMut() -> F,
) -> Result<u64> {
    let started = Instant::now();
    let mut pairs = 0;
    while started.elapsed() < length {
        pair().await?;
        pairs += 1;
    }
    Ok(pairs)
}

/// Takes a lease and gives it back.
///
/// # Errors
/// When the pool is empty or the server refuses.
pub(crate) async fn pair(pool: &Pool) -> Result<()> {
    pool.malloc().await?.context("the pool is empty")?.free().await?;
    Ok(())
}

/// How long each of two takes, done `n` times in turn: their medians, in microseconds.
///
/// # Errors
/// The first that one met.
pub(crate) async fn median_latencies<F, G>(
    n: usize,
    mut one: impl FnMut() -> F,
    mut other: impl FnMut() -> G,
) -> Result<(f64, f64)>
where
    F: Future<Output = Result<()>>,
    G: Future<Output = Result<()>>,
{
    let (mut ones, mut others) = (Vec::with_capacity(n), Vec::with_capacity(n));
    for _ in 0..n {
        let started = Instant::now();
        one().await?;
        let between = Instant::now();
        other().await?;
        ones.push(between - started);
        others.push(between.elapsed());
    }
    let median = |mut took: Vec<Duration>| {
        took.sort_unstable();
        super::micros(took[n / 2])
    };
    Ok((median(ones), median(others)))
}

#[allow(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
pub(crate) fn as_float(count: u64) -> f64 {
    count as f64
}
