//! What a server says it did: calls per command, CPU time, slow commands. It must not know how the server is run.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use redis::{FromRedisValue, Value};

/// Calls per command since the server started or its statistics were reset, from `INFO commandstats`.
///
/// Commands that a script calls are counted one by one, beside the script itself. Names are Redis's own: lower case,
/// subcommands as `client|setinfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandStats(BTreeMap<String, u64>);

impl CommandStats {
    pub(crate) fn parse(info: &str) -> Result<Self> {
        let mut calls = BTreeMap::new();
        for line in info.lines() {
            let Some((command, fields)) = line.strip_prefix("cmdstat_").and_then(|line| line.split_once(':')) else {
                continue;
            };
            let count = fields
                .split(',')
                .find_map(|field| field.strip_prefix("calls="))
                .and_then(|count| count.parse().ok())
                .with_context(|| format!("unexpected line in INFO commandstats: {line}"))?;
            calls.insert(command.to_owned(), count);
        }
        Ok(Self(calls))
    }

    /// Calls of one command; 0 for one that was never called.
    pub fn calls(&self, command: &str) -> u64 {
        self.0.get(&command.to_ascii_lowercase()).copied().unwrap_or_default()
    }

    /// What was called after `earlier` was taken, without the `INFO` that took it.
    pub fn since(&self, earlier: &Self) -> BTreeMap<String, u64> {
        self.0
            .iter()
            .filter(|(command, _)| *command != "info")
            .map(|(command, calls)| (command.clone(), calls.saturating_sub(earlier.calls(command))))
            .filter(|(_, calls)| *calls > 0)
            .collect()
    }
}

/// One entry of the server's slow log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlowCommand {
    /// Time the command took inside the server, in whole microseconds.
    pub took: Duration,
    /// The command and its arguments, shortened by the server; bytes that are no UTF-8 are replaced.
    pub command: Vec<String>,
}

impl SlowCommand {
    pub(crate) fn parse(entry: Value) -> Result<Self> {
        let fields: Vec<Value> = FromRedisValue::from_redis_value(entry)?;
        let mut fields = fields.into_iter().skip(2);
        let mut next = || fields.next().context("an entry of SLOWLOG GET has fewer than four fields");
        let took: u64 = FromRedisValue::from_redis_value(next()?)?;
        let arguments: Vec<Vec<u8>> = FromRedisValue::from_redis_value(next()?)?;
        Ok(Self {
            took: Duration::from_micros(took),
            command: arguments.iter().map(|argument| String::from_utf8_lossy(argument).into_owned()).collect(),
        })
    }
}

/// The value of one `name:value` line of an `INFO` answer.
pub(crate) fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim_end)
}

/// Processor time of the whole process, user and system, from `INFO cpu`.
pub(crate) fn cpu_time(info: &str) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for name in ["used_cpu_sys", "used_cpu_user"] {
        let seconds: f64 = info_field(info, name)
            .and_then(|value| value.parse().ok())
            .with_context(|| format!("no {name} in the server's INFO cpu"))?;
        sum += Duration::try_from_secs_f64(seconds).with_context(|| format!("{name} is {seconds}"))?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_per_command_and_compared() {
        let before = CommandStats::parse("# Commandstats\r\ncmdstat_get:calls=2,usec=9,usec_per_call=4.5\r\n").unwrap();
        let after = CommandStats::parse(
            "cmdstat_get:calls=2,usec=9\r\ncmdstat_info:calls=1,usec=1\r\ncmdstat_client|setinfo:calls=3,usec=2\r\n",
        )
        .unwrap();
        assert_eq!((after.calls("GET"), after.calls("set")), (2, 0));
        assert_eq!(after.since(&before), BTreeMap::from([("client|setinfo".to_owned(), 3)]));
    }
}
