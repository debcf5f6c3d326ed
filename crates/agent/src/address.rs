//! Where probes and sources may go: nowhere link-local, unless an operator allows it. There, clouds answer anyone on the
//! machine with its credentials (169.254.169.254), and manifests may come from people who should not have those. One cloud
//! does so at an address that is not link-local, too (`fd00:ec2::254`).

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use reqwest::{
    Client, ClientBuilder, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};

/// What is said of an address that is not allowed.
pub(crate) const REFUSED: &str =
    "its address is link-local, which needs an agent that was started with --allow-link-local";

/// The address of AWS' metadata service in networks of IPv6.
const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Whether it is one of `169.254.0.0/16` or `fe80::/10`, however it is written, or serves the same as those.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => {
            address.is_unicast_link_local()
                || address == METADATA
                || embedded_v4(address).is_some_and(|v4| v4.is_link_local())
        }
    }
}

/// Looks names up as the machine does, and leaves out where nobody may go.
struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<SocketAddr> =
                found.iter().copied().filter(|address| !is_link_local(address.ip())).collect();
            if allowed.is_empty() && !found.is_empty() {
                return Err(REFUSED.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// An HTTP client in the making, which goes where a manifest says and nowhere else: neither to a proxy nor where a redirect
/// leads.
pub(crate) fn client(allow_link_local: bool) -> ClientBuilder {
    let builder = Client::builder()
        .user_agent(concat!("redis-allocator/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .no_proxy();
    if allow_link_local { builder } else { builder.dns_resolver(Arc::new(Resolver)) }
}

/// Whether a URL leads to a link-local address by itself: such a one needs no looking up, and so no resolver sees it.
pub(crate) fn names_link_local(url: &Url) -> bool {
    let literal = url.host_str().and_then(|host| host.trim_matches(['[', ']']).parse().ok());
    literal.is_some_and(is_link_local)
}

/// The URL without a password and a query, which may be secret.
pub(crate) fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    // Both fail for URLs that can have neither.
    let _ = shown.set_password(None);
    let _ = shown.set_username("");
    shown.to_string()
}

/// The innermost cause of an error says what happened; the layers above it only that something did.
pub(crate) fn cause<'e>(error: &'e (dyn std::error::Error + 'static)) -> &'e (dyn std::error::Error + 'static) {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

/// The address that a translator to IPv4 (`NAT64`, RFC 6052) would make of it.
fn embedded_v4(address: Ipv6Addr) -> Option<std::net::Ipv4Addr> {
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            let [.., a, b, c, d] = address.octets();
            Some(std::net::Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_is_recognised_however_it_is_written() {
        for refused in
            ["169.254.169.254", "fe80::1", "febf::1", "::ffff:169.254.1.1", "64:ff9b::a9fe:a9fe", "fd00:ec2::254"]
        {
            assert!(is_link_local(refused.parse().unwrap()), "{refused}");
        }
        for allowed in ["127.0.0.1", "10.0.0.1", "::1", "fec0::1", "2001:db8::1", "64:ff9b::a00:1"] {
            assert!(!is_link_local(allowed.parse().unwrap()), "{allowed}");
        }
    }
}
