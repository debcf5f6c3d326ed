//! Which kinds there are, and an object that is of one of them.

use std::fmt;

use kube::ResourceExt;

use crate::{
    binding::SoftBinding,
    pool::ResourcePool,
    violation::{FieldPath, Violation, describe},
};

/// The API group of every kind.
pub const GROUP: &str = "redis-allocator.dev";
/// The version of every kind.
pub const VERSION: &str = "v1alpha1";
/// What objects say in `apiVersion`.
pub const API_VERSION: &str = "redis-allocator.dev/v1alpha1";

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A pool of resources.
    ResourcePool,
    /// A declared binding of a name to a resource.
    SoftBinding,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::ResourcePool, Self::SoftBinding];

    /// The kind as objects say it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ResourcePool => "ResourcePool",
            Self::SoftBinding => "SoftBinding",
        }
    }

    /// The kind that an object says to be of.
    ///
    /// # Errors
    /// The violation of `apiVersion`, or else of `kind`, when it is absent or not one of ours.
    pub fn from_type_meta(api_version: Option<&str>, kind: Option<&str>) -> Result<Self, Violation> {
        let violation = |field: &str, found: Option<&str>, allowed: &str| {
            let found = describe(found.map(Into::into).as_ref());
            Violation::new(FieldPath::default().join(field), found, allowed)
        };
        if api_version != Some(API_VERSION) {
            return Err(violation("apiVersion", api_version, API_VERSION));
        }
        kind.and_then(|kind| Self::ALL.into_iter().find(|known| known.as_str() == kind)).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str);
            let mut violation = violation("kind", kind, &names.join(" or "));
            violation.hint = kind.and_then(|kind| crate::validate::did_you_mean(kind, names));
            violation
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A valid object, defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// A pool.
    ResourcePool(Box<ResourcePool>),
    /// A soft binding.
    SoftBinding(Box<SoftBinding>),
}

impl Object {
    /// The object's kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::ResourcePool(_) => Kind::ResourcePool,
            Self::SoftBinding(_) => Kind::SoftBinding,
        }
    }

    /// The object's namespace; `default` where it names none.
    pub fn namespace(&self) -> String {
        let namespace = match self {
            Self::ResourcePool(pool) => pool.namespace(),
            Self::SoftBinding(binding) => binding.namespace(),
        };
        namespace.unwrap_or_else(|| "default".to_owned())
    }

    /// The object's name.
    pub fn name(&self) -> String {
        match self {
            Self::ResourcePool(pool) => pool.name_any(),
            Self::SoftBinding(binding) => binding.name_any(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constants_agree_with_the_derived_kinds() {
        use kube::Resource;
        assert_eq!(API_VERSION, format!("{GROUP}/{VERSION}"));
        assert_eq!(ResourcePool::api_version(&()), API_VERSION);
        assert_eq!(SoftBinding::api_version(&()), API_VERSION);
        assert_eq!(ResourcePool::kind(&()), Kind::ResourcePool.as_str());
        assert_eq!(SoftBinding::kind(&()), Kind::SoftBinding.as_str());
    }

    #[test]
    fn a_kind_that_is_not_ours_is_refused_with_those_that_are() {
        assert_eq!(Kind::from_type_meta(Some(API_VERSION), Some("SoftBinding")), Ok(Kind::SoftBinding));
        for (api_version, kind, expected) in [
            (None, Some("ResourcePool"), "apiVersion: found nothing, allowed is redis-allocator.dev/v1alpha1"),
            (Some("v1"), Some("Pod"), "apiVersion: found \"v1\", allowed is redis-allocator.dev/v1alpha1"),
            (Some(API_VERSION), None, "kind: found nothing, allowed is ResourcePool or SoftBinding"),
            (
                Some(API_VERSION),
                Some("resourcepool"),
                "kind: found \"resourcepool\", allowed is ResourcePool or SoftBinding (did you mean ResourcePool?)",
            ),
        ] {
            assert_eq!(Kind::from_type_meta(api_version, kind).unwrap_err().to_string(), expected);
        }
    }
}
