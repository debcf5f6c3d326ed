//! How sequences are made: steps drawn from where the reference stands, with some at the very moments when something is
//! over. Each theme draws more of what it is about; all of them draw from everything.

use proptest::{
    prelude::Rng,
    test_runner::{RngAlgorithm, TestRng},
};

use super::{
    reference::{LIFE, Reference, SLACK},
    step::{
        Ask, Decl, INDEXES, KEYS, LABELS, Mode, NAMES, Name, ORIGINS, OWNERS, Order, SELECTORS, SESSIONS, Settings,
        Step, WAITERS,
    },
};

/// What a model is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Theme {
    /// Who waits, for several, by selectors.
    Line,
    /// Shared pools.
    Shared,
    Sessions,
    /// What is declared, for a time or not, by several origins.
    Declared,
}

pub(crate) struct Dice(TestRng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        let seed = [seed.to_le_bytes(), (seed ^ 0x9E37_79B9_7F4A_7C15).to_le_bytes()].concat();
        Self(TestRng::from_seed(RngAlgorithm::XorShift, &seed))
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.0.next_u64() % (end.max(1) as u64)).unwrap_or(0)
    }

    /// Whether something of so many percent happens.
    fn happens(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn some<T: Copy>(&mut self, all: &[T], least: usize, most: usize) -> Vec<T> {
        let mut left = all.to_vec();
        let count = (least + self.below(most - least + 1)).min(left.len());
        (0..count).map(|_| left.remove(self.below(left.len()))).collect()
    }
}

pub(crate) fn settings(theme: Theme, dice: &mut Dice) -> Settings {
    let shared = match theme {
        Theme::Line => false,
        Theme::Shared => true,
        Theme::Sessions | Theme::Declared => dice.happens(40),
    };
    let random = if theme == Theme::Shared { 15 } else { 5 };
    Settings {
        order: match () {
            () if dice.happens(random) => Order::Random,
            () if dice.happens(30) => Order::Sequential,
            () => Order::LeastRecentlyUsed,
        },
        shared: shared.then(|| dice.of(&[0, 1, 2, 2, 3])),
        indexes: dice.of(&[0, 1, 2, 2, 3]),
        cooldown: if shared { 0 } else { dice.of(&[0, 0, 0, 1500]) },
        max_ttl: dice.of(&[0, 0, 90_000]),
        binding_ttl: dice.of(&[0, 3_000, 3_600_000]),
        suspended: false,
    }
}

const KINDS: usize = 17;

/// How likely each kind of step is, in the order of `draw`.
fn weights(theme: Theme, state: &Reference) -> [usize; KINDS] {
    //               malloc free renew revoke poll upsert remove bind unbind quar unquar suspend conf gc beat pass none
    let mut weights: [usize; KINDS] = match theme {
        Theme::Line => [14, 26, 2, 4, 60, 5, 4, 4, 4, 3, 3, 3, 2, 5, 2, 30, 0],
        Theme::Shared => [34, 24, 3, 2, 24, 4, 3, 4, 2, 5, 5, 2, 5, 4, 2, 18, 0],
        Theme::Sessions => [22, 12, 1, 2, 26, 4, 2, 1, 1, 2, 2, 1, 1, 7, 26, 34, 0],
        Theme::Declared => [20, 14, 2, 2, 14, 24, 12, 2, 2, 3, 3, 1, 1, 12, 3, 28, 0],
    };
    if state.items.len() < 3 {
        weights[5] += 50;
    }
    if state.settings.suspended {
        weights[11] += 20;
    }
    if state.free.is_empty() {
        weights[0] = weights[0] / 3 + 1;
        weights[1] += 16;
    }
    weights
}

