//! `redis-allocator malloc POOL… -- CMD…`: any program, holding a lease, or several, for as long as it runs.
//!
//! | file | idea |
//! |---|---|
//! | [`request`] | what is asked for, and asking one pool after the other |
//! | [`held`] | all leases of the command as one thing |
//! | [`environment`] | what the command is told about its leases |
//! | [`group`] | the command and everything it started, as one thing that is signalled and waited for |
//! | [`signals`] | the signals that are passed on |
//! | [`terminal`] | the terminal's foreground, lent to the command |
//! | [`watchdog`] | stops the command when this process is killed or suspended |

mod environment;
mod group;
mod held;
mod request;
mod signals;
mod terminal;
mod watchdog;

use std::{
    ffi::OsString,
    fmt::Display,
    io::{self, Write as _},
    pin::pin,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use redis_allocator::{Client, Error, Lease, Session};
use rustix::process::Signal;
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use self::{
    environment::Facts,
    group::{Group, Stop, shell_code},
    held::{Held, end_session},
    request::{Answer, RequestArgs},
    signals::Signals,
    watchdog::Watchdog,
};
pub(crate) use self::{
    terminal::despite_background,
    watchdog::{WatchdogArgs, run as watch},
};
use super::server::ServerArgs;

/// Name of the hidden command that [`watch`] is.
pub(crate) const WATCHDOG: &str = "malloc-watchdog";

/// What was asked for can never be: as for what clap refuses.
const USAGE: u8 = 2;
/// Nothing was free: `EX_TEMPFAIL` of sysexits.h.
const NOTHING_FREE: u8 = 75;
/// The server can't be reached: `EX_UNAVAILABLE` of sysexits.h.
const UNAVAILABLE: u8 = 69;
/// The lease was lost and the command stopped: the first code that sysexits.h leaves unused.
const LOST: u8 = 79;
/// Nothing came free in time: the next one.
const TIMED_OUT: u8 = 80;

/// Longest pause between two looks at the lease's remaining time, whose clock goes on while the machine sleeps.
const LOOK: Duration = Duration::from_secs(1);

const AFTER_HELP: &str = "\
The command's environment:
  REDIS_ALLOCATOR_POOL           the pool, as namespace/name
  REDIS_ALLOCATOR_KEY            the resource that is held; with --count, the first of them
  REDIS_ALLOCATOR_PARAMS         its params, as one JSON object
  REDIS_ALLOCATOR_PARAM_<NAME>   each of them (upper case, _ for other characters; strings bare, the rest as JSON);
                                 unset if two of them would have the same <NAME>
  REDIS_ALLOCATOR_LABELS         its labels, as one JSON object
  REDIS_ALLOCATOR_FENCING_TOKEN  a number greater than that of every earlier lease of this pool
  REDIS_ALLOCATOR_COUNT          how many leases are held: 1, or as many as --count asks for
  REDIS_ALLOCATOR_KEYS           all resources that are held, one a line; of a shared pool, one may come several
                                 times; unset if a name has a line break
  REDIS_ALLOCATOR_LEASES         all leases, as a JSON list of {key, params, labels, fencingToken}
  REDIS_ALLOCATOR_OWNER          who holds them
  REDIS_ALLOCATOR_BINDING        the binding name, if --bind was given
  REDIS_ALLOCATOR_SESSION        the session's id, if --session was given
  REDIS_ALLOCATOR_TTL_MS         for how long they are held without a renewal; unset for leases that never expire

The command runs in a process group of its own, and has the terminal if redis-allocator has it.
The leases are renewed until the whole group has ended. TERM, INT, HUP, QUIT, USR1, USR2, ALRM and
WINCH are passed on to the group; TERM is followed by KILL after --grace. If a lease can't be
renewed, the group gets TERM early enough to be killed before the lease's time is over. If
redis-allocator itself is killed, or stopped (STOP) until the lease is about to end, a watchdog
process stops the group in the same way. TSTP (Ctrl-Z), TTIN and TTOU are ignored, because the
lease must be renewed. A process that leaves the group (setsid, a daemon) is beyond all this.

Of several pools, each is asked in turn, and an error of one ends it. With --wait, TERM, INT, HUP
and QUIT leave the line at once; one that is killed while it waits keeps nobody from anything.

Examples:
  redis-allocator malloc gpus -- ./train                              now or not at all
  redis-allocator malloc gpus --wait 10m --priority 5 -- ./train      in line, five hundred places further ahead
  redis-allocator malloc gpus --count 2 --wait 1h -- ./train          two at once
  redis-allocator malloc gpus --selector zone=eu --selector zone=us -- ./train
  redis-allocator malloc spot on-demand -- ./train                    of the first pool that has one

Exit codes:
  that of the command; 128 + n if signal n ended it, or ended the wait
    1  the lease was not granted: unknown pool, refused TTL, …
    2  wrong arguments: among them a selector whose labels the pool has no index of, or more than it could ever grant
   69  the server can't be reached; the command was not run
   75  nothing is free, or too little; the command was not run
   79  the lease was lost, and the command stopped
   80  nothing came free within --wait; the command was not run
  126  the command can't be run
  127  the command was not found";

/// What `malloc` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct MallocArgs {
    #[command(flatten)]
    request: RequestArgs,

    #[command(flatten)]
    server: ServerArgs,

    #[arg(
        long,
        value_name = "NAME",
        help = "Who holds the lease, as others see it [default: $POD_NAMESPACE/$POD_NAME, else host:pid]"
    )]
    owner: Option<String>,

    /// Time between TERM and KILL when the command must end.
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    grace: redis_allocator_crd::Duration,

    /// The command to run, with its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(crate) async fn run(args: MallocArgs) -> Result<ExitCode> {
    // From here on no signal ends this process: a lease that was granted is returned.
    let mut signals = Signals::listen().context("listening for signals failed")?;
    let client = tokio::select! {
        client = args.server.connect_as(args.owner.as_deref()) => client,
        signal = signals.end() => return Ok(ended_by(signal)),
    };
    let taken = match client {
        Ok(client) => take(&client, &args.request, &mut signals).await,
        Err(error) => Err(error),
    };
    match taken {
        Ok(Taken::Held(held)) => hold(held, &args, &mut signals).await,
        Ok(Taken::Nothing) => {
            say(format_args!("nothing is free of what was asked for: {}", args.request));
            Ok(NOTHING_FREE.into())
        }
        Ok(Taken::TooLate) => {
            say(format_args!("nothing came free in time of what was asked for: {}", args.request));
            Ok(TIMED_OUT.into())
        }
        Ok(Taken::Interrupted(signal)) => Ok(ended_by(signal)),
        Err(error) if is(&error, Error::is_transient) => {
            say(format_args!("{}", super::told(&error)));
            Ok(UNAVAILABLE.into())
        }
        Err(error) if is(&error, is_usage) => {
            let _ = despite_background(|| writeln!(io::stderr(), "error: {}", super::told(&error)));
            Ok(USAGE.into())
        }
        Err(error) => Err(error),
    }
}

