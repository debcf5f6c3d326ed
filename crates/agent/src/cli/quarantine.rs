//! `redis-allocator quarantine` and `unquarantine`: keeps a resource from being granted, by an operator's word.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Result;
use redis_allocator::Cause;

use super::server::PoolArgs;

/// What `quarantine` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "A resource that is leased stays with its holder, and is held back once that lease has ended. \
                        The agent keeps a quarantine made here: a probe that succeeds does not end it.")]
pub(crate) struct QuarantineArgs {
    #[command(flatten)]
    pool: PoolArgs,

    /// The resource.
    key: String,

    /// For how long, such as 10m or 2h [default: until unquarantine].
    #[arg(long = "for", value_name = "DURATION")]
    period: Option<redis_allocator_crd::Duration>,

    /// Why, for whoever wonders later.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// What `unquarantine` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Ends it whatever its cause was: an operator's word, a probe, a cooldown, the hold after a loss \
                        of data. A probe that still fails will bring its own back."
)]
pub(crate) struct UnquarantineArgs {
    #[command(flatten)]
    pool: PoolArgs,

    /// The resource.
    #[arg(required_unless_present = "recovered")]
    key: Option<String>,

    /// All that is held back since Redis lost the pool: only when nobody uses any of it any more.
    #[arg(long, conflicts_with = "key")]
    recovered: bool,
}

pub(crate) async fn quarantine(args: QuarantineArgs) -> Result<ExitCode> {
    let pool = args.pool.open().await?;
    let period = args.period.map(redis_allocator_crd::Duration::as_std);
    let key = &args.key;
    let done = pool.quarantine(key.as_str(), period, &args.reason, Cause::Manual).await?;
    let when = if done.in_effect { "now" } else { "once its lease has ended" };
    let end = args.period.map_or_else(|| "until it is released".to_owned(), |period| format!("for {period}"));
    writeln!(io::stdout(), "{key} of pool {} is quarantined {when}, {end}", pool.name())?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn unquarantine(args: UnquarantineArgs) -> Result<ExitCode> {
    let pool = args.pool.open().await?;
    let Some(key) = &args.key else {
        let count = pool.end_recovery().await?;
        writeln!(io::stdout(), "the hold on pool {} has ended: {count} resources were held back", pool.name())?;
        return Ok(ExitCode::SUCCESS);
    };
    let text =
        if pool.unquarantine(key.as_str(), None).await? { "is no longer quarantined" } else { "was not quarantined" };
    writeln!(io::stdout(), "{key} of pool {} {text}", pool.name())?;
    Ok(ExitCode::SUCCESS)
}
