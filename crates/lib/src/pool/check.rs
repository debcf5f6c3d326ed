//! Looking for broken invariants, and mending them. On a healthy pool both find nothing, whatever died in between.

use std::{collections::BTreeSet, fmt};

use futures::future::try_join_all;
use serde::Serialize;

use super::{Args, BATCH, Pool, text};
use crate::{error::Result, names::ResourceKey, script};

/// The keys that are walked, in the script's words.
const PARTS: [&str; 15] = [
    "items",
    "free",
    "leases",
    "holders",
    "quarantine",
    "marks",
    "reserved",
    "binds",
    "bind-expiry",
    "shares",
    "by-label",
    "waiters",
    "wants",
    "waiting",
    "session-leases",
];

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
    /// The pool is wrong about whether anything special is to be heeded when it grants. Repair looks again.
    PlainMisstated = "plain-misstated",
    /// A resource of a shared pool is free though as many hold it as may. Repair takes it out of what is free; leases
    /// are left alone.
    FreeThoughFull = "free-though-full",
    /// A resource is free and can't be found by its labels, so that selectors pass it over. Repair enters it anew.
    FreeWithoutLabel = "free-without-label",
    /// Selectors find a resource that is not free, or not by these labels. Repair takes the entry away.
    LabelButNotFree = "label-but-not-free",
    /// A lease of a shared pool is not counted among those of its resource, which could have too many. Repair counts it.
    LeaseWithoutShare = "lease-without-share",
    /// What ended is still counted among the leases of a shared resource, which could have one more. Repair takes it away.
    ShareWithoutLease = "share-without-lease",
    /// The pool is wrong about how many wait in line, and may pass them over or keep something for nobody. Repair counts
    /// them.
    WaitersMiscounted = "waiters-miscounted",
    /// Someone is in line and nothing says what for. Repair takes the place away; its caller takes a new one at the end.
    WaiterWithoutRequest = "waiter-without-request",
    /// Someone is in line and is never thought dead. Repair takes the place away; a live caller takes a new one at the end.
    WaiterWithoutLife = "waiter-without-life",
    /// Something would be offered to who is not in line. Repair takes the entry away.
    WantWithoutWaiter = "want-without-waiter",
    /// What a caller in line asked for, or was offered, stays though that caller is gone. Repair takes it away.
    RequestWithoutLife = "request-without-life",
    /// A session has a lease that has ended. Repair takes the entry away.
    SessionLeaseWithoutLease = "session-lease-without-lease",
}

/// One broken invariant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Violation {
    /// What is broken.
    pub invariant: Invariant,
    /// What it is broken for: a resource, a binding name, a waiter; of a shared pool's leases resource, NUL, and token.
    pub subject: String,
}

impl Pool {
    /// Looks for broken invariants; an empty list is a healthy pool. It walks all of the pool in small steps, each of
    /// which judges its resources atomically.
    pub async fn check(&self) -> Result<Vec<Violation>> {
        let parts = try_join_all(PARTS.iter().map(|part| self.check_part(part))).await?;
        Ok(parts.into_iter().flatten().collect::<BTreeSet<_>>().into_iter().collect())
    }

    async fn check_part(&self, part: &'static str) -> Result<Vec<Violation>> {
        let mut violations = Vec::new();
        let mut cursor = "0".to_owned();
        loop {
            let mut reply = self.call(&script::CHECK, &[text(part), text(&cursor)]).await?;
            cursor = reply.text()?;
            for (invariant, subject) in reply.pairs()? {
                let invariant = Invariant::parse(&invariant)
                    .ok_or_else(|| reply.broken(format!("unknown invariant {invariant:?}")))?;
                violations.push(Violation { invariant, subject });
            }
            if cursor == "0" {
                return Ok(violations);
            }
        }
    }

    /// Places what [`check`](Self::check) finds in no place, in two, or in the wrong one anew, and takes away what is left
    /// of leases, waiters and labels that are gone; returns how many things it mended. Leases that have a holder are left
    /// alone.
    pub async fn repair(&self) -> Result<u64> {
        let (mut broken, mut parts) = (BTreeSet::new(), BTreeSet::new());
        for Violation { invariant, subject } in self.check().await? {
            use Invariant as I;
            match invariant {
                // A lease's id in a shared pool.
                I::LeaseWithoutHolder if subject.contains('\0') => drop(parts.insert("leases")),
                I::HolderWithoutLease if subject.contains('\0') => drop(parts.insert("holders")),
                I::InNoPlace
                | I::InTwoPlaces
                | I::FreeThoughReserved
                | I::FreeThoughFull
                | I::FreeWithoutLabel
                | I::MarkNotInForce
                | I::WrongPriority
                | I::FreeButNotDeclared
                | I::QuarantineButNotDeclared
                | I::QuarantinedWithoutMark
                | I::MarkButNotDeclared
                | I::LeaseWithoutHolder
                | I::HolderWithoutLease => {
                    broken.insert(ResourceKey::new(subject)?);
                }
                I::HoldsMiscounted => self.resettle(&[]).await?,
                I::LabelButNotFree => drop(parts.insert("by-label")),
                I::LeaseWithoutShare => drop(parts.insert("leases")),
                I::ShareWithoutLease => drop(parts.insert("shares")),
                I::WaitersMiscounted | I::PlainMisstated | I::WaiterWithoutRequest | I::WaiterWithoutLife => {
                    parts.insert("waiters");
                }
                I::WantWithoutWaiter => drop(parts.insert("wants")),
                I::RequestWithoutLife => drop(parts.insert("waiting")),
                I::SessionLeaseWithoutLease => drop(parts.insert("session-leases")),
                I::ItemWithoutOrigin
                | I::TokenAboveLast
                | I::ReservationWithoutBinding
                | I::BindingWithoutReservation
                | I::ExpiryWithoutBinding => {}
            }
        }
        let mut mended = broken.len() as u64;
        for part in parts {
            mended += self.mend(part).await?;
        }
        let broken: Vec<_> = broken.into_iter().collect();
        for batch in broken.chunks(BATCH) {
            self.resettle(batch).await?;
        }
        Ok(mended)
    }

    /// Mends one key, page by page; how many entries were broken.
    async fn mend(&self, part: &str) -> Result<u64> {
        let (mut cursor, mut mended) = ("0".to_owned(), 0);
        loop {
            let mut reply = self.call(&script::MEND, &[text(part), text(&cursor)]).await?;
            cursor = reply.text()?;
            mended += reply.count()?;
            if cursor == "0" {
                return Ok(mended);
            }
        }
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
        assert!(said >= 26, "{said}");
        assert!(Invariant::parse("free-but-not-declared").is_some());
        assert!(Invariant::parse("quarantine-but-not-declared").is_some());
    }
}
