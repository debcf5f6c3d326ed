//! `redis-allocator takeover POOL --manager-id ID`: gives a pool to another declaration.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Result;

use super::server::PoolArgs;

/// What `takeover` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "An agent refuses to manage a pool that another declaration manages. After this command it is \
                        the former manager that is refused. An agent that reads files has the id files:DIR of its \
                        directory, unless --manager-id names another; `get pools -o wide` shows each pool's.")]
pub(crate) struct TakeoverArgs {
    #[command(flatten)]
    pool: PoolArgs,

    /// Who manages it from now on.
    #[arg(long, value_name = "ID")]
    manager_id: String,
}

pub(crate) async fn run(args: TakeoverArgs) -> Result<ExitCode> {
    let pool = args.pool.open().await?;
    let (name, manager) = (pool.name(), &args.manager_id);
    let previous = pool.takeover(manager).await?;
    let mut out = io::stdout();
    match previous {
        Some(previous) if previous == *manager => writeln!(out, "pool {name} is managed by {manager} already")?,
        Some(previous) => writeln!(out, "pool {name} is now managed by {manager}, no longer by {previous}")?,
        None => writeln!(out, "pool {name} is now managed by {manager}")?,
    }
    Ok(ExitCode::SUCCESS)
}
