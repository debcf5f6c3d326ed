//! What the agent says while it runs: log lines on standard error, as text or JSON.

use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// Starts logging. `filter`: a level, or `target=level,…` as in the crate `tracing-subscriber`.
///
/// # Errors
/// When the filter is not one, or logging has been started already.
pub(crate) fn start(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::WARN.into())
        .parse(with_target(filter))
        .map_err(|error| {
            anyhow::anyhow!(
                "--log-level: found {filter:?} ({error}), allowed is error, warn, info, debug, trace, or target=level,…"
            )
        })?;
    let stderr = std::io::stderr;
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => {
            let layer = tracing_subscriber::fmt::layer()
                .with_writer(stderr)
                .with_ansi(stderr().is_terminal())
                .with_target(false);
            registry.with(layer).try_init()?;
        }
        LogFormat::Json => {
            let layer =
                tracing_subscriber::fmt::layer().with_writer(stderr).json().flatten_event(true).with_target(true);
            registry.with(layer).try_init()?;
        }
    }
    Ok(())
}

/// A bare level is that of this project; libraries below it stay at `warn`, where they say what concerns an operator. Each
/// failed request to the Kubernetes API is told by whoever made it.
fn with_target(filter: &str) -> String {
    match filter.parse::<LevelFilter>() {
        Ok(level) => format!("warn,kube_client=off,redis_allocator={level},redis_allocator_agent={level}"),
        Err(_) => filter.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_this_projects_and_anything_else_is_taken_as_it_is() {
        assert_eq!(with_target("debug"), "warn,kube_client=off,redis_allocator=debug,redis_allocator_agent=debug");
        assert_eq!(with_target("info,redis=debug"), "info,redis=debug");
    }
}
