//! What is judged of a server by what it tells of itself. Pure: no server, no clock.

use std::{collections::BTreeMap, time::Duration};

use redis_allocator::{CLOCK_SLACK, ClockReading, Error, ServerFacts};

use super::finding::Finding;

/// Memory that is nearly full, in percent of what there is.
const NEARLY_FULL: u64 = 90;

type Fields = BTreeMap<String, String>;

/// What one server tells.
struct Judge<'a> {
    facts: &'a ServerFacts,
    info: &'a Fields,
}

/// All that is found about a server.
pub(super) fn judge(facts: &ServerFacts) -> Vec<Finding> {
    let address = facts.address.as_str();
    let mut findings = match &facts.info {
        Err(error) if error.is_transient() && facts.replica_of.is_some() => {
            // It gives the address under which its master knows it, which may mean nothing here.
            return vec![Finding::unknown("replica", address, format_args!("it was not reached from here: {error}"))];
        }
        Err(error) if error.is_transient() => {
            let mend = "mend the server or the way to it; the pools in its slots are out of reach";
            return vec![Finding::error("reachable", address, error.to_string(), mend)];
        }
        Err(error) => {
            let unknown = |check| Finding::unknown(check, address, error);
            let mut findings = vec![unknown("version"), unknown("memory"), unknown("replication")];
            findings.push(eviction(address, None, &facts.config));
            findings.push(unknown("persistence"));
            findings
        }
        Ok(info) => {
            let judge = Judge { facts, info };
            let mut findings = vec![judge.version(), judge.eviction(), judge.memory()];
            findings.extend(judge.persistence());
            findings.extend(judge.replication());
            findings
        }
    };
    findings.push(clock(address, &facts.clock));
    findings
}

/// What is found of the servers' clocks beside each other.
pub(super) fn judge_clocks(servers: &[ServerFacts]) -> Option<Finding> {
    let read = servers.iter().filter_map(|server| Some((server.clock.as_ref().ok()?, server.address.as_str())));
    let (first, last) = (read.clone().min_by_key(|it| it.0.ahead_micros)?, read.max_by_key(|it| it.0.ahead_micros)?);
    let apart = micros(last.0.ahead_micros.abs_diff(first.0.ahead_micros));
    let unsure = first.0.uncertainty + last.0.uncertainty;
    if first.1 == last.1 {
        return None;
    }
    Some(if apart > CLOCK_SLACK + unsure {
        let found = format!("the clock of {} is {} ahead of that of {}", last.1, seconds(apart), first.1);
        Finding::error(
            "clocks",
            "servers",
            format!("{found}: after a failover, leases would end too early or too late"),
            format!("keep the hosts' clocks synchronised (NTP), within {}", seconds(CLOCK_SLACK)),
        )
    } else {
        Finding::ok("clocks", "servers", format!("within {} of each other", seconds(apart + unsure)))
    })
}

