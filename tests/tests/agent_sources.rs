//! Sources: what others list is in the pool on time, and what they list badly, or not at all, changes nothing.

mod agent;
mod program;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use agent::{Agent, SOON, Site, pool};
use anyhow::{Context as _, Result, ensure};
use e2e::{Flavor, Server, eventually};
use redis_allocator::{Client, Pool};
use serde_json::Value;

/// In milliseconds.
const HOUR: u64 = 3_600_000;

/// What a list's server does.
#[derive(Debug, Clone)]
enum Doing {
    Answer(&'static str, String),
    /// It takes the question and says nothing.
    Nothing,
    /// It says a little now and then, for ever.
    Drip,
    /// It says more than anyone wants to hear.
    Flood,
}

/// An HTTP server that lists resources, or does not.
struct Lister {
    address: SocketAddr,
    doing: Arc<Mutex<Doing>>,
    asked: Arc<AtomicUsize>,
}

impl Lister {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let doing = Arc::new(Mutex::new(Doing::Answer("200 OK", String::new())));
        let lister = Self { address: listener.local_addr()?, doing, asked: Arc::default() };
        let (doing, asked) = (Arc::clone(&lister.doing), Arc::clone(&lister.asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                asked.fetch_add(1, Ordering::SeqCst);
                let doing = doing.lock().expect("nothing panics").clone();
                std::thread::spawn(move || answer(stream, &doing));
            }
        });
        Ok(lister)
    }

    fn does(&self, doing: Doing) {
        *self.doing.lock().expect("nothing panics") = doing;
    }

    fn lists(&self, keys: impl IntoIterator<Item = usize>) {
        let lines: Vec<_> = keys.into_iter().map(|key| format!("h{key}\n")).collect();
        self.does(Doing::Answer("200 OK", lines.concat()));
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn source(&self, name: &str, more: &str) -> String {
        format!("{{name: {name}, interval: 1s, {more}, http: {{url: 'http://{}/list'}}}}", self.address)
    }
}

