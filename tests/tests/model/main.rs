//! The library against a plain model of it: random sequences of every operation and of time passing, on Redis 7 and on
//! Valkey 9. After each step the answer and all that can be seen of the pool must be what the model says, and `check`
//! must find nothing. The time is the test's own; nothing is slept for.
//!
//! | variable | meaning |
//! |---|---|
//! | `MODEL_STEPS` | how many steps, on both servers together; default 60,000 |
//! | `PROPTEST_RNG_SEED` | a number that repeats a run; default a random one, which is printed |
//!
//! A failing sequence is made as short as possible and printed. That every kind of step did its real work often enough
//! is asserted, too: the counts are printed at the end (`--nocapture`).
//!
//! | file | idea |
//! |---|---|
//! | `step` | what can be done, and answered |
//! | `reference` | the model |
//! | `system`, `observe` | the same on the real pool |
//! | `looks` | what is seen of the real pool in one call |
//! | `view` | what can be seen of either |
//! | `generate`, `chances` | which steps are taken |
//! | `deeds` | what must have happened, and how often |
//! | `whole` | the same idea once more, one script call at a time: shared pools, lines, selectors, sessions |

mod chances;
mod deeds;
mod generate;
mod looks;
mod observe;
mod reference;
mod step;
mod system;
mod view;
mod whole;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::Write as _,
    thread,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow, bail};
use e2e::Flavor;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestCaseError, TestError, TestRunner};
use proptest_state_machine::ReferenceStateMachine;

use self::{
    deeds::{Deeds, REQUIRED},
    generate::Machine,
    reference::{Reference, key_of},
    step::{Outcome, Step},
    system::{Bench, System},
    view::View,
};

/// Steps in one sequence: long enough for a pool to be lost and refilled, short enough to be made small.
const LENGTH: usize = 200;
const STEPS: usize = 60_000;
/// How often each deed must have happened in so many steps.
const OFTEN: usize = 200;

#[test]
fn every_operation_does_what_the_model_says() {
    let steps = number("MODEL_STEPS").map_or(STEPS, |steps| usize::try_from(steps).unwrap());
    let seed = number("PROPTEST_RNG_SEED").unwrap_or_else(random_seed);
    println!("PROPTEST_RNG_SEED={seed} repeats this run of {steps} steps");
    let begun = Instant::now();
    let each = steps / Flavor::ALL.len();
    let runs = Flavor::ALL.map(|flavor| thread::spawn(move || run(flavor, each, seed)));
    let mut deeds = Deeds::new();
    let mut failures = Vec::new();
    for run in runs {
        match run.join().unwrap() {
            Ok(done) => done.into_iter().for_each(|(deed, count)| *deeds.entry(deed).or_default() += count),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));

    let mut report = String::new();
    for deed in REQUIRED {
        writeln!(report, "{:>8}  {deed}", deeds.get(deed).copied().unwrap_or(0)).unwrap();
    }
    println!("{report}{steps} steps in {:.0} s", begun.elapsed().as_secs_f64());
    let unlisted: Vec<_> = deeds.keys().filter(|deed| !REQUIRED.contains(deed)).collect();
    assert!(unlisted.is_empty(), "the list of what must happen lacks {unlisted:?}");
    // Fewer steps prove less; a smaller number may miss by chance.
    if steps >= STEPS {
        let rare: Vec<_> = REQUIRED.iter().filter(|deed| deeds.get(*deed).copied().unwrap_or(0) < OFTEN).collect();
        assert!(rare.is_empty(), "happened less than {OFTEN} times: {rare:?}");
    }
}

/// An environment variable, if it is set to a number.
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, no number")))
}

fn random_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::from(now.subsec_nanos()) ^ now.as_secs()
}

