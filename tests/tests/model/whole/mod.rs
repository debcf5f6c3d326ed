//! The whole pool against a plain model of it: shared ones too, with those who wait in line, ask for several or by
//! selector, with sessions, and with what is declared for a time. Random sequences of single script calls, so that a
//! waiter looks, dies or asks again after a lost reply at moments that the test chooses. After each step the answer, who
//! was woken and all that can be seen must be what the model says, and `check` must find nothing.
//!
//! | variable | meaning |
//! |---|---|
//! | `WHOLE_STEPS` | how many steps for each theme, half of them on each server; default 8,000, for lines 16,000 |
//! | `PROPTEST_RNG_SEED` | a number that repeats a run; default a random one, which is printed |
//!
//! | file | idea |
//! |---|---|
//! | `step` | what can be done, and answered |
//! | `reference` | the model |
//! | `system`, `read` | the same on a server |
//! | `generate` | which steps are taken, and which theme takes which more often |
//! | `deeds` | what must have happened |

mod deeds;
mod generate;
mod read;
mod reference;
mod step;
mod system;

use std::{collections::BTreeMap, fmt::Write as _, time::Instant};

use anyhow::{Context, Result, anyhow, bail};
use e2e::Flavor;

use self::{
    generate::{Dice, Theme},
    reference::Reference,
    step::{Settings, Step},
    system::{System, channel_of},
};
use crate::{number, random_seed, shortest};

/// Steps in one sequence: some dozen waiters come and go.
const LENGTH: usize = 150;
const STEPS: usize = 8_000;

type Deeds = BTreeMap<&'static str, usize>;

#[test]
fn waiters_are_served_in_turn_by_selector_and_several_at_once() {
    run(Theme::Line);
}

#[test]
fn shared_pools_rotate_and_keep_to_their_most_holders() {
    run(Theme::Shared);
}

#[test]
fn sessions_keep_their_leases_and_end_them() {
    run(Theme::Sessions);
}

#[test]
fn what_is_declared_for_a_time_leaves_when_it_is_over() {
    run(Theme::Declared);
}

fn run(theme: Theme) {
    // Lines have the rarest moments.
    let enough = if theme == Theme::Line { 2 * STEPS } else { STEPS };
    let steps = number("WHOLE_STEPS").map_or(enough, |steps| usize::try_from(steps).unwrap());
    let seed = number("PROPTEST_RNG_SEED").unwrap_or_else(random_seed);
    println!("PROPTEST_RNG_SEED={seed} repeats this run of {steps} steps");
    let begun = Instant::now();
    let mut deeds = Deeds::new();
    for flavor in Flavor::ALL {
        if let Err(error) = run_on(flavor, theme, steps / 2, seed, &mut deeds) {
            panic!("{error:#}");
        }
    }
    let mut report = String::new();
    for (deed, count) in &deeds {
        writeln!(report, "{count:>8}  {deed}").unwrap();
    }
    println!("{report}{theme:?}: {steps} steps in {:.0} s", begun.elapsed().as_secs_f64());
    // Fewer steps prove less; a smaller number may miss by chance.
    if steps >= enough {
        let rare: Vec<_> = deeds::required(theme).filter(|deed| !deeds.contains_key(deed)).collect();
        assert!(rare.is_empty(), "{theme:?}: never happened: {rare:?}");
    }
}

fn run_on(flavor: Flavor, theme: Theme, steps: usize, seed: u64, deeds: &mut Deeds) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut system = runtime.block_on(System::start(flavor))?;
    let mut dice = Dice::new(seed ^ ((flavor as u64) << 8) ^ theme as u64);
    let (mut taken, begun) = (0, Instant::now());
    while taken < steps {
        let settings = generate::settings(theme, &mut dice);
        let mut done = Vec::new();
        let outcome: Result<()> = runtime.block_on(async {
            let mut reference = Reference::new(settings.clone());
            system.create(&reference).await?;
            for _ in 0..LENGTH {
                let step = generate::draw(theme, &reference, &mut dice);
                done.push(step.clone());
                let result = both(&mut system, &mut reference, &step).await;
                taken += 1;
                reference.deeds.iter().for_each(|deed| *deeds.entry(*deed).or_default() += 1);
                result?;
            }
            Ok(())
        });
        let Err(error) = outcome else { continue };
        let found_after = begun.elapsed().as_secs_f64();
        let again = |steps: &[Step]| runtime.block_on(async { replay(&mut system, &settings, steps).await.err() });
        let (done, shorter) = shortest(done, |steps| is_possible(&settings, steps), again);
        let error = shorter.unwrap_or_else(|| anyhow!("{error:#}"));
        let mut text = format!(
            "{flavor}, {theme:?}: at step {taken}, after {found_after:.1} s, the library and the model differ: {error:#}\n\
             The shortest such sequence, of a pool with {settings:?}:\n"
        );
        for (i, step) in done.iter().enumerate() {
            writeln!(text, "{:>4}. {step:?}", i + 1)?;
        }
        bail!(text);
    }
    Ok(())
}

fn is_possible(settings: &Settings, steps: &[Step]) -> bool {
    let mut reference = Reference::new(settings.clone());
    steps.iter().all(|step| {
        let possible = reference.allows(step);
        if possible {
            reference.apply(step, Vec::new());
        }
        possible
    })
}

async fn replay(system: &mut System, settings: &Settings, steps: &[Step]) -> Result<()> {
    let mut reference = Reference::new(settings.clone());
    system.create(&reference).await?;
    for (i, step) in steps.iter().enumerate() {
        both(system, &mut reference, step).await.with_context(|| format!("step {}, {step:?}", i + 1))?;
    }
    Ok(())
}

/// Does one step on both sides.
async fn both(system: &mut System, reference: &mut Reference, step: &Step) -> Result<()> {
    let found = system.run(step, reference).await;
    let chosen = found.as_ref().map(|found| found.granted.clone()).unwrap_or_default();
    let expected = reference.apply(step, chosen);
    let found = found?;
    let mut lines = Vec::new();
    let mut differ = |what: &str, expected: &dyn std::fmt::Debug, found: &dyn std::fmt::Debug| {
        lines.push(format!("{what}:\n  expected {expected:?}\n  found    {found:?}"));
    };
    if expected != found.reply {
        differ("answer", &expected, &found.reply);
    }
    let woken: Vec<_> = reference.woken.iter().map(|id| (channel_of(id), (*id).to_owned())).collect();
    if woken != found.woken {
        differ("woken", &woken, &found.woken);
    }
    let view = reference.view();
    for name in view.keys().chain(found.view.keys().filter(|name| !view.contains_key(*name))) {
        if view.get(name) != found.view.get(name) {
            differ(name, &view.get(name), &found.view.get(name));
        }
    }
    if !lines.is_empty() {
        bail!("\n{}", lines.join("\n"));
    }
    // A rule of its own, whatever the way there.
    if matches!(step, Step::Gc { count: 200 })
        && let Some(withheld) = reference.withheld()
    {
        bail!("{withheld}");
    }
    Ok(())
}
