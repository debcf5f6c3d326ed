//! The addresses of a name.

use std::{collections::BTreeSet, io, net::IpAddr, time::Duration};

use redis_allocator_crd::{Resource, SourceDns};
use tokio::time::timeout;

use super::trouble::{NOT_FOUND, TIMEOUT, Trouble};

/// How long the machine's resolver may take. It has timeouts of its own, which may be longer.
const TIMEOUT_AFTER: Duration = Duration::from_secs(10);

pub(super) async fn fetch(source: &SourceDns) -> Result<Vec<Resource>, Trouble> {
    // A port makes no difference to what is found.
    let found = timeout(TIMEOUT_AFTER, tokio::net::lookup_host((source.name.as_str(), 0))).await;
    let found = found.map_err(|_| {
        Trouble::new(TIMEOUT, format!("looking up {} took longer than {}s", source.name, TIMEOUT_AFTER.as_secs()))
    })?;
    let found = found
        .map_err(|error: io::Error| Trouble::new(NOT_FOUND, format!("looking up {} failed: {error}", source.name)))?;
    // Resolvers rotate what they answer: the order means nothing.
    let addresses: BTreeSet<IpAddr> = found.map(|address| address.ip().to_canonical()).collect();
    let item = |address| Resource { name: key(source, address), ..Resource::default() };
    Ok(addresses.into_iter().map(item).collect())
}

fn key(source: &SourceDns, address: IpAddr) -> String {
    let address = match (source.port, address) {
        (None, address) => address.to_string(),
        (Some(port), IpAddr::V4(address)) => format!("{address}:{port}"),
        (Some(port), IpAddr::V6(address)) => format!("[{address}]:{port}"),
    };
    source.template.key(&address)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn source(name: &str, more: &serde_json::Value) -> SourceDns {
        let mut source = json!({"name": name});
        source.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(source).unwrap()
    }

    #[tokio::test]
    async fn each_address_of_a_name_is_a_resource() {
        let items = fetch(&source("127.0.0.1", &json!({"port": 80, "template": "http://{}/"}))).await.unwrap();
        assert_eq!(items.iter().map(|item| item.name.as_str()).collect::<Vec<_>>(), ["http://127.0.0.1:80/"]);
        assert!(!fetch(&source("localhost", &json!({}))).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_name_without_addresses_is_an_error_that_names_it() {
        let error = fetch(&source("no-such-host.invalid", &json!({}))).await.unwrap_err();
        assert!(error.message.contains("looking up no-such-host.invalid failed"), "{error}");
    }

    #[test]
    fn an_address_of_ipv6_has_brackets_before_a_port() {
        let address = "fd00::1".parse().unwrap();
        assert_eq!(key(&source("h", &json!({"port": 80})), address), "[fd00::1]:80");
        assert_eq!(key(&source("h", &json!({"template": "x{}"})), address), "xfd00::1");
    }
}
