//! Waiting in line: one poll after the other until there is an answer. What a poll does in Redis is in `wait.lua`; how a
//! waiter hears that it may look is in [`crate::wake`].

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::Instant;

use super::{
    Args, Pool,
    ask::{Answer, Ask},
    owned, text,
};
use crate::{
    error::{Error, Result},
    lease::Lease,
    names::BindingName,
    script,
    time::BootInstant,
    to_the_end::ToTheEnd,
    wake::Waiter,
};

/// The longest that one request may wait.
const LONGEST_WAIT: Duration = Duration::from_hours(24);
/// How often a waiter looks by itself: messages may be lost. Well within [`LIFE`], and within the two seconds for which
/// something is offered.
const LOOK: Duration = Duration::from_secs(1);
/// How long a waiter keeps its place without being heard of.
const LIFE: Duration = Duration::from_secs(5);
/// How long the answer to a call is awaited that is under way when the time to wait is over.
const LAST_ANSWER: Duration = Duration::from_millis(500);
/// How long it is tried to leave the line. What was granted meanwhile ends by its time to live.
const LEAVE_WITHIN: Duration = Duration::from_mins(1);
/// How many places before later ones a step of priority puts a request.
const STEP: u32 = 100;

/// What a poll is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// To stay in line.
    Wait,
    /// The time is over: takes what was offered, or leaves.
    Last,
}

/// A place in line. Dropping it, when the last poll for it has ended, leaves it.
struct Place {
    waiter: Waiter,
    pool: Pool,
    ask: Ask,
    priority: u8,
    /// Whether Redis has said that it is left, or has granted what was waited for.
    is_left: AtomicBool,
}

/// # Errors
/// [`Error::Invalid`] for a wait that is none, or too long.
pub(super) fn check(at_most: Duration) -> Result<()> {
    if at_most < Duration::from_millis(1) || at_most > LONGEST_WAIT {
        return Err(Error::Invalid {
            what: "time to wait",
            found: format!("{at_most:?}"),
            allowed: "1 ms to 24 h; without a wait, a request answers at once".to_owned(),
        });
    }
    Ok(())
}

/// What should never be: a script that granted nothing where one was asked for.
pub(super) fn unanswered(pool: &Pool) -> Error {
    Error::Server {
        operation: "malloc",
        subject: pool.name().to_string(),
        message: "it granted an empty list".to_owned(),
    }
}

/// Waits until the request is served, at most for so long.
pub(super) async fn in_line(ask: Ask, at_most: Duration, priority: u8) -> Result<Vec<Lease>> {
    check(at_most)?;
    let until = Instant::now() + at_most;
    // One round trip where something is free.
    match in_time(until, ask.clone().grant_in_time()).await {
        Some(Ok(leases)) if !leases.is_empty() => return Ok(leases),
        // What it may have been granted is not known by a name to ask for it again.
        Some(Err(error)) if !error.is_transient() || matches!(error, Error::OutcomeUnknown { .. }) => {
            return Err(error);
        }
        Some(_) => {}
        None => return Err(silence(at_most)),
    }
    let client = ask.pool.client().clone();
    let runtime = client.inner.runtime.clone();
    let waiter = client.inner.wake.enter(&client);
    let is_left = AtomicBool::new(false);
    let place = Arc::new(Place { waiter, pool: ask.pool.clone(), ask, priority, is_left });
    let mut delays = None;
    let mut was_in_line = false;
    loop {
        let mode = if Instant::now() < until { Mode::Wait } else { Mode::Last };
        // Carried to its end when this is dropped: the place is left after that.
        let poll = Arc::clone(&place);
        let poll = ToTheEnd::new(runtime.clone(), async move { poll.poll(mode).await });
        let Some(polled) = in_time(until, poll).await else { return Err(silence(at_most)) };
        let pause = match polled {
            Ok(Some(leases)) => return Ok(leases),
            Ok(None) if mode == Mode::Last => return Err(in_vain(&place.pool, at_most)),
            Ok(None) => {
                delays = None;
                was_in_line = true;
                next_look()
            }
            // What was granted and could not be confirmed is being freed: it must not be asked for again.
            Err(error)
                if mode == Mode::Wait && !place.is_left.load(Ordering::Acquire) && may_pass(&error, was_in_line) =>
            {
                tracing::debug!(pool = %place.pool.name(), %error, "a waiter could not ask");
                delays.get_or_insert_with(backoff).next().unwrap_or(LOOK)
            }
            Err(error) => return Err(error),
        };
        let left = until.saturating_duration_since(Instant::now());
        place.waiter.woken(pause.min(left)).await;
    }
}

