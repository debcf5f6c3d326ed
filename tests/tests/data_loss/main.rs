//! A server that loses what it had acknowledged: everything (FLUSHALL), what came after a backup, or what a promoted
//! replica had not received. What is promised then: a pool that is made anew by whoever remembers it is held back until
//! the leases that nobody knows any more are over; after a rollback, two may use a resource until the older one's
//! deadline at most; no fencing token ever comes twice; the pool is whole again afterwards.

mod everything;
mod load;
mod rollback;
mod told;