/// What came of asking for leases.
enum Taken {
    Held(Held),
    Nothing,
    TooLate,
    Interrupted(Signal),
}

async fn take(client: &Client, request: &RequestArgs, signals: &mut Signals) -> Result<Taken> {
    let session = request.session(client).await?;
    let answer = tokio::select! {
        answer = request.ask(client, session.as_ref()) => answer,
        // Whoever does not wait is answered soon enough.
        signal = signals.end(), if request.waits() => {
            request.leave(client).await;
            end_session(session).await;
            return Ok(Taken::Interrupted(signal));
        }
    };
    let taken = match answer {
        Ok(Answer::Granted(leases)) => return Ok(Taken::Held(Held::new(leases, session))),
        Ok(Answer::NothingFree) => Ok(Taken::Nothing),
        Ok(Answer::TimedOut) => Ok(Taken::TooLate),
        Err(error) => Err(error),
    };
    end_session(session).await;
    taken
}

/// Runs the command while the leases are renewed, and returns them.
async fn hold(held: Held, args: &MallocArgs, signals: &mut Signals) -> Result<ExitCode> {
    let grace = args.grace.as_std();
    // Renewals come when a third of the TTL has passed: a lease with less than a third left is in trouble.
    let margin = held.ttl().map_or(grace, |ttl| grace.min(ttl / 3));
    let group = match Group::start(command(&args.command, &held)) {
        Ok(group) => group,
        Err(error) => {
            held.give_back().await;
            let code = error.code();
            say(format_args!("{}", super::told(&error.into())));
            return Ok(code.into());
        }
    };
    let left = held.remaining().map_or(Duration::MAX, |left| left.saturating_sub(margin / 2));
    let mut watchdog = group.guard(margin, left);
    let ended = group.run(signals, grace, must_stop(&held, grace, margin, watchdog.as_mut())).await?;
    if let Some(watchdog) = watchdog {
        watchdog.dismiss().await;
    }
    held.give_back().await;
    Ok(if ended.stopped { LOST.into() } else { shell_code(ended.status).into() })
}

