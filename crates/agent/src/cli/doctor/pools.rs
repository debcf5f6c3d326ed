//! What is asked of pools, and what is judged of the answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use redis_allocator::{
    CLOCK_SLACK, Client, Error, Hold, Invariant, ListedLease, Longest, Permissions, PoolInfo, PoolName, SessionInfo,
    Timestamp, Violation, WaiterInfo,
};

use super::finding::Finding;
use crate::reconcile::SYSTEM_NAMESPACE;

/// How long after its end a lease, a session or a waiter is reclaimed at the latest where an agent collects.
const OVERDUE: Duration = Duration::from_mins(1);
/// How many waiters are looked at: dead ones that are in anybody's way are among the first.
const WAITERS: u32 = 200;

/// What was read of a pool.
struct Seen {
    info: PoolInfo,
    leases: Vec<ListedLease>,
    violations: Vec<Violation>,
    waiters: Vec<WaiterInfo>,
    sessions: Vec<SessionInfo>,
}

/// All that is found about these pools, or about all there are.
///
/// # Errors
/// When the server stops answering.
pub(super) async fn examine(client: &Client, named: Vec<PoolName>) -> Result<Vec<Finding>, Error> {
    let mut findings = Vec::new();
    let pools = if named.is_empty() {
        match all(client).await {
            Ok(pools) => pools,
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                let because = format!("the list of pools can't be read: {error}; name the pools to look at");
                findings.push(Finding::unknown("pools", client.address(), because));
                return Ok(findings);
            }
        }
    } else {
        named
    };
    // The user's permissions are much the same for all pools: those of the first one stand for them.
    let example = pools.first().cloned().map_or_else(|| "doctor".parse(), Ok)?;
    findings.extend(permissions(client.address(), &example, client.permissions(&example).await));
    let mut managers = BTreeMap::<String, Vec<PoolName>>::new();
    for name in &pools {
        let pool = client.pool(name.as_str())?;
        let looked = async {
            // The leases first: what is granted meanwhile may be the longest lease ever.
            let leases = pool.leases().await?;
            let waiters = pool.waiters(0, WAITERS).await?.waiters;
            let sessions = pool.sessions().await?;
            let info = pool.info().await?;
            let violations = pool.check().await?;
            Ok::<_, Error>(Seen { info, leases, violations, waiters, sessions })
        };
        match looked.await {
            Ok(seen) => {
                findings.extend(judge(&seen));
                if let Some(manager) = &seen.info.manager {
                    managers.entry(manager.clone()).or_default().push(name.clone());
                }
            }
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => findings.push(unreadable(name, &error)),
        }
    }
    if !managers.is_empty() {
        findings.extend(agents(client, &managers).await?);
    }
    Ok(findings)
}

async fn all(client: &Client) -> Result<Vec<PoolName>, Error> {
    let mut pools = Vec::new();
    for namespace in client.namespaces().await? {
        pools.extend(client.pools(&namespace).await?);
    }
    Ok(pools)
}

/// What a pool that can't be read means. One that is listed and not there is being made, or has just gone.
fn unreadable(name: &PoolName, error: &Error) -> Finding {
    let subject = name.as_str();
    match error {
        Error::UnsupportedSchema { .. } => Finding::error(
            "schema",
            subject,
            error.to_string(),
            "upgrade this program, and every client and agent of the pool",
        ),
        Error::UnknownPool { .. } => Finding::warning(
            "pool",
            subject,
            "there is no such pool, though it may be listed",
            "nothing, if it is being created or deleted right now; else declare it again",
        ),
        error => Finding::error("pool", subject, error.to_string(), "see what the message says"),
    }
}

fn permissions(address: &str, pool: &PoolName, asked: Result<Permissions, Error>) -> Vec<Finding> {
    const CHECK: &str = "permissions";
    const MEND: &str = "give the user the rights that docs/operations.md lists under Access control";
    let Permissions { denied_leasing, denied_waking, channels, denied_managing } = match asked {
        Ok(permissions) => permissions,
        Err(error) => {
            let found = format!("this user can't run scripts on pool {pool}: {error}");
            return vec![Finding::error(CHECK, address, found, MEND)];
        }
    };
    let mut findings = Vec::new();
    if !denied_leasing.is_empty() {
        let found = format!("this user can't lease from pool {pool}: denied {}", denied_leasing.join(", "));
        findings.push(Finding::error(CHECK, address, found, MEND));
    } else if !denied_managing.is_empty() {
        let found = format!("this user can lease, but not run an agent: denied {}", denied_managing.join(", "));
        findings.push(Finding::warning(CHECK, address, found, format!("nothing, if it is a workload's; else {MEND}")));
    }
    if !denied_waking.is_empty() {
        let found = format!(
            "this user can't wake those who wait for what it frees, or be woken: denied {}; they look once a second instead",
            denied_waking.join(", ")
        );
        let mend = format!("add +publish +subscribe +ping &{channels} to the user's rules (ACL SETUSER)");
        findings.push(Finding::warning("waking", address, found, mend));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, address, "all that workloads and agents need"));
    }
    findings
}

