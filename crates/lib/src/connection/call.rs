//! One call, from its first attempt to its reply or to giving up: the rules of repeating. It knows neither how a
//! connection is made nor what a script does.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use redis::{Cmd, RedisError, Value};
use tokio::{
    pin,
    time::{self, Instant},
};

use super::{
    Router,
    link::{Link, Trouble, Wire},
    refusal::{Refusal, words},
};
use crate::{
    error::{Error, Result},
    script::Script,
};

/// Redirections and script loads that are followed without a pause: a healthy deployment needs two or three.
const QUICK: u32 = 5;
/// Least time given to one of several attempts.
const SHORTEST: Duration = Duration::from_millis(200);

/// The pauses between attempts.
fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(10))
        .with_max_delay(Duration::from_millis(100))
        .without_max_times()
        .with_jitter()
        .build()
}

/// What is to be done, and how often it may be.
pub(super) struct Call<'a> {
    pub(super) operation: &'static str,
    pub(super) subject: &'a str,
    /// What the command runs, to be loaded where it is missing.
    pub(super) script: Option<&'a Script>,
    pub(super) key: Option<&'a [u8]>,
    pub(super) read_only: bool,
    /// Whether it may be sent again after it may have been executed.
    pub(super) repeatable: bool,
    pub(super) timeout: Duration,
    /// How long the reply to a sent request is awaited at least, counted from the beginning.
    pub(super) patience: Duration,
}

/// How one attempt ended.
enum Step {
    Done(Value),
    Failed(Error),
    /// Not executed, and the next attempt goes elsewhere or finds what this one missed.
    Again(Trouble),
    /// Not executed; to be tried again after a while.
    Wait(Trouble),
    /// Sent, and not answered.
    Lost(Trouble),
}

