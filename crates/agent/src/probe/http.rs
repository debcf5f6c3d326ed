//! A resource works when an HTTP GET is answered with an expected status.
//!
//! Redirects are not followed: the redirect is the answer. So a probe goes where the manifest says, and nowhere else.

use std::{net::SocketAddr, sync::Arc};

use redis_allocator_crd::{HttpGet, without_secrets};
use reqwest::{
    Client, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};

use super::address::{REFUSED, is_link_local};

/// Looks names up as the machine does, and leaves out where a probe may not go.
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

/// A client that opens a connection for each probe, so that it finds out whether one can be opened.
pub(super) fn client(allow_link_local: bool) -> reqwest::Result<Client> {
    let builder = Client::builder()
        .user_agent(concat!("redis-allocator/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .pool_max_idle_per_host(0)
        .no_proxy();
    if allow_link_local { builder } else { builder.dns_resolver(Arc::new(Resolver)) }.build()
}

pub(super) async fn probe(client: &Client, get: &HttpGet, url: &str, allow_link_local: bool) -> Result<(), String> {
    let parsed: Url = url.parse().map_err(|error| format!("{:?} is not a URL: {error}", without_secrets(url)))?;
    // An address needs no looking up, and so no resolver sees it.
    let literal = parsed.host_str().and_then(|host| host.trim_matches(['[', ']']).parse().ok());
    if literal.is_some_and(is_link_local) && !allow_link_local {
        return Err(format!("{}: {REFUSED}", shown(&parsed)));
    }
    let mut request = client.get(parsed.clone());
    for header in &get.headers {
        request = request.header(&header.name, &header.value);
    }
    let response = request.send().await.map_err(|error| {
        // The innermost cause says what happened; the layers above it only that something did.
        let mut cause: &dyn std::error::Error = &error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        format!("GET {} failed: {cause}", shown(&parsed))
    })?;
    let status = i32::from(response.status().as_u16());
    let expected = &get.expected_status;
    if (expected.min..=expected.max).contains(&status) {
        return Ok(());
    }
    Err(format!("GET {} answered {status}, allowed is {} to {}", shown(&parsed), expected.min, expected.max))
}

/// The URL without a password and a query, which may be secret.
fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    // Both fail for URLs that can have neither.
    let _ = shown.set_password(None);
    let _ = shown.set_username("");
    shown.to_string()
}

#[cfg(test)]
mod tests {
    use axum::{Router, http::StatusCode, response::Redirect, routing::get};
    use redis_allocator_crd::StatusRange;
    use serde_json::json;

    use super::*;

    async fn serve() -> SocketAddr {
        let app = Router::new()
            .route("/ok", get(|| async { "fine" }))
            .route("/broken", get(|| async { StatusCode::SERVICE_UNAVAILABLE }))
            .route("/elsewhere", get(|| async { Redirect::temporary("http://169.254.169.254/") }))
            .route(
                "/secret",
                get(
                    async |headers: axum::http::HeaderMap| {
                        if headers.contains_key("x-key") { StatusCode::OK } else { StatusCode::FORBIDDEN }
                    },
                ),
            );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async { axum::serve(listener, app).await });
        address
    }

    fn check(headers: &serde_json::Value) -> HttpGet {
        serde_json::from_value(json!({"url": "http://{name}", "headers": headers})).unwrap()
    }

    #[tokio::test]
    async fn the_status_decides() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (address, client) = (serve().await, client(false).unwrap());
        let ask =
            async |get: &HttpGet, path: &str| probe(&client, get, &format!("http://{address}{path}"), false).await;
        let mut get = check(&json!([]));
        ask(&get, "/ok").await.unwrap();
        let error = ask(&get, "/broken?token=x").await.unwrap_err();
        assert!(error.contains("answered 503, allowed is 200 to 399") && !error.contains("token"), "{error}");
        assert!(ask(&get, "/secret").await.unwrap_err().contains("403"));
        ask(&check(&json!([{"name": "X-Key", "value": "k"}])), "/secret").await.unwrap();

        ask(&get, "/elsewhere").await.unwrap();
        get.expected_status = StatusRange { min: 200, max: 299 };
        assert!(ask(&get, "/elsewhere").await.unwrap_err().contains("answered 307"), "it is not followed");
    }

    #[tokio::test]
    async fn where_it_may_not_go_it_does_not() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = client(false).unwrap();
        for url in ["http://169.254.169.254/latest", "http://[fe80::1]/", "http://[::ffff:169.254.169.254]/"] {
            let error = probe(&client, &check(&json!([])), url, false).await.unwrap_err();
            assert!(error.contains("--allow-link-local"), "{error}");
        }
    }

    #[tokio::test]
    async fn who_does_not_answer_is_named() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = client(false).unwrap();
        let error = probe(&client, &check(&json!([])), "http://user:pass@127.0.0.1:1/x", false).await.unwrap_err();
        assert!(error.contains("http://127.0.0.1:1/x") && !error.contains("pass"), "{error}");
        probe(&client, &check(&json!([])), "http://", false).await.unwrap_err();
        for bad in ["http://user:secret@h:99999/x", "http://h:99999/x?token=secret", "http://user:se/secret@h:99999/"] {
            let error = probe(&client, &check(&json!([])), bad, false).await.unwrap_err();
            assert!(error.contains("is not a URL") && !error.contains("secret"), "{error}");
        }
    }
}
