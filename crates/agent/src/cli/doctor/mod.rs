//! `redis-allocator doctor`: every finding about the server and its pools, each with its mend.
//!
//! | file | idea |
//! |---|---|
//! | [`finding`] | one finding, and how all are told |
//! | [`server`] | what is judged of one server by what it tells: pure |
//! | [`pools`] | what is asked and judged of pools |

mod finding;
mod pools;
mod server;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Result;

use self::finding::{Finding, Report};
use super::server::{NamespaceArgs, ServerArgs, Told};

/// What `doctor` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Nothing is changed. Exit codes:
  0  nothing is wrong; there may be warnings
  1  something is wrong, or the server can't be reached
  2  the command line is wrong")]
pub(crate) struct DoctorArgs {
    /// The pools to look at, as NAME or NAMESPACE/NAME [default: all].
    #[arg(value_name = "POOL")]
    pools: Vec<String>,

    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    namespace: NamespaceArgs,

    /// How to print.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Told,
}

pub(crate) async fn run(args: DoctorArgs) -> Result<ExitCode> {
    let named = args.pools.iter().map(|name| args.namespace.pool(name)).collect::<Result<Vec<_>>>()?;
    let client = args.server.connect_to_look().await?;
    let servers = client.examine().await;
    let mut findings: Vec<Finding> = servers.iter().flat_map(server::judge).collect();
    findings.extend(server::judge_clocks(&servers));
    findings.extend(pools::examine(&client, named).await?);
    let report = Report::new(findings);
    io::stdout().write_all(args.output.tell(&report, Report::text)?.as_bytes())?;
    Ok(if report.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
