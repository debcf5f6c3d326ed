//! All that can be seen of the reference, as texts: one for each thing, by its name.

use std::collections::BTreeMap;

use serde_json::json;

use super::{End, Id, Item, Lease, Name, Reference};
use crate::whole::step::{Ask, LABELS};

/// So many of a resource's holders are shown.
const SHOWN: usize = 20;

/// What an item's labels are as its facts (JSON).
pub(crate) fn facts_of(labels: usize) -> String {
    let labels: BTreeMap<_, _> = LABELS[labels].iter().copied().collect();
    if labels.is_empty() { String::new() } else { json!({ "labels": labels }).to_string() }
}

/// An item as grants tell of it.
pub(crate) fn item_record(item: &Item) -> String {
    format!("{:04}{:010}{}{}", item.priority, item.position, json!(item.origins), facts_of(item.labels))
}

/// Who asks, as its leases tell of it (JSON).
pub(crate) fn holder(ask: &Ask) -> String {
    let mut holder = vec![format!("{{\"owner\":{}", json!(ask.owner))];
    for (field, value) in [("bind", ask.name), ("session", ask.session)] {
        if let Some(value) = value {
            holder.push(format!(",\"{field}\":{}", json!(value)));
        }
    }
    holder.concat() + "}"
}

/// What is written down of a lease.
pub(super) fn holder_record((_, token): Id, lease: &Lease) -> String {
    let holder = match lease.waiter.filter(|_| lease.granted.is_none()) {
        Some(waiter) => format!("{{\"waiter\":\"{waiter}\",{}", &holder(&lease.ask)[1..]),
        None => holder(&lease.ask),
    };
    format!("{token:016}{:013}{holder}", lease.granted.unwrap_or(0))
}

fn at(end: End) -> String {
    end.map_or_else(|| "inf".to_owned(), |ms| ms.to_string())
}

impl Reference {
    pub(crate) fn view(&self) -> BTreeMap<String, String> {
        let mut view = BTreeMap::new();
        let mut keys: Vec<Name> = self.items.keys().copied().chain(self.leases.keys().map(|(key, _)| *key)).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let mut text = vec![self.items.get(key).map_or_else(|| "undeclared".to_owned(), item_record)];
            if self.free.contains_key(key) {
                text.push(format!(" free {}", self.rank(key)));
            }
            if let Some(until) = self.quarantined.get(key) {
                text.push(format!(" quarantined {}", at(*until)));
            }
            if let Some(name) = self.reserved_for(key) {
                text.push(format!(" reserved {name}"));
            }
            for (cause, until) in self.marks.get(key).into_iter().flatten() {
                text.push(format!(" {cause} {}", at(*until)));
            }
            if self.is_shared() {
                text.push(format!(" holders {}", self.holders(key)));
            }
            for (id, lease) in self.leases.range((key, 0)..=(key, u64::MAX)).take(SHOWN) {
                text.push(format!(" held until {} {}", at(lease.expires), holder_record(*id, lease)));
            }
            view.insert(format!("resource {key}"), text.concat());
        }
        for (place, id) in self.in_line().into_iter().enumerate() {
            let waiter = &self.line[id];
            let alive = self.alive.get(id).copied().unwrap_or(0);
            let offered = u8::from(waiter.offer.is_some());
            let text = format!("{id} n={} alive until {alive} offered {offered}", waiter.ask.n);
            view.insert(format!("waiter {place}"), text);
        }
        for (session, until) in &self.sessions {
            view.insert(format!("session {session}"), format!("{until} leases {}", self.of_session(session).count()));
        }
        for ((origin, key), at) in &self.missing {
            view.insert(format!("missing {origin} {key}"), at.to_string());
        }
        for key in &self.draining {
            view.insert(format!("missing  {key}"), "inf".to_owned());
        }
        for (name, binding) in &self.bindings {
            let kind = if binding.required { 'q' } else { 'a' };
            view.insert(
                format!("binding {name}"),
                format!("{kind}{:013}{} {}", binding.ttl, binding.key, at(binding.expires)),
            );
        }
        self.count(&mut view);
        view
    }

    fn count(&self, view: &mut BTreeMap<String, String>) {
        let shared = self.is_shared();
        let is_reserved = |key: &Name| {
            let held = !shared && self.holders(key) > 0;
            self.reserved_for(key).is_some() && !held && !self.quarantined.contains_key(*key)
        };
        let undeclared = self.leases.keys().filter(|(key, _)| !self.items.contains_key(*key)).count();
        let now = self.now().cast_signed();
        let counts = [
            ("items", self.items.len()),
            ("free", self.free.len()),
            ("leases", self.leases.len()),
            ("quarantined", self.quarantined.len()),
            ("bindings", self.bindings.len()),
            ("reserved", self.items.keys().filter(|key| is_reserved(key)).count()),
            ("draining", if shared { self.draining.len() } else { undeclared }),
            ("waiting", self.line.len()),
            ("sessions", self.sessions.values().filter(|until| **until > now).count()),
            ("gathering", self.line.values().filter(|waiter| waiter.ask.n > 1).count()),
        ];
        for (what, count) in counts {
            view.insert(format!("count of {what}"), count.to_string());
        }
        let longest = if self.permanent { "-1".to_owned() } else { self.longest.to_string() };
        let counters = &self.counters;
        for (what, value) in [
            ("last", self.last.to_string()),
            ("longest", longest),
            ("granted", counters.granted.to_string()),
            ("expired", counters.expired.to_string()),
            ("revoked", counters.revoked.to_string()),
            ("ever quarantined", counters.quarantined.to_string()),
        ] {
            view.insert(format!("meta {what}"), value);
        }
    }
}
