//! The agent as a controller, against a real API server and a real Redis: installed with kubectl from `manifests/`, run
//! as a local process with a token of the shipped `ServiceAccount`, so that the shipped rights are all it has.
//!
//! Each test has a cluster of its own: an agent sees all namespaces, and half of the tests break something.

#[path = "../agent/mod.rs"]
mod agent;
#[path = "../program/mod.rs"]
mod program;

mod bindings;
mod churn;
mod cluster;
mod deletion;
mod events;
mod invalid;
mod leaders;
mod life;
mod obstacles;
mod outages;
mod same;
mod scale;
mod sources;
