//! Replies that are lost after the server has done what they tell of, on one server and on a Cluster, by a connection
//! that closes and by one that falls silent: nothing is done twice, and nothing stays taken that nobody knows of.
//!
//! | file | what is lost |
//! |---|---|
//! | `scene` | where it is lost, and how |
//! | `grants` | the reply to a grant, or to its confirmation |
//! | `leases` | the reply to a renewal or a return |
//! | `declarations` | the reply to what changes the pool |
//! | `once` | the reply to what can't be repeated |
//! | `callers` | the caller |

mod callers;
mod declarations;
mod grants;
mod leases;
mod once;
mod scene;