/// Within a quarter more or less: those that came at the same moment must not all look at the same moment ever after, and
/// keep what is handed over waiting behind them.
fn next_look() -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    LOOK * 3 / 4 + (LOOK / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// What it brings, unless the time to wait is over and a last answer does not come either. It must go on by itself.
async fn in_time<F: Future>(until: Instant, call: F) -> Option<F::Output> {
    tokio::time::timeout_at(until.max(Instant::now()) + LAST_ANSWER, call).await.ok()
}

fn silence(after: Duration) -> Error {
    Error::Timeout { waited_for: "an answer of the Redis server to a request in line", after }
}

fn in_vain(pool: &Pool, after: Duration) -> Error {
    Error::NotServed { pool: pool.name().clone(), after }
}

/// Whether waiting on may help: the server is away, or lost a pool that could be waited for, which is being filled again.
fn may_pass(error: &Error, was_in_line: bool) -> bool {
    let is_lost = matches!(error, Error::UnknownPool { .. } | Error::ImpossibleCount { .. });
    error.is_transient() || was_in_line && is_lost
}

fn backoff() -> backon::ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(LOOK)
        .without_max_times()
        .with_jitter()
        .build()
}

impl Place {
    async fn poll(&self, mode: Mode) -> Result<Option<Vec<Lease>>> {
        let word = if mode == Mode::Wait { "wait" } else { "last" };
        let sent = BootInstant::now();
        let mut reply = self.pool.call(&script::WAIT, &self.args(word)).await?;
        let answer = Answer::read_one(sent, &mut reply)?;
        let leases = self.ask.hear(answer).await?;
        if mode == Mode::Last || !leases.is_empty() {
            self.is_left.store(true, Ordering::Release);
        }
        if leases.is_empty() {
            return Ok(None);
        }
        self.ask.begin(leases).await.map(Some)
    }

    fn args(&self, mode: &'static str) -> Args<'_> {
        vec![
            text(mode),
            text(self.waiter.id()),
            owned(u32::from(self.priority) * STEP),
            text(self.waiter.channel()),
            owned(LIFE.as_millis()),
            owned(self.ask.ttl_arg),
            text(self.ask.binding.as_ref().map_or("", BindingName::as_str)),
            text(&self.ask.asker.holder),
            text(&self.ask.demand),
        ]
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_left.load(Ordering::Acquire) {
            return;
        }
        let pool = self.pool.clone();
        let args: Args<'static> = self.args("leave").into_iter().map(|arg| Cow::Owned(arg.into_owned())).collect();
        self.pool.client().inner.runtime.spawn(async move { leave(&pool, &args).await });
    }
}

/// Tells Redis, as long as that may make a difference, that nobody waits there any more.
async fn leave(pool: &Pool, args: &Args<'static>) {
    let until = Instant::now() + LEAVE_WITHIN;
    let mut delays = backoff();
    loop {
        match pool.call(&script::LEAVE_LINE, args).await {
            Err(error) if error.is_transient() && Instant::now() < until => {}
            Err(error) => {
                tracing::warn!(pool = %pool.name(), %error, "a place in line was not left; it ends by itself");
                return;
            }
            Ok(_) => return,
        }
        tokio::time::sleep(delays.next().unwrap_or(LOOK)).await;
    }
}
