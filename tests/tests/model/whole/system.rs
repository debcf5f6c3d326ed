//! The real pool: runs each step's script on a server, at the time the test says, and tells what it answered, whom it woke
//! and what can be seen. It must not know what is expected; of the reference it takes only what a step names by number.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Server};
use futures::StreamExt;
use redis::{Pipeline, Value, aio::PubSubStream};
use redis_allocator::{Client, Pool};
use serde_json::{Value as Json, json};

use super::{
    read::{normal_grant, plain, see_bindings, see_info, see_line, see_resources},
    reference::{LIFE, Reference, facts_of, holder},
    step::{Ask, DEFAULT_TTL, INDEXES, Mode, Name, Order, Reply, SELECTORS, Settings, Step},
};
use crate::looks::{HEAD, check_all, function};

const SCRIPTS: [&str; 16] = [
    "bind",
    "configure",
    "free",
    "gc",
    "heartbeat",
    "malloc",
    "quarantine",
    "remove",
    "renew",
    "resettle",
    "revoke",
    "set_meta",
    "unbind",
    "unquarantine",
    "upsert",
    "wait",
];
/// The pool has one life here.
const LIFE_NAME: &str = "life";
const END: &str = "wake:end";

/// What a step came to.
#[derive(Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) reply: Reply,
    /// Channel and message.
    pub(crate) woken: Vec<(String, String)>,
    pub(crate) view: BTreeMap<String, String>,
    /// What was granted to each request.
    pub(crate) granted: Vec<Vec<Name>>,
}

/// One server, used by one sequence after the other.
pub(crate) struct System {
    raw: redis::aio::MultiplexedConnection,
    wakes: PubSubStream,
    pool: Pool,
    shas: HashMap<&'static str, String>,
    /// Of the script that looks at everything.
    look: String,
    _server: Server,
}

/// Where a waiter hears that it may look.
pub(crate) fn channel_of(id: Name) -> String {
    format!("wake:{}", id.len() + id.bytes().map(usize::from).sum::<usize>() % 2)
}

type Args = Vec<String>;

impl System {
    pub(crate) async fn start(flavor: Flavor) -> Result<Self> {
        let server = Server::builder(flavor).unix_socket().start().await?;
        let url = server.unix_url().context("the server has no socket")?;
        let client = redis::Client::open(url.as_str())?;
        let mut raw = server.connection().await?;
        let mut listener = client.get_async_pubsub().await?;
        listener.psubscribe("wake:*").await?;
        let pool = Client::connect(&url).await?.pool("model/pool")?;
        let mut shas = HashMap::new();
        for name in SCRIPTS {
            let text = Pool::script_text(name).context("no such script")?;
            let sha: String = redis::cmd("SCRIPT").arg("LOAD").arg(text).query_async(&mut raw).await?;
            shas.insert(name, sha);
        }
        let look = redis::cmd("SCRIPT").arg("LOAD").arg(look(&pool)?).query_async(&mut raw).await?;
        Ok(Self { raw, wakes: listener.into_on_message(), pool, shas, look, _server: server })
    }

    fn add(&self, pipe: &mut Pipeline, now_us: u64, sha: &str, args: &[String]) {
        let keys = self.pool.script_keys();
        let command = pipe.cmd("EVALSHA").arg(sha).arg(keys.len()).arg(keys);
        command.arg(now_us / 1_000_000).arg(now_us % 1_000_000);
        for arg in args {
            command.arg(arg);
        }
    }

    pub(crate) async fn create(&mut self, reference: &Reference) -> Result<()> {
        let mut pipe = redis::pipe();
        pipe.cmd("FLUSHALL");
        self.add(&mut pipe, reference.now_us, &self.shas["configure"], &configure(&reference.settings));
        pipe.query_async::<Vec<Value>>(&mut self.raw).await?;
        Ok(())
    }