impl Judge<'_> {
    fn field(&self, name: &str) -> Option<&str> {
        self.info.get(name).map(String::as_str)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.parse().ok()
    }

    fn setting(&self, name: &str) -> Option<&str> {
        self.facts.config.as_ref().ok()?.get(name).map(String::as_str)
    }

    /// That a setting can't be read, and why.
    fn unknown_setting(&self, check: &'static str, name: &str) -> Finding {
        match &self.facts.config {
            Err(error) => Finding::unknown(check, &self.facts.address, format_args!("{name} can't be read: {error}")),
            Ok(_) => Finding::unknown(check, &self.facts.address, format_args!("the server knows no setting {name}")),
        }
    }

    fn version(&self) -> Finding {
        let address = &self.facts.address;
        if let Some(version) = self.field("valkey_version") {
            return Finding::ok("version", address, format!("valkey {version}"));
        }
        let Some(version) = self.field("redis_version") else {
            return Finding::unknown("version", address, "INFO tells none");
        };
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        match major {
            Some(7..) => Finding::ok("version", address, format!("redis {version}")),
            Some(_) => Finding::error(
                "version",
                address,
                format!("redis {version}, which lacks what the scripts need"),
                "use Redis 7.0 or newer, or Valkey",
            ),
            None => Finding::unknown("version", address, format_args!("{version:?} is no version")),
        }
    }

    fn eviction(&self) -> Finding {
        eviction(&self.facts.address, self.field("maxmemory_policy"), &self.facts.config)
    }

    fn memory(&self) -> Finding {
        let address = &self.facts.address;
        let Some(used) = self.number("used_memory") else {
            return Finding::unknown("memory", address, "INFO tells no used_memory");
        };
        let (limit, what) = match (self.number("maxmemory"), self.number("total_system_memory")) {
            (Some(limit), _) if limit > 0 => (limit, "maxmemory"),
            (_, Some(limit)) if limit > 0 => (limit, "the host's memory (no maxmemory is set)"),
            _ => return Finding::ok("memory", address, format!("{} in use, without a limit", mebibytes(used))),
        };
        let percent = used.saturating_mul(100) / limit;
        let found = format!("{} in use, {percent} % of {what}", mebibytes(used));
        if percent >= 100 {
            let found = format!("{found}: nothing can be granted or declared");
            Finding::error("memory", address, found, "raise maxmemory, or delete what else is in this Redis")
        } else if percent >= NEARLY_FULL {
            let found = format!("{found}: when it is full, nothing can be granted or declared");
            Finding::warning("memory", address, found, "raise maxmemory, or delete what else is in this Redis")
        } else {
            Finding::ok("memory", address, found)
        }
    }

    fn persistence(&self) -> Vec<Finding> {
        const CHECK: &str = "persistence";
        const AOF: &str = "set appendonly yes and appendfsync everysec";
        let address = &self.facts.address;
        let mut findings = Vec::new();
        if self.field("loading") == Some("1") {
            let found = "the server loads its data, and takes no calls meanwhile";
            findings.push(Finding::error(CHECK, address, found, "wait until it has"));
        }
        for (field, what) in [("rdb_last_bgsave_status", "snapshot"), ("aof_last_write_status", "write of the AOF")] {
            if self.field(field).is_some_and(|status| status != "ok") {
                let found = format!("the last {what} failed: the server may refuse all writes");
                findings.push(Finding::error(CHECK, address, found, "see the server's log: is its disk full?"));
            }
        }
        let Some(aof) = self.field("aof_enabled").or_else(|| self.setting("appendonly")) else {
            findings.push(self.unknown_setting(CHECK, "appendonly"));
            return findings;
        };
        findings.push(if matches!(aof, "1" | "yes") {
            match self.setting("appendfsync") {
                Some("no") => Finding::warning(
                    CHECK,
                    address,
                    "appendonly yes, appendfsync no: a crash of the host loses what the kernel had not written, some 30 s",
                    "set appendfsync everysec",
                ),
                Some(fsync) => Finding::ok(CHECK, address, format!("appendonly yes, appendfsync {fsync}")),
                None => self.unknown_setting(CHECK, "appendfsync"),
            }
        } else {
            match self.setting("save") {
                Some("") => Finding::warning(
                    CHECK,
                    address,
                    "nothing is kept on disk: a restart loses everything, and all pools are held back for their longest \
                     TTL",
                    AOF,
                ),
                Some(save) => Finding::warning(
                    CHECK,
                    address,
                    format!("only snapshots (save {save}): a crash loses the leases and tokens granted since the last one"),
                    AOF,
                ),
                None => self.unknown_setting(CHECK, "save"),
            }
        });
        findings
    }

    fn replication(&self) -> Vec<Finding> {
        const CHECK: &str = "replication";
        let address = &self.facts.address;
        match (self.field("role"), &self.facts.replica_of) {
            (None, _) => return vec![Finding::unknown(CHECK, address, "INFO tells no role")],
            (Some("slave"), Some(master)) => {
                return vec![match self.field("master_link_status") {
                    Some("up") => Finding::ok(CHECK, address, format!("a replica of {master}, connected to it")),
                    _ => Finding::warning(
                        CHECK,
                        address,
                        format!("a replica of {master}, not connected to it: a failover to it loses what it missed"),
                        "see the replica's log",
                    ),
                }];
            }
            (Some("slave"), None) => {
                let master = self.field("master_host").unwrap_or("its master");
                let port = self.field("master_port").unwrap_or_default();
                let found = format!("a read-only replica of {master}:{port}: nothing can be granted here");
                let mend = "name the master in the URL, or Sentinel or the Cluster, which know it";
                return vec![Finding::error(CHECK, address, found, mend)];
            }
            _ => {}
        }
        let Some(replicas) = self.number("connected_slaves") else {
            return vec![Finding::unknown(CHECK, address, "INFO tells no connected_slaves")];
        };
        let min = self.setting("min-replicas-to-write").and_then(|min| min.parse::<u64>().ok());
        let good = self.number("min_slaves_good_slaves").unwrap_or(replicas);
        let count = if replicas == 1 { "1 replica".to_owned() } else { format!("{replicas} replicas") };
        vec![match min {
            Some(min) if min > good => Finding::error(
                CHECK,
                address,
                format!("min-replicas-to-write is {min} and {good} keep up: all grants are refused"),
                "bring the replicas back, or lower min-replicas-to-write",
            ),
            _ if replicas == 0 => {
                Finding::ok(CHECK, address, "no replica: when the host is lost, so is what it does not keep elsewhere")
            }
            None => self.unknown_setting(CHECK, "min-replicas-to-write"),
            Some(0) => Finding::warning(
                CHECK,
                address,
                format!("{count}, min-replicas-to-write 0: a master that is cut off goes on granting, and loses it"),
                "set min-replicas-to-write 1 and min-replicas-max-lag 10, if the pools should rather stand still",
            ),
            Some(min) => Finding::ok(CHECK, address, format!("{count}, min-replicas-to-write {min}")),
        }]
    }
}

