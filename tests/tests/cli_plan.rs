//! `redis-allocator plan`: what it says is what the agent then does, and it writes nothing.

mod agent;
mod program;

use std::{collections::BTreeMap, time::Duration};

use agent::{SOON, Site, pool, pool_of};
use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Server, eventually};
use redis_allocator::{Client, Item, Origin, Ownership, PoolSettings, SyncOptions};
use serde_json::{Value, json};

struct World {
    server: Server,
    client: Client,
    site: Site,
}

/// A key's bytes, for every key.
type Content = BTreeMap<String, Vec<u8>>;

impl World {
    async fn new() -> Result<Self> {
        Self::on(Flavor::Redis).await
    }

    async fn on(flavor: Flavor) -> Result<Self> {
        program::binary("redis-allocator")?;
        let server = Server::start(flavor).await?;
        let client = Client::connect(&server.url()).await?;
        Ok(Self { server, client, site: Site::new()? })
    }

    /// Exit code and output of a plan, which must not have written anything.
    async fn run(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let (content, stats) = (self.content().await?, self.server.command_stats().await?);
        let output = program::redis_allocator()?
            .args(["plan", "--config"])
            .arg(self.site.pools())
            .arg("--state-dir")
            .arg(self.site.state())
            .args(["--redis-url", &self.server.url()])
            .args(arguments)
            .output()?;
        let called = self.server.command_stats().await?.since(&stats);
        let reads = [
            "auth",
            "client|setinfo",
            "client|setname",
            "evalsha",
            "hello",
            "hget",
            "hgetall",
            "hkeys",
            "hlen",
            "hmget",
            "hscan",
            "info",
            "ping",
            "script|load",
            "select",
            "smembers",
            "time",
            "zcard",
            "zcount",
            "zmscore",
            "zscan",
            "zscore",
        ];
        let others: Vec<_> = called.keys().filter(|command| !reads.contains(&command.as_str())).collect();
        ensure!(others.is_empty(), "a plan called {others:?}");
        ensure!(content == self.content().await?, "a plan changed something");
        let code = output.status.code().context("the plan was killed")?;
        Ok((code, String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?))
    }

    async fn plan(&self, arguments: &[&str]) -> Result<(i32, Value)> {
        let (code, text) = self.run(&[arguments, &["-o", "json"]].concat()).await?;
        let plan = serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))?;
        Ok((code, plan))
    }

    async fn content(&self) -> Result<Content> {
        let mut content = Content::new();
        for key in self.server.cmd::<Vec<String>>(&["KEYS", "*"]).await? {
            // The lead of an agent that has just ended may still end by itself.
            if !key.contains("redis-allocator-system") {
                content.insert(key.clone(), self.server.cmd(&["DUMP", &key]).await?);
            }
        }
        Ok(content)
    }

    /// Has an agent bring Redis to what is declared; what it logged, line by line.
    async fn sync(&self) -> Result<Vec<Value>> {
        let mut agent = self.site.agent(&["--redis-url", &self.server.url()])?;
        agent.ready().await?;
        let log = agent.log();
        agent.terminate().await?;
        // An earlier agent of the site wrote to the same file.
        let last = log.rfind("agent started").context("no agent started")?;
        let start = log[..last].rfind('\n').map_or(0, |newline| newline + 1);
        log[start..].lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

fn of<'a>(plan: &'a Value, pool: &str) -> Result<&'a Value> {
    let found = plan["pools"].as_array().into_iter().flatten().find(|it| it["pool"] == pool);
    found.with_context(|| format!("no {pool} in {plan}"))
}

/// What the agent said it synced: for each pool and origin its numbers.
fn synced(log: &[Value]) -> BTreeMap<(String, String), Value> {
    let lines = log.iter().filter(|line| line["message"] == "pool synced");
    lines
        .map(|line| {
            let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
            let numbers = json!([line["added"], line["updated"], line["removed"], line["draining"], line["revoked"]]);
            ((text("pool"), text("origin")), numbers)
        })
        .collect()
}

