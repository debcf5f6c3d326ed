//! What synchronisations would do, worked out without writing, is what they then do: random declarations of several
//! origins that share resources, on a pool with leases.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use e2e::{Flavor, Server};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use redis_allocator::{
    Client, Item, Origin, Ownership, Place, Pool, PoolSettings, Removal, ResourceKey, SyncForesight, SyncOptions,
    SyncOutcome,
};

/// Passes over all origins on each server.
const PASSES: usize = 120;
const TTL: std::time::Duration = std::time::Duration::from_mins(5);

/// A resource by number, its priority, and whether it has a label.
type Declared = (u8, u16, bool);

/// What happens before a pass, and the pass.
#[derive(Debug, Clone)]
struct Pass {
    extend: Vec<u8>,
    shrink: Vec<u8>,
    lease: bool,
    free: bool,
    /// For each origin; `None`: what it was.
    declared: Vec<Option<Vec<Declared>>>,
    revoke: bool,
    percent: u8,
}

fn pass() -> impl Strategy<Value = Pass> {
    let declared = prop::collection::vec((0..12u8, 0..2u16, any::<bool>()), 0..8);
    let declared = prop::collection::vec(prop::option::of(declared), 3);
    let extended = prop::collection::vec(0..12u8, 0..2);
    let shrunk = prop::collection::vec(0..12u8, 0..5);
    ((extended, shrunk), any::<bool>(), any::<bool>(), declared, any::<bool>(), 0..3u8).prop_map(
        |((extend, shrink), lease, free, declared, revoke, third)| Pass {
            extend,
            shrink,
            lease,
            free,
            declared,
            revoke,
            percent: [50, 80, 100][usize::from(third)],
        },
    )
}

fn key(number: u8) -> Result<ResourceKey> {
    Ok(format!("r{number}").parse()?)
}

fn items(declared: &[Declared]) -> Result<Vec<Item>> {
    // Each once, in the order of the declaration.
    let mut seen = std::collections::BTreeSet::new();
    let once = declared.iter().filter(|(number, ..)| seen.insert(*number)).zip(0..);
    once.map(|((number, priority, labelled), position)| {
        let item = Item::new(key(*number)?).priority(*priority).position(position);
        Ok(if *labelled { item.label("zone", "a") } else { item })
    })
    .collect()
}

type Facts = (u16, BTreeMap<String, String>, Vec<Origin>, bool, bool);

/// What is declared and what is leased.
async fn state(pool: &Pool) -> Result<BTreeMap<String, Facts>> {
    let resources = pool.snapshot().await?.into_iter();
    Ok(resources
        .map(|it| {
            let leased = matches!(it.place, Place::Leased(_));
            (it.key.to_string(), (it.priority, it.labels, it.origins, it.declared, leased))
        })
        .collect())
}

/// Whether the lists of names say what the difference of two states does.
fn names_are_right(
    foreseen: &SyncForesight,
    before: &BTreeMap<String, Facts>,
    after: &BTreeMap<String, Facts>,
) -> bool {
    let is_declared = |state: &BTreeMap<String, Facts>, key: &str| state.get(key).is_some_and(|facts| facts.3);
    let names = |keys: &[ResourceKey]| keys.iter().map(ToString::to_string).collect::<Vec<_>>();
    let removed: Vec<_> = foreseen.removed.iter().map(|(key, _)| key.to_string()).collect();
    names(&foreseen.added).iter().all(|key| !is_declared(before, key) && is_declared(after, key))
        && names(&foreseen.updated).iter().all(|key| is_declared(before, key) && is_declared(after, key))
        && removed.iter().all(|key| is_declared(before, key) && !is_declared(after, key))
        && names(&foreseen.kept).iter().all(|key| {
            let had = before.get(key).is_some_and(|facts| facts.2.contains(&foreseen.origin));
            had && after.get(key).is_some_and(|facts| facts.3 && !facts.2.contains(&foreseen.origin))
        })
}

