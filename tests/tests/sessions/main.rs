//! Sessions: one heartbeat keeps all leases, whoever dies loses them in time and not before, and nothing that is over
//! comes back.

mod deadlines;
mod ends;
mod losses;
mod scene;