/// What is found of a pool that can be read.
fn judge(seen: &Seen) -> Vec<Finding> {
    let Seen { info, leases, violations, .. } = seen;
    let subject = info.name.as_str();
    let mut findings = Vec::new();
    let mut broken = BTreeMap::<Invariant, BTreeSet<&str>>::new();
    for violation in violations {
        broken.entry(violation.invariant).or_default().insert(&violation.subject);
    }
    for (invariant, subjects) in &broken {
        let (count, first) = (subjects.len(), subjects.first().copied().unwrap_or_default());
        findings.push(Finding::error(
            "invariant",
            subject,
            format!("{invariant}: {count}, the first is {first}"),
            "the pool's agent repairs it within ten minutes, or at its next start; without an agent, call Pool::repair",
        ));
    }
    let now = info.now.as_millis();
    let ends = leases.iter().filter_map(|it| Some((it.key.as_str(), it.lease.expires_at?.as_millis())));
    let overdue: Vec<_> = ends.clone().filter(|(_, end)| end + millis(CLOCK_SLACK + OVERDUE) < now).collect();
    // Nobody collects the lead of an agent that was killed, and the next one finds it.
    if let Some((first, end)) = overdue.first()
        && info.name.namespace() != SYSTEM_NAMESPACE
    {
        findings.push(Finding::warning(
            "collection",
            subject,
            format!(
                "leases that have ended and are not reclaimed: {}, {first} for {} s",
                overdue.len(),
                (now - end) / 1000
            ),
            "run an agent, which collects; without one they are reclaimed when nothing else is free",
        ));
    }
    findings.extend(the_dead(seen));
    if let Longest::For(longest) = info.longest {
        let latest = now.saturating_add(millis(longest)).saturating_add(millis(CLOCK_SLACK));
        let far: Vec<_> = ends.filter(|(_, end)| *end > latest).collect();
        if let Some((first, end)) = far.first() {
            findings.push(Finding::error(
                "leases",
                subject,
                format!(
                    "leases that last beyond the longest TTL ever granted: {}, {first} for {} s; the clock of Redis was set back",
                    far.len(),
                    (end - now) / 1000
                ),
                "synchronise the clock of the Redis host (NTP); end leases of dead holders with free --force",
            ));
        }
    }
    if info.last_token / 1000 > now.saturating_add(millis(CLOCK_SLACK)) {
        findings.push(Finding::warning(
            "tokens",
            subject,
            "the last fencing token is from the future: the clock of Redis was set back, or was ahead before a failover",
            "synchronise the clocks of all Redis hosts (NTP); tokens go on rising meanwhile",
        ));
    }
    if let Some(hold) = info.hold {
        let until = match hold {
            Hold::Until(until) => format!("for {} s", until.as_millis().saturating_sub(now) / 1000),
            Hold::Released => "until an operator ends it".to_owned(),
        };
        findings.push(Finding::warning(
            "recovery",
            subject,
            format!("Redis had lost the pool: what it had is held back {until}"),
            format!("wait; or, if nobody holds a lease any more, redis-allocator unquarantine {subject} --recovered"),
        ));
    }
    if findings.is_empty() {
        let counts = info.counts;
        findings.push(Finding::ok(
            "pool",
            subject,
            format!("every invariant holds; resources: {}, leased: {}", counts.total, counts.leased),
        ));
    }
    findings
}

