//! Small programs that use redis-allocator, and the demo; the manifests they go with are in `pools/` and `kubernetes/`.
//!
//! | program | shows |
//! |---|---|
//! | `lease` | take a resource, use it, give it back |
//! | `keep_alive` | hold a resource for as long as the work takes, and stop at once when it is lost |
//! | `worker` | hold one resource after another until told to stop, as the pods in `kubernetes/` do |
//! | `pool_by_api` | a pool without any manifest or agent |
//! | `demo` | all parts together: `make demo` |

#[cfg(doctest)]
mod documentation;
