//! Where a probe may go: nowhere link-local, unless an operator allows it. There, clouds answer anyone on the machine
//! with its credentials (169.254.169.254), and manifests may come from people who should not have those. One cloud does so
//! at an address that is not link-local, too (`fd00:ec2::254`).

use std::net::{IpAddr, Ipv6Addr};

/// What is said of an address that is not allowed.
pub(super) const REFUSED: &str =
    "its address is link-local, which needs an agent that was started with --allow-link-local";

/// The address of AWS' metadata service in networks of IPv6.
const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Whether it is one of `169.254.0.0/16` or `fe80::/10`, however it is written, or serves the same as those.
pub(super) fn is_link_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => {
            address.is_unicast_link_local()
                || address == METADATA
                || embedded_v4(address).is_some_and(|v4| v4.is_link_local())
        }
    }
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
