//! `redis-allocator free POOL KEY --force`: ends somebody else's lease.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Result, bail};

use super::server::PoolArgs;

/// The code that wrong arguments have everywhere here.
const USAGE: u8 = 2;

/// What `free` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "The holder is not asked. It notices when it renews, and until then it may still use the \
                        resource while the next one has it: only fencing tokens tell the two apart.")]
pub(crate) struct FreeArgs {
    #[command(flatten)]
    pool: PoolArgs,

    /// The resource.
    key: String,

    /// Yes, take the lease away from its holder.
    #[arg(long)]
    force: bool,
}

pub(crate) async fn run(args: FreeArgs) -> Result<ExitCode> {
    let FreeArgs { pool, key, force } = args;
    let name = pool.name()?;
    if !force {
        let _ = writeln!(
            io::stderr(),
            "error: this would take {key} of pool {name} away from its holder, who may go on using it until it \
             notices: say --force if that is meant"
        );
        return Ok(USAGE.into());
    }
    if !pool.open().await?.force_free(key.as_str()).await? {
        bail!("{key} of pool {name} is not leased: nothing was changed");
    }
    writeln!(io::stdout(), "the lease on {key} of pool {name} was ended")?;
    Ok(ExitCode::SUCCESS)
}
