//! The harness of the end-to-end tests: real Redis and Valkey servers that a test starts, kills, pauses, restarts,
//! replicates and puts behind a faulty network; and, where one is installed, a real Kubernetes API server.
//!
//! It must not know the library, the agent or any key of theirs: it speaks of servers and bytes only.
//!
//! Everything it starts listens on 127.0.0.1, keeps its files in a temporary directory, and ends with the value that
//! owns it, or with the test process, even if that one is killed. A server binary that is missing is an error: a test
//! that silently skips a flavour proves nothing about it. `make test` provides both. Only the API server may be missing:
//! what needs it is then skipped, and says so.
//!
//! | module | gives |
//! |---|---|
//! | [`flavor`] | which server: Redis or Valkey, and where its binary is |
//! | [`server`] | one server: life, data on disk, configuration |
//! | [`stats`] | what a server did: calls per command, CPU time, slow commands |
//! | [`replica`] | a replica that lags when told so, and is promoted |
//! | [`sentinel`] | Sentinels that watch a master and fail it over |
//! | [`cluster`] | a three-master Cluster, with proxies if wanted, and slots that move |
//! | [`proxy`] | a TCP proxy that swallows replies, stalls, cuts and delays |
//! | [`kube`](mod@kube) | an API server with its etcd: objects, authorisation, an audit log |
//! | [`random`] | numbers for workloads that behave at random |
//! | [`wait`] | waiting for a condition instead of sleeping |
//! | [`witness`] | a second Redis that refuses too many holders at a time and lower fencing tokens |

pub mod cluster;
pub mod flavor;
pub mod kube;
mod life;
mod ports;
mod process;
pub mod proxy;
pub mod random;
pub mod replica;
mod resp;
pub mod sentinel;
pub mod server;
pub mod stats;
pub mod wait;
pub mod witness;

pub use flavor::Flavor;
pub use proxy::Proxy;
pub use random::Random;
pub use server::Server;
pub use wait::{eventually, within};
pub use witness::Witness;