    /// Does a step that the reference has not done yet.
    pub(crate) async fn run(&mut self, step: &Step, reference: &Reference) -> Result<Seen> {
        let now_us = reference.now_us + step.takes();
        let mut pipe = redis::pipe();
        let calls = calls(step, reference);
        for (script, args) in &calls {
            self.add(&mut pipe, now_us, &self.shas[script], args);
        }
        pipe.cmd("PUBLISH").arg(END).arg(".");
        self.add(&mut pipe, now_us, &self.look, &[]);
        let replies: Vec<Value> = pipe.query_async(&mut self.raw).await?;
        let mut woken = Vec::new();
        loop {
            let message = self.wakes.next().await.context("the subscription ended")?;
            if message.get_channel_name() == END {
                break;
            }
            woken.push((message.get_channel_name().to_owned(), message.get_payload()?));
        }
        let mut replies = replies.into_iter().map(plain);
        let mut answers: Vec<_> = replies.by_ref().take(calls.len()).collect();
        for answer in &answers {
            ensure!(matches!(answer.at(0).str(), "ok" | "conflict" | "no-resource" | "ttl"), "answered {answer:?}");
        }
        let mut reply = if answers.is_empty() { Reply::Nothing } else { answers.swap_remove(0) };
        if matches!(step, Step::Configure { .. } | Step::Suspend { .. }) {
            reply = Reply::Nothing;
        }
        let mut granted = Vec::new();
        match step {
            Step::Malloc { .. } => {
                if let Reply::List(parts) = &mut reply
                    && let Reply::List(results) = &mut parts[1]
                {
                    granted.extend(results.iter_mut().map(normal_grant));
                }
            }
            Step::Poll { .. } => {
                if let Reply::List(parts) = &mut reply {
                    granted.push(normal_grant(&mut parts[1]));
                }
            }
            Step::Gc { .. } => {
                if let Reply::List(parts) = &mut reply
                    && let Reply::List(left) = &mut parts[5]
                {
                    left.sort();
                }
            }
            _ => {}
        }
        let looked = replies.nth(1).context("nothing was looked at")?;
        let mut rest = looked.list().iter();
        let mut next = || rest.next().unwrap_or(&Reply::Nothing);
        let (info, snapshot, waiters, sessions) = (next(), next(), next(), next());
        let (binds, expiries, missing) = (next(), next(), next());
        let mut view = BTreeMap::new();
        see_info(info, &mut view)?;
        see_resources(snapshot, &mut view)?;
        see_line(waiters, sessions, &mut view);
        see_bindings(binds, expiries, missing, &mut view);
        let broken = next();
        ensure!(broken.list().is_empty(), "check finds {broken:?}");
        Ok(Seen { reply, woken, view, granted })
    }
}

/// The reading scripts as one, so that a look is one call: their answers, and what has no script, one after the other.
fn look(pool: &Pool) -> Result<String> {
    let functions = ["info", "snapshot", "waiters", "sessions"].map(function);
    let functions = functions.into_iter().collect::<Result<String>>()?;
    Ok(format!(
        "{HEAD}{functions}{}return {{
           info({{ ARGV[1], ARGV[2] }}),
           snapshot({{ ARGV[1], ARGV[2], 'items', '0' }}),
           waiters({{ ARGV[1], ARGV[2], '0', '200' }}),
           sessions({{ ARGV[1], ARGV[2], '0' }}),
           redis.call('HGETALL', KEYS[9]),
           redis.call('ZRANGE', KEYS[10], 0, -1, 'WITHSCORES'),
           redis.call('ZRANGE', KEYS[13], 0, -1, 'WITHSCORES'),
           check_all(ARGV),
         }}",
        check_all(pool)?
    ))
}

