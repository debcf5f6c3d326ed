//! `redis-allocator takeover POOL --manager-id ID`: gives a pool to another declaration.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Result;

use super::server::{NamespaceArgs, ServerArgs};

/// What `takeover` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "An agent refuses to manage a pool that another declaration manages. After this command it is \
                        the former manager that is refused. An agent that reads files has the id files:DIR of its \
                        directory, unless --manager-id names another; `get pools -o wide` shows each pool's.")]
pub(crate) struct TakeoverArgs {
    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    namespace: NamespaceArgs,

    /// The pool, as NAME or NAMESPACE/NAME.
    pool: String,

    /// Who manages it from now on.
    #[arg(long, value_name = "ID")]
    manager_id: String,
}

pub(crate) async fn run(args: TakeoverArgs) -> Result<ExitCode> {
    let name = args.namespace.pool(&args.pool)?;
    let client = args.server.connect().await?;
    let previous = client.pool(name.as_str())?.takeover(&args.manager_id).await?;
    let manager = &args.manager_id;
    let mut out = io::stdout();
    match previous {
        Some(previous) if previous == *manager => writeln!(out, "pool {name} is managed by {manager} already")?,
        Some(previous) => writeln!(out, "pool {name} is now managed by {manager}, no longer by {previous}")?,
        None => writeln!(out, "pool {name} is now managed by {manager}")?,
    }
    Ok(ExitCode::SUCCESS)
}
