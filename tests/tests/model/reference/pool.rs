//! The rules of a pool as its documentation states them, on plain maps: where a resource goes, what is over, and what
//! can be seen. It must not know Redis, nor how the library keeps any of this.

use std::collections::{BTreeMap, BTreeSet};

use redis_allocator::{Cause, Counters, Counts, Longest, Order, Origin, PoolSettings};

use crate::{
    step::{Decl, Name, facts},
    view::{BindingView, End, InfoView, PlaceView, PoolView, ResourceView},
};

/// A lease is reclaimed this much (ms) after its expiry.
pub(crate) const SLACK: u64 = 2000;
pub(crate) const RECOVERY: &str = "the pool lost its data while leases were held";

/// Whether something that lasts until `end` is over.
pub(crate) fn is_over(end: End, now: u64) -> bool {
    end.is_some_and(|end| end <= now)
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Item {
    pub(crate) priority: u16,
    pub(crate) position: u64,
    pub(crate) facts: u8,
    pub(crate) origins: BTreeSet<Origin>,
}

#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) owner: Name,
    pub(crate) binding: Option<Name>,
    pub(crate) token: u64,
    pub(crate) granted_at: u64,
    pub(crate) expires: End,
}

/// Where a declared resource is that is not leased.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Spot {
    /// `since`: unknown in a pool of order `Sequential`.
    Free {
        since: Option<u64>,
    },
    Quarantined {
        until: End,
    },
    Reserved,
}

#[derive(Debug, Clone)]
pub(crate) struct Mark {
    pub(crate) until: End,
    pub(crate) reason: Name,
}

#[derive(Debug, Clone)]
pub(crate) struct Binding {
    pub(crate) resource: Name,
    pub(crate) required: bool,
    pub(crate) declared: bool,
    /// ms; 0: until it is removed.
    pub(crate) ttl: u64,
    pub(crate) expires: End,
    /// Declared, and its time is over.
    pub(crate) ended: bool,
}

/// What an origin declared when it was last synchronised.
#[derive(Debug, Clone)]
pub(crate) struct Declared {
    /// `None`: the pool may differ from it.
    pub(crate) digest: Option<Vec<Decl>>,
    pub(crate) count: u64,
    pub(crate) peak: u64,
    pub(crate) peak_at: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Pool {
    pub(crate) now_us: u64,
    pub(crate) life: usize,
    pub(crate) manager: Option<Name>,
    pub(crate) settings: PoolSettings,
    pub(crate) items: BTreeMap<Name, Item>,
    pub(crate) leases: BTreeMap<Name, Lease>,
    pub(crate) spots: BTreeMap<Name, Spot>,
    pub(crate) marks: BTreeMap<Name, BTreeMap<Cause, Mark>>,
    pub(crate) bindings: BTreeMap<Name, Binding>,
    pub(crate) origins: BTreeMap<Origin, Declared>,
    pub(crate) next_position: u64,
    pub(crate) last: u64,
    pub(crate) longest: Longest,
    pub(crate) hold: Option<End>,
    pub(crate) recovered_from: Option<usize>,
    pub(crate) counters: Counters,
    pub(crate) deeds: Vec<&'static str>,
}

/// What one reclaiming did.
#[derive(Debug, Default)]
pub(crate) struct Reclaimed {
    pub(crate) expired: Vec<(Name, Name)>,
    pub(crate) recovered: Vec<Name>,
    pub(crate) unbound: Vec<Name>,
    pub(crate) more: bool,
}

impl Pool {
    pub(crate) fn now(&self) -> u64 {
        self.now_us / 1000
    }

    pub(crate) fn did(&mut self, deed: &'static str) {
        self.deeds.push(deed);
    }

    /// How many resources are free.
    pub(crate) fn idle(&self) -> usize {
        self.spots.values().filter(|spot| matches!(spot, Spot::Free { .. })).count()
    }

    /// The name that alone may have a resource.
    pub(crate) fn reserved_for(&self, key: Name) -> Option<Name> {
        let reserves = |binding: &Binding| binding.required && !binding.ended && binding.resource == key;
        self.bindings.iter().find(|(_, binding)| reserves(binding)).map(|(name, _)| *name)
    }