pub(crate) fn draw(theme: Theme, state: &Reference, dice: &mut Dice) -> Step {
    loop {
        let weights = weights(theme, state);
        let mut at = dice.below(weights.iter().sum());
        let mut kind = 0;
        while at >= weights[kind] {
            at -= weights[kind];
            kind += 1;
        }
        let step = match kind {
            0 => malloc(theme, state, dice),
            1 => free(state, dice),
            2 => Step::Renew { back: dice.below(3), ttl: dice.of(&[20_000, 60_000, 100_000, -1]) },
            3 => Step::Revoke { keys: offered(state, dice).unwrap_or_else(|| dice.some(&KEYS, 1, 3)) },
            4 => poll(theme, state, dice),
            5 => upsert(theme, dice),
            6 => remove(state, dice),
            7 => Step::Bind {
                name: waiting_name(state, dice),
                key: dice.of(&KEYS),
                required: dice.happens(70),
                ttl: dice.of(&[0, 4_000, 60_000]),
            },
            8 => Step::Unbind { name: waiting_name(state, dice) },
            9 => Step::Quarantine {
                key: dice.of(&KEYS),
                cause: dice.of(&["manual", "probe"]),
                duration: dice.of(&[-1, 1_000, 4_000]),
            },
            10 => Step::Unquarantine { key: marked(state, dice), cause: dice.of(&["", "manual", "probe"]) },
            11 if dice.happens(30) => {
                let suspended = !state.settings.suspended;
                Step::Configure { settings: Settings { suspended, ..state.settings.clone() } }
            }
            11 => Step::Suspend { suspended: !state.settings.suspended },
            12 => configure(state, dice),
            13 => Step::Gc { count: dice.of(&[200, 200, 200, 1, 2]) },
            14 => beat(state, dice),
            _ => Step::Pass { micros: pass(state, dice) },
        };
        if state.allows(&step) {
            return step;
        }
    }
}

/// What is offered to someone, if anything is.
fn offered(state: &Reference, dice: &mut Dice) -> Option<Vec<Name>> {
    let offered: Vec<_> = state.leases.iter().filter(|(_, lease)| lease.waiter.is_some()).map(|(id, _)| id.0).collect();
    (!offered.is_empty() && dice.happens(70)).then(|| vec![dice.of(&offered)])
}

/// A name; rather one under which someone waits.
fn waiting_name(state: &Reference, dice: &mut Dice) -> Name {
    let waiting: Vec<_> = state.line.values().filter_map(|waiter| waiter.ask.name).collect();
    if waiting.is_empty() || dice.happens(30) { dice.of(&NAMES) } else { dice.of(&waiting) }
}

fn marked(state: &Reference, dice: &mut Dice) -> Name {
    let marked: Vec<_> = state.marks.keys().copied().collect();
    if marked.is_empty() { dice.of(&KEYS) } else { dice.of(&marked) }
}

fn ask(theme: Theme, state: &Reference, dice: &mut Dice) -> Ask {
    let known: Vec<_> = (0..SELECTORS.len()).filter(|selector| state.has_index(*selector)).collect();
    let selectors = match () {
        () if known.is_empty() && dice.happens(95) => Vec::new(),
        () if dice.happens(if known.is_empty() { 100 } else { 2 }) => vec![dice.below(SELECTORS.len())],
        () if dice.happens(45) => dice.some(&known, 1, 3),
        () => Vec::new(),
    };
    let several = dice.happens(if theme == Theme::Line { 25 } else { 15 });
    let n = if several { dice.of(&[2, 2, 2, 3, 3, 5, 9]) } else { 1 };
    let sessions: Vec<_> = state.sessions.iter().filter(|(_, until)| **until > 0).map(|(name, _)| *name).collect();
    let session = match () {
        () if dice.happens(1) => Some(dice.of(&SESSIONS)),
        () if dice.happens(if theme == Theme::Sessions { 70 } else { 30 }) && !sessions.is_empty() => {
            Some(dice.of(&sessions))
        }
        () => None,
    };
    let asks_by_name = dice.happens(if theme == Theme::Declared { 8 } else { 18 });
    Ask {
        owner: dice.of(&OWNERS),
        ttl: dice.of(&[0, 0, 3_000, 8_000, 60_000, 100_000, -1]),
        // A name stands for one resource: the library asks for several without.
        name: if asks_by_name && n == 1 { Some(dice.of(&NAMES)) } else { None },
        n,
        selectors,
        session,
    }
}