fn eviction(address: &str, told: Option<&str>, config: &Result<Fields, Error>) -> Finding {
    const CHECK: &str = "eviction";
    let set = config.as_ref().map(|config| config.get("maxmemory-policy").map(String::as_str));
    match (told, set) {
        (Some("noeviction"), _) | (None, Ok(Some("noeviction"))) => Finding::ok(CHECK, address, "noeviction"),
        (Some(policy), _) | (None, Ok(Some(policy))) => Finding::error(
            CHECK,
            address,
            format!("maxmemory-policy {policy}: a lease that is evicted lets two holders have one resource"),
            "CONFIG SET maxmemory-policy noeviction, and the same in the configuration file",
        ),
        (None, Ok(None)) => Finding::unknown(CHECK, address, "the server does not tell its maxmemory-policy"),
        (None, Err(error)) => Finding::unknown(CHECK, address, error),
    }
}

fn clock(address: &str, reading: &Result<ClockReading, Error>) -> Finding {
    const CHECK: &str = "clock";
    let reading = match reading {
        Ok(reading) => reading,
        Err(error) => return Finding::unknown(CHECK, address, error),
    };
    let (off, unsure) = (micros(reading.ahead_micros.unsigned_abs()), reading.uncertainty);
    if unsure > CLOCK_SLACK {
        let because = format!("its answer took {}", seconds(unsure * 2));
        return Finding::unknown(CHECK, address, because);
    }
    if off > CLOCK_SLACK + unsure {
        let way = if reading.ahead_micros > 0 { "ahead of" } else { "behind" };
        return Finding::error(
            CHECK,
            address,
            format!(
                "its clock is {} {way} this host's: hosts of one Redis must agree within {}",
                seconds(off),
                seconds(CLOCK_SLACK)
            ),
            "synchronise the clocks of both hosts (NTP)",
        );
    }
    Finding::ok(CHECK, address, format!("within {} of this host's", seconds(off + unsure)))
}

fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

