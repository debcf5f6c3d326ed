//! Grants whose reply is lost: they end by their time, or as soon as the reply comes after all.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{
    Flavor,
    proxy::{Exchange, Fate},
};
use redis_allocator::{CLOCK_SLACK, Error, Longest, LostReason, Place, Ttl};

use crate::scene::{Deployment, SOON, TIMEOUT, TTL, done, everywhere, in_turn, on_all};

/// How long a permanent grant is only claimed, until it is confirmed.
const CLAIM: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_nobody_heard_of_ends_by_its_time() -> Result<()> {
    everywhere(async |scene, fate| {
        let (granted, before) = (scene.granted().await?, scene.server.command_stats().await?);
        scene.lose(1, fate).await?;
        let error = scene.pool.malloc().await.err().context("a reply came through")?;
        ensure!(matches!(error, Error::OutcomeUnknown { operation: "malloc", .. }), "{error}");
        ensure!(scene.granted().await? == granted + 1, "{granted} grants became {}", scene.granted().await?);
        let after = scene.server.command_stats().await?;
        ensure!(after.calls("zpopmin") == before.calls("zpopmin") + 1, "executed more than once");
        // The next call is not harmed, and gets another resource.
        let lease = scene.pool.malloc().ttl(TTL * 60).await?.context("others are free")?;
        let info = scene.sound.info().await?;
        ensure!(info.counts.leased <= 2, "{:?}", info.counts);
        lease.free().await?;
        scene.all_come_back(TTL + CLOCK_SLACK + SOON).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_late_reply_brings_is_freed() -> Result<()> {
    on_all(async |deployment| {
        for (name, ttl) in [("timed", Ttl::For(TTL * 600)), ("permanent", Ttl::Permanent)] {
            let scene = deployment.scene(name).await?;
            let granted = scene.granted().await?;
            let key = |part| format!("ra:{{default/{name}}}:{part}");
            scene.proxy.hold_replies();
            let error = scene.pool.malloc().ttl(ttl).await.err().context("a reply came through")?;
            ensure!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
            // Asked directly: in a Cluster, every client goes through the proxy.
            let seen: u64 = scene.server.cmd(&["HGET", &key("meta"), "granted"]).await?;
            ensure!(seen == granted + 1, "{granted} grants became {seen}");
            let leased: u64 = scene.server.cmd(&["ZCARD", &key("leases")]).await?;
            ensure!(leased == 1, "freed before its reply came");
            scene.proxy.pass();
            scene.all_come_back(SOON).await?;
            scene.nothing_expired().await?;
            ensure!(scene.granted().await? == granted + 1, "granted again");
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permanent_grant_begins_as_a_claim() -> Result<()> {
    everywhere(async |scene, fate| {
        scene.lose(1, fate).await?;
        let error = scene.pool.malloc().permanent().await.err().context("a reply came through")?;
        ensure!(matches!(error, Error::OutcomeUnknown { operation: "malloc", .. }), "{error}");
        let leased = scene.sound.snapshot().await?.into_iter().find_map(|resource| match resource.place {
            Place::Leased(lease) => Some(lease),
            _ => None,
        });
        let lease = leased.context("nothing is leased")?;
        let expires = lease.expires_at.context("it is permanent although nobody heard of it")?;
        ensure!(expires.as_millis() - lease.granted_at.as_millis() == 10_000, "{lease:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_nobody_confirms_is_over_in_time() -> Result<()> {
    let claim = async {
        let deployment = Deployment::single(Flavor::Redis).await?;
        let scene = deployment.scene("claim").await?;
        scene.lose(1, Fate::Close).await?;
        let asked = Instant::now();
        scene.pool.malloc().permanent().await.err().context("a reply came through")?;
        scene.all_come_back(CLAIM + CLOCK_SLACK + SOON).await?;
        let took = asked.elapsed();
        ensure!(took > CLAIM, "it was over after {took:?}: somebody else ended it");
        Ok(())
    };
    in_turn(claim).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmation_is_repeated_or_given_up() -> Result<()> {
    everywhere(async |scene, fate| {
        // Lost once: said again, and the grant is permanent.
        scene.proxy.drop_replies_where(1, fate, |exchange| done(exchange) && is_renewal(exchange));
        let lease = scene.pool.malloc().permanent().await?.context("free")?;
        ensure!(lease.deadline().is_none(), "{lease:?}");
        ensure!(scene.proxy.dropped() > 0, "no confirmation was lost");
        lease.free().await?;
        // Lost every time: given up, and freed in the background.
        scene.ready().await?;
        scene.proxy.drop_replies_where(u64::MAX, fate, |exchange| done(exchange) && is_renewal(exchange));
        let error = scene.pool.malloc().permanent().await.err().context("a confirmation came through")?;
        ensure!(matches!(error, Error::OutcomeUnknown { operation: "renew", .. }), "{error}");
        scene.all_come_back(SOON).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_became_permanent_unheard_of_is_freed_when_redis_is_back() -> Result<()> {
    in_turn(async {
        tokio::try_join!(
            Box::pin(a_permanent_lease_unheard_of(Flavor::Redis, false)),
            Box::pin(a_permanent_lease_unheard_of(Flavor::Redis, true)),
            Box::pin(a_permanent_lease_unheard_of(Flavor::Valkey, false)),
            Box::pin(a_permanent_lease_unheard_of(Flavor::Valkey, true)),
        )
        .map(drop)
    })
    .await
}

/// `dropped_late`: after its holder was told that it is lost, else before.
async fn a_permanent_lease_unheard_of(flavor: Flavor, dropped_late: bool) -> Result<()> {
    let deployment = Deployment::single(flavor).await?;
    let scene = deployment.scene("unheard").await?;
    let lease = scene.pool.malloc().ttl(TIMEOUT * 3).await?.context("free")?;
    // Now the script is known.
    lease.renew().await?;
    let lost = lease.lost_token();
    scene.proxy.hold_replies();
    let outcome = lease.renew_for(Ttl::Permanent).await;
    ensure!(matches!(outcome, Err(Error::OutcomeUnknown { .. })), "{outcome:?}");
    scene.proxy.refuse();
    if dropped_late {
        lost.cancelled().await;
        ensure!(matches!(lease.renew().await, Err(Error::Lost { reason: LostReason::Expired, .. })));
        drop(lease);
    } else {
        drop(lease);
        // Longer than what the holder knew of.
        tokio::time::sleep(TIMEOUT * 3).await;
    }
    let info = scene.sound.info().await?;
    ensure!(info.counts.leased == 1 && info.longest == Longest::Permanent, "{info:?}");
    scene.proxy.pass();
    scene.all_come_back(SOON).await?;
    Ok(())
}

/// A renewal names the pool's incarnation first, 16 hexadecimal digits, and ends with a holder's record.
fn is_renewal(exchange: &Exchange<'_>) -> bool {
    let arguments = exchange.request();
    let keys: usize =
        arguments.get(2).and_then(|count| std::str::from_utf8(count).ok()?.parse().ok()).unwrap_or_default();
    arguments.get(3 + keys).is_some_and(|first| first.len() == 16 && first.iter().all(u8::is_ascii_hexdigit))
        && arguments.len() > 5 + keys
}
