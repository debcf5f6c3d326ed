//! Soft bindings: names that get the same resource again, or that alone may have it.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Pool, owned, text};
use crate::{
    error::{Error, Result},
    keys,
    names::{BindingName, ResourceKey},
    script,
    time::{Timestamp, millis},
};

/// How strongly a name is tied to its resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum BindPolicy {
    /// The name gets the resource if it is free, and another one otherwise.
    #[default]
    Preferred,
    /// The resource is reserved for the name, which gets it or nothing.
    Required,
}

/// What a binding is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BindOptions {
    /// How long it lasts. Default: until it is removed; but one that is neither required nor declared gets the pool's
    /// own time at the next grant under its name.
    pub ttl: Option<Duration>,
    /// Default `Preferred`.
    pub policy: BindPolicy,
    /// Whether a declaration stands behind it: grants never move it, and its time is not refreshed by declaring it
    /// again. Default `false`.
    pub declared: bool,
}

/// A name and its resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Binding {
    /// The name.
    pub name: BindingName,
    /// The resource it prefers or reserves, whether or not the pool has it.
    pub resource: ResourceKey,
    /// How strongly.
    pub policy: BindPolicy,
    /// Whether a declaration stands behind it.
    pub declared: bool,
    /// How long it lasts from when it was made or refreshed; `None`: until it is removed.
    pub ttl: Option<Duration>,
    /// When it ends; `None`: when it is removed.
    pub expires_at: Option<Timestamp>,
    /// Whether its time is over. A declared one is then still listed, so that its declaration is not applied again.
    pub ended: bool,
}

/// A binding as Redis has it: kind (1 letter), time to live (ms, 13 digits), resource.
fn parse(name: &str, record: &str) -> Option<Binding> {
    let kind = record.chars().next()?;
    Some(Binding {
        name: BindingName::new(name).ok()?,
        resource: ResourceKey::new(record.get(14..)?).ok()?,
        policy: if matches!(kind, 'q' | 'r' | 'R') { BindPolicy::Required } else { BindPolicy::Preferred },
        declared: matches!(kind, 'd' | 'r' | 'D' | 'R'),
        ttl: record.get(1..14)?.parse().ok().filter(|&ms| ms > 0).map(Duration::from_millis),
        expires_at: None,
        ended: kind.is_ascii_uppercase(),
    })
}

impl Binding {
    /// Whether declaring it again, of this resource and with these options, would change nothing. What ended by its time
    /// stays ended.
    pub fn is_as_declared(&self, resource: &ResourceKey, options: &BindOptions) -> bool {
        let BindOptions { ttl, policy, declared } = options;
        // A time to live without an end is what a call that failed half-way leaves behind.
        let has_its_end = self.ended || ttl.is_none() || self.expires_at.is_some();
        *declared
            && self.declared
            && self.resource == *resource
            && (self.policy, self.ttl) == (*policy, *ttl)
            && has_its_end
    }
}

impl Pool {
    /// Ties a name to a resource, which need not be declared yet. Whether anything changed: a declared binding that is
    /// as it should be is left alone, a call's own is refreshed.
    ///
    /// # Errors
    /// [`Error::BindingConflict`] when another `Required` binding has the resource.
    pub async fn bind(&self, name: impl AsRef<str>, resource: impl AsRef<str>, options: &BindOptions) -> Result<bool> {
        let (name, resource) = (BindingName::new(name)?, ResourceKey::new(resource)?);
        let ttl = options.ttl.map_or(Ok(0), |ttl| millis("binding TTL", ttl))?;
        let kind = match (options.declared, options.policy) {
            (false, BindPolicy::Preferred) => "a",
            (false, BindPolicy::Required) => "q",
            (true, BindPolicy::Preferred) => "d",
            (true, BindPolicy::Required) => "r",
        };
        let args = [text(name.as_str()), text(resource.as_str()), text(kind), owned(ttl)];
        let mut reply = self.send(&script::BIND, &args, false).await?;
        let status = reply.text()?;
        if status == "conflict" {
            let holder = BindingName::new(reply.text()?)?;
            return Err(Error::BindingConflict { pool: self.name().clone(), resource, name, holder });
        }
        match self.status(&status, &mut reply)? {
            Some(error) => Err(error),
            None => Ok(reply.int()? == 1),
        }
    }

    /// Removes a binding; whether there was one. A lease taken under the name goes on.
    pub async fn unbind(&self, name: impl AsRef<str>) -> Result<bool> {
        let name = BindingName::new(name)?;
        let mut reply = self.call(&script::UNBIND, &[text(name.as_str())]).await?;
        Ok(reply.int()? == 1)
    }

    /// The binding of a name, if it is in force.
    pub async fn binding(&self, name: impl AsRef<str>) -> Result<Option<Binding>> {
        let name = BindingName::new(name)?;
        let mut reply = self.call(&script::BINDING, &[text(name.as_str())]).await?;
        let record = reply.optional_text()?;
        let expiry = reply.optional_text()?;
        let now = reply.count()?;
        let binding = record
            .and_then(|record| parse(name.as_str(), &record))
            .map(|binding| with_expiry(binding, expiry.as_deref()));
        Ok(binding.filter(|binding| {
            !binding.ended && binding.expires_at.is_none_or(|expires_at| expires_at.as_millis() > now)
        }))
    }

    /// All bindings, declared or not, by name. Read page by page: what changes meanwhile may or may not show.
    pub async fn bindings(&self) -> Result<Vec<Binding>> {
        let mut bindings = BTreeMap::new();
        self.scan(keys::BINDS, |name, record| {
            if let Some(binding) = parse(&name, &record) {
                bindings.insert(name, binding);
            }
            Ok(())
        })
        .await?;
        self.scan(keys::BIND_EXPIRY, |name, expiry| {
            if let Some(binding) = bindings.remove(&name) {
                bindings.insert(name, with_expiry(binding, Some(&expiry)));
            }
            Ok(())
        })
        .await?;
        Ok(bindings.into_values().collect())
    }

    /// The bindings to one resource. Costs as much as listing all: bindings are looked up by name.
    pub async fn bindings_of(&self, resource: impl AsRef<str>) -> Result<Vec<Binding>> {
        let resource = ResourceKey::new(resource)?;
        let mut bindings = self.bindings().await?;
        bindings.retain(|binding| binding.resource == resource && !binding.ended);
        Ok(bindings)
    }
}

fn with_expiry(mut binding: Binding, expiry: Option<&str>) -> Binding {
    binding.expires_at = expiry.and_then(super::snapshot::moment);
    binding
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_kind_and_resource() {
        let binding = parse("n", "r0000000060000gpu-0").unwrap();
        assert_eq!(binding.resource.as_str(), "gpu-0");
        assert_eq!((binding.policy, binding.declared, binding.ended), (BindPolicy::Required, true, false));
        assert!(parse("n", "D0000000060000x").unwrap().ended);
        assert!(parse("n", "").is_none());
        assert!(parse("n", "a000").is_none());
    }
}