/// Runs sequences on one server; what they did, or the shortest one that failed.
fn run(flavor: Flavor, steps: usize, seed: u64) -> Result<Deeds> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let bench = runtime.block_on(Bench::start(flavor))?;
    let deeds = RefCell::new(BTreeMap::new());
    let taken = Cell::new(0_usize);
    let begun = Instant::now();
    let config = Config {
        cases: u32::try_from(steps.div_ceil(LENGTH))?,
        rng_seed: RngSeed::Fixed(seed ^ flavor as u64),
        // Half of an unoptimised run would go into better numbers.
        rng_algorithm: RngAlgorithm::XorShift,
        failure_persistence: None,
        max_shrink_iters: 0,
        verbose: 0,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&Machine::sequential_strategy(LENGTH), |(reference, steps, _)| {
        let counted = |step: &Reference| {
            taken.set(taken.get() + 1);
            let mut deeds = deeds.borrow_mut();
            step.deeds.iter().for_each(|deed| *deeds.entry(*deed).or_insert(0) += 1);
        };
        runtime
            .block_on(sequence(&bench, reference, &steps, counted))
            .map_err(|error| TestCaseError::fail(format!("{error:#}")))
    });
    match outcome {
        Ok(()) => Ok(deeds.into_inner()),
        Err(TestError::Abort(reason)) => Err(anyhow!("{flavor}: no sequences could be made: {reason}")),
        Err(TestError::Fail(reason, (_, steps, _))) => {
            let (found_at, found_after) = (taken.get(), begun.elapsed().as_secs_f64());
            let fails = |steps: &[Step]| runtime.block_on(sequence(&bench, Reference::new(), steps, |_| ())).err();
            let (steps, error) = shortest(steps, is_possible, fails);
            let reason = error.map_or_else(|| reason.to_string(), |error| format!("{error:#}"));
            let mut text = format!(
                "{flavor}: at step {found_at}, after {found_after:.1} s, the library and the model differ: {reason}\n\
                 The shortest such sequence:\n"
            );
            for (i, step) in steps.iter().enumerate() {
                writeln!(text, "{:>4}. {step:?}", i + 1)?;
            }
            bail!(text);
        }
    }
}

/// Leaves out whatever is not needed to fail: halves first, single steps in the end, until every step is needed. The
/// runner's own way, one step at a time from the end, would take minutes.
fn shortest<S: Clone>(
    mut steps: Vec<S>,
    is_possible: impl Fn(&[S]) -> bool,
    mut fails: impl FnMut(&[S]) -> Option<anyhow::Error>,
) -> (Vec<S>, Option<anyhow::Error>) {
    let mut error = None;
    let mut length = steps.len();
    while length > 0 {
        let mut at = steps.len();
        let mut shorter = false;
        while at > 0 {
            let from = at.saturating_sub(length);
            let fewer = [&steps[..from], &steps[at..]].concat();
            if let Some(found) = is_possible(&fewer).then(|| fails(&fewer)).flatten() {
                (steps, error, shorter) = (fewer, Some(found), true);
            }
            at = from;
        }
        if !shorter || length > 1 {
            length /= 2;
        }
    }
    (steps, error)
}

fn is_possible(steps: &[Step]) -> bool {
    let mut state = Reference::new();
    steps.iter().all(|step| {
        let possible = Machine::preconditions(&state, step);
        state.apply(step, &[]);
        possible
    })
}

/// Does one sequence on both sides. `done` is told of the reference after each step, a failed one too.
async fn sequence(bench: &Bench, mut reference: Reference, steps: &[Step], done: impl Fn(&Reference)) -> Result<()> {
    let mut system = System::begin(bench).await?;
    for (i, step) in steps.iter().enumerate() {
        let at = || format!("step {}, {step:?}", i + 1);
        let found = system.run(step).await;
        let seen: Vec<_> = match &found {
            Ok(Outcome::Granted(grants)) => grants.iter().filter_map(|grant| key_of(&grant.key)).collect(),
            Ok(Outcome::Key(Some(key))) => key_of(key).into_iter().collect(),
            _ => Vec::new(),
        };
        let expected = reference.apply(step, &seen);
        done(&reference);
        let found = found.with_context(at)?;
        if expected != found {
            bail!("{}:\n  expected {expected:?}\n  found    {found:?}", at());
        }
        let differences = View::differences(&reference.view(), &system.view().await.with_context(at)?);
        if !differences.is_empty() {
            bail!("after {}:\n{}", at(), differences.join("\n"));
        }
    }
    system.end().await
}
