//! A resource works when a TCP connection to it is accepted.

use std::net::SocketAddr;

use tokio::net::{TcpStream, lookup_host};

use crate::address::{REFUSED, is_link_local};

/// Connects to the first address that accepts. Errors quote `told`, if there is something: the address is not for all eyes
/// then.
pub(super) async fn probe(address: &str, told: Option<&str>, allow_link_local: bool) -> Result<(), String> {
    let shown = told.unwrap_or(address);
    let found: Vec<SocketAddr> = match lookup_host(address).await {
        Ok(found) => found.collect(),
        Err(error) => return Err(format!("looking up {shown:?} failed: {error}; allowed is host:port")),
    };
    let mut last = format!("{shown:?} has no address");
    for candidate in found {
        let shown = told.map_or_else(|| candidate.to_string(), str::to_owned);
        if is_link_local(candidate.ip()) && !allow_link_local {
            last = format!("{shown}: {REFUSED}");
            continue;
        }
        match TcpStream::connect(candidate).await {
            Ok(_) => return Ok(()),
            Err(error) => last = format!("connecting to {shown} failed: {error}"),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_open_port_works_and_a_closed_one_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        probe(&address, None, false).await.unwrap();
        drop(listener);
        let error = probe(&address, None, false).await.unwrap_err();
        assert!(error.contains(&address), "{error}");
    }

    #[tokio::test]
    async fn what_is_no_address_says_what_would_be() {
        for bad in ["", "nowhere", "a b:1", "127.0.0.1:99999"] {
            let error = probe(bad, None, false).await.unwrap_err();
            assert!(error.contains("allowed is host:port"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_link_local_address_is_not_asked() {
        let error = probe("169.254.169.254:80", None, false).await.unwrap_err();
        assert!(error.contains("--allow-link-local"), "{error}");
    }
}
