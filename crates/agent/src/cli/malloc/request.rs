//! What `malloc` asks for: how the user says it, and how it is asked of one pool after the other. It must not know what
//! is done with the leases.

use std::{fmt, time::Duration};

use anyhow::Result;
use redis_allocator::{Client, Error, Lease, Malloc, Pool, PoolName, Selector, Session};
use tokio::time::{sleep, timeout};

use crate::cli::server::NamespaceArgs;

/// The shortest and the longest wait that the library takes.
const WAITS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_hours(24));
/// How long it may take to leave the line. After that the place is lost by itself, in five seconds.
const LEAVE: Duration = Duration::from_secs(2);
/// Between two looks whether the line was left.
const LOOK: Duration = Duration::from_millis(50);
/// How many waiters are looked at in one call.
const PAGE: u32 = 200;

/// What is asked for.
#[derive(Debug, clap::Args)]
pub(super) struct RequestArgs {
    /// The pool, as NAME or NAMESPACE/NAME; with several, the first one that has something free.
    #[arg(required = true, value_name = "POOL")]
    pools: Vec<String>,

    #[command(flatten)]
    namespace: NamespaceArgs,

    /// How long the lease lasts without renewal, such as 90s or 2m [default: the pool's].
    #[arg(long, value_name = "DURATION")]
    ttl: Option<redis_allocator_crd::Duration>,

    /// Soft-binding name: the resource this name had last is preferred.
    #[arg(long, value_name = "NAME")]
    bind: Option<String>,

    /// Wait in line for so long if nothing is free, 1ms to 24h; of several pools in the first one's.
    #[arg(long, value_name = "DURATION", value_parser = wait)]
    wait: Option<Duration>,

    /// How far to go before others in line, 0 to 100: each step is worth a hundred places [default: 0].
    #[arg(long, value_name = "N", requires = "wait", value_parser = clap::value_parser!(u8).range(0..=100))]
    priority: Option<u8>,

    /// Labels that the resource must have, such as 'zone=eu,model in (a100,h100)'; a set of labels that the pool has an
    /// index of. Said again, what would do as well if nothing of the former is free.
    #[arg(long = "selector", value_name = "SELECTOR")]
    selectors: Vec<Selector>,

    /// Hold so many resources, 1 to 200, all of them or none [default: one].
    #[arg(long, value_name = "N", conflicts_with = "bind", value_parser = clap::value_parser!(u16).range(1..=200))]
    count: Option<u16>,

    /// Make the lease part of a session of this name, which reports alive: it ends when the session does.
    #[arg(long, value_name = "NAME", conflicts_with = "ttl")]
    session: Option<String>,

    /// How long the session is believed to be alive from each heartbeat, 1s to 24h.
    #[arg(long, value_name = "DURATION", requires = "session", default_value = "30s")]
    session_ttl: redis_allocator_crd::Duration,
}

/// A span that may be waited for.
fn wait(text: &str) -> Result<Duration, String> {
    let duration = text.parse::<redis_allocator_crd::Duration>().map_err(|error| error.to_string())?.as_std();
    let (shortest, longest) = WAITS;
    if duration < shortest {
        return Err("it is no time at all: allowed is 1ms to 24h; without --wait, the answer comes at once".to_owned());
    }
    if duration > longest {
        return Err("it is too long: allowed is 1ms to 24h".to_owned());
    }
    Ok(duration)
}

/// What came of asking.
#[derive(Debug)]
pub(super) enum Answer {
    /// The leases, at least one, all of one pool.
    Granted(Vec<Lease>),
    /// Nothing is free, or too little.
    NothingFree,
    /// Nothing came free in time.
    TimedOut,
}

/// What is asked for, in words.
impl fmt::Display for RequestArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            Some(count) if count > 1 => write!(f, "{count} resources")?,
            _ => f.write_str("a resource")?,
        }
        for (k, selector) in self.selectors.iter().enumerate() {
            write!(f, "{}{selector}", if k == 0 { " with " } else { ", or with " })?;
        }
        let pools =
            self.pools.iter().map(|name| self.namespace.pool(name).map_or_else(|_| name.clone(), |it| it.to_string()));
        let pools: Vec<_> = pools.collect();
        write!(f, " in {} {}", if pools.len() == 1 { "pool" } else { "pools" }, pools.join(", "))
    }
}

impl RequestArgs {
    /// Whether it may take longer than the server needs to answer.
    pub(super) fn waits(&self) -> bool {
        self.wait.is_some()
    }

    /// The session that the leases are to be part of, if any.
    ///
    /// # Errors
    /// When its name or time to live can't be one.
    pub(super) async fn session(&self, client: &Client) -> Result<Option<Session>, Error> {
        match &self.session {
            Some(name) => Ok(Some(client.session(name).ttl(self.session_ttl.as_std()).start().await?)),
            None => Ok(None),
        }
    }