/// The same, as a plan says it.
fn foretold(plan: &Value) -> BTreeMap<(String, String), Value> {
    let mut all = BTreeMap::new();
    for pool in plan["pools"].as_array().into_iter().flatten() {
        for origin in pool["origins"].as_array().into_iter().flatten() {
            let count = |what: &str| origin[what]["count"].as_u64().unwrap_or(0);
            let removed = count("removed") + count("draining") + count("revoked");
            let numbers = json!([count("added"), count("updated"), removed, count("draining"), count("revoked")]);
            let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            if origin["heldBack"].is_null() && numbers != json!([0, 0, 0, 0, 0]) {
                all.insert((name(&pool["pool"]), name(&origin["origin"])), numbers);
            }
        }
    }
    all
}

fn binding(name: &str, resource: &str, more: &str) -> String {
    format!(
        "apiVersion: redis-allocator.dev/v1alpha1\nkind: SoftBinding\nmetadata: {{name: {name}}}\nspec: {{poolRef: {{name: \
         a}}, resourceName: {resource}{more}}}\n---\n"
    )
}

const RANGE: &str = "ranges: [{name: hosts, template: 'h{}', from: 1, to: 20}]";

#[tokio::test]
async fn what_it_says_is_what_the_agent_does() -> Result<()> {
    for flavor in Flavor::ALL {
        let world = World::on(flavor).await?;
        // Before there is anything.
        world
            .site
            .write("a.yaml", &pool("a", &format!("{{resources: [{{name: x}}, {{name: y}}, {{name: z}}], {RANGE}}}")))?;
        world.site.write("gone.yaml", &pool_of("gone", 2))?;
        world.site.write("left.yaml", &pool("left", "{resources: [{name: x}], deletionPolicy: Orphan}"))?;
        world.site.write("same.yaml", &pool_of("same", 300))?;
        world.site.write("much.yaml", &pool("much", "{ranges: [{name: r, template: 'm{}', from: 1, to: 100}]}"))?;
        world.site.write("bindings.yaml", &(binding("b", "x", "") + &binding("c", "y", ", policy: Required")))?;
        let (code, plan) = world.plan(&[]).await?;
        assert_eq!((code, &plan["changes"]), (2, &json!(true)), "{plan}");
        assert_eq!(of(&plan, "default/a")?["action"], "Create");
        assert_eq!(of(&plan, "default/a")?["bindings"][1]["to"], "y (Required)");
        let log = world.sync().await?;
        assert_eq!(foretold(&plan), synced(&log));
        assert_eq!(foretold(&plan)[&("default/same".to_owned(), "spec".to_owned())], json!([300, 0, 0, 0, 0]));

        let (code, plan) = world.plan(&[]).await?;
        assert_eq!((code, &plan["changes"]), (0, &json!(false)), "{plan}");
        let (code, text) = world.run(&[]).await?;
        assert_eq!((code, text.as_str()), (0, "pools: 5 as declared\n"));

        // Everything at once: one leaves with its lease, one moves to a range, one gets labels, bindings come and go.
        let a = world.client.pool("a")?;
        let lease = a.malloc().bind("b").await?.context("x is free")?;
        assert_eq!(lease.key().as_str(), "x");
        world.site.write(
            "a.yaml",
            &pool(
                "a",
                "{resources: [{name: y, labels: {zone: a}}, {name: new}], ranges: [{name: hosts, template: 'h{}', from: 5, to: \
                 22}, {name: more, template: 'z', from: 0, to: 0}], lease: {defaultTTL: 30s, maxTTL: 90m}, order: Random}"
                    .replace("template: 'z', from: 0, to: 0", "template: 'z{}', from: 1, to: 2")
                    .as_str(),
            ),
        )?;
        std::fs::remove_file(world.site.pools().join("gone.yaml"))?;
        std::fs::remove_file(world.site.pools().join("left.yaml"))?;
        world.site.write("much.yaml", &pool("much", "{ranges: [{name: r, template: 'm{}', from: 1, to: 30}]}"))?;
        world.site.write("bindings.yaml", &(binding("b", "y", ", ttl: 1h") + &binding("d", "new", "")))?;
        let (code, plan) = world.plan(&[]).await?;
        assert_eq!(code, 2, "{plan}");
        let changes = of(&plan, "default/a")?;
        assert_eq!(
            changes["settings"],
            json!([
                {"field": "order", "from": "LeastRecentlyUsed", "to": "Random"},
                {"field": "lease.defaultTTL", "from": "2m", "to": "30s"},
                {"field": "lease.maxTTL", "from": "none", "to": "1h30m"},
            ])
        );
        // Those that grow come first.
        let origins = changes["origins"].as_array().context("a list")?;
        let order: Vec<_> = origins.iter().map(|it| it["origin"].as_str().unwrap_or_default()).collect();
        assert_eq!(order, ["range/more", "spec", "range/hosts"]);
        assert_eq!(origins[1]["draining"]["first"], json!(["x"]));
        let expected = json!([
            {"binding": "c", "action": "Delete", "from": "y (Required)"},
            {"binding": "b", "action": "Change", "from": "x (Preferred)", "to": "y (Preferred, ttl 1h)"},
            {"binding": "d", "action": "Create", "to": "new (Preferred)"},
        ]);
        assert_eq!(changes["bindings"], expected);
        assert_eq!(of(&plan, "default/same")?["action"], "Keep");
        let much = of(&plan, "default/much")?;
        assert_eq!(much["action"], "HoldBack");
        assert_eq!(much["origins"][0]["heldBack"], json!({"found": 30, "peak": 100, "allowedMin": 50}));
        assert_eq!(of(&plan, "default/gone")?["action"], "Delete");
        assert_eq!(of(&plan, "default/left")?["action"], "Abandon");

        let log = world.sync().await?;
        assert_eq!(foretold(&plan), synced(&log));
        let said = |message: &str| log.iter().filter(|line| line["message"] == message).collect::<Vec<_>>();
        let held = said("held back: too much would leave the pool; raise spec.maxShrinkPercent if it is meant");
        assert_eq!(held.len(), 1);
        assert_eq!(
            (&held[0]["found"], &held[0]["peak"], &held[0]["allowed_min"]),
            (&json!(30), &json!(100), &json!(50))
        );
        assert_eq!(said("the pool's settings changed").len(), 1);
        assert_eq!((said("bound").len(), said("unbound").len()), (2, 1));
        let left = world.client.pool("left")?;
        assert_eq!(left.info().await?.manager, None);
        assert!(world.client.pool("gone")?.info().await.is_err());

        // But for what is held back, Redis is as declared, with one lease that goes on.
        let (code, plan) = world.plan(&[]).await?;
        assert_eq!((code, &plan["changes"]), (2, &json!(false)), "{plan}");
        lease.renew().await?;
        world.site.write("much.yaml", &pool("much", "{ranges: [{name: r, template: 'm{}', from: 1, to: 100}]}"))?;
        assert_eq!(world.plan(&[]).await?.0, 0);
    }
    Ok(())
}