    /// Puts a resource that nobody holds where it belongs. `since`: its turn among the free ones.
    pub(crate) fn settle(&mut self, key: Name, since: u64) {
        self.spots.remove(key);
        if !self.items.contains_key(key) {
            self.marks.remove(key);
            return;
        }
        let now = self.now();
        if let Some(marks) = self.marks.get_mut(key) {
            marks.retain(|_, mark| !is_over(mark.until, now));
            if marks.is_empty() {
                self.marks.remove(key);
            }
        }
        let spot = if let Some(marks) = self.marks.get(key) {
            let ends: Option<Vec<u64>> = marks.values().map(|mark| mark.until).collect();
            Spot::Quarantined { until: ends.and_then(|ends| ends.into_iter().max()) }
        } else if self.reserved_for(key).is_some() {
            Spot::Reserved
        } else {
            Spot::Free { since: (self.settings.order != Order::Sequential).then_some(since) }
        };
        self.spots.insert(key, spot);
    }

    /// After something about a resource changed: a leased one stays with its holder, a free one keeps its turn.
    pub(crate) fn resettle(&mut self, key: Name) {
        if self.leases.contains_key(key) {
            return;
        }
        let since = match self.spots.get(key) {
            Some(Spot::Free { since: Some(since) }) => *since,
            _ => self.now(),
        };
        self.settle(key, since);
    }

    /// Ends a lease.
    pub(crate) fn release(&mut self, key: Name) {
        self.leases.remove(key);
        let cooldown = millis(self.settings.cooldown);
        if cooldown > 0 && self.items.contains_key(key) {
            let until = Some(self.now() + cooldown);
            self.mark(key, Cause::Cooldown, until, "cooling down");
            self.did("cooldown begins");
        }
        self.settle(key, self.now());
        match self.spots.get(key) {
            Some(Spot::Quarantined { .. }) if self.marks[key].keys().any(|cause| *cause != Cause::Cooldown) => {
                self.did("mark acts when the lease ends");
            }
            _ => {}
        }
    }

    pub(crate) fn mark(&mut self, key: Name, cause: Cause, until: End, reason: Name) {
        self.marks.entry(key).or_default().insert(cause, Mark { until, reason });
    }

    /// Whether a lease may be given to someone else.
    pub(crate) fn is_reclaimable(&self, key: Name) -> bool {
        self.leases.get(key).is_some_and(|lease| is_over(lease.expires.map(|at| at + SLACK), self.now()))
    }

    /// Ends a binding. `by_time`: a declared one stays listed, so that its declaration is not applied again.
    pub(crate) fn end_binding(&mut self, name: Name, by_time: bool) {
        let Some(binding) = self.bindings.get_mut(name) else { return };
        let (resource, reserved) = (binding.resource, binding.required && !binding.ended);
        if by_time && binding.declared {
            binding.ended = true;
            binding.expires = None;
        } else {
            self.bindings.remove(name);
        }
        if by_time {
            self.did("binding ends by its time");
        }
        if reserved {
            self.resettle(resource);
        }
    }

    /// Reclaims what is over, the oldest first: leases, then quarantines, then bindings.
    pub(crate) fn reclaim(&mut self, most: usize) -> Reclaimed {
        let now = self.now();
        let mut done = Reclaimed::default();
        let mut room = most;
        let mut over: Vec<_> = self.leases.iter().filter(|(key, _)| self.is_reclaimable(key)).collect();
        over.sort_by_key(|(key, lease)| (lease.expires, **key));
        let over: Vec<_> = over.into_iter().map(|(key, lease)| (*key, lease.owner)).take(room).collect();
        room -= over.len();
        for (key, owner) in over {
            self.release(key);
            self.counters.expired += 1;
            done.expired.push((key, owner));
        }
        let until = |spot: &Spot| match spot {
            Spot::Quarantined { until } => *until,
            _ => None,
        };
        let mut due: Vec<_> =
            self.spots.iter().map(|(key, spot)| (until(spot), *key)).filter(|(end, _)| is_over(*end, now)).collect();
        due.sort_unstable();
        due.truncate(room);
        room -= due.len();
        for (_, key) in due {
            self.settle(key, now);
            done.recovered.push(key);
        }
        let mut ended: Vec<_> = self.bindings.iter().map(|(name, binding)| (binding.expires, *name)).collect();
        ended.retain(|(end, _)| is_over(*end, now));
        ended.sort_unstable();
        ended.truncate(room);
        room -= ended.len();
        for (_, name) in ended {
            self.end_binding(name, true);
            done.unbound.push(name);
        }
        done.more = room == 0;
        done
    }