#[tokio::test]
async fn synchronisations_do_what_was_foreseen() -> Result<()> {
    let origins = [Origin::Spec, Origin::Range("a".to_owned()), Origin::Source("b".to_owned())];
    for flavor in Flavor::ALL {
        let server = Server::start(flavor).await?;
        let pool = Client::connect(&server.url()).await?.pool("lab/gpus")?;
        pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        let mut leased = Vec::new();
        let (mut draining, mut revoked, mut held, mut kept) = (0, 0, 0, 0);
        let mut latest = vec![Vec::new(); origins.len()];
        for number in 0..PASSES {
            let strategy = pass();
            let pass = strategy.new_tree(&mut runner).map_err(|reason| anyhow::anyhow!("{reason}"))?.current();
            pool.extend(pass.extend.iter().map(|number| key(*number)).collect::<Result<Vec<_>>>()?).await?;
            // Else, in the end, a program would declare everything, and nothing would ever leave.
            pool.shrink(pass.shrink.iter().map(|number| format!("r{number}"))).await?;
            if pass.lease {
                leased.extend(pool.malloc_key(TTL).await?);
                leased.extend(pool.malloc_key(TTL).await?);
            }
            if pass.free && !leased.is_empty() {
                pool.free_keys([leased.remove(0)]).await?;
            }
            let removal = if pass.revoke { Removal::Revoke } else { Removal::Drain };
            let options = SyncOptions { removal, max_shrink_percent: pass.percent, ..SyncOptions::default() };
            for (latest, declared) in latest.iter_mut().zip(&pass.declared) {
                if let Some(declared) = declared {
                    latest.clone_from(declared);
                }
            }
            let declared = origins.iter().zip(&latest).map(|(origin, declared)| Ok((origin.clone(), items(declared)?)));
            let declared = declared.collect::<Result<Vec<_>>>()?;

            let before_all = state(&pool).await?;
            let foreseen = pool.foresee_syncs(declared.clone(), &options).await?;
            ensure!(state(&pool).await? == before_all, "looking changed the pool in pass {number}");
            for ((origin, items), foreseen) in declared.into_iter().zip(foreseen) {
                let before = state(&pool).await?;
                let outcome = pool.sync(&origin, items, &options).await?;
                let told = (&foreseen.origin, foreseen.outcome);
                ensure!(told == (&origin, outcome), "pass {number}: {foreseen:?}, and it was {outcome:?}: {pass:?}");
                let after = state(&pool).await?;
                ensure!(
                    names_are_right(&foreseen, &before, &after),
                    "pass {number}: {foreseen:?}: {before:?} {after:?}"
                );
                match outcome {
                    SyncOutcome::Applied { draining: some, revoked: others, .. } => {
                        draining += some;
                        revoked += others;
                    }
                    SyncOutcome::HeldBack { .. } => held += 1,
                    SyncOutcome::Unchanged => {}
                }
                kept += foreseen.kept.len();
            }
            ensure!(pool.check().await?.is_empty(), "{:?}", pool.check().await?);
        }
        ensure!(
            draining > 0 && revoked > 0 && held > 0 && kept > 0,
            "too little happened: {draining} drained, {revoked} revoked, {held} held back, {kept} kept"
        );
    }
    Ok(())
}

#[tokio::test]
async fn of_two_sources_that_list_a_resource_the_first_by_name_says_what_it_is_whoever_writes_last() -> Result<()> {
    let item = |priority| -> Result<Vec<Item>> { Ok(vec![Item::new("r".parse()?).priority(priority)]) };
    let options = SyncOptions::default();
    for flavor in Flavor::ALL {
        let server = Server::start(flavor).await?;
        let pool = Client::connect(&server.url()).await?.pool("lab/gpus")?;
        pool.configure(&PoolSettings::default(), &Ownership::default()).await?;
        // Byte by byte, which is another order than a dictionary's.
        let [first, second] = ["a-b", "aa"].map(|name| Origin::Source(name.to_owned()));
        let writes =
            [(&second, 500, 500), (&first, 600, 600), (&second, 700, 600), (&first, 800, 800), (&second, 900, 800)];
        for (origin, priority, expected) in writes {
            let foreseen = pool.foresee_syncs(vec![(origin.clone(), item(priority)?)], &options).await?;
            let outcome = pool.sync(origin, item(priority)?, &options).await?;
            ensure!(foreseen[0].outcome == outcome, "{foreseen:?} {outcome:?}");
            let found = pool.get("r").await?.context("it is declared")?.priority;
            ensure!(found == expected, "{found} after {origin} said {priority}");
        }
        // It has no say any more: the other one's facts come back with its next list.
        pool.sync(&first, Vec::new(), &options).await?;
        pool.sync(&second, item(900)?, &options).await?;
        ensure!(pool.get("r").await?.context("it is declared")?.priority == 900);
    }
    Ok(())
}
