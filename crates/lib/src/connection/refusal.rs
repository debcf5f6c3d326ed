//! What an error reply proves about the request it answers. It knows the codes of Redis, and nothing of connections.

use redis::ServerError;

/// Why a server refused a request. All but [`Refusal::Final`] prove that nothing was executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The slot belongs to another server from now on.
    Moved(Address),
    /// The slot is on its way: this one request goes to another server, introduced by ASKING.
    Ask(Address),
    /// The server does not have the script (any more).
    NoScript,
    /// It will pass: the server loads its data, runs a long script, moves the slot, lacks peers, or can't save.
    Wait,
    /// The server is a replica now, the master is elsewhere.
    Demoted,
    /// The command itself was refused or failed.
    Final,
}

/// Where a redirection points. An empty host stands for the host of the server that said so.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Refusal {
    pub(super) fn of(error: &ServerError) -> Self {
        let redirection = || {
            // `<slot> <host>:<port>`; the host may be an IPv6 address, or nothing.
            let (_, address) = error.details()?.split_once(' ')?;
            let (host, port) = address.split_whitespace().next()?.rsplit_once(':')?;
            Some(Address { host: host.to_owned(), port: port.parse().ok()? })
        };
        match error.code() {
            "MOVED" => redirection().map_or(Self::Final, Self::Moved),
            "ASK" => redirection().map_or(Self::Final, Self::Ask),
            "NOSCRIPT" => Self::NoScript,
            "TRYAGAIN" | "LOADING" | "CLUSTERDOWN" | "MASTERDOWN" | "BUSY" | "NOREPLICAS" | "MISCONF" => Self::Wait,
            "READONLY" => Self::Demoted,
            _ => Self::Final,
        }
    }
}

/// The server's words, as it sent them.
pub(super) fn words(error: &ServerError) -> String {
    match error.details() {
        Some(details) => format!("{} {details}", error.code()),
        None => error.code().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use redis::{Value, parse_redis_value};

    use super::*;

    fn reply(line: &str) -> ServerError {
        match parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap() {
            Value::ServerError(error) => error,
            other => panic!("not an error: {other:?}"),
        }
    }

    fn at(host: &str, port: u16) -> Address {
        Address { host: host.to_owned(), port }
    }

    #[test]
    fn a_redirection_names_its_target() {
        for (line, refusal) in [
            ("MOVED 3999 127.0.0.1:6381", Refusal::Moved(at("127.0.0.1", 6381))),
            ("MOVED 3999 :6381", Refusal::Moved(at("", 6381))),
            ("MOVED 3999 ::1:6381", Refusal::Moved(at("::1", 6381))),
            ("ASK 0 redis-2.example:7000", Refusal::Ask(at("redis-2.example", 7000))),
        ] {
            assert_eq!(Refusal::of(&reply(line)), refusal, "{line}");
        }
    }

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        for (line, refusal) in [
            ("NOSCRIPT No matching script. Please use EVAL.", Refusal::NoScript),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Refusal::Wait),
            ("LOADING Redis is loading the dataset in memory", Refusal::Wait),
            ("CLUSTERDOWN The cluster is down", Refusal::Wait),
            ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", Refusal::Wait),
            ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", Refusal::Wait),
            ("NOREPLICAS Not enough good replicas to write.", Refusal::Wait),
            ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist", Refusal::Wait),
            ("READONLY You can't write against a read only replica. script: ab, on @user_script:1.", Refusal::Demoted),
            ("OOM command not allowed when used memory > 'maxmemory'.", Refusal::Final),
            ("NOPERM this user has no permissions to run the 'evalsha' command", Refusal::Final),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", Refusal::Final),
            ("BUSYGROUP Consumer Group name already exists", Refusal::Final),
            ("CROSSSLOT Keys in request don't hash to the same slot", Refusal::Final),
            ("ERR user_script:1: attempt to index a nil value", Refusal::Final),
            ("MOVED nonsense", Refusal::Final),
        ] {
            assert_eq!(Refusal::of(&reply(line)), refusal, "{line}");
        }
    }

    #[test]
    fn the_servers_words_are_kept() {
        let line = "WRONGTYPE Operation against a key";
        assert_eq!(words(&reply(line)), line);
    }
}
