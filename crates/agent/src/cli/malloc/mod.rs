//! `redis-allocator malloc POOL -- CMD…`: any program, holding a lease for as long as it runs.
//!
//! | file | idea |
//! |---|---|
//! | [`environment`] | what the command is told about its lease |
//! | [`group`] | the command and everything it started, as one thing that is signalled and waited for |
//! | [`signals`] | the signals that are passed on |
//! | [`terminal`] | the terminal's foreground, lent to the command |
//! | [`watchdog`] | stops the command when this process is killed or suspended |

mod environment;
mod group;
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
use redis_allocator::{Client, Lease};
use tokio::{
    process::Command,
    time::{Instant, sleep, timeout},
};

use self::{
    environment::Facts,
    group::{Group, Stop, shell_code},
    signals::Signals,
    watchdog::Watchdog,
};
pub(crate) use self::{
    terminal::despite_background,
    watchdog::{WatchdogArgs, run as watch},
};
use super::server::{NamespaceArgs, ServerArgs};

/// Name of the hidden command that [`watch`] is.
pub(crate) const WATCHDOG: &str = "malloc-watchdog";

/// Nothing was free: `EX_TEMPFAIL` of sysexits.h.
const NOTHING_FREE: u8 = 75;
/// The server can't be reached: `EX_UNAVAILABLE` of sysexits.h.
const UNAVAILABLE: u8 = 69;
/// The lease was lost and the command stopped: the first code that sysexits.h leaves unused.
const LOST: u8 = 79;

/// How long returning the lease may take; after that it ends by itself, when its time is over.
const FREE: Duration = Duration::from_secs(5);
/// Longest pause between two looks at the lease's remaining time, whose clock goes on while the machine sleeps.
const LOOK: Duration = Duration::from_secs(1);

const AFTER_HELP: &str = "\
The command's environment:
  REDIS_ALLOCATOR_POOL           the pool, as namespace/name
  REDIS_ALLOCATOR_KEY            the resource that is held
  REDIS_ALLOCATOR_PARAMS         its params, as one JSON object
  REDIS_ALLOCATOR_PARAM_<NAME>   each of them (upper case, _ for other characters; strings bare, the rest as JSON);
                                 unset if two of them would have the same <NAME>
  REDIS_ALLOCATOR_LABELS         its labels, as one JSON object
  REDIS_ALLOCATOR_FENCING_TOKEN  a number greater than that of every earlier lease of this pool
  REDIS_ALLOCATOR_OWNER          who holds it
  REDIS_ALLOCATOR_BINDING        the binding name, if --bind was given
  REDIS_ALLOCATOR_TTL_MS         for how long it is held without a renewal; unset for a lease that never expires

The command runs in a process group of its own, and has the terminal if redis-allocator has it.
The lease is renewed until the whole group has ended. TERM, INT, HUP, QUIT, USR1, USR2, ALRM and
WINCH are passed on to the group; TERM is followed by KILL after --grace. If the lease can't be
renewed, the group gets TERM early enough to be killed before the lease's time is over. If
redis-allocator itself is killed, or stopped (STOP) until the lease is about to end, a watchdog
process stops the group in the same way. TSTP (Ctrl-Z), TTIN and TTOU are ignored, because the
lease must be renewed. A process that leaves the group (setsid, a daemon) is beyond all this.

Exit codes:
  that of the command; 128 + n if signal n ended it
    1  the lease was not granted: unknown pool, refused TTL, …
    2  wrong arguments
   69  the server can't be reached; the command was not run
   75  nothing is free; the command was not run
   79  the lease was lost, and the command stopped
  126  the command can't be run
  127  the command was not found";

/// What `malloc` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct MallocArgs {
    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    namespace: NamespaceArgs,

    /// How long the lease lasts without renewal, such as 90s or 2m [default: the pool's].
    #[arg(long, value_name = "DURATION")]
    ttl: Option<redis_allocator_crd::Duration>,

    /// Soft-binding name: the resource this name had last is preferred.
    #[arg(long, value_name = "NAME")]
    bind: Option<String>,

    #[arg(
        long,
        value_name = "NAME",
        help = "Who holds the lease, as others see it [default: $POD_NAMESPACE/$POD_NAME, else host:pid]"
    )]
    owner: Option<String>,

    /// Time between TERM and KILL when the command must end.
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    grace: redis_allocator_crd::Duration,

    /// The pool, as NAME or NAMESPACE/NAME.
    pool: String,

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
    let granted = match client {
        Ok(client) => lease(&client, &args).await,
        Err(error) => Err(error),
    };
    match granted {
        Ok(Some(lease)) => hold(lease, &args, &mut signals).await,
        Ok(None) => {
            say(format_args!("nothing is free in pool {}", args.namespace.pool(&args.pool)?));
            Ok(NOTHING_FREE.into())
        }
        Err(error) if is_unavailable(&error) => {
            say(format_args!("{}", super::told(&error)));
            Ok(UNAVAILABLE.into())
        }
        Err(error) => Err(error),
    }
}

