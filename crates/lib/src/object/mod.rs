//! Objects made of resources: a session on a device, a connection through a proxy. This file says what a program must
//! tell about its kind of object; how one is asked for is in `open`, how it is held in `guard`, what may fail in `error`.
//! None of them knows Redis: they use leases and quarantines as any program could.

mod error;
mod guard;
mod open;
mod reason;

use std::{
    future::{Future, ready},
    sync::Arc,
};

use serde_json::{Map, Value};

pub use self::{
    error::{BoxError, CloseError, Failure, Fault, OpenError},
    guard::Allocated,
    open::Open,
};
use crate::names::ResourceKey;

/// A kind of object that resources are opened as: what the value itself holds is configuration, shared by all objects of
/// the kind. Write the methods as `async fn`. An `Arc` of a kind is a kind, too.
///
/// Ask for one with [`Malloc::open`](crate::Malloc::open).
///
/// ```no_run
/// use std::io;
///
/// use redis_allocator::{Allocatable, Pool, ResourceKey};
/// use serde_json::{Map, Value};
/// use tokio::{io::AsyncWriteExt, net::TcpStream};
///
/// /// Devices that are reached at the address that is their key.
/// struct Devices {
///     greeting: String,
/// }
///
/// impl Allocatable for Devices {
///     type Object = TcpStream;
///     type Error = io::Error;
///
///     async fn open(&self, key: &ResourceKey, _params: &Map<String, Value>) -> io::Result<TcpStream> {
///         let mut device = TcpStream::connect(key.as_str()).await?;
///         device.write_all(self.greeting.as_bytes()).await?;
///         Ok(device)
///     }
///
///     async fn is_healthy(&self, device: &mut TcpStream) -> io::Result<bool> {
///         Ok(device.peer_addr().is_ok())
///     }
///
///     async fn close(&self, mut device: TcpStream) -> io::Result<()> {
///         device.shutdown().await
///     }
/// }
///
/// # async fn example(pool: &Pool) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let devices = Devices { greeting: "hello\n".to_owned() };
/// if let Some(mut device) = pool.malloc().open(devices).attempts(5).await? {
///     device.write_all(b"work\n").await?; // it is a TcpStream
///     device.close().await?;
/// }
/// # Ok(())
/// # }
/// ```
pub trait Allocatable: Send + Sync + 'static {
    /// What a resource is opened as.
    type Object: Send + 'static;
    /// Why opening, checking or closing failed. Its text is shown to operators, as the reason of the quarantine.
    type Error: Into<BoxError> + Send + 'static;

    /// Opens a resource that has just been leased: its key, and the params that its declaration gives it.
    ///
    /// It may take long if the lease is kept alive, as it is by default, and has no limit of its own. It is dropped
    /// half-way when the caller gives up, or the lease is lost.
    ///
    /// # Errors
    /// The resource is quarantined for a while, and another one tried.
    fn open(
        &self,
        key: &ResourceKey,
        params: &Map<String, Value>,
    ) -> impl Future<Output = Result<Self::Object, Self::Error>> + Send;

    /// Whether an object can be used: asked when it has been opened, and by [`Allocated::refresh`]. Default: it can.
    ///
    /// # Errors
    /// One that can't be checked counts as one that can't be used.
    fn is_healthy(&self, object: &mut Self::Object) -> impl Future<Output = Result<bool, Self::Error>> + Send {
        let _ = object;
        ready(Ok(true))
    }

    /// Ends an object, before its resource is given back: called exactly once for each that was opened, healthy or not,
    /// and also when the lease was lost. Default: drops it.
    ///
    /// # Errors
    /// The resource is given back all the same.
    fn close(&self, object: Self::Object) -> impl Future<Output = Result<(), Self::Error>> + Send {
        drop(object);
        ready(Ok(()))
    }

    /// The name of the soft binding that objects of this kind follow, unless the request names one itself: they prefer
    /// the resource that this name had last. Default: none.
    fn name(&self) -> Option<&str> {
        None
    }
}

impl<K: Allocatable> Allocatable for Arc<K> {
    type Object = K::Object;
    type Error = K::Error;

    fn open(
        &self,
        key: &ResourceKey,
        params: &Map<String, Value>,
    ) -> impl Future<Output = Result<Self::Object, Self::Error>> + Send {
        K::open(self, key, params)
    }

    fn is_healthy(&self, object: &mut Self::Object) -> impl Future<Output = Result<bool, Self::Error>> + Send {
        K::is_healthy(self, object)
    }

    fn close(&self, object: Self::Object) -> impl Future<Output = Result<(), Self::Error>> + Send {
        K::close(self, object)
    }

    fn name(&self) -> Option<&str> {
        K::name(self)
    }
}
