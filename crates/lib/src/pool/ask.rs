//! A checked request on its way to Redis: what is sent, who carries it to its end, what its answer says. What a request
//! can say is in [`super::malloc`].

use std::{iter, sync::Arc, time::Duration};

use serde::Serialize;

use super::{
    Args, BATCH, Pool,
    grants::{Renewal, shared, shutting_down},
    owned, text,
};
use crate::{
    error::{Error, Result},
    item::Record,
    lease::{Granted, Lease},
    names::{BindingName, ResourceKey},
    reply::Reply,
    script,
    session::Membership,
    time::{BootInstant, Timestamp, Ttl},
    to_the_end::ToTheEnd,
};

/// How much longer than a call's own limit its caller waits for it to say why it failed.
const LATE: Duration = Duration::from_millis(500);
/// The most requests for something special that one script serves: each may look at 64 parts of an
/// index.
const SPECIAL_BATCH: usize = 16;

/// The holder of a lease as Redis keeps it, behind token and time.
#[derive(Serialize)]
struct Holder<'a> {
    owner: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    bind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
}

/// Who asks, as every request and lease of theirs has it.
pub(crate) struct Asker {
    pub(crate) owner: String,
    /// The holder in JSON.
    pub(crate) holder: String,
}

impl Asker {
    pub(super) fn new(owner: String, bind: Option<&BindingName>, session: Option<&str>) -> Self {
        let holder = Holder { owner: &owner, bind: bind.map(BindingName::as_str), session };
        let holder = serde_json::to_string(&holder).unwrap_or_default();
        Self { owner, holder }
    }
}

/// What a request asks for beside one resource of any kind, as `demand.lua` reads it.
#[derive(Serialize)]
pub(super) struct Demand<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) n: Option<usize>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) selectors: &'a [Vec<String>],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) session: Option<&'a str>,
}

/// A checked request, on its way.
#[derive(Clone)]
pub(super) struct Ask {
    pub(super) pool: Pool,
    pub(super) ttl: Ttl,
    pub(super) ttl_arg: i64,
    pub(super) binding: Option<BindingName>,
    pub(super) asker: Arc<Asker>,
    /// JSON, as `demand.lua` reads it; empty: one resource, any.
    pub(super) demand: String,
    pub(super) session: Option<Arc<Membership>>,
    pub(super) n: usize,
    /// All of `n`, or none.
    pub(super) all: bool,
    pub(super) keep_alive: bool,
}

/// What one grant is asked with, as the script takes it.
#[derive(Clone)]
pub(super) struct Request {
    ttl: i64,
    binding: Option<BindingName>,
    asker: Arc<Asker>,
    demand: String,
}

/// What the script said to one request.
pub(super) struct Answer {
    sent: BootInstant,
    incarnation: Arc<str>,
    now: u64,
    is_shared: bool,
    /// `None`: nothing is free.
    grants: Option<Reply>,
}

impl Answer {
    /// Reads what stands behind the status in a reply to a request that was sent then: one result, or a list of them.
    pub(super) fn read_one(sent: BootInstant, reply: &mut Reply) -> Result<Self> {
        let grants = reply.optional_list()?;
        let (incarnation, now, is_shared) = Self::terms(reply)?;
        Ok(Self { sent, incarnation, now, is_shared, grants })
    }

    fn read_all(sent: BootInstant, reply: &mut Reply, n: usize) -> Result<Vec<Self>> {
        let mut results = reply.list()?;
        let (incarnation, now, is_shared) = Self::terms(reply)?;
        (0..n)
            .map(|_| {
                let incarnation = Arc::clone(&incarnation);
                Ok(Self { sent, incarnation, now, is_shared, grants: results.optional_list()? })
            })
            .collect()
    }

    fn terms(reply: &mut Reply) -> Result<(Arc<str>, u64, bool)> {
        Ok((reply.text()?.into(), reply.count()?, reply.int()? == 1))
    }
}

