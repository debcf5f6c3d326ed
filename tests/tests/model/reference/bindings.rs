//! Bindings and quarantines: what a call puts on a name or a resource, and takes back.

use redis_allocator::Cause;

use super::pool::{Binding, Pool, is_over};
use crate::{
    step::{Name, Outcome},
    view::End,
};

impl Pool {
    pub(crate) fn bind(&mut self, name: Name, resource: Name, required: bool, declared: bool, ttl: u64) -> Outcome {
        let old = self.bindings.get(name).cloned();
        if let Some(old) = &old {
            let same = (old.resource, old.required, old.declared, old.ttl) == (resource, required, declared, ttl);
            // A declaration that has not changed refreshes nothing, nor does it bring back what has ended.
            if declared && same {
                self.did(if old.ended { "bind leaves what has ended" } else { "bind finds nothing changed" });
                return Outcome::Flag(false);
            }
        }
        if let Some(holder) = self.reserved_for(resource).filter(|holder| required && *holder != name) {
            if !is_over(self.bindings[holder].expires, self.now()) {
                self.did("bind meets a conflict");
                return Outcome::Refused("binding_conflict", holder.to_owned());
            }
            self.end_binding(holder, true);
            self.did("bind takes over an ended reservation");
        }
        self.end_binding(name, false);
        let expires = (ttl > 0).then_some(self.now() + ttl);
        self.bindings.insert(name, Binding { resource, required, declared, ttl, expires, ended: false });
        if required {
            self.resettle(resource);
        }
        self.did(match (required, declared) {
            (false, false) => "bind preferred",
            (false, true) => "bind preferred, declared",
            (true, false) => "bind required",
            (true, true) => "bind required, declared",
        });
        self.did(if ttl > 0 { "bind for a time" } else { "bind until removed" });
        Outcome::Flag(true)
    }

    pub(crate) fn unbind(&mut self, name: Name) -> bool {
        let there = self.bindings.contains_key(name);
        if there {
            self.did("unbind");
        }
        self.end_binding(name, false);
        there
    }

    pub(crate) fn quarantine(&mut self, key: Name, cause: Cause, until: End, reason: Name) -> Outcome {
        if !self.items.contains_key(key) {
            return Outcome::Refused("unknown_resource", String::new());
        }
        self.mark(key, cause, until, reason);
        self.counters.quarantined += 1;
        self.resettle(key);
        let in_effect = !self.leases.contains_key(key);
        self.did(if in_effect { "quarantine" } else { "quarantine of a leased resource" });
        self.did(if until.is_some() { "quarantine for a time" } else { "quarantine until released" });
        Outcome::Flag(in_effect)
    }

    /// Ends a resource's marks of one cause, or all; whether there were any.
    pub(crate) fn unquarantine(&mut self, key: Name, cause: Option<Cause>) -> bool {
        let Some(marks) = self.marks.get_mut(key) else { return false };
        let before = marks.len();
        marks.retain(|other, _| cause.is_some_and(|cause| cause != *other));
        let left = marks.len();
        if left == before {
            self.did("unquarantine of another cause");
            return false;
        }
        if left == 0 {
            self.marks.remove(key);
        }
        self.did(match (cause, left) {
            (None, _) => "unquarantine",
            (Some(_), 0) => "unquarantine of one cause",
            (Some(_), _) => "unquarantine of one cause of several",
        });
        self.resettle(key);
        true
    }

    pub(crate) fn end_recovery(&mut self) -> u64 {
        self.hold = None;
        let held: Vec<Name> =
            self.marks.iter().filter(|(_, marks)| marks.contains_key(&Cause::Recovery)).map(|(key, _)| *key).collect();
        for key in &held {
            self.unquarantine(key, Some(Cause::Recovery));
        }
        if !held.is_empty() {
            self.did("end_recovery");
        }
        held.len() as u64
    }
}