    /// Asks one pool after the other, and then waits in the first one's line, if that was asked for.
    ///
    /// # Errors
    /// The first one of any pool.
    pub(super) async fn ask(&self, client: &Client, session: Option<&Session>) -> Result<Answer> {
        let names = self.names()?;
        let requests = names
            .iter()
            .map(|name| Ok(self.request(&client.pool(name.as_str())?, session)))
            .collect::<Result<Vec<_>>>()?;
        let Some(first) = requests.first().cloned() else { return Ok(Answer::NothingFree) };
        // With one pool, waiting begins with asking.
        if requests.len() > 1 || self.wait.is_none() {
            for request in requests {
                let granted = match self.count {
                    Some(count) => request.count(count.into()).await?,
                    None => request.await?.map(|lease| vec![lease]),
                };
                if let Some(leases) = granted {
                    return Ok(Answer::Granted(leases));
                }
            }
        }
        let Some(wait) = self.wait else { return Ok(Answer::NothingFree) };
        let waiting = first.wait(wait).priority(self.priority.unwrap_or(0));
        let granted = match self.count {
            Some(count) => waiting.count(count.into()).await,
            None => waiting.await.map(|lease| vec![lease]),
        };
        match granted {
            Ok(leases) => Ok(Answer::Granted(leases)),
            // That a single call took too long names another time.
            Err(Error::NotServed { .. }) => Ok(Answer::TimedOut),
            Err(error) => Err(error.into()),
        }
    }

    /// After [`ask`](Self::ask) was dropped while it waited: returns when the line has been left, what was granted
    /// meanwhile has been returned, or it takes too long.
    pub(super) async fn leave(&self, client: &Client) {
        let left = async {
            let name = self.names()?.into_iter().next();
            let Some(name) = name else { return Ok(()) };
            let pool = client.pool(name.as_str())?;
            // Twice: what came in with the last answer is returned after it.
            let mut looks = 0;
            while looks < 2 {
                looks = if is_in_line(&pool, client.owner()).await? { 0 } else { looks + 1 };
                sleep(LOOK).await;
            }
            anyhow::Ok(())
        };
        match timeout(LEAVE, left).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "whether the line was left is not known"),
            // Somebody else may wait under the same name, too.
            Err(_) => tracing::debug!("whether the line was left is not known"),
        }
    }

    fn names(&self) -> Result<Vec<PoolName>> {
        self.pools.iter().map(|name| self.namespace.pool(name)).collect()
    }

    fn request(&self, pool: &Pool, session: Option<&Session>) -> Malloc {
        let mut request = pool.malloc().keep_alive();
        if let Some(ttl) = self.ttl {
            request = request.ttl(ttl.as_std());
        }
        if let Some(name) = &self.bind {
            request = request.bind(name);
        }
        if let Some(session) = session {
            request = request.session(session);
        }
        self.selectors.iter().cloned().fold(request, Malloc::select)
    }
}

/// Whether somebody waits in the pool under this name.
async fn is_in_line(pool: &Pool, owner: &str) -> Result<bool, Error> {
    let mut from = 0;
    loop {
        let page = pool.waiters(from, PAGE).await?;
        if page.waiters.iter().any(|waiter| waiter.owner == owner) {
            return Ok(true);
        }
        from += u64::from(PAGE);
        if from >= page.total {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        request: RequestArgs,
    }

    fn parse(line: &str) -> Result<RequestArgs, String> {
        let words = std::iter::once("malloc").chain(line.split('|'));
        Line::try_parse_from(words).map(|line| line.request).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_asked_for_is_told_in_words() {
        assert_eq!(parse("gpus").unwrap().to_string(), "a resource in pool default/gpus");
        assert_eq!(parse("gpus|lab/old|-n|team").unwrap().to_string(), "a resource in pools team/gpus, lab/old");
        let request = parse("gpus|--count|3|--selector|zone=eu|--selector|zone in (us,asia)").unwrap();
        let words = "3 resources with zone=eu, or with zone in (asia,us) in pool default/gpus";
        assert_eq!(request.to_string(), words);
    }

    #[test]
    fn a_wait_has_its_limits() {
        for (text, found) in [("1ms", Ok(Duration::from_millis(1))), ("24h", Ok(Duration::from_hours(24)))] {
            assert_eq!(wait(text), found);
        }
        for (text, words) in
            [("0s", "no time at all"), ("24h1ms", "too long"), ("8760h", "too long"), ("1.5s", "not a duration")]
        {
            let error = parse(&format!("gpus|--wait|{text}")).unwrap_err();
            assert!(error.contains("--wait") && error.contains(words), "{error}");
        }
    }

    #[test]
    fn what_can_never_be_is_a_wrong_argument() {
        for (line, words) in [
            ("gpus|--count|0", "0 is not in 1..=200"),
            ("gpus|--count|201", "201 is not in 1..=200"),
            ("gpus|--wait|1s|--priority|101", "101 is not in 0..=100"),
            ("gpus|--priority|1", "--wait"),
            ("gpus|--selector|zone!=eu", "label=value and label in"),
            ("gpus|--selector|zone=eu,zone=us", "at least one value for zone"),
            ("gpus|--count|2|--bind|me", "cannot be used with"),
            ("gpus|--session|me|--ttl|1m", "cannot be used with"),
            ("gpus|--session-ttl|1m", "--session"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