/// However it ends: who asked may have gone.
fn answer(mut stream: TcpStream, doing: &Doing) -> Option<()> {
    let mut request = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    while request.read_line(&mut line).ok()? > 2 {
        line.clear();
    }
    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
    match doing {
        Doing::Answer(status, body) => {
            write!(stream, "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
                .ok()?;
        }
        Doing::Nothing => std::thread::sleep(Duration::from_secs(5)),
        Doing::Drip => {
            stream.write_all(head.as_bytes()).ok()?;
            for _ in 0..100 {
                stream.write_all(b"h1\n").ok()?;
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Doing::Flood => {
            stream.write_all(head.as_bytes()).ok()?;
            for _ in 0..1024 {
                stream.write_all(&vec![b'a'; 1 << 20]).ok()?;
            }
        }
    }
    Some(())
}

struct World {
    server: Server,
    client: Client,
    site: Site,
}

impl World {
    async fn new() -> Result<Self> {
        program::binary("redis-allocator")?;
        let server = Server::start(Flavor::Redis).await?;
        let client = Client::connect(&server.url()).await?;
        Ok(Self { server, client, site: Site::new()? })
    }

    async fn agent(&self, spec: &str) -> Result<(Agent, Pool)> {
        self.site.write("a.yaml", &pool("a", spec))?;
        let mut agent = self.site.agent(&["--redis-url", &self.server.url()])?;
        agent.ready().await?;
        Ok((agent, self.client.pool("a")?))
    }

    fn list(&self) -> PathBuf {
        self.site.state().with_file_name("list.txt")
    }

    fn get_sources(&self, arguments: &[&str]) -> Result<String> {
        let output = program::redis_allocator()?
            .args(["get", "sources"])
            .args(arguments)
            .arg("--state-dir")
            .arg(self.site.state())
            .args(["--redis-url", &self.server.url()])
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What is said of the source `name` of pool `a`.
    fn source(&self, name: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.get_sources(&["a", name, "-o", "json"])?)?)
    }

    /// Waits until a source is in this state; what is said of it then.
    async fn is(&self, name: &str, state: &str) -> Result<Value> {
        eventually(SOON, async || {
            let source = self.source(name)?;
            ensure!(source["state"] == state, "{source}");
            Ok(source)
        })
        .await
    }
}

async fn has(pool: &Pool, keys: &[&str]) -> Result<()> {
    eventually(SOON, async || {
        let mut found: Vec<_> =
            pool.snapshot().await?.into_iter().filter(|it| it.declared).map(|it| it.key.to_string()).collect();
        found.sort();
        ensure!(found == keys, "{} has {found:?}", pool.name());
        Ok(())
    })
    .await
}

fn keys(names: &str) -> Vec<&str> {
    names.split_whitespace().collect()
}

#[tokio::test]
async fn what_a_file_lists_is_in_the_pool_and_follows_it() -> Result<()> {
    let world = World::new().await?;
    fs::write(world.list(), "# hosts\nh1\nh2\nh3\n\n")?;
    let source = format!("{{name: hosts, interval: 1s, ttl: 0s, file: {{path: '{}'}}}}", world.list().display());
    let (mut agent, a) = world.agent(&format!("{{resources: [{{name: own}}], sources: [{source}]}}")).await?;
    has(&a, &keys("h1 h2 h3 own")).await?;
    agent.has_condition("a", "Discovered", "True", "SourcesFresh").await?;
    let state = a.get("h1").await?.context("it is there")?;
    assert_eq!(state.origins.iter().map(ToString::to_string).collect::<Vec<_>>(), ["source/hosts"]);

    fs::write(world.list(), "h2\nh3\nh4\n")?;
    has(&a, &keys("h2 h3 h4 own")).await?;

    // Its facts, too, in the other format.
    let json = world.list().with_extension("json");
    fs::write(&json, r#"["h3", {"name": "h4", "priority": 7, "labels": {"zone": "x"}, "params": {"port": 80}}]"#)?;
    let source = source.replace("list.txt'", "list.json', format: Json");
    world.site.write("a.yaml", &pool("a", &format!("{{resources: [{{name: own}}], sources: [{source}]}}")))?;
    has(&a, &keys("h3 h4 own")).await?;
    let state = a.get("h4").await?.context("it is there")?;
    assert_eq!((state.priority, state.labels["zone"].as_str(), &state.params["port"]), (7, "x", &80.into()));

    // The source leaves the declaration, and so does what it brought.
    world.site.write("a.yaml", &pool("a", "{resources: [{name: own}], maxShrinkPercent: 100}"))?;
    has(&a, &keys("own")).await?;
    agent
        .eventually(SOON, |agent| {
            ensure!(agent.condition("a", "Discovered").is_err(), "there is nothing to discover");
            ensure!(!agent.page("/metrics")?.1.contains("source=\"hosts\""), "nor to count");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn a_source_that_fails_changes_nothing_and_each_failure_is_told_as_what_it_is() -> Result<()> {
    let world = World::new().await?;
    let lister = Lister::start()?;
    lister.lists(1..=4);
    let source = lister.source("eu", "ttl: 0s").replace("/list'", "/list', timeout: 500ms");
    let (mut agent, a) = world.agent(&format!("{{sources: [{source}]}}")).await?;
    has(&a, &keys("h1 h2 h3 h4")).await?;
    let lease = a.malloc().keep_alive().await?.context("four are free")?;

    let url = format!("http://{}/list", lister.address);
    for (doing, category, words) in [
        (Doing::Answer("500 Internal Server Error", String::new()), "status", "answered 500 Internal Server Error"),
        (Doing::Answer("200 OK", "<html>Sign in</html>".to_owned()), "invalid", "answered with HTML"),
        (Doing::Answer("200 OK", "{\"error\": \"down\"}".to_owned()), "invalid", "say format: Json"),
        (Doing::Answer("200 OK", "h1\nh1\n".to_owned()), "invalid", "line 2: found the key of line 1 again"),
        (Doing::Nothing, "timeout", "was not answered within 500ms"),
        (Doing::Drip, "timeout", "had not sent all of its answer within 500ms"),
        (Doing::Flood, "too_large", "is longer than 8 MiB"),
    ] {
        lister.does(doing);
        let source = eventually(Duration::from_secs(20), async || {
            let source = world.source("eu")?;
            let message = source["message"].as_str().unwrap_or_default();
            ensure!(message.contains(words) && message.contains(&url), "{source}");
            Ok(source)
        })
        .await?;
        assert_eq!((&source["state"], &source["items"]), (&"Failing".into(), &4.into()));
        assert!(source["lastSuccess"].is_string(), "{source}");
        agent.has_condition("a", "Discovered", "False", "SourceFailing").await?;
        let labels = format!("{{namespace=\"default\",pool=\"a\",source=\"eu\",category=\"{category}\"}}");
        assert!(agent.metric(&format!("redis_allocator_discovery_failures_total{labels}"))? >= 1);
        assert_eq!(a.len().await?, 4);
    }
    assert!(!lease.is_lost(), "nothing happened to it");
    assert_eq!(agent.condition("a", "Ready")?.0, "True", "the pool goes on");

    lister.lists(1..=5);
    has(&a, &keys("h1 h2 h3 h4 h5")).await?;
    let source = world.is("eu", "Fresh").await?;
    assert!(source["lastSuccess"].is_null() && source["message"] == "", "{source}");
    agent.has_condition("a", "Discovered", "True", "SourcesFresh").await?;
    agent.logged("the source is fine again").await?;
    let items = "redis_allocator_discovery_items{namespace=\"default\",pool=\"a\",source=\"eu\"}";
    assert_eq!(agent.metric(items)?, 5);
    Ok(())
}

#[tokio::test]
async fn a_shrink_is_held_back_until_an_operator_means_it() -> Result<()> {
    let world = World::new().await?;
    let lister = Lister::start()?;
    lister.lists(1..=10);
    let spec = |more: &str| format!("{{{more} sources: [{}]}}", lister.source("eu", "ttl: 0s"));
    let (mut agent, a) = world.agent(&spec("")).await?;
    eventually(SOON, async || {
        ensure!(a.len().await? == 10);
        Ok(())
    })
    .await?;

    for few in [0, 4] {
        lister.lists(1..=few);
        let words = format!("it brings {few} resources, lately 10: allowed are 5 or more");
        eventually(SOON, async || {
            let source = world.source("eu")?;
            ensure!(source["state"] == "HeldBack" && source["message"].to_string().contains(&words), "{source}");
            Ok(())
        })
        .await?;
        agent.has_condition("a", "Discovered", "False", "SourceHeldBack").await?;
        assert_eq!(a.len().await?, 10);
    }
    lister.lists(1..=5);
    has(&a, &keys("h1 h2 h3 h4 h5")).await?;

    // What was listed lately counts, not what is left of it.
    lister.lists(1..=3);
    world.is("eu", "HeldBack").await?;
    world.site.write("a.yaml", &pool("a", &spec("maxShrinkPercent: 100,")))?;
    has(&a, &keys("h1 h2 h3")).await
}

#[tokio::test]
async fn what_is_not_shown_any_more_has_its_ttl_to_come_back() -> Result<()> {
    let world = World::new().await?;
    let lister = Lister::start()?;
    lister.lists(1..=4);
    let (_agent, a) = world.agent(&format!("{{sources: [{}]}}", lister.source("eu", "ttl: 1h"))).await?;
    has(&a, &keys("h1 h2 h3 h4")).await?;
    let departing = async |keys: &[&str]| {
        eventually(SOON, async || {
            let departures = a.foresee_departures().await?;
            let found: Vec<_> = departures.iter().map(|it| it.key.as_str()).collect();
            ensure!(found == keys, "{departures:?}");
            Ok(departures)
        })
        .await
    };
    assert_eq!(a.foresee_departures().await?, []);

    let earliest = a.info().await?.now.as_millis() + HOUR;
    lister.lists(1..=2);
    let missing = departing(&["h3", "h4"]).await?;
    let latest = a.info().await?.now.as_millis() + HOUR;
    assert!(missing.iter().all(|it| (earliest..=latest).contains(&it.at.as_millis())), "{missing:?}");
    assert!(missing.iter().all(|it| it.origin.to_string() == "source/eu"), "{missing:?}");
    eventually(SOON, async || {
        ensure!(world.source("eu")?["items"] == 2);
        Ok(())
    })
    .await?;
    assert_eq!(a.len().await?, 4, "they may come back");

    // One does. The other one has no more time than before.
    lister.lists(1..=3);
    assert_eq!(departing(&["h4"]).await?, missing[1..]);
    has(&a, &keys("h1 h2 h3 h4")).await?;
    lister.lists(1..=4);
    departing(&[]).await?;
    has(&a, &keys("h1 h2 h3 h4")).await
}

#[tokio::test]
async fn what_has_not_come_back_within_its_ttl_leaves_with_its_lease() -> Result<()> {
    // Redis counts whole milliseconds.
    const TTL: Duration = Duration::from_millis(1999);
    let world = World::new().await?;
    let lister = Lister::start()?;
    lister.lists(1..=4);
    let spec = format!("{{sources: [{}], gc: {{interval: 200ms}}}}", lister.source("eu", "ttl: 2s"));
    let (_agent, a) = world.agent(&spec).await?;
    has(&a, &keys("h1 h2 h3 h4")).await?;
    let lease = a.malloc().keep_alive().await?.context("four are free")?;
    let leased: usize = lease.key().as_str().trim_start_matches('h').parse()?;
    let others: Vec<usize> = (1..=4).filter(|key| *key != leased).collect();

    let vanished = Instant::now();
    lister.lists(others[..2].iter().copied());
    let left: Vec<_> = others[..2].iter().map(|key| format!("h{key}")).collect();
    let left: Vec<_> = left.iter().map(String::as_str).collect();
    has(&a, &left).await?;
    assert!(vanished.elapsed() >= TTL, "{:?}", vanished.elapsed());
    assert!(a.get(format!("h{}", others[2])).await?.is_none(), "nobody had it");
    let draining = a.get(lease.key().as_str()).await?.context("its holder still has it")?;
    assert!(!draining.declared && !lease.is_lost());
    let key = lease.key().clone();
    lease.free().await?;
    eventually(SOON, async || {
        ensure!(a.get(key.as_str()).await?.is_none());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn only_the_leader_asks_and_who_takes_over_goes_on_with_what_is_there() -> Result<()> {
    let world = World::new().await?;
    let lister = Lister::start()?;
    lister.lists(1..=3);
    let (first, a) = world.agent(&format!("{{sources: [{}]}}", lister.source("eu", "ttl: 1h"))).await?;
    has(&a, &keys("h1 h2 h3")).await?;
    let mut second = world.site.another_agent(&["--redis-url", &world.server.url()])?;
    second.ready_and("following").await?;
    let (before, counted) = (lister.asked(), Instant::now());
    let asked = eventually(SOON, async || {
        let asked = lister.asked() - before;
        ensure!(asked >= 6, "asked {asked} times");
        Ok(asked)
    })
    .await?;
    // One agent rests for 0.9 s at the least in between; what was asked before may have been counted a moment late. Two
    // agents would be done in 3 s.
    let least = Duration::from_millis(900) * u32::try_from(asked - 2)?;
    assert!(counted.elapsed() >= least, "asked {asked} times by two agents in {:?}", counted.elapsed());

    // The source is away when the second one takes over: what the pool has stays.
    lister.does(Doing::Answer("503 Service Unavailable", String::new()));
    assert!(first.terminate().await?.success());
    second.ready_and("leading").await?;
    second.has_condition("a", "Discovered", "False", "SourceFailing").await?;
    assert_eq!(a.len().await?, 3);
    lister.lists(1..=4);
    has(&a, &keys("h1 h2 h3 h4")).await?;
    second.has_condition("a", "Discovered", "True", "SourcesFresh").await
}

#[tokio::test]
async fn a_pool_that_redis_lost_is_filled_again_though_its_source_is_away() -> Result<()> {
    let world = World::new().await?;
    let lister = Lister::start()?;
    lister.lists(1..=3);
    let source = lister.source("eu", "ttl: 1h").replace("interval: 1s", "interval: 1h");
    let (agent, a) = world.agent(&format!("{{sources: [{source}], gc: {{interval: 200ms}}}}")).await?;
    has(&a, &keys("h1 h2 h3")).await?;
    world.is("eu", "Fresh").await?;
    lister.does(Doing::Answer("503 Service Unavailable", String::new()));
    let asked = lister.asked();
    world.server.flushall().await?;
    has(&a, &keys("h1 h2 h3")).await.with_context(|| agent.log())?;
    eventually(SOON, async || {
        ensure!(lister.asked() > asked);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_changed_source_is_asked_at_once_and_the_others_are_left_alone() -> Result<()> {
    let world = World::new().await?;
    let (one, other) = (Lister::start()?, Lister::start()?);
    one.lists(1..=2);
    other.lists(3..=4);
    let hourly = |lister: &Lister, name: &str, path: &str| {
        lister.source(name, "ttl: 0s").replace("interval: 1s", "interval: 1h").replace("/list", path)
    };
    let spec =
        |path: &str| format!("{{sources: [{}, {}]}}", hourly(&one, "one", path), hourly(&other, "other", "/list"));
    let (_agent, a) = world.agent(&spec("/list")).await?;
    has(&a, &keys("h1 h2 h3 h4")).await?;
    assert_eq!((one.asked(), other.asked()), (1, 1));
    one.lists(1..=1);
    world.site.write("a.yaml", &pool("a", &spec("/more")))?;
    has(&a, &keys("h1 h3 h4")).await?;
    assert_eq!((one.asked(), other.asked()), (2, 1));
    Ok(())
}

#[tokio::test]
async fn what_needs_a_cluster_says_so_and_sources_are_listed() -> Result<()> {
    let world = World::new().await?;
    fs::write(world.list(), "h1\n")?;
    let file = format!("{{name: file, file: {{path: '{}'}}}}", world.list().display());
    let pods = "{name: pods, kubernetes: {pods: {labelSelector: {}}}}";
    let dns = "{name: dns, dns: {name: localhost, port: 80, template: 'http://{}/'}}";
    let (mut agent, a) = world.agent(&format!("{{sources: [{file}, {pods}, {dns}]}}")).await?;
    agent.has_condition("a", "Discovered", "False", "SourceFailing").await?;
    world.is("dns", "Fresh").await?;
    assert!(a.contains("http://127.0.0.1:80/").await? || a.contains("http://[::1]:80/").await?);
    world.is("file", "Fresh").await?;
    let table = world.get_sources(&["-o", "wide"])?;
    let row = |name: &str| table.lines().find(|line| line.contains(name)).unwrap_or_default().to_owned();
    assert!(row("NAME").starts_with("POOL   NAME   ITEMS   STATE"), "{table}");
    assert!(row("file").contains("1       Fresh"), "{table}");
    assert!(row("pods").contains("Failing") && row("pods").contains("--kubernetes"), "{table}");

    // Without an agent, what the server has is told, and nothing that nobody vouches for.
    assert!(agent.terminate().await?.success());
    let source = world.source("file")?;
    assert_eq!((&source["items"], &source["state"]), (&1.into(), &Value::Null));
    Ok(())
}

#[tokio::test]
async fn a_plan_asks_no_source_and_takes_nothing_for_leaving() -> Result<()> {
    let world = World::new().await?;
    let lister = Lister::start()?;
    lister.lists(1..=3);
    let (agent, a) = world.agent(&format!("{{sources: [{}]}}", lister.source("eu", "ttl: 1h"))).await?;
    has(&a, &keys("h1 h2 h3")).await?;
    assert!(agent.terminate().await?.success());
    let asked = lister.asked();
    let plan = || -> Result<String> {
        let output = program::redis_allocator()?
            .arg("plan")
            .arg("--config")
            .arg(world.site.pools())
            .arg("--state-dir")
            .arg(world.site.state())
            .args(["--redis-url", &world.server.url()])
            .output()?;
        Ok(format!("{:?} {}", output.status.code(), String::from_utf8(output.stdout)?))
    };
    let told = plan()?;
    assert!(
        told.starts_with("Some(0) note: pool default/a: its sources are not looked at, only the agent asks them: eu"),
        "{told}"
    );
    assert!(told.ends_with("pools: 1 as declared\n"), "{told}");
    world.site.write("a.yaml", &pool("a", "{maxShrinkPercent: 100}"))?;
    let told = plan()?;
    assert!(told.contains("source/eu: remove 3: h1, h2, h3"), "now they leave: {told}");
    assert_eq!(lister.asked(), asked);
    Ok(())
}