impl Ask {
    /// Grants, and gives up when a reply is late: it always finds someone. When nobody awaits it any more, the leases it
    /// brings are dropped, which frees them.
    pub(super) async fn grant_in_time(self) -> Result<Vec<Lease>> {
        let pool = self.pool.clone();
        let client = &pool.client().inner;
        // The call itself gives up in time; this one is for replies that are late. A permanent grant takes two calls, a
        // session that is refused another one.
        let calls = if self.ttl == Ttl::Permanent || self.session.is_some() { 2 } else { 1 };
        let timeout = client.timeout * calls + LATE;
        let grant = ToTheEnd::new(client.runtime.clone(), self.grant());
        match tokio::time::timeout(timeout, grant).await {
            Ok(leases) => leases,
            Err(_) => Err(Error::OutcomeUnknown {
                operation: "malloc",
                subject: pool.name().to_string(),
                message: format!("no answer within {} ms; if one comes, it is freed", timeout.as_millis()),
            }),
        }
    }

    async fn grant(self) -> Result<Vec<Lease>> {
        let first = Request {
            ttl: self.ttl_arg,
            binding: self.binding.clone(),
            asker: Arc::clone(&self.asker),
            demand: self.demand.clone(),
        };
        let leases = if self.n == 1 {
            self.hear(self.ask_with_others(first).await?).await?
        } else {
            let requests = if self.all { 1 } else { self.n };
            let rest = Request { binding: None, ..first.clone() };
            let requests: Vec<_> = iter::once(first).chain(iter::repeat_n(rest, requests - 1)).collect();
            let mut leases = Vec::with_capacity(self.n);
            // Boxed, as what else is rare here: it would make every request's future larger.
            for answer in Box::pin(self.pool.ask_for(&requests)).await? {
                leases.extend(self.hear(answer).await?);
            }
            leases
        };
        self.begin(leases).await
    }

    /// Leases were granted: confirms permanent ones, and has them kept alive.
    pub(super) async fn begin(&self, leases: Vec<Lease>) -> Result<Vec<Lease>> {
        if self.ttl == Ttl::Permanent {
            Box::pin(self.confirm(&leases)).await?;
        }
        if self.keep_alive {
            leases.iter().for_each(Lease::keep_alive);
        }
        Ok(leases)
    }

    /// Asks for one grant, together with those that ask at this moment. Who asks for something special meets its like
    /// elsewhere: one of those would make the script go a longer way for all.
    async fn ask_with_others(&self, request: Request) -> Result<Answer> {
        let serve =
            |pool: Pool, requests: Vec<Request>| async move { shared(requests.len(), pool.ask_for(&requests).await) };
        let together = &self.pool.inner.together;
        let is_plain = request.binding.is_none() && request.demand.is_empty();
        let (meeting, most) = if is_plain { (&together.mallocs, BATCH) } else { (&together.special, SPECIAL_BATCH) };
        let answer = meeting.ask(request, most, &self.pool, &self.pool.client().inner.runtime, serve).await;
        answer.unwrap_or_else(|| Err(shutting_down()))
    }

    /// The leases that an answer grants; none when nothing is free.
    ///
    /// # Errors
    /// What the script refused with. A session that it did not know is looked after first, so that whoever asks once more
    /// begins another.
    pub(super) async fn hear(&self, answer: Answer) -> Result<Vec<Lease>> {
        let heard = self.read(answer);
        if let (Err(Error::SessionOver { .. }), Some(session)) = (&heard, &self.session)
            && let Err(error) = Box::pin(session.beat()).await
        {
            tracing::debug!(pool = %self.pool.name(), %error, "a session that was refused could not be looked after");
        }
        heard
    }

