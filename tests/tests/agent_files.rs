//! The agent and its directory of manifests: what is edited there is in Redis a moment later, and what is edited badly
//! changes nothing.

mod agent;
mod program;

use std::{fs, os::unix::fs::symlink, time::Duration};

use agent::{SOON, Site, pool, pool_of};
use anyhow::{Result, ensure};
use e2e::{Flavor, Server, eventually};
use redis_allocator::{Cause, Client, Error, Ownership, Pool, PoolSettings, ResourceKey};

/// A server, and a site whose agents use it.
async fn server() -> Result<(Server, Client, Site)> {
    let server = Server::start(Flavor::Redis).await?;
    let client = Client::connect(&server.url()).await?;
    Ok((server, client, Site::new()?))
}

/// How long it may take until an edit is in Redis: less than the half minute after which all files are read again,
/// whether or not something was noticed.
const NOTICED: Duration = Duration::from_secs(20);

async fn has(pool: &Pool, resources: u64) -> Result<()> {
    eventually(NOTICED, async || {
        let found = pool.len().await?;
        ensure!(found == resources, "{} has {found} resources", pool.name());
        Ok(())
    })
    .await
}

async fn is_gone(pool: &Pool) -> Result<()> {
    eventually(NOTICED, async || match pool.info().await {
        Err(Error::UnknownPool { .. }) => Ok(()),
        other => anyhow::bail!("{other:?}"),
    })
    .await
}

#[tokio::test]
async fn an_edit_is_in_redis_at_once() -> Result<()> {
    let (server, client, site) = server().await?;
    site.write("a.yaml", &pool_of("a", 2))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    assert_eq!(agent.ready().await?, "ready, leading");
    let a = client.pool("a")?;
    assert_eq!(a.len().await?, 2);

    let edited = std::time::Instant::now();
    site.write("a.yaml", &pool_of("a", 3))?;
    has(&a, 3).await?;
    // A fraction of it is usual. A machine that has no time is slower, but a change that was not noticed would wait for
    // the next look at all files, after half a minute.
    assert!(edited.elapsed() < Duration::from_secs(10), "{:?}", edited.elapsed());

    // As editors save: another file, renamed over the old one. Twice, because a watched file would be lost after once.
    for resources in [4, 5] {
        site.write(".a.yaml.swp", &pool_of("a", resources))?;
        fs::rename(site.pools().join(".a.yaml.swp"), site.pools().join("a.yaml"))?;
        has(&a, resources as u64).await?;
    }

    // In a subdirectory, and in another namespace.
    fs::create_dir(site.pools().join("lab"))?;
    site.write("lab/b.yml", &pool_of("b", 1).replace("{name: b}", "{name: b, namespace: lab}"))?;
    let b = client.pool("lab/b")?;
    eventually(NOTICED, async || Ok(b.info().await?)).await?;
    has(&b, 1).await
}

