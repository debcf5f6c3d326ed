//! The demo: a real agent with a server of its own, real worker processes, and what happens between them, told as it
//! happens. Every fact in its lines is read from the running system; what does not happen in time ends it with an error.
//!
//! | file | idea |
//! |---|---|
//! | [`agent`] | the agent: started, asked, ended |
//! | [`devices`] | the test devices that the agent probes |
//! | [`story`] | what is shown, step by step |
//! | [`tell`] | lines with the time, and waiting for what must happen |
//! | [`worker`] | a worker that holds a lease while it lives |

mod agent;
mod devices;
mod story;
mod tell;
mod worker;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use self::tell::Teller;

/// Shows redis-allocator at work: ends by itself within a minute, and leaves nothing behind.
#[derive(Debug, Parser)]
struct Demo {
    #[command(subcommand)]
    role: Option<Role>,

    /// The agent's binary [default: redis-allocator, beside this program].
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// One of the workers that the demo starts.
    #[command(hide = true)]
    Worker(worker::WorkerArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let demo = Demo::parse();
    let done = match demo.role {
        Some(Role::Worker(args)) => worker::run(args).await,
        None => show(demo.agent).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn show(agent: Option<PathBuf>) -> Result<()> {
    let binary = match agent {
        Some(binary) => binary,
        None => agent_beside_this_program()?,
    };
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let teller = Teller::new();
    let directory = TempDir::with_prefix("ra-demo-").context("making a temporary directory failed")?;
    let path = directory.path().to_owned();
    // Whichever branch ends it, dropping the story ends the agent and the workers.
    let told = tokio::select! {
        told = story::run(&teller, &binary, &path) => told,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    };
    if told.is_err() {
        agent::print_end_of_log(&path);
    }
    directory.close().with_context(|| format!("removing {} failed", path.display()))?;
    told?;
    teller.line("nothing is left behind: the agent, its server, the workers and their files are gone");
    Ok(())
}

fn agent_beside_this_program() -> Result<PathBuf> {
    let this = std::env::current_exe().context("finding this program's own file failed")?;
    let beside = this.with_file_name("redis-allocator");
    if !beside.is_file() {
        bail!(
            "there is no agent at {}: build it (cargo build -p redis-allocator-agent) or name it with --agent",
            beside.display()
        );
    }
    Ok(beside)
}