    fn read(&self, answer: Answer) -> Result<Vec<Lease>> {
        let Answer { sent, incarnation, now, is_shared, grants } = answer;
        let Some(mut grants) = grants else { return Ok(Vec::new()) };
        let mut leases = Vec::with_capacity(grants.len() / 4);
        while grants.len() > 0 {
            let Some(key) = grants.optional_text()? else { return Err(self.refusal(&mut grants)?) };
            let token = grants.count()?;
            let ttl = Duration::from_millis(grants.count()?);
            let record = grants.text()?;
            let facts = Record::facts_of(&record)
                .ok_or_else(|| grants.broken(format!("the record of {key} can't be read: {record:?}")))?;
            leases.push(Lease::new(Granted {
                pool: self.pool.clone(),
                id: is_shared.then(|| format!("{key}\0{token:016}")),
                key: ResourceKey::new(key)?,
                incarnation: Arc::clone(&incarnation),
                token,
                at: Timestamp::from_millis(now),
                asker: Arc::clone(&self.asker),
                binding: self.binding.clone(),
                facts,
                ttl,
                deadline: sent + ttl,
                session: self.session.clone(),
            }));
        }
        Ok(leases)
    }

    /// Why the script refused, from what stands behind the `false` that says so.
    fn refusal(&self, reply: &mut Reply) -> Result<Error> {
        let pool = self.pool.name().clone();
        Ok(match reply.text()?.as_str() {
            "ttl" => self.refused(Duration::from_millis(reply.count()?)),
            "count" => Error::ImpossibleCount { pool, count: self.n as u64, most: reply.count()? },
            "index" => {
                let labels = reply.text()?;
                let indexes = (0..reply.len()).map(|_| reply.text()).collect::<Result<_>>()?;
                Error::NotIndexed { pool, labels, indexes }
            }
            "session" => Error::SessionOver {
                pool,
                session: self.session.as_ref().map_or_else(String::new, |session| session.id().to_owned()),
            },
            "lost" => Error::OutcomeUnknown {
                operation: "malloc",
                subject: pool.to_string(),
                message: "what it was granted has ended before this client heard of it".to_owned(),
            },
            other => reply.broken(format!("unknown refusal {other:?}")),
        })
    }

    /// Makes claims permanent. On failure they are dropped, which goes on telling Redis until it hears.
    async fn confirm(&self, leases: &[Lease]) -> Result<()> {
        let asked: Vec<_> = leases.iter().map(|lease| (Arc::clone(lease.grant()), None)).collect();
        for (renewal, lease) in self.pool.renew_grants(&asked).await?.into_iter().zip(leases) {
            match renewal {
                Renewal::Extended => {}
                Renewal::Refused(maximum) => return Err(self.refused(maximum)),
                Renewal::Lost(reason) => {
                    return Err(Error::Lost { pool: self.pool.name().clone(), resource: lease.key().clone(), reason });
                }
            }
        }
        Ok(())
    }

    fn refused(&self, maximum: Duration) -> Error {
        let found = match self.ttl {
            Ttl::For(duration) => format!("{duration:?}"),
            Ttl::Permanent => "unlimited time".to_owned(),
            Ttl::PoolDefault => "the pool's own default time".to_owned(),
        };
        Error::TtlRefused {
            pool: self.pool.name().clone(),
            found,
            allowed: format!("at most {maximum:?} (the pool's maxTTL)"),
        }
    }
}

impl Pool {
    /// Who asks unless a request says otherwise.
    pub(super) fn asker(&self) -> &Arc<Asker> {
        self.inner.asker.get_or_init(|| Arc::new(Asker::new(self.client().owner().to_owned(), None, None)))
    }

    /// Asks for grants in one round trip; one answer for each.
    async fn ask_for(&self, requests: &[Request]) -> Result<Vec<Answer>> {
        let sent = BootInstant::now();
        let mut args = Args::with_capacity(4 * requests.len());
        for Request { ttl, binding, asker, demand } in requests {
            let binding = binding.as_ref().map_or("", BindingName::as_str);
            args.extend([owned(ttl), text(binding), text(&asker.holder), text(demand)]);
        }
        let mut reply = self.read(self.send(&script::MALLOC, &args, true).await?)?;
        Answer::read_all(sent, &mut reply, requests.len())
    }
}
