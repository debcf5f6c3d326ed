//! The command line: one file per command, each with its arguments and a `run`.

mod agent;
mod completions;
mod crd;
mod doctor;
mod free;
mod get;
mod malloc;
mod plan;
mod quarantine;
mod server;
mod takeover;
mod validate;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

/// Scarce, named resources, declared in YAML, leased through Redis.
#[derive(Debug, Parser)]
#[command(name = "redis-allocator", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make Redis agree with a directory of manifests, and keep it agreeing.
    Agent(agent::AgentArgs),
    /// Check manifests offline: every error of every file, exit code 1 if there is one.
    Validate(validate::ValidateArgs),
    /// Print a shell's completions of this command line.
    Completions(completions::CompletionsArgs),
    /// Tell what an agent would change in Redis now, and why; change nothing.
    Plan(plan::PlanArgs),
    /// Look for what is wrong, or will be: with the server, its settings, its clock, this user's permissions, and pools.
    Doctor(doctor::DoctorArgs),
    /// Print the custom resource definitions of all kinds, for Kubernetes.
    Crd(crd::CrdArgs),
    /// List pools, resources, leases, bindings, sources, waiters or sessions: who holds what, until when, who waits, what
    /// is quarantined and why.
    Get(get::GetArgs),
    /// Run a command that holds a lease, or several, for as long as it runs; wait for them in line.
    Malloc(malloc::MallocArgs),
    /// Take a leased resource away from its holder.
    Free(free::FreeArgs),
    /// Keep a resource from being granted.
    Quarantine(quarantine::QuarantineArgs),
    /// Let a quarantined resource be granted again.
    Unquarantine(quarantine::UnquarantineArgs),
    /// Give a pool to another declaration.
    Takeover(takeover::TakeoverArgs),
    #[command(name = malloc::WATCHDOG, hide = true)]
    MallocWatchdog(malloc::WatchdogArgs),
}

/// Parses and runs; errors go to standard error, with their causes.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: starting the async runtime failed: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(cli.command));
    // A blocking read of standard input or a stuck name lookup must not keep a finished command alive.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| {
        let _ = malloc::despite_background(|| eprintln!("error: {}", told(&error)));
        ExitCode::FAILURE
    })
}

/// An error with those of its causes that it does not tell by itself: many a library repeats its cause in its own words.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // The number stands in some of the places where the words stand.
        let is_new = |part: &&str| !text.contains(part.split(" (os error ").next().unwrap_or(part));
        let news: Vec<&str> = cause.split(": ").skip_while(|part| !is_new(part)).collect();
        if !news.is_empty() {
            text = format!("{text}: {}", news.join(": "));
        }
    }
    text
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Agent(args) => agent::run(args).await,
        Command::Validate(args) => validate::run(&args),
        Command::Completions(args) => completions::run(&args, &Cli::command()),
        Command::Crd(args) => crd::run(&args),
        Command::Doctor(args) => doctor::run(args).await,
        Command::Get(args) => get::run(args).await,
        Command::Malloc(args) => malloc::run(args).await,
        Command::Free(args) => free::run(args).await,
        Command::Plan(args) => plan::run(args).await,
        Command::Quarantine(args) => quarantine::quarantine(args).await,
        Command::Unquarantine(args) => quarantine::unquarantine(args).await,
        Command::Takeover(args) => takeover::run(args).await,
        Command::MallocWatchdog(args) => malloc::watch(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("refused").context("connecting failed: refused").context("no pool was read");
        assert_eq!(told(&error), "no pool was read: connecting failed: refused");
        let error = anyhow::anyhow!("Connection refused (os error 111)")
            .context("Connection refused (os error 111): Connection refused (os error 111)")
            .context("connecting to a:1 failed: Connection refused");
        assert_eq!(told(&error), "connecting to a:1 failed: Connection refused");
        assert_eq!(told(&anyhow::anyhow!("x: b").context("a")), "a: x: b");
    }
}