#[tokio::test]
async fn a_mounted_config_map_is_followed_through_its_swaps() -> Result<()> {
    let (server, client, site) = server().await?;
    let swap = |version: usize| -> Result<()> {
        let dir = site.pools().join(format!("..{version}"));
        fs::create_dir(&dir)?;
        fs::write(dir.join("a.yaml"), pool_of("a", version))?;
        symlink(format!("..{version}"), site.pools().join("..data_tmp"))?;
        fs::rename(site.pools().join("..data_tmp"), site.pools().join("..data"))?;
        if version > 1 {
            fs::remove_dir_all(site.pools().join(format!("..{}", version - 1)))?;
        }
        Ok(())
    };
    swap(1)?;
    symlink("..data/a.yaml", site.pools().join("a.yaml"))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    let a = client.pool("a")?;
    for version in 2..5 {
        swap(version)?;
        has(&a, version as u64).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_bad_edit_keeps_what_was_good_and_other_files_go_on() -> Result<()> {
    let (server, client, site) = server().await?;
    site.write("a.yaml", &pool_of("a", 2))?;
    site.write("b.yaml", &pool_of("b", 2))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    let (a, b) = (client.pool("a")?, client.pool("b")?);

    let unknown_field =
        "apiVersion: redis-allocator.dev/v1alpha1\nkind: ResourcePool\nmetadata: {name: a}\nspec: {oder: Random}\n";
    for (edit, bad, words) in
        [(3, "a: [", "a.yaml:1:4: not valid YAML"), (4, unknown_field, "a.yaml:4:8: spec.oder: found an unknown field")]
    {
        site.write("a.yaml", bad)?;
        agent.logged(words).await?;
        site.write("b.yaml", &pool_of("b", edit))?;
        has(&b, edit as u64).await?;
        assert_eq!(a.len().await?, 2);
    }
    site.write("c.yaml", &pool_of("b", 9))?;
    agent.logged("ResourcePool default/b is declared twice").await?;
    site.write("b.yaml", &pool_of("b", 8))?;
    // Nothing is to happen, so there is nothing to wait for but the time in which it would.
    tokio::time::sleep(Duration::from_millis(700)).await;
    agent.has_metric("redis_allocator_source_files_failed", 2).await?;
    assert_eq!((a.len().await?, b.len().await?), (2, 4), "neither place counts");
    fs::remove_file(site.pools().join("c.yaml"))?;
    has(&b, 8).await?;
    agent.has_metric("redis_allocator_source_files_failed", 1).await?;

    site.write("a.yaml", &pool_of("a", 7))?;
    has(&a, 7).await?;
    agent.ready().await?;
    Ok(())
}

#[tokio::test]
async fn a_removed_file_drains_its_pool_and_what_is_leased_goes_last() -> Result<()> {
    let (server, client, site) = server().await?;
    site.write("a.yaml", &pool_of("a", 3))?;
    site.write("b.yaml", &pool_of("b", 1))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    let a = client.pool("a")?;
    let lease = a.malloc().keep_alive().await?.expect("something is free");

    fs::remove_file(site.pools().join("a.yaml"))?;
    agent.has_condition("a", "Ready", "False", "Draining").await?;
    assert!(a.malloc().await?.is_none(), "nothing is granted any more");
    lease.renew().await?;
    lease.free().await?;
    is_gone(&a).await?;
    // The list of pools is told a moment later.
    eventually(SOON, async || {
        let left = client.pools("default").await?;
        ensure!(left.len() == 1, "only b is still there, not {left:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_pool_that_comes_back_while_it_drains_is_whole_again() -> Result<()> {
    let (server, client, site) = server().await?;
    site.write("a.yaml", &pool_of("a", 3))?;
    site.write("b.yaml", &pool_of("b", 1))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    let a = client.pool("a")?;
    let lease = a.malloc().keep_alive().await?.expect("something is free");
    fs::remove_file(site.pools().join("a.yaml"))?;
    agent.has_condition("a", "Ready", "False", "Draining").await?;
    site.write("a.yaml", &pool_of("a", 3))?;
    has(&a, 3).await?;
    eventually(SOON, async || {
        ensure!(a.info().await?.counts.free == 2, "{:?}", a.info().await?.counts);
        Ok(())
    })
    .await?;
    lease.renew().await?;
    assert!(a.check().await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn deletion_policies_do_as_they_say() -> Result<()> {
    let (server, client, site) = server().await?;
    site.write("keep.yaml", &pool_of("keep", 1))?;
    site.write("orphan.yaml", &pool("orphan", "{resources: [{name: x}], deletionPolicy: Orphan}"))?;
    site.write("revoke.yaml", &pool("revoke", "{resources: [{name: x}], deletionPolicy: Revoke}"))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    let (orphan, revoke) = (client.pool("orphan")?, client.pool("revoke")?);
    let orphaned = orphan.malloc().await?.expect("free");
    let revoked = revoke.malloc().await?.expect("free");
    fs::remove_file(site.pools().join("orphan.yaml"))?;
    fs::remove_file(site.pools().join("revoke.yaml"))?;
    is_gone(&revoke).await?;
    assert!(revoked.renew().await.is_err());
    eventually(SOON, async || {
        ensure!(orphan.info().await?.manager.is_none());
        Ok(())
    })
    .await?;
    orphaned.renew().await?;
    Ok(())
}

#[tokio::test]
async fn a_directory_that_lost_everything_changes_nothing_but_readiness() -> Result<()> {
    let (server, client, site) = server().await?;
    site.write("a.yaml", &pool_of("a", 2))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    let a = client.pool("a")?;

    fs::remove_file(site.pools().join("a.yaml"))?;
    agent.not_ready_because("--allow-empty").await?;
    assert_eq!(a.info().await?.counts.free, 2);
    fs::remove_dir(site.pools())?;
    agent.logged("No such file").await?;
    assert_eq!(a.info().await?.counts.free, 2);

    // Nor does an agent that starts like this, and remembers that it managed something.
    assert!(agent.terminate().await?.success());
    fs::create_dir(site.pools())?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.not_ready_because("--allow-empty").await?;
    // The log has words of the agent before.
    agent.has_metric("redis_allocator_leader", 1).await?;
    assert_eq!(a.info().await?.counts.free, 2);

    site.write("a.yaml", &pool_of("a", 4))?;
    agent.ready().await?;
    has(&a, 4).await?;
    assert!(agent.terminate().await?.success());

    // What is deleted while no agent runs is deleted by the next one, if it is told that this is meant.
    fs::remove_file(site.pools().join("a.yaml"))?;
    let mut agent = site.agent(&["--redis-url", &server.url(), "--allow-empty"])?;
    agent.ready().await?;
    is_gone(&a).await
}

#[tokio::test]
async fn a_pool_deleted_while_no_agent_ran_is_taken_down_by_the_next_one() -> Result<()> {
    let (server, client, site) = server().await?;
    site.write("a.yaml", &pool_of("a", 2))?;
    site.write("b.yaml", &pool_of("b", 2))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    assert!(agent.terminate().await?.success());

    fs::remove_file(site.pools().join("a.yaml"))?;
    // A file that can't be read may have declared anything: nothing is deleted until it can.
    site.write("c.yaml", "a: [")?;
    // Without the state directory: Redis itself says what is managed.
    fs::remove_dir_all(site.state())?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    let a = client.pool("a")?;
    assert_eq!(a.len().await?, 2);
    fs::remove_file(site.pools().join("c.yaml"))?;
    is_gone(&a).await?;
    assert_eq!(client.pool("b")?.len().await?, 2);
    Ok(())
}

#[tokio::test]
async fn too_great_a_shrink_is_held_back_until_it_is_allowed() -> Result<()> {
    let (server, client, site) = server().await?;
    let range = |to: u64, percent: u8| {
        pool(
            "a",
            &format!("{{ranges: [{{name: r, template: 'r{{}}', from: 1, to: {to}}}], maxShrinkPercent: {percent}}}"),
        )
    };
    site.write("a.yaml", &range(10, 50))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    let a = client.pool("a")?;
    site.write("a.yaml", &range(2, 50))?;
    agent.has_condition("a", "Synced", "False", "ShrinkHeldBack").await?;
    assert_eq!(agent.condition("a", "Ready")?.0, "True");
    assert_eq!(a.len().await?, 10);
    site.write("a.yaml", &range(2, 100))?;
    has(&a, 2).await?;
    agent.has_condition("a", "Synced", "True", "Synced").await
}

#[tokio::test]
async fn declared_bindings_come_and_go_and_say_what_is_wrong() -> Result<()> {
    let (server, client, site) = server().await?;
    let binding = |name: &str, pool: &str, resource: &str, policy: &str| {
        format!(
            "apiVersion: redis-allocator.dev/v1alpha1\nkind: SoftBinding\nmetadata: {{name: {name}}}\nspec: {{poolRef: \
             {{name: {pool}}}, resourceName: {resource}, policy: {policy}}}\n---\n"
        )
    };
    site.write("a.yaml", &pool_of("a", 3))?;
    let all = [
        binding("good", "a", "r0", "Required"),
        binding("lost", "a", "r9", "Preferred"),
        binding("homeless", "nowhere", "r0", "Preferred"),
    ];
    site.write("b.yaml", &all.concat())?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    agent.has_condition("good", "Ready", "True", "Bound").await?;
    agent.has_condition("lost", "Ready", "False", "ResourceNotFound").await?;
    agent.has_condition("homeless", "Ready", "False", "PoolNotFound").await?;
    let a = client.pool("a")?;
    assert_eq!(a.malloc().bind("good").await?.expect("reserved for it").key().as_str(), "r0");

    site.write("c.yaml", &binding("rival", "a", "r0", "Required"))?;
    agent.has_condition("rival", "Ready", "False", "BindingConflict").await?;
    agent.logged("c.yaml:1:1: spec.resourceName").await?;

    // An agent that starts with a broken file does not know what it declared: what is bound stays.
    assert!(agent.terminate().await?.success());
    site.write("b.yaml", "a: [")?;
    fs::remove_file(site.pools().join("c.yaml"))?;
    let mut agent = site.agent(&["--redis-url", &server.url()])?;
    agent.ready().await?;
    assert!(a.binding("good").await?.is_some());
    site.write("b.yaml", &all.concat())?;
    site.write("c.yaml", &binding("rival", "a", "r0", "Required"))?;
    agent.has_condition("good", "Ready", "True", "Bound").await?;

    // A binding made by a program stays when declared ones go.
    a.bind("own", "r1", &redis_allocator::BindOptions::default()).await?;
    fs::remove_file(site.pools().join("b.yaml"))?;
    agent.has_condition("rival", "Ready", "True", "Bound").await?;
    assert!(a.binding("good").await?.is_none());
    assert!(a.binding("own").await?.is_some());
    Ok(())
}

#[tokio::test]
async fn a_pool_that_another_declaration_manages_is_left_alone() -> Result<()> {
    let (server, client, site) = server().await?;
    site.write("a.yaml", &pool_of("a", 2))?;
    let mut agent = site.agent(&["--redis-url", &server.url(), "--manager-id", "first"])?;
    agent.ready().await?;
    let other = Site::new()?;
    other.write("a.yaml", &pool_of("a", 5))?;
    let mut rival = other.agent(&["--redis-url", &server.url(), "--manager-id", "second"])?;
    rival.ready().await?;
    rival.has_condition("a", "Ready", "False", "ManagerConflict").await?;
    let a = client.pool("a")?;
    assert_eq!(a.len().await?, 2);

    let refused = rival.log().matches("reconciling the pool failed").count();
    assert_eq!(refused, 1, "one line for one trouble:\n{}", rival.log());

    // Not declaring it any more takes nothing from its manager.
    fs::remove_file(other.pools().join("a.yaml"))?;
    other.write("b.yaml", &pool_of("b", 1))?;
    let b = client.pool("b")?;
    eventually(NOTICED, async || Ok(b.info().await?)).await?;
    assert_eq!(a.info().await?.manager.as_deref(), Some("first"));

    other.write("a.yaml", &pool_of("a", 5))?;
    assert!(rival.terminate().await?.success());
    assert!(agent.terminate().await?.success());
    let mut rival = other.agent(&["--redis-url", &server.url(), "--manager-id", "second", "--takeover"])?;
    rival.ready().await?;
    has(&a, 5).await
}

#[tokio::test]
async fn an_agent_acts_on_a_pool_only_while_it_is_its_own() -> Result<()> {
    let (server, client, site) = server().await?;
    let a = client.pool("a")?;
    a.configure(&PoolSettings::default(), &Ownership { manager: Some("first"), known: None }).await?;
    a.extend([ResourceKey::new("r0")?]).await?;
    a.quarantine("r0", None, "found by the first", Cause::Probe).await?;
    let quarantined = async |expected: u64| {
        eventually(SOON, async || {
            let counts = a.info().await?.counts;
            ensure!(counts.quarantined == expected, "{counts:?}");
            Ok(())
        })
        .await
    };

    site.write("a.yaml", &pool("a", "{resources: [{name: r1}], gc: {interval: 200ms}}"))?;
    let mut agent = site.agent(&["--redis-url", &server.url(), "--manager-id", "second"])?;
    agent.ready().await?;
    agent.has_condition("a", "Ready", "False", "ManagerConflict").await?;
    // Nothing is to happen, so there is nothing to wait for but the time in which it would.
    tokio::time::sleep(Duration::from_millis(700)).await;
    quarantined(1).await?;

    // Its own now, it ends the quarantine of a prober that the declaration does not have.
    a.takeover("second").await?;
    eventually(Duration::from_secs(40), async || {
        let counts = a.info().await?.counts;
        ensure!(counts.quarantined == 0, "{counts:?}");
        Ok(())
    })
    .await?;
    agent.has_condition("a", "Ready", "True", "Ready").await?;

    // It sees within its next collection that it is not any more, long before it would reconcile.
    a.takeover("first").await?;
    agent.has_condition("a", "Ready", "False", "ManagerConflict").await?;
    Ok(())
}