/// The scripts that a step runs, its own first.
fn calls(step: &Step, reference: &Reference) -> Vec<(&'static str, Args)> {
    let named = |back: usize| reference.grant(back).unwrap_or(("?", 0));
    let id = |(key, token): (Name, u64)| {
        if reference.is_shared() { format!("{key}\0{token:016}") } else { key.to_owned() }
    };
    let own = |script, args| vec![(script, args)];
    let texts = |names: &[Name]| names.iter().map(ToString::to_string).collect::<Args>();
    let flag = |flag: bool| u8::from(flag).to_string();
    match step {
        Step::Malloc { asks } => own("malloc", asks.iter().flat_map(request).collect()),
        Step::Free { back } => {
            let pairs = back.iter().map(|back| named(*back));
            own("free", pairs.flat_map(|grant| [id(grant), format!("{:016}", grant.1)]).collect())
        }
        Step::Renew { back, ttl } => {
            let grant = named(*back);
            let record = format!("{:016}{:013}{{}}", grant.1, 0);
            own("renew", vec![LIFE_NAME.to_owned(), id(grant), ttl.to_string(), record])
        }
        Step::Revoke { keys } => own("revoke", texts(keys)),
        Step::Poll { mode, id, ask, priority } => {
            let mode = match mode {
                Mode::Wait => "wait",
                Mode::Last => "last",
                Mode::Leave => "leave",
            };
            let places = (priority * 100).to_string();
            let mut args = vec![mode.to_owned(), (*id).to_owned(), places, channel_of(id), LIFE.to_string()];
            args.extend(request(ask));
            own("wait", args)
        }
        Step::Upsert { origin, ttl, decls } => {
            let mut args = vec![(*origin).to_owned(), String::new(), ttl.to_string()];
            for decl in decls {
                let position = decl.position.map_or_else(String::new, |position| format!("{position:010}"));
                args.extend([decl.key.to_owned(), format!("{:04}", decl.priority), position, facts_of(decl.labels)]);
            }
            own("upsert", args)
        }
        Step::Remove { origin, keys, revoke, later } => {
            let mut args = vec![(*origin).to_owned(), String::new(), flag(*revoke), later.to_string()];
            args.extend(texts(keys));
            own("remove", args)
        }
        Step::Bind { name, key, required, ttl } => {
            let kind = if *required { "q" } else { "a" };
            own("bind", [name, key, kind].map(str::to_owned).into_iter().chain([ttl.to_string()]).collect())
        }
        Step::Unbind { name } => own("unbind", texts(&[name])),
        Step::Quarantine { key, cause, duration } => {
            let args = [key, cause, &*duration.to_string(), "a reason", "0"].map(str::to_owned);
            own("quarantine", args.to_vec())
        }
        Step::Unquarantine { key, cause } => own("unquarantine", texts(&[cause, key])),
        Step::Suspend { suspended } => own("set_meta", vec!["suspended".to_owned(), flag(*suspended)]),
        Step::Configure { settings } => {
            let mut calls = own("configure", configure(settings));
            if settings.entry() != reference.settings.entry() {
                calls.push(("resettle", reference.items.keys().map(ToString::to_string).collect()));
                calls.push(("set_meta", vec!["reorder".to_owned(), "0".to_owned()]));
            }
            calls
        }
        Step::Gc { count } => own("gc", vec![count.to_string()]),
        Step::Beat { session, ttl, begin } => {
            own("heartbeat", vec![(*session).to_owned(), ttl.to_string(), flag(*begin)])
        }
        Step::Pass { .. } => Vec::new(),
    }
}

fn configure(settings: &Settings) -> Args {
    let order = match settings.order {
        Order::LeastRecentlyUsed => "LeastRecentlyUsed",
        Order::Sequential => "Sequential",
        Order::Random => "Random",
    };
    let indexes = INDEXES[settings.indexes];
    let fields = [
        ("order", order.to_owned()),
        ("cooldown", settings.cooldown.to_string()),
        ("suspended", u8::from(settings.suspended).to_string()),
        ("default_ttl", DEFAULT_TTL.to_string()),
        ("max_ttl", settings.max_ttl.to_string()),
        ("binding_ttl", settings.binding_ttl.to_string()),
        ("mode", if settings.shared.is_some() { "Shared" } else { "Exclusive" }.to_owned()),
        ("max_holders", settings.shared.unwrap_or(0).to_string()),
        ("indexes", if indexes.is_empty() { String::new() } else { json!(indexes).to_string() }),
    ];
    let own = [LIFE_NAME, "", "", ""].map(str::to_owned);
    own.into_iter().chain(fields.into_iter().flat_map(|(field, value)| [field.to_owned(), value])).collect()
}

/// As `malloc` and `wait` take it: time to live, binding name, holder, demand.
fn request(ask: &Ask) -> [String; 4] {
    let mut demand = serde_json::Map::new();
    if ask.n > 1 {
        demand.insert("n".to_owned(), json!(ask.n));
    }
    if !ask.selectors.is_empty() {
        demand.insert("selectors".to_owned(), ask.selectors.iter().map(|selector| probes(*selector)).collect());
    }
    if let Some(session) = ask.session {
        demand.insert("session".to_owned(), json!(session));
    }
    let demand = if demand.is_empty() { String::new() } else { Json::Object(demand).to_string() };
    [ask.ttl.to_string(), ask.name.unwrap_or("").to_owned(), holder(ask), demand]
}

/// The index of a selector, then what entries of it begin with.
fn probes(selector: usize) -> Json {
    let labels: Vec<_> = SELECTORS[selector].iter().map(|(label, _)| *label).collect();
    let mut probes = vec![format!("{}\0", labels.join(","))];
    for (_, values) in SELECTORS[selector] {
        probes = probes.iter().flat_map(|probe| values.iter().map(move |value| format!("{probe}{value}\0"))).collect();
    }
    [labels.join(",")].into_iter().chain(probes).collect()
}
