//! Looking for broken invariants, and mending them. On a healthy pool both find nothing, whatever died in between.

use std::{collections::BTreeSet, fmt};

use serde::Serialize;

use super::{Args, BATCH, Pool, text};
use crate::{error::Result, names::ResourceKey, script};

/// The keys that are walked, in the script's words.
const PARTS: [&str; 9] =
    ["items", "free", "leases", "holders", "quarantine", "marks", "reserved", "binds", "bind-expiry"];

macro_rules! invariants {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Something that must hold of every pool at every moment, named by how it is broken.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "kebab-case")]
        #[non_exhaustive]
        pub enum Invariant {
            $($(#[$doc])* $name,)*
        }

        impl Invariant {
            fn parse(text: &str) -> Option<Self> {
                match text {
                    $($text => Some(Self::$name),)*
                    _ => None,
                }
            }
        }

        impl fmt::Display for Invariant {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self {
                    $(Self::$name => $text,)*
                })
            }
        }
    };
}

invariants! {
    /// A declared resource is neither free, leased, quarantined nor reserved: nobody would ever get it.
    InNoPlace = "in-no-place",
    /// A resource is in more than one place: two could get it.
    InTwoPlaces = "in-two-places",
    /// A reserved resource is free for everyone.
    FreeThoughReserved = "free-though-reserved",
    /// A resource is free though a mark keeps it out of circulation.
    MarkNotInForce = "mark-not-in-force",
    /// A free resource stands at another priority than it is declared with.
    WrongPriority = "wrong-priority",
    /// An item that nobody declares.
    ItemWithoutOrigin = "item-without-origin",
    /// Something is free that is not declared.
    FreeButNotDeclared = "free-but-not-declared",
    /// Something is quarantined that is not declared.
    QuarantineButNotDeclared = "quarantine-but-not-declared",
    /// A resource is quarantined and nothing says why.
    QuarantinedWithoutMark = "quarantined-without-mark",
    /// A mark of something that is not declared.
    MarkButNotDeclared = "mark-but-not-declared",
    /// A lease that nobody holds.
    LeaseWithoutHolder = "lease-without-holder",
    /// A holder without a lease.
    HolderWithoutLease = "holder-without-lease",
    /// A grant whose token is greater than the last one given out.
    TokenAboveLast = "token-above-last",
    /// A reservation that no binding asks for.
    ReservationWithoutBinding = "reservation-without-binding",
    /// A Required binding whose resource is not reserved for it.
    BindingWithoutReservation = "binding-without-reservation",
    /// The end of a binding that does not exist.
    ExpiryWithoutBinding = "expiry-without-binding",
    /// The pool does not know that it has marks or reservations.
    HoldsMiscounted = "holds-miscounted",
}

/// One broken invariant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Violation {
    /// What is broken.
    pub invariant: Invariant,
    /// The resource, or the binding name, it is broken for.
    pub subject: String,
}

impl Pool {
    /// Looks for broken invariants; an empty list is a healthy pool. It walks all of the pool in small steps, each of
    /// which judges its resources atomically.
    pub async fn check(&self) -> Result<Vec<Violation>> {
        let mut violations = BTreeSet::new();
        for part in PARTS {
            let mut cursor = "0".to_owned();
            loop {
                let mut reply = self.call(&script::CHECK, &[text(part), text(&cursor)]).await?;
                cursor = reply.text()?;
                for (invariant, subject) in reply.pairs()? {
                    let invariant = Invariant::parse(&invariant)
                        .ok_or_else(|| reply.broken(format!("unknown invariant {invariant:?}")))?;
                    violations.insert(Violation { invariant, subject });
                }
                if cursor == "0" {
                    break;
                }
            }
        }
        Ok(violations.into_iter().collect())
    }

    /// Places what [`check`](Self::check) finds in no place, in two, or in the wrong one anew; returns how many resources
    /// it touched. Leases that have a holder are left alone.
    pub async fn repair(&self) -> Result<u64> {
        let mut broken = BTreeSet::new();
        for violation in self.check().await? {
            use Invariant as I;
            match violation.invariant {
                I::InNoPlace
                | I::InTwoPlaces
                | I::FreeThoughReserved
                | I::MarkNotInForce
                | I::WrongPriority
                | I::FreeButNotDeclared
                | I::QuarantineButNotDeclared
                | I::QuarantinedWithoutMark
                | I::MarkButNotDeclared
                | I::LeaseWithoutHolder
                | I::HolderWithoutLease => {
                    broken.insert(ResourceKey::new(violation.subject)?);
                }
                I::HoldsMiscounted => self.resettle(&[]).await?,
                I::ItemWithoutOrigin
                | I::TokenAboveLast
                | I::ReservationWithoutBinding
                | I::BindingWithoutReservation
                | I::ExpiryWithoutBinding => {}
            }
        }
        let broken: Vec<_> = broken.into_iter().collect();
        for batch in broken.chunks(BATCH) {
            self.resettle(batch).await?;
        }
        Ok(broken.len() as u64)
    }

    pub(super) async fn resettle(&self, keys: &[ResourceKey]) -> Result<()> {
        let args: Args<'_> = keys.iter().map(|key| text(key.as_str())).collect();
        self.call(&script::RESETTLE, &args).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_words_are_the_enums() {
        let script = include_str!("../scripts/check.lua");
        let mut said = 0;
        for (_, rest) in script.match_indices("broken('").map(|(at, found)| script.split_at(at + found.len())) {
            let word = rest.split('\'').next().unwrap();
            assert_eq!(Invariant::parse(word).expect(word).to_string(), word);
            said += 1;
        }
        assert!(said >= 14, "{said}");
        assert!(Invariant::parse("free-but-not-declared").is_some());
        assert!(Invariant::parse("quarantine-but-not-declared").is_some());
    }
}