#[tokio::test]
async fn a_resource_that_changes_hands_is_foreseen_step_by_step() -> Result<()> {
    let world = World::new().await?;
    let range =
        |from: u32| format!("ranges: [{{name: r, template: 'x{{}}', from: {from}, to: 3}}], maxShrinkPercent: 100");
    world.site.write("a.yaml", &pool("a", &format!("{{resources: [{{name: x1}}, {{name: x2}}], {}}}", range(3))))?;
    world.sync().await?;
    let a = world.client.pool("a")?;
    // A program declares one of them as well: it stays when the manifest lets it go.
    a.extend([Item::new("x2".parse()?), Item::new("own".parse()?)]).await?;
    let ttl = Duration::from_mins(1);
    let _leases = [a.malloc_key(ttl).await?, a.malloc_key(ttl).await?];
    for spec in [
        format!("{{resources: [], {}}}", range(1)),
        format!("{{resources: [{{name: x2, priority: 3}}], {}, removalPolicy: Revoke}}", range(3)),
        "{resources: [{name: x3}], ranges: [], maxShrinkPercent: 100}".to_owned(),
        "{maxShrinkPercent: 100}".to_owned(),
    ] {
        world.site.write("a.yaml", &pool("a", &spec))?;
        let (code, plan) = world.plan(&[]).await?;
        assert_eq!(code, 2, "{spec}: {plan}");
        assert_eq!(foretold(&plan), synced(&world.sync().await?), "{spec}: {plan}");
        let (code, plan) = world.plan(&[]).await?;
        assert_eq!(code, 0, "{spec}: {plan}");
    }
    Ok(())
}

