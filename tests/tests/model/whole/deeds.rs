//! What must have happened in a run of each theme. What a theme comes to only now and then is asked of the one that
//! comes to it often.

use super::generate::Theme::{self, Declared, Line, Sessions, Shared};

/// What must have happened in a run of this theme.
pub(crate) fn required(theme: Theme) -> impl Iterator<Item = &'static str> {
    DEEDS.iter().filter(move |(themes, _)| themes.contains(&theme)).flat_map(|(_, deeds)| deeds.iter().copied())
}

/// Each deed once, with the themes of which it is asked.
const DEEDS: &[(&[Theme], &[&str])] = &[
    (
        &[Line, Shared, Sessions, Declared],
        &[
            "a claim",
            "a claim of one",
            "a claim of several",
            "a dead waiter is buried",
            "a dead waiter is passed over",
            "a grant is given back",
            "a heartbeat",
            "a resource is declared for a time",
            "a resource stays with its other origin",
            "a session begins",
            "a session that is over asks",
            "a waiter asks again for what it was granted",
            "a waiter comes",
            "a waiter waits",
            "an index is not there",
            "an offer",
            "an offer by selector",
            "an offer is given back",
            "an offer lapses",
            "bind required",
            "free",
            "free of several",
            "free of what is not held",
            "gc leaves the rest",
            "gc lets go of what was not declared again",
            "gc lets one origin go",
            "labels of a free resource change",
            "malloc",
            "malloc by a later selector",
            "malloc by selector",
            "malloc finds nothing",
            "malloc leaves what someone gathers",
            "malloc of several",
            "malloc of several finds too few",
            "malloc on a suspended pool",
            "more is asked for than there could be",
            "remove drains",
            "renew",
            "resume",
            "revoke",
            "several are offered at once",
            "what is declared is offered",
            "what is missing may stay for a while",
            "what was granted to a waiter is lost",
            "who gathers waits for more",
        ],
    ),
    (
        &[Line, Shared, Sessions],
        &["a higher priority is served first", "a waiter leaves", "a waiter waits behind others", "configure resumes"],
    ),
    (&[Line, Shared, Declared], &["remove revokes"]),
    (
        &[Shared, Sessions, Declared],
        &[
            "a shared resource is full",
            "a shared resource takes its turn",
            "free of one of several holders",
            "quarantine of a shared resource leaves its holders alone",
            "the last holder of what left the pool is gone",
        ],
    ),
    (
        &[Line, Shared],
        &[
            "configure changes the indexes",
            "configure changes the order",
            "configure resumes and serves the line",
            "renew for ever",
            "resume serves the line",
        ],
    ),
    (&[Line, Sessions], &["gc forgets a session", "leave of who is not in line"]),
    (&[Line, Declared], &["part of an offer is gone", "what is offered leaves the pool"]),
    (&[Shared, Sessions], &["malloc follows its binding"]),
    (
        &[Line],
        &[
            "a waiter's binding changed",
            "a waiter's time is over",
            "malloc gets what is reserved",
            "revoke of what is offered",
            "what is reserved is offered to its name",
            "who gathers is passed by who wants what comes later",
            "who gathers waits to be the first of those who do",
            "who was thought dead comes back before its offer lapses",
        ],
    ),
    (&[Shared], &["configure changes maxHolders", "malloc of several takes one resource twice"]),
    (
        &[Sessions],
        &[
            "a heartbeat comes too late",
            "a session ends",
            "a session that would outlast the maximum is refused",
            "a session's leases end with it",
        ],
    ),
    (&[Declared], &["a draining resource is declared again"]),
];