/// Who died and is not buried: nobody collects, and nobody asks for anything.
fn the_dead(seen: &Seen) -> Vec<Finding> {
    const MEND: &str = "run an agent, which collects; without one they go when somebody asks the pool for a resource";
    let subject = seen.info.name.as_str();
    // In seconds, beyond what it takes where somebody collects.
    let since = |until: Timestamp| {
        let latest = until.as_millis().saturating_add(millis(CLOCK_SLACK + OVERDUE));
        let now = seen.info.now.as_millis();
        (latest < now).then(|| now.saturating_sub(until.as_millis()) / 1000)
    };
    let mut findings = Vec::new();
    let waiters: Vec<_> = seen.waiters.iter().filter_map(|waiter| Some((waiter, since(waiter.alive_until)?))).collect();
    if let Some((first, seconds)) = waiters.first() {
        let found = format!(
            "dead callers among the first {WAITERS} in line: {}, {} of {} for {seconds} s",
            waiters.len(),
            first.id,
            first.owner
        );
        findings.push(Finding::warning("waiters", subject, found, MEND));
    }
    let sessions = seen.sessions.iter().filter(|session| !session.alive && session.leases > 0);
    let sessions: Vec<_> = sessions.filter_map(|session| Some((session, since(session.until)?))).collect();
    if let Some((first, seconds)) = sessions.first() {
        let leases: u64 = sessions.iter().map(|(session, _)| session.leases).sum();
        let found = format!(
            "dead sessions whose leases have not ended: {}, with {leases} leases, {} for {seconds} s",
            sessions.len(),
            first.id
        );
        findings.push(Finding::warning("sessions", subject, found, MEND));
    }
    findings
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Whether an agent leads for each identity that manages pools. Those of Kubernetes lead by a Lease there.
async fn agents(client: &Client, managers: &BTreeMap<String, Vec<PoolName>>) -> Result<Option<Finding>, Error> {
    let looked = async {
        let mut leading = 0;
        for name in client.pools(SYSTEM_NAMESPACE).await? {
            let pool = client.pool(name.as_str())?;
            match (pool.info().await, pool.leases().await) {
                (Ok(info), Ok(leases)) => {
                    let is_live = |it: &ListedLease| it.lease.expires_at > Some(info.now);
                    leading += usize::from(leases.iter().any(is_live));
                }
                (Err(Error::UnknownPool { .. }), _) | (_, Err(Error::UnknownPool { .. })) => {}
                (Err(error), _) | (_, Err(error)) => return Err(error),
            }
        }
        Ok(leading)
    };
    match looked.await {
        Ok(leading) => Ok(judge_agents(client.address(), managers, leading)),
        Err(error) if error.is_transient() => Err(error),
        Err(error) => Ok(Some(Finding::unknown("agents", client.address(), error))),
    }
}

fn judge_agents(address: &str, managers: &BTreeMap<String, Vec<PoolName>>, leading: usize) -> Option<Finding> {
    const CHECK: &str = "agents";
    let (theirs, ours): (Vec<_>, Vec<_>) =
        managers.keys().map(String::as_str).partition(|manager| manager.starts_with("kubernetes:"));
    if ours.is_empty() {
        let because = format!("the agents of {} lead by a Lease in Kubernetes", theirs.join(", "));
        return (!theirs.is_empty()).then(|| Finding::unknown(CHECK, address, because));
    }
    Some(if leading < ours.len() {
        let pools: usize = ours.iter().filter_map(|manager| managers.get(*manager)).map(Vec::len).sum();
        Finding::warning(
            CHECK,
            address,
            format!("{pools} pools are managed by {}, and {leading} agents lead on this Redis", ours.join(", ")),
            "start the agents that are missing; leases go on without them, but nothing is reconciled, probed or collected",
        )
    } else {
        Finding::ok(CHECK, address, format!("{leading} lead, for {}", ours.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Level;

    #[test]
    fn a_user_that_leases_need_neither_manage_nor_wake() {
        let pool: PoolName = "gpus".parse().unwrap();
        let judged = |asked| {
            let found = permissions("a:1", &pool, asked).into_iter();
            found.map(|finding| (finding.check, finding.level)).collect::<Vec<_>>()
        };
        assert_eq!(judged(Ok(Permissions::default())), [("permissions", Level::Ok)]);
        let denied = vec!["HSET ra:{default/gpus}:meta".to_owned()];
        let workload = Permissions { denied_managing: denied.clone(), ..Permissions::default() };
        assert_eq!(judged(Ok(workload.clone())), [("permissions", Level::Warning)]);
        let nothing = Permissions { denied_leasing: denied.clone(), ..workload.clone() };
        assert_eq!(judged(Ok(nothing)), [("permissions", Level::Error)]);
        let refused = Error::Server { operation: "x", subject: "x".to_owned(), message: "NOPERM".to_owned() };
        assert_eq!(judged(Err(refused)), [("permissions", Level::Error)]);

        let mute = Permissions { denied_waking: denied, channels: "ra:wake:*".to_owned(), ..workload };
        let found = permissions("a:1", &pool, Ok(mute));
        assert_eq!((found[1].check, found[1].level), ("waking", Level::Warning));
        assert!(found[1].mend.as_ref().unwrap().contains("&ra:wake:*"), "{found:?}");
    }

    #[test]
    fn an_agent_is_missed_where_pools_have_one() {
        let managed_by = |managers: &[&str]| {
            let pools = vec!["gpus".parse().unwrap()];
            managers.iter().map(|manager| ((*manager).to_owned(), pools.clone())).collect::<BTreeMap<_, _>>()
        };
        let level = |managers: &[&str], leading| judge_agents("a:1", &managed_by(managers), leading).map(|it| it.level);
        assert_eq!(level(&["files:/a"], 1), Some(Level::Ok));
        assert_eq!(level(&["files:/a"], 0), Some(Level::Warning));
        assert_eq!(level(&["files:/a", "files:/b", "kubernetes:1"], 1), Some(Level::Warning));
        assert_eq!(level(&["files:/a", "kubernetes:1"], 1), Some(Level::Ok));
        assert_eq!(level(&["kubernetes:1"], 0), Some(Level::Unknown));
    }

    #[test]
    fn a_pool_of_a_newer_layout_asks_for_an_upgrade() {
        let pool: PoolName = "gpus".parse().unwrap();
        let newer = Error::UnsupportedSchema { pool: pool.clone(), found: "2".to_owned(), supported: 1 };
        let found = unreadable(&pool, &newer);
        assert_eq!((found.level, found.check), (Level::Error, "schema"));
        assert_eq!(unreadable(&pool, &Error::UnknownPool { pool: pool.clone() }).level, Level::Warning);
    }
}