impl Call<'_> {
    pub(super) async fn make(&self, router: &Router, command: &Cmd) -> Result<Value> {
        let started = Instant::now();
        let until = started + self.timeout;
        let late = started + self.patience;
        // Made when first needed, as most calls need none.
        let mut delays = None;
        let mut quick = 0;
        let mut detour = None;
        let mut lost: Option<Trouble> = None;
        loop {
            let trouble = match self.attempt(router, command, &mut detour, until, late).await {
                Step::Done(reply) => return Ok(reply),
                // An earlier attempt may have done it, whatever this one met.
                Step::Failed(error) if lost.is_none() || self.read_only => return Err(error),
                Step::Failed(error) => return Err(self.outcome_unknown(&error.to_string())),
                Step::Again(trouble) => {
                    quick += 1;
                    if quick <= QUICK && Instant::now() < until {
                        continue;
                    }
                    trouble
                }
                Step::Wait(trouble) => trouble,
                Step::Lost(trouble) if !self.repeatable => return Err(self.outcome_unknown(&trouble.message)),
                Step::Lost(trouble) => {
                    lost = Some(trouble.clone());
                    trouble
                }
            };
            let delay = delays.get_or_insert_with(backoff).next().unwrap_or(SHORTEST);
            if Instant::now() + delay >= until {
                return Err(self.give_up(trouble, lost));
            }
            time::sleep(delay).await;
        }
    }

    async fn attempt(
        &self,
        router: &Router,
        command: &Cmd,
        detour: &mut Option<Arc<Link>>,
        until: Instant,
        late: Instant,
    ) -> Step {
        let asking = detour.is_some();
        let at_hand = if asking { None } else { router.at_hand(self.key) };
        let (link, wire) = match at_hand {
            Some(reached) => reached,
            // Boxed: it is rare, and would make every call's future larger.
            None => match Box::pin(self.reach(router, detour, until)).await {
                Ok(reached) => reached,
                Err(step) => return step,
            },
        };
        let Some(reply) = self.exchange(&link, &wire, command, asking, until, late).await else {
            router.doubt();
            return Step::Lost(Trouble::passing(format!("{} did not answer in time", link.name())));
        };
        let error = match reply {
            Ok(Value::ServerError(error)) => error,
            Ok(reply) => return Step::Done(reply),
            Err(error) => {
                link.retire(&wire);
                router.doubt();
                return Step::Lost(Trouble::of(link.name(), error));
            }
        };

        let trouble = Trouble::passing(format!("{}: {}", link.name(), words(&error)));
        match (Refusal::of(&error), router, self.script) {
            (Refusal::Moved(address), Router::Cluster(cluster), _) => {
                cluster.moved(self.key, address, &link);
                Step::Again(trouble)
            }
            (Refusal::Ask(address), Router::Cluster(cluster), _) => {
                *detour = Some(cluster.link(address, &link));
                Step::Again(trouble)
            }
            (Refusal::NoScript, _, Some(script)) => {
                let step = Box::pin(self.load(script, &link, &wire, until, trouble)).await;
                if asking {
                    *detour = Some(link);
                }
                step
            }
            (Refusal::Wait, ..) => {
                router.doubt();
                Step::Wait(trouble)
            }
            (Refusal::Demoted, ..) => {
                // Behind the same name, or by Sentinel, there may be another server now.
                link.retire(&wire);
                router.doubt();
                Step::Wait(trouble)
            }
            (Refusal::Final | Refusal::Moved(_) | Refusal::Ask(_) | Refusal::NoScript, ..) => {
                Step::Failed(self.refused(words(&error)))
            }
        }
    }

    /// Finds the server and connects to it.
    async fn reach(
        &self,
        router: &Router,
        detour: &mut Option<Arc<Link>>,
        until: Instant,
    ) -> Result<(Arc<Link>, Wire), Step> {
        let reach = async {
            let link = match detour.take() {
                Some(link) => link,
                // Doubted below, so that the next attempt may know more.
                None => router
                    .route(self.key)
                    .ok_or_else(|| Trouble::passing("no server of the Cluster owns the key's slot".to_owned()))?,
            };
            let wire = link.wire().await?;
            Ok::<_, Trouble>((link, wire))
        };
        let trouble = match time::timeout_at(until, reach).await {
            Ok(Ok(reached)) => return Ok(reached),
            Ok(Err(trouble)) => trouble,
            Err(_) => Trouble::passing(format!("no connection could be made within {} ms", self.timeout.as_millis())),
        };
        router.doubt();
        if trouble.hopeless {
            Err(Step::Failed(trouble.into_error(self.operation, self.subject)))
        } else {
            Err(Step::Wait(trouble))
        }
    }

    /// Sends the command and awaits the reply; `None` when it did not come in time.
    async fn exchange(
        &self,
        link: &Link,
        wire: &Wire,
        command: &Cmd,
        asking: bool,
        until: Instant,
        late: Instant,
    ) -> Option<Result<Value, RedisError>> {
        // What may be repeated leaves time for that: the connection may be dead without anyone having been told.
        let now = Instant::now();
        let enough = if self.repeatable {
            until.min(now + SHORTEST.max(until.saturating_duration_since(now) / 2))
        } else {
            until
        };
        let before = wire.replies();
        let reply = wire.send(command, asking);
        pin!(reply);
        if let Ok(reply) = time::timeout_at(enough, &mut reply).await {
            return Some(reply);
        }
        if wire.replies() == before {
            // Nobody has been answered since: the peer is gone, or as good as gone.
            link.retire(wire);
        }
        if (self.repeatable && enough < until) || late <= enough {
            return None;
        }
        time::timeout_at(late, reply).await.ok()
    }

    /// Gives the server the script it lacks. Several callers may do so at once, which is harmless.
    async fn load(&self, script: &Script, link: &Link, wire: &Wire, until: Instant, trouble: Trouble) -> Step {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(&script.code);
        match time::timeout_at(until, wire.send(&command, false)).await {
            Ok(Ok(Value::ServerError(error))) => match Refusal::of(&error) {
                Refusal::Final => Step::Failed(self.refused(words(&error))),
                _ => Step::Wait(Trouble::passing(format!("{}: {}", link.name(), words(&error)))),
            },
            Ok(Ok(_)) => Step::Again(trouble),
            Ok(Err(error)) => {
                link.retire(wire);
                Step::Wait(Trouble::of(link.name(), error))
            }
            Err(_) => Step::Wait(Trouble::passing(format!("{} did not load the script in time", link.name()))),
        }
    }

    fn give_up(&self, trouble: Trouble, lost: Option<Trouble>) -> Error {
        match lost {
            Some(lost) if !self.read_only => self.outcome_unknown(&lost.message),
            // The last attempt was lost without a word from anyone.
            Some(lost) if lost.source.is_none() && lost.message == trouble.message => {
                Error::Timeout { waited_for: "a reply of the Redis server", after: self.timeout }
            }
            _ => trouble.into_error(self.operation, self.subject),
        }
    }

    fn outcome_unknown(&self, message: &str) -> Error {
        Error::OutcomeUnknown {
            operation: self.operation,
            subject: self.subject.to_owned(),
            message: message.to_owned(),
        }
    }

    fn refused(&self, message: String) -> Error {
        Error::Server { operation: self.operation, subject: self.subject.to_owned(), message }
    }
}
