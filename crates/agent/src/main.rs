//! The binary `redis-allocator`: installs the TLS provider, parses, runs.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First thing: rustls panics on use if two providers are compiled in and none was chosen. A second install can't
    // happen here, so its error carries nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    redis_allocator_agent::main()
}