#[tokio::test]
async fn what_leaves_later_is_told_with_its_time_and_is_no_change() -> Result<()> {
    let world = World::new().await?;
    world.site.write("a.yaml", &pool("a", "{resources: [{name: x}]}"))?;
    world.sync().await?;
    let spec = "{resources: [{name: x}], sources: [{name: eu, http: {url: 'http://127.0.0.1:9/list'}}]}";
    world.site.write("a.yaml", &pool("a", spec))?;
    // As an agent does when the source lists less than before, and a program that declares for a time.
    let a = world.client.pool("a")?;
    let hour = Duration::from_hours(1);
    let keep = SyncOptions { keep_missing: Some(hour), ..SyncOptions::default() };
    for listed in [&["h1", "h2", "h3", "x"][..], &["h1"]] {
        let items = listed.iter().map(|key| Ok(Item::new(key.parse()?))).collect::<Result<Vec<_>>>()?;
        a.sync(&Origin::Source("eu".to_owned()), items, &keep).await?;
    }
    let many = (0..12).map(|n| Ok(Item::new(format!("own-{n:02}").parse()?))).collect::<Result<Vec<_>>>()?;
    a.extend_for(hour * 2, many).await?;

    let (code, plan) = world.plan(&[]).await?;
    assert_eq!((code, &plan["changes"], &of(&plan, "default/a")?["action"]), (0, &json!(false), &json!("Keep")));
    let origins = &of(&plan, "default/a")?["origins"];
    assert_eq!((&origins[0]["origin"], &origins[1]["origin"]), (&json!("source/eu"), &json!("api")), "{plan}");
    assert_eq!((&origins[0]["later"]["count"], &origins[1]["later"]["count"]), (&json!(3), &json!(12)), "{plan}");
    let first = origins[0]["later"]["first"].as_array().context("no list")?;
    assert_eq!(first.iter().map(|it| &it["name"]).collect::<Vec<_>>(), ["h2", "h3", "x"]);
    assert_eq!(origins[1]["later"]["first"].as_array().map(Vec::len), Some(10));
    let mut told = Vec::new();
    for (departing, departure) in first.iter().zip(a.foresee_departures().await?) {
        let at: k8s_openapi::jiff::Timestamp = departing["at"].as_str().context("no time")?.parse()?;
        assert_eq!(u64::try_from(at.as_millisecond())?, departure.at.as_millis());
        told.push(format!("{} at {at:.0}", departure.key));
    }
    let (code, text) = world.run(&[]).await?;
    assert_eq!(code, 0);
    let line = format!("keep default/a\n  source/eu: let go later, unless declared again 3: {}\n", told.join(", "));
    assert!(text.starts_with(&line) && text.ends_with("pools: 1 as declared\n"), "{text}");
    assert!(text.contains("  api: let go later, unless declared again 12: own-00 at "), "{text}");
    let (_, yaml) = world.run(&["-o", "yaml"]).await?;
    assert!(yaml.contains("action: Keep") && yaml.contains("name: h3") && yaml.contains("origin: source/eu"), "{yaml}");

    // Without the source, what it brought leaves now: also what was to leave later.
    world.site.write("a.yaml", &pool("a", "{resources: [{name: x}], maxShrinkPercent: 100}"))?;
    let (code, plan) = world.plan(&[]).await?;
    let origins = of(&plan, "default/a")?["origins"].as_array().context("no list")?;
    let source = origins.iter().find(|it| it["origin"] == "source/eu").context("it leaves")?;
    assert_eq!((code, &source["removed"]["first"]), (2, &json!(["h1", "h2", "h3"])), "{plan}");
    assert_eq!((&source["kept"]["first"], &source["later"]), (&json!(["x"]), &Value::Null), "{plan}");
    assert_eq!(foretold(&plan), synced(&world.sync().await?));
    let left: Vec<_> = a.foresee_departures().await?.into_iter().map(|it| it.origin).collect();
    assert_eq!(left, vec![Origin::Api; 12]);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_is_said_with_its_reason() -> Result<()> {
    let world = World::new().await?;
    let theirs = world.client.pool("theirs")?;
    theirs.configure(&PoolSettings::default(), &Ownership { manager: Some("files:/other"), known: None }).await?;
    world.site.write("theirs.yaml", &pool_of("theirs", 1))?;
    world.site.write("bad.yaml", "kind: ResourcePool\n")?;
    let (code, plan) = world.plan(&[]).await?;
    assert_eq!(code, 1);
    let refused = of(&plan, "default/theirs")?;
    assert_eq!(refused["action"], "Refuse");
    let why = refused["why"].as_str().unwrap_or_default();
    assert!(why.starts_with("ManagerConflict: ") && why.contains("files:/other"), "{why}");
    assert!(plan["errors"][0].as_str().is_some_and(|error| error.contains("bad.yaml:1:1: apiVersion")), "{plan}");

    std::fs::remove_file(world.site.pools().join("bad.yaml"))?;
    let (code, plan) = world.plan(&["--takeover"]).await?;
    assert_eq!(code, 2, "{plan}");
    assert_eq!(of(&plan, "default/theirs")?["settings"][0]["from"], "files:/other");

    // A reserved resource, which a program's binding has.
    std::fs::remove_file(world.site.pools().join("theirs.yaml"))?;
    world.site.write("a.yaml", &pool_of("a", 2))?;
    world.sync().await?;
    let required = redis_allocator::BindOptions { policy: redis_allocator::BindPolicy::Required, ..Default::default() };
    world.client.pool("a")?.bind("theirs", "r0", &required).await?;
    world.site.write("binding.yaml", &binding("mine", "r0", ", policy: Required"))?;
    let (code, text) = world.run(&[]).await?;
    assert_eq!(code, 1);
    assert!(
        text.contains("  binding mine: refuse nothing -> r0 (Required): BindingConflict: r0 is reserved for theirs\n"),
        "{text}"
    );
    assert!(synced(&world.sync().await?).is_empty());
    let bindings = world.client.pool("a")?.bindings().await?;
    assert_eq!(bindings.iter().map(|binding| binding.name.as_str()).collect::<Vec<_>>(), ["theirs"]);
    Ok(())
}

#[tokio::test]
async fn a_directory_or_server_that_cannot_be_read_is_an_error() -> Result<()> {
    let world = World::new().await?;
    let (code, text) = world.run(&[]).await?;
    assert_eq!(code, 1);
    assert!(text.contains("found no object in") && text.contains("--allow-empty"), "{text}");
    world.site.write("a.yaml", &pool_of("a", 1))?;
    world.sync().await?;
    std::fs::remove_file(world.site.pools().join("a.yaml"))?;
    let (code, plan) = world.plan(&["--allow-empty"]).await?;
    assert_eq!((code, &of(&plan, "default/a")?["action"]), (2, &json!("Delete")), "{plan}");
    std::fs::remove_dir(world.site.pools())?;
    assert_eq!(world.run(&[]).await?.0, 1);

    let output = program::redis_allocator()?
        .args(["plan", "--config", "/tmp", "--redis-url", "redis://127.0.0.1:1"])
        .output()?;
    assert_eq!(output.status.code(), Some(1));
    Ok(())
}

#[tokio::test]
async fn a_pool_that_redis_lost_is_foreseen_as_held_back() -> Result<()> {
    let world = World::new().await?;
    world.site.write("a.yaml", &pool_of("a", 2))?;
    let mut agent = world.site.agent(&["--redis-url", &world.server.url()])?;
    agent.ready().await?;
    let lease = world.client.pool("a")?.malloc().await?.context("free")?;
    let remembered = world.site.state().join("pools.json");
    eventually(SOON, async || {
        ensure!(std::fs::read_to_string(&remembered)?.contains("\"secs\": 120"), "the lease is not remembered");
        Ok(())
    })
    .await?;
    agent.terminate().await?;
    drop(lease);
    world.server.flushall().await?;
    let (code, plan) = world.plan(&[]).await?;
    assert_eq!(code, 2);
    let a = of(&plan, "default/a")?;
    assert_eq!(a["action"], "Create");
    assert!(a["why"].as_str().is_some_and(|why| why.contains("held back")), "{plan}");
    world.sync().await?;
    assert!(world.client.pool("a")?.info().await?.hold.is_some());
    Ok(())
}
