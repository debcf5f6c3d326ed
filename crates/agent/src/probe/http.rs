//! A resource works when an HTTP GET is answered with an expected status.
//!
//! Redirects are not followed: the redirect is the answer. So a probe goes where the manifest says, and nowhere else.

use redis_allocator_crd::{HttpGet, without_secrets};
use reqwest::{Client, Url};

use crate::address::{self, REFUSED, cause, names_link_local, shown};

/// A client that opens a connection for each probe, so that it finds out whether one can be opened.
pub(super) fn client(allow_link_local: bool) -> reqwest::Result<Client> {
    address::client(allow_link_local).pool_max_idle_per_host(0).build()
}

pub(super) async fn probe(client: &Client, get: &HttpGet, url: &str, allow_link_local: bool) -> Result<(), String> {
    let parsed: Url = url.parse().map_err(|error| format!("{:?} is not a URL: {error}", without_secrets(url)))?;
    if names_link_local(&parsed) && !allow_link_local {
        return Err(format!("{}: {REFUSED}", shown(&parsed)));
    }
    let mut request = client.get(parsed.clone());
    for header in &get.headers {
        request = request.header(&header.name, &header.value);
    }
    let response = request.send().await;
    let response = response.map_err(|error| format!("GET {} failed: {}", shown(&parsed), cause(&error)))?;
    let status = i32::from(response.status().as_u16());
    let expected = &get.expected_status;
    if (expected.min..=expected.max).contains(&status) {
        return Ok(());
    }
    Err(format!("GET {} answered {status}, allowed is {} to {}", shown(&parsed), expected.min, expected.max))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

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