fn seconds(duration: Duration) -> String {
    match duration.as_millis() {
        millis @ 0..10_000 if millis == 0 || millis % 1000 != 0 => format!("{} ms", millis.max(1)),
        _ => format!("{} s", duration.as_secs()),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::cli::doctor::finding::Level;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// A server as it should be.
    fn well() -> ServerFacts {
        ServerFacts {
            address: "a:6379".to_owned(),
            replica_of: None,
            info: Ok(fields(&[
                ("redis_version", "7.0.15"),
                ("maxmemory_policy", "noeviction"),
                ("used_memory", "1048576"),
                ("maxmemory", "104857600"),
                ("aof_enabled", "1"),
                ("aof_last_write_status", "ok"),
                ("rdb_last_bgsave_status", "ok"),
                ("loading", "0"),
                ("role", "master"),
                ("connected_slaves", "1"),
                ("min_slaves_good_slaves", "1"),
            ])),
            config: Ok(fields(&[
                ("maxmemory-policy", "noeviction"),
                ("save", "3600 1"),
                ("appendonly", "yes"),
                ("appendfsync", "everysec"),
                ("min-replicas-to-write", "1"),
            ])),
            clock: Ok(ClockReading { ahead_micros: -300, uncertainty: Duration::from_micros(90) }),
        }
    }

    fn levels(facts: &ServerFacts) -> Vec<(&'static str, Level)> {
        let all = judge(facts).into_iter().map(|finding| (finding.check, finding.level));
        all.filter(|(_, level)| *level != Level::Ok).collect()
    }

    #[test]
    fn nothing_is_found_about_a_server_that_is_as_it_should_be() {
        assert_eq!(levels(&well()), []);
        assert_eq!(judge(&well()).len(), 6);
    }

    #[rstest]
    #[case::old("redis_version", "6.2.14", "version", Level::Error)]
    #[case::garbled("redis_version", "unstable", "version", Level::Unknown)]
    #[case::evicting("maxmemory_policy", "allkeys-lru", "eviction", Level::Error)]
    #[case::volatile("maxmemory_policy", "volatile-ttl", "eviction", Level::Error)]
    #[case::nearly_full("used_memory", "94371840", "memory", Level::Warning)]
    #[case::full("used_memory", "104857600", "memory", Level::Error)]
    #[case::snapshot_failed("rdb_last_bgsave_status", "err", "persistence", Level::Error)]
    #[case::disk_full("aof_last_write_status", "err", "persistence", Level::Error)]
    #[case::loading("loading", "1", "persistence", Level::Error)]
    #[case::no_aof("aof_enabled", "0", "persistence", Level::Warning)]
    #[case::replica("role", "slave", "replication", Level::Error)]
    #[case::too_few("min_slaves_good_slaves", "0", "replication", Level::Error)]
    fn what_info_tells_is_judged(
        #[case] field: &str,
        #[case] value: &str,
        #[case] check: &'static str,
        #[case] level: Level,
    ) {
        let mut facts = well();
        facts.info.as_mut().unwrap().insert(field.to_owned(), value.to_owned());
        assert_eq!(levels(&facts), [(check, level)]);
        let needs_mend = judge(&facts).into_iter().filter(|finding| finding.level < Level::Unknown);
        assert!(needs_mend.into_iter().all(|finding| finding.mend.is_some()));
    }

    #[rstest]
    #[case::no_fsync("appendfsync", "no", "persistence")]
    #[case::cut_off("min-replicas-to-write", "0", "replication")]
    fn what_is_configured_is_judged(#[case] name: &str, #[case] value: &str, #[case] check: &'static str) {
        let mut facts = well();
        facts.config.as_mut().unwrap().insert(name.to_owned(), value.to_owned());
        assert_eq!(levels(&facts), [(check, Level::Warning)]);
    }

    #[test]
    fn snapshots_and_nothing_at_all_are_told_apart() {
        let mut facts = well();
        facts.info.as_mut().unwrap().insert("aof_enabled".to_owned(), "0".to_owned());
        let found = |facts: &ServerFacts| {
            judge(facts).into_iter().find(|finding| finding.check == "persistence").unwrap().found
        };
        assert!(found(&facts).starts_with("only snapshots (save 3600 1)"), "{}", found(&facts));
        facts.config.as_mut().unwrap().insert("save".to_owned(), String::new());
        assert!(found(&facts).starts_with("nothing is kept on disk"), "{}", found(&facts));
    }

    fn refused() -> Error {
        Error::Server { operation: "INFO", subject: "a:6379".to_owned(), message: "NOPERM no right".to_owned() }
    }

    #[test]
    fn what_is_refused_cannot_be_told_and_is_no_failure() {
        let facts = ServerFacts { config: Err(refused()), ..well() };
        assert_eq!(levels(&facts), [("persistence", Level::Unknown), ("replication", Level::Unknown)]);
        let facts = ServerFacts { info: Err(refused()), config: Err(refused()), clock: Err(refused()), ..well() };
        let found = judge(&facts);
        assert_eq!(found.len(), 6);
        for finding in found {
            assert_eq!(finding.level, Level::Unknown, "{finding:?}");
            assert!(
                finding.found.starts_with("can't tell, because ") && finding.found.contains("NOPERM"),
                "{finding:?}"
            );
        }
        // What one does not tell, the other may.
        let facts = ServerFacts { info: Err(refused()), ..well() };
        assert!(!levels(&facts).contains(&("eviction", Level::Unknown)));
    }

    #[test]
    fn a_server_that_does_not_answer_is_wrong_unless_it_is_a_replica() {
        let gone = || Error::Unavailable { message: "refused".to_owned(), source: None };
        let facts = ServerFacts { info: Err(gone()), config: Err(gone()), clock: Err(gone()), ..well() };
        assert_eq!(levels(&facts), [("reachable", Level::Error)]);
        let facts = ServerFacts { replica_of: Some("b:6379".to_owned()), ..facts };
        assert_eq!(levels(&facts), [("replica", Level::Unknown)]);
    }

    #[test]
    fn a_replica_of_a_server_that_was_looked_at_is_in_its_place() {
        let mut facts = ServerFacts { replica_of: Some("b:6379".to_owned()), ..well() };
        let info = facts.info.as_mut().unwrap();
        info.insert("role".to_owned(), "slave".to_owned());
        info.insert("master_link_status".to_owned(), "up".to_owned());
        assert_eq!(levels(&facts), []);
        facts.info.as_mut().unwrap().insert("master_link_status".to_owned(), "down".to_owned());
        assert_eq!(levels(&facts), [("replication", Level::Warning)]);
    }

    fn with_clock(address: &str, ahead_millis: i64, uncertain_millis: u64) -> ServerFacts {
        let uncertainty = Duration::from_millis(uncertain_millis);
        let clock = Ok(ClockReading { ahead_micros: ahead_millis * 1000, uncertainty });
        ServerFacts { address: address.to_owned(), clock, ..well() }
    }

    #[rstest]
    #[case::exact(0, 1, None)]
    #[case::within(1999, 0, None)]
    #[case::ahead(2100, 50, Some(Level::Error))]
    #[case::behind(-60_000, 50, Some(Level::Error))]
    #[case::perhaps_within(2100, 200, None)]
    #[case::nobody_knows(0, 3000, Some(Level::Unknown))]
    fn a_clock_is_wrong_only_beyond_doubt(#[case] ahead: i64, #[case] uncertain: u64, #[case] expected: Option<Level>) {
        let found = levels(&with_clock("a:1", ahead, uncertain));
        assert_eq!(found, expected.map(|level| ("clock", level)).into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn servers_are_compared_with_each_other() {
        let level = |servers: &[ServerFacts]| judge_clocks(servers).map(|finding| finding.level);
        assert_eq!(level(&[with_clock("a:1", 0, 1)]), None);
        assert_eq!(level(&[with_clock("a:1", -1500, 1), with_clock("b:1", 400, 1)]), Some(Level::Ok));
        let apart = [with_clock("a:1", -1500, 1), with_clock("c:1", 0, 1), with_clock("b:1", 1500, 1)];
        let found = judge_clocks(&apart).unwrap();
        assert_eq!(found.level, Level::Error);
        assert!(found.found.starts_with("the clock of b:1 is 3 s ahead of that of a:1"), "{}", found.found);
    }
}