fn malloc(theme: Theme, state: &Reference, dice: &mut Dice) -> Step {
    let mut asks: Vec<_> = (0..dice.of(&[1, 1, 1, 2, 3])).map(|_| ask(theme, state, dice)).collect();
    if dice.happens(35) {
        for ask in &mut asks {
            *ask = Ask { name: None, n: 1, selectors: Vec::new(), session: None, ..ask.clone() };
        }
    }
    if state.settings.order == Order::Random {
        asks.truncate(1);
    }
    Step::Malloc { asks }
}

fn free(state: &Reference, dice: &mut Dice) -> Step {
    let held: Vec<_> = (0..state.grants.len())
        .filter(|back| state.grant(*back).is_some_and(|id| state.leases.contains_key(&id)))
        .collect();
    if held.is_empty() || dice.happens(8) {
        return Step::Free { back: vec![dice.below(state.grants.len())] };
    }
    Step::Free { back: dice.some(&held, 1, 3) }
}

fn poll(theme: Theme, state: &Reference, dice: &mut Dice) -> Step {
    let again: Vec<Name> = state.line.keys().copied().collect();
    let offered: Vec<Name> = again.iter().copied().filter(|id| state.line[id].offer.is_some()).collect();
    let served: Vec<Name> = state.served.keys().copied().collect();
    let fresh: Vec<Name> =
        WAITERS.into_iter().filter(|id| !state.line.contains_key(id) && !state.served.contains_key(id)).collect();
    let back: Vec<Name> =
        state.leases.values().filter_map(|lease| lease.waiter).filter(|id| fresh.contains(id)).collect();
    let id = match () {
        () if !back.is_empty() && dice.happens(50) => dice.of(&back),
        () if !offered.is_empty() && dice.happens(35) => dice.of(&offered),
        () if !again.is_empty() && dice.happens(50) => dice.of(&again),
        () if !served.is_empty() && dice.happens(25) => dice.of(&served),
        () if !fresh.is_empty() => dice.of(&fresh),
        () => WAITERS[0],
    };
    let heads = state.in_line();
    let id = if heads.len() > 1 && dice.happens(12) { heads[0] } else { id };
    let before = state.line.get(id).or_else(|| state.served.get(id).map(|(waiter, _)| waiter));
    let (ask, priority) = before.map_or_else(
        || (ask(theme, state, dice), dice.of(&[0, 0, 0, 1, 1, 3, 100])),
        |waiter| (waiter.ask.clone(), waiter.priority),
    );
    let mode = match () {
        () if before.is_some() && dice.happens(if heads.first() == Some(&id) { 12 } else { 6 }) => Mode::Leave,
        () if before.is_some() && dice.happens(5) => Mode::Last,
        () => Mode::Wait,
    };
    Step::Poll { mode, id, ask, priority }
}

fn upsert(theme: Theme, dice: &mut Dice) -> Step {
    let decls = dice.some(&KEYS, 1, 4);
    let decls = decls.into_iter().map(|key| Decl {
        key,
        priority: dice.of(&[0, 0, 0, 7, 1000]),
        position: dice.of(&[None, None, None, Some(3), Some(0)]),
        labels: dice.below(LABELS.len()),
    });
    let decls = decls.collect();
    let ttl = if dice.happens(if theme == Theme::Declared { 60 } else { 10 }) {
        dice.of(&[2_000, 6_000, 30_000, 3_600_000])
    } else {
        0
    };
    Step::Upsert { origin: dice.of(&ORIGINS), ttl, decls }
}

