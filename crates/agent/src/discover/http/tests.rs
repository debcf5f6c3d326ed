//! Servers that answer well, badly, slowly, endlessly, and not at all.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, StatusCode},
    response::{Html, IntoResponse as _, Redirect},
    routing::get,
};
use futures::{StreamExt as _, stream};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, app).await });
    address
}

async fn ask_with(url: &str, more: &serde_json::Value, allow_link_local: bool) -> Result<Vec<String>, Trouble> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut source = json!({"url": url});
    source.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let client = address::client(allow_link_local).build().unwrap();
    let source: SourceHttp = serde_json::from_value(source).unwrap();
    let items = fetch(&client, &source, allow_link_local).await?;
    Ok(items.into_iter().map(|item| item.name).collect())
}

async fn ask(url: &str) -> Result<Vec<String>, Trouble> {
    ask_with(url, &json!({}), false).await
}

#[tokio::test]
async fn an_answer_is_a_list() {
    let app = Router::new()
        .route("/lines", get(|| async { "a\nb\n" }))
        .route("/json", get(|| async { r#"["a", {"name": "b"}]"# }))
        .route("/empty", get(|| async { "" }))
        // As servers do that take everything for a page.
        .route("/mislabelled", get(|| async { Html("a\nb\n") }));
    let server = serve(app).await;
    assert_eq!(ask(&format!("http://{server}/lines")).await.unwrap(), ["a", "b"]);
    assert_eq!(ask(&format!("http://{server}/mislabelled")).await.unwrap(), ["a", "b"]);
    assert_eq!(ask(&format!("http://{server}/empty")).await.unwrap(), [""; 0]);
    let json = ask_with(&format!("http://{server}/json"), &json!({"format": "Json"}), false).await;
    assert_eq!(json.unwrap(), ["a", "b"]);
}

#[tokio::test]
async fn every_bad_answer_is_an_error_of_its_own() {
    let app = Router::new()
        .route("/500", get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "a\n") }))
        .route("/204", get(|| async { StatusCode::NO_CONTENT }))
        .route("/html", get(|| async { "\n <!DOCTYPE html>\n<p>Sign in" }))
        .route("/json", get(|| async { "\n{\"error\":\n\"down\"}\n" }))
        .route("/bad", get(|| async { "a\na\n" }));
    let server = serve(app).await;
    for (path, category, words) in [
        ("/500", "status", "answered 500 Internal Server Error, allowed is 200 OK"),
        ("/404", "status", "answered 404 Not Found"),
        ("/204", "status", "answered 204 No Content"),
        ("/html", "invalid", "answered with HTML or XML, allowed is a list"),
        ("/bad", "invalid", "line 2: found the key of line 1 again"),
        ("/json", "invalid", "allowed is one key a line; to read it as JSON, say format: Json"),
    ] {
        let error = ask(&format!("http://ann:secret@{server}{path}?token=secret")).await.unwrap_err();
        assert_eq!(error.category, category, "{error}");
        assert!(error.message.contains(words) && error.message.contains(&format!("http://{server}{path}")), "{error}");
        assert!(!error.message.contains("secret"), "{error}");
    }
    let closed = ask("http://127.0.0.1:1/x").await.unwrap_err();
    assert!(closed.category == "unreachable" && closed.message.contains("Connection refused"), "{closed}");
    let none = ask("http://h:99999/?token=secret").await.unwrap_err();
    assert!(none.message.contains("is not a URL") && !none.message.contains("secret"), "{none}");
}

#[tokio::test]
async fn an_endless_answer_is_cut() {
    let gigabyte = || {
        let megabyte = axum::body::Bytes::from(vec![b'a'; 1 << 20]);
        Body::from_stream(stream::repeat(megabyte).take(1024).map(Ok::<_, std::io::Error>))
    };
    let announced = || async {
        (
            [("content-length", (1_u64 << 30).to_string())],
            Body::from_stream(stream::pending::<Result<axum::body::Bytes, std::io::Error>>()),
        )
            .into_response()
    };
    let server =
        serve(Router::new().route("/streamed", get(async move || gigabyte())).route("/announced", get(announced)))
            .await;
    for path in ["streamed", "announced"] {
        let started = Instant::now();
        let error = ask(&format!("http://{server}/{path}")).await.unwrap_err();
        assert!(error.category == "too_large" && error.message.contains("longer than 8 MiB"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(8), "it was not read to its end");
    }
}

#[tokio::test]
async fn who_is_slow_or_silent_is_not_waited_for() {
    let drip = async || {
        let drops = stream::unfold((), async |()| {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Some((Ok::<_, std::io::Error>("a"), ()))
        });
        Body::from_stream(drops)
    };
    let server = serve(Router::new().route("/drip", get(drip))).await;
    let quick = json!({"timeout": "300ms"});
    let slow = ask_with(&format!("http://{server}/drip"), &quick, false).await.unwrap_err();
    assert!(
        slow.category == "timeout" && slow.message.contains("had not sent all of its answer within 300ms"),
        "{slow}"
    );

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let never = ask_with(&url, &quick, false).await.unwrap_err();
    assert!(never.category == "timeout" && never.message.contains("was not answered within 300ms"), "{never}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_none() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\na\nb\n").await.unwrap();
    });
    let error = ask(&url).await.unwrap_err();
    assert!(
        error.category == "unreachable" && error.message.contains("broke off: ") && !error.message.contains("4 bytes"),
        "{error}"
    );
}

#[tokio::test]
async fn redirects_are_followed_but_not_everywhere() {
    let with_key = async |headers: HeaderMap| {
        if headers.contains_key("x-key") { "with-key" } else { "without-key" }
    };
    let elsewhere = serve(Router::new().route("/list", get(with_key))).await;
    let away = Redirect::temporary(&format!("http://{elsewhere}/list"));
    let app = Router::new()
        .route("/list", get(with_key))
        .route("/here", get(|| async { Redirect::temporary("list") }))
        .route("/away", get(move || async { away }))
        .route("/round", get(|| async { Redirect::temporary("/round") }))
        .route("/metadata", get(|| async { Redirect::temporary("http://169.254.169.254/latest") }))
        .route("/file", get(|| async { Redirect::temporary("file:///etc/passwd") }));
    let server = serve(app).await;
    let key = json!({"headers": [{"name": "X-Key", "value": "k"}]});
    let get = async |path: &str| ask_with(&format!("http://{server}/{path}"), &key, false).await;
    assert_eq!(get("here").await.unwrap(), ["with-key"]);
    assert_eq!(get("away").await.unwrap(), ["without-key"], "another server does not get it");
    for (path, words) in [
        ("round", "was redirected more than 5 times"),
        ("metadata", "http://169.254.169.254/latest: its address is link-local"),
        ("file", "was redirected to what is no URL of http or https"),
    ] {
        let error = get(path).await.unwrap_err();
        assert!(error.message.contains(words), "{error}");
    }
}

#[tokio::test]
async fn link_local_addresses_are_asked_only_if_that_is_allowed() {
    for url in ["http://169.254.169.254/latest", "http://[fe80::1]/", "http://[::ffff:169.254.169.254]/"] {
        let error = ask(url).await.unwrap_err();
        assert!(error.category == "refused" && error.message.contains("--allow-link-local"), "{error}");
    }
    let allowed = ask_with("http://169.254.0.1:1/", &json!({"timeout": "100ms"}), true).await.unwrap_err();
    assert_ne!(allowed.category, "refused", "{allowed}");
}