    pub(crate) fn view(&self) -> PoolView {
        let mut resources: BTreeMap<String, ResourceView> = BTreeMap::new();
        for key in self.items.keys().chain(self.leases.keys()) {
            let item = self.items.get(key);
            let place = match (self.leases.get(key), self.spots.get(key)) {
                (Some(lease), _) => PlaceView::Leased {
                    owner: lease.owner.to_owned(),
                    binding: lease.binding.map(str::to_owned),
                    token: lease.token,
                    granted_at: lease.granted_at,
                    expires_at: lease.expires,
                },
                (None, Some(Spot::Free { since })) => PlaceView::Free { since: *since },
                (None, Some(Spot::Quarantined { until })) => PlaceView::Quarantined { until: *until },
                (None, Some(Spot::Reserved)) => PlaceView::Reserved,
                (None, None) => PlaceView::Nowhere,
            };
            let view = ResourceView {
                declared: item.is_some(),
                priority: item.map_or(0, |item| item.priority),
                position: item.map_or(0, |item| item.position),
                facts: format!("{:?}", facts(item.map_or(0, |item| item.facts))),
                origins: item.into_iter().flat_map(|item| &item.origins).map(ToString::to_string).collect(),
                place,
                marks: self.marks.get(key).into_iter().flatten().map(mark_view).collect(),
                reserved_for: self.reserved_for(key).map(str::to_owned),
            };
            resources.insert((*key).to_owned(), view);
        }
        let bindings =
            self.bindings.iter().map(|(name, binding)| ((*name).to_owned(), binding_view(binding))).collect();
        PoolView { info: self.info(), resources, bindings }
    }

    fn info(&self) -> InfoView {
        let spots = |wanted: fn(&Spot) -> bool| self.spots.values().filter(|spot| wanted(spot)).count() as u64;
        let origin = |(origin, entry): (&Origin, &Declared)| {
            (origin.to_string(), (entry.count, entry.peak, entry.digest.is_some()))
        };
        InfoView {
            life: self.life,
            manager: self.manager.map(str::to_owned),
            settings: self.settings.clone(),
            counts: Counts {
                total: self.items.len() as u64,
                free: self.idle() as u64,
                leased: self.leases.len() as u64,
                quarantined: spots(|spot| matches!(spot, Spot::Quarantined { .. })),
                reserved: spots(|spot| matches!(spot, Spot::Reserved)),
                draining: self.leases.keys().filter(|key| !self.items.contains_key(*key)).count() as u64,
                bindings: self.bindings.len() as u64,
                ..Counts::default()
            },
            counters: self.counters,
            longest: self.longest,
            last_token: self.last,
            hold: self.hold.filter(|end| !is_over(*end, self.now())),
            origins: self.origins.iter().map(origin).collect(),
            now: self.now(),
        }
    }
}

fn mark_view((cause, mark): (&Cause, &Mark)) -> (String, (Option<u64>, String)) {
    (cause.to_string(), (mark.until, mark.reason.to_owned()))
}

fn binding_view(binding: &Binding) -> BindingView {
    BindingView {
        resource: binding.resource.to_owned(),
        required: binding.required,
        declared: binding.declared,
        ended: binding.ended,
        expires_at: binding.expires,
    }
}

/// Whole milliseconds. Nothing here lasts for more than 2⁶⁴ of them.
pub(crate) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