fn command(words: &[OsString], held: &Held) -> Command {
    let (program, arguments) =
        words.split_first().map_or((OsString::new(), &[][..]), |(first, rest)| (first.clone(), rest));
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some((first, rest)) = held.leases().split_first() {
        let about = |lease| environment::Held {
            key: Lease::key(lease).as_str(),
            params: lease.params(),
            labels: lease.labels(),
            fencing_token: lease.fencing_token(),
        };
        let facts = Facts {
            pool: first.pool().as_str(),
            owner: first.owner(),
            binding: first.binding().map(AsRef::as_ref),
            session: held.session().map(Session::id),
            ttl_ms: held.ttl().map(|ttl| ttl.as_millis()),
            first: about(first),
            rest: rest.iter().map(about).collect(),
        };
        facts.tell(&mut command);
    }
    command
}

/// Resolves when the holder must stop: a lease is lost, or so little of its time is left that a command which
/// ignores TERM could not be killed within it. Until then the watchdog is told how much is left.
async fn must_stop(held: &Held, grace: Duration, margin: Duration, mut watchdog: Option<&mut Watchdog>) -> Stop {
    let mut lost = pin!(held.lost());
    // Several times between two renewals, so that the watchdog knows of each long before its time is over.
    let look = held.ttl().map_or(LOOK, |ttl| LOOK.min(ttl / 6));
    loop {
        let nap = match held.remaining() {
            Some(left) if left <= margin => break,
            Some(left) => {
                if let Some(watchdog) = &mut watchdog {
                    watchdog.tell(left.saturating_sub(margin / 2)).await;
                }
                look.min(left.saturating_sub(margin))
            }
            None => look,
        };
        tokio::select! {
            () = &mut lost => break,
            () = sleep(nap) => {}
        }
    }
    say(format_args!("the lease on {}: the command is stopped", held.trouble()));
    let kill_in = held.remaining().map_or(grace, |left| left.min(grace));
    if let Some(watchdog) = watchdog {
        // It is this process that stops the group now.
        watchdog.tell(kill_in).await;
    }
    Stop { kill_at: Instant::now() + kill_in }
}

/// Whether the library failed, and so.
fn is(error: &anyhow::Error, so: impl FnOnce(&Error) -> bool) -> bool {
    error.downcast_ref().is_some_and(so)
}

/// Whether something was asked for that can never be, of this pool or of any.
fn is_usage(error: &Error) -> bool {
    use Error::{ImpossibleCount, Invalid, InvalidName, NotIndexed};
    matches!(error, ImpossibleCount { .. } | Invalid { .. } | InvalidName { .. } | NotIndexed { .. })
}

fn ended_by(signal: Signal) -> ExitCode {
    u8::try_from(128 + signal.as_raw()).unwrap_or(255).into()
}

/// Tells the user something, beside whatever the command itself says. A closed standard error is no reason to end.
fn say(message: impl Display) {
    let _ = despite_background(|| writeln!(io::stderr(), "redis-allocator: {message}"));
}
