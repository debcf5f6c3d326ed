//! Processes that share a pool are killed one after the other, while others resize it: no resource is ever used by more
//! than may have it, and every one comes back. They take at once and in line, one and several, by names and by labels, for
//! a time and for as long as a session lives.
//!
//! | file | idea |
//! |---|---|
//! | `scene` | the pool, its workers, who resizes it, and what is true in the end |
//! | `kills` | on one server that keeps what it acknowledges |
//! | `failover` | while Sentinels replace the master: what is lost is measured |
//! | `slot` | while the pool's slot moves from one node of a Cluster to another |

mod failover;
mod kills;
mod scene;
mod slot;