async fn lease(client: &Client, args: &MallocArgs) -> Result<Option<Lease>> {
    let pool = client.pool(args.namespace.pool(&args.pool)?.as_str())?;
    let mut request = pool.malloc();
    if let Some(ttl) = args.ttl {
        request = request.ttl(ttl.as_std());
    }
    if let Some(name) = &args.bind {
        request = request.bind(name);
    }
    Ok(request.keep_alive().await?)
}

/// Runs the command while the lease is renewed, and returns the lease.
async fn hold(lease: Lease, args: &MallocArgs, signals: &mut Signals) -> Result<ExitCode> {
    let grace = args.grace.as_std();
    // Renewals come when a third of the TTL has passed: a lease with less than a third left is in trouble.
    let margin = lease.ttl().map_or(grace, |ttl| grace.min(ttl / 3));
    let group = match Group::start(command(&args.command, &lease)) {
        Ok(group) => group,
        Err(error) => {
            give_back(lease).await;
            let code = error.code();
            say(format_args!("{}", super::told(&error.into())));
            return Ok(code.into());
        }
    };
    let left = lease.remaining().map_or(Duration::MAX, |left| left.saturating_sub(margin / 2));
    let mut watchdog = group.guard(margin, left);
    let ended = group.run(signals, grace, must_stop(&lease, grace, margin, watchdog.as_mut())).await?;
    if let Some(watchdog) = watchdog {
        watchdog.dismiss().await;
    }
    give_back(lease).await;
    Ok(if ended.stopped { LOST.into() } else { shell_code(ended.status).into() })
}

fn command(words: &[OsString], lease: &Lease) -> Command {
    let (program, arguments) =
        words.split_first().map_or((OsString::new(), &[][..]), |(first, rest)| (first.clone(), rest));
    let mut command = Command::new(program);
    command.args(arguments);
    let facts = Facts {
        pool: lease.pool().as_str(),
        key: lease.key().as_str(),
        params: lease.params(),
        labels: lease.labels(),
        owner: lease.owner(),
        binding: lease.binding().map(AsRef::as_ref),
        fencing_token: lease.fencing_token(),
        ttl_ms: lease.ttl().map(|ttl| ttl.as_millis()),
    };
    facts.tell(&mut command);
    command
}

/// Resolves when the holder must stop: the lease is lost, or so little of its time is left that a command which
/// ignores TERM could not be killed within it. Until then the watchdog is told how much is left.
async fn must_stop(lease: &Lease, grace: Duration, margin: Duration, mut watchdog: Option<&mut Watchdog>) -> Stop {
    let mut lost = pin!(lease.lost());
    // Several times between two renewals, so that the watchdog knows of each long before its time is over.
    let look = lease.ttl().map_or(LOOK, |ttl| LOOK.min(ttl / 6));
    loop {
        let nap = match lease.remaining() {
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
    let why = match lease.lost_reason() {
        Some(reason) => format!("is lost, because {reason}"),
        None => "could not be renewed in time".to_owned(),
    };
    say(format_args!("the lease on {} of pool {} {why}: the command is stopped", lease.key(), lease.pool()));
    let kill_in = lease.remaining().map_or(grace, |left| left.min(grace));
    if let Some(watchdog) = watchdog {
        // It is this process that stops the group now.
        watchdog.tell(kill_in).await;
    }
    Stop { kill_at: Instant::now() + kill_in }
}

async fn give_back(lease: Lease) {
    let subject = format!("{} of pool {}", lease.key(), lease.pool());
    let lost = lease.is_lost();
    match timeout(FREE, lease.free()).await {
        Ok(Ok(())) => {}
        // Said before, or nobody's any more.
        Ok(Err(_)) if lost => {}
        Ok(Err(error)) => say(format_args!("returning {subject} failed, its lease ends by itself: {error}")),
        Err(_) => say(format_args!("returning {subject} takes too long, its lease ends by itself")),
    }
}

fn is_unavailable(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(redis_allocator::Error::is_transient)
}

fn ended_by(signal: rustix::process::Signal) -> ExitCode {
    u8::try_from(128 + signal.as_raw()).unwrap_or(255).into()
}

/// Tells the user something, beside whatever the command itself says. A closed standard error is no reason to end.
fn say(message: impl Display) {
    let _ = despite_background(|| writeln!(io::stderr(), "redis-allocator: {message}"));
}
