//! The agent and the command line of redis-allocator.
//!
//! Sources yield desired objects, which become the library's settings once, in `desired`; `reconcile` brings Redis
//! there, blind to where they came from, and returns a status that the source publishes where its users look. No Redis
//! key and no Lua is known here: that is the library's.

mod address;
mod agent;
mod backoff;
mod board;
mod cli;
mod complaint;
mod desired;
mod discover;
mod embedded;
mod http;
mod leader;
mod metrics;
mod moment;
mod notice;
mod probe;
mod reconcile;
mod source;
mod state;
mod telemetry;

use std::process::ExitCode;

/// Parses the process' arguments, runs the command they name, and returns the code to exit with.
pub fn main() -> ExitCode {
    cli::main()
}