fn remove(state: &Reference, dice: &mut Dice) -> Step {
    let origin = if dice.happens(15) { "" } else { dice.of(&ORIGINS) };
    let own: Vec<Name> =
        state.items.iter().filter(|(_, item)| item.origins.contains(origin)).map(|(k, _)| *k).collect();
    let later = if origin.is_empty() { 0 } else { dice.of(&[0, 0, 5_000]) };
    // Only what it declares goes missing.
    if let Some(keys) = offered(state, dice).filter(|_| dice.happens(50)) {
        return Step::Remove { origin: "", keys, revoke: dice.happens(30), later: 0 };
    }
    let keys = if own.is_empty() { dice.some(&KEYS, 1, 2) } else { dice.some(&own, 1, 2) };
    let later = if own.is_empty() { 0 } else { later };
    Step::Remove { origin, keys, revoke: dice.happens(30), later }
}

fn configure(state: &Reference, dice: &mut Dice) -> Step {
    let mut settings = state.settings.clone();
    match dice.below(6) {
        0 => settings.indexes = dice.below(INDEXES.len()),
        1 => settings.shared = settings.shared.map(|_| dice.of(&[0, 1, 2, 3])),
        2 => settings.order = dice.of(&[Order::LeastRecentlyUsed, Order::LeastRecentlyUsed, Order::Sequential]),
        3 if settings.shared.is_none() => settings.cooldown = dice.of(&[0, 1500]),
        4 => settings.max_ttl = dice.of(&[0, 0, 90_000]),
        _ => settings.suspended = !settings.suspended,
    }
    Step::Configure { settings }
}

fn beat(state: &Reference, dice: &mut Dice) -> Step {
    let alive: Vec<Name> =
        state.sessions.iter().filter(|(_, until)| **until > 0).map(|(session, _)| *session).collect();
    let fresh: Vec<Name> = SESSIONS.into_iter().filter(|session| !state.sessions.contains_key(session)).collect();
    if !fresh.is_empty() && (alive.is_empty() || dice.happens(40)) {
        return Step::Beat {
            session: dice.of(&fresh),
            ttl: dice.of(&[3_000, 9_000, 30_000, 100_000]),
            begin: dice.happens(95),
        };
    }
    let session = if alive.is_empty() || dice.happens(10) { dice.of(&SESSIONS) } else { dice.of(&alive) };
    Step::Beat { session, ttl: dice.of(&[0, 3_000, 9_000, 9_000, 100_000]), begin: dice.happens(10) }
}

/// To around a moment when something is over, µs; or a little on.
fn pass(state: &Reference, dice: &mut Dice) -> u64 {
    let now = state.now();
    let mut ends: Vec<u64> =
        state.leases.values().filter_map(|lease| lease.expires).flat_map(|at| [at, at + SLACK]).collect();
    ends.extend(state.alive.values());
    ends.extend(state.quarantined.values().flatten());
    ends.extend(state.bindings.values().filter_map(|binding| binding.expires));
    ends.extend(state.missing.values());
    let sessions = state.sessions.values().map(|until| until.unsigned_abs());
    ends.extend(sessions.flat_map(|until| [until, until + SLACK, until + 3_600_000]));
    ends.retain(|at| *at > now && *at < now + 4_000_000);
    ends.sort_unstable();
    let soon: Vec<_> = ends.iter().copied().filter(|at| *at <= now + LIFE).collect();
    let at = match () {
        () if dice.happens(45) || ends.is_empty() => return dice.of(&[150, 1_000, 300_000, 900_000, 1_000_000]),
        () if !soon.is_empty() && dice.happens(85) => dice.of(&soon),
        () if dice.happens(70) => ends[0],
        () => dice.of(&ends),
    };
    let moment = (at * 1000).saturating_sub(state.now_us);
    // A millisecond before, at it, one after.
    (moment + dice.of(&[0, 1_000, 2_000])).saturating_sub(1_000).max(1)
}
