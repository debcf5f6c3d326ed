//! A list that an HTTP server answers with.
//!
//! # Guarantees
//! - An answer is there within the timeout, all of it, or it is none; of one that is too long no more than the limit is read.
//! - Headers and login go to the server that the manifest names, and to no other that it redirects to; from https nothing
//!   leads to http.
//! - Nothing leads to a link-local address, unless an operator allows it.

use redis_allocator_crd::{Resource, SourceHttp, without_secrets};
use reqwest::{Client, Response, StatusCode, Url, header};
use tokio::time::{Instant, timeout_at};

use super::{
    list::{MAX_BYTES, Text, too_large},
    trouble::{INVALID, REFUSED, STATUS, TIMEOUT, Trouble, UNREACHABLE},
};
use crate::address::{self, cause, names_link_local, shown};

/// How often a server may send on.
const REDIRECTS: usize = 5;

pub(super) async fn fetch(
    client: &Client,
    source: &SourceHttp,
    allow_link_local: bool,
) -> Result<Vec<Resource>, Trouble> {
    let asked = source
        .url
        .parse::<Url>()
        .map_err(|error| Trouble::new(INVALID, format!("{:?} is not a URL: {error}", without_secrets(&source.url))))?;
    let get = Get { client, source, asked, allow_link_local, deadline: Instant::now() + source.timeout.as_std() };
    let (url, response) = get.answer().await?;
    let told = format!("GET {}", shown(&url));
    let bytes = get.body(&told, response).await?;
    if is_markup(&bytes) {
        return Err(Trouble::new(
            INVALID,
            format!("{told} answered with HTML or XML, allowed is a list: is the URL right?"),
        ));
    }
    let read = Text { bytes, format: source.format, secret: false }.read().await;
    read.map_err(|trouble| trouble.about(&told))
}

/// One fetch.
struct Get<'a> {
    client: &'a Client,
    source: &'a SourceHttp,
    /// Where the manifest leads.
    asked: Url,
    allow_link_local: bool,
    deadline: Instant,
}

impl Get<'_> {
    /// The answer that is none of a redirect, and where it came from.
    async fn answer(&self) -> Result<(Url, Response), Trouble> {
        let mut url = self.asked.clone();
        for _ in 0..=REDIRECTS {
            let response = self.ask(&url).await?;
            let location = response.headers().get(header::LOCATION).filter(|_| response.status().is_redirection());
            let Some(location) = location else {
                return if response.status() == StatusCode::OK {
                    Ok((url, response))
                } else {
                    let status = response.status();
                    Err(Trouble::new(STATUS, format!("GET {} answered {status}, allowed is 200 OK", shown(&url))))
                };
            };
            let next = location.to_str().ok().and_then(|location| url.join(location).ok());
            let next = next.filter(|next| matches!(next.scheme(), "http" | "https")).ok_or_else(|| {
                Trouble::new(REFUSED, format!("GET {} was redirected to what is no URL of http or https", shown(&url)))
            })?;
            if url.scheme() == "https" && next.scheme() == "http" {
                let message =
                    format!("GET {} was redirected to {}, which is not encrypted any more", shown(&url), shown(&next));
                return Err(Trouble::new(REFUSED, message));
            }
            url = next;
        }
        let message = format!("GET {} was redirected more than {REDIRECTS} times", shown(&self.asked));
        Err(Trouble::new(STATUS, message))
    }

    async fn ask(&self, url: &Url) -> Result<Response, Trouble> {
        if names_link_local(url) && !self.allow_link_local {
            return Err(Trouble::new(REFUSED, format!("{}: {}", shown(url), address::REFUSED)));
        }
        let mut request = self.client.get(url.clone());
        if url.origin() == self.asked.origin() {
            for header in &self.source.headers {
                request = request.header(&header.name, &header.value);
            }
        }
        let response = timeout_at(self.deadline, request.send()).await.map_err(|_| {
            Trouble::new(TIMEOUT, format!("GET {} was not answered within {}", shown(url), self.source.timeout))
        })?;
        response.map_err(|error| {
            let cause = cause(&error).to_string();
            let category = if cause == address::REFUSED { REFUSED } else { UNREACHABLE };
            Trouble::new(category, format!("GET {} failed: {cause}", shown(url)))
        })
    }

    async fn body(&self, told: &str, mut response: Response) -> Result<Vec<u8>, Trouble> {
        let announced = response.content_length();
        if announced.is_some_and(|length| length > MAX_BYTES as u64) {
            return Err(too_large(&format!("the answer to {told}")));
        }
        let mut bytes = Vec::new();
        loop {
            let chunk = timeout_at(self.deadline, response.chunk()).await.map_err(|_| {
                // How much it was differs each time, and a message that does is another one.
                Trouble::new(TIMEOUT, format!("{told} had not sent all of its answer within {}", self.source.timeout))
            })?;
            let chunk = chunk.map_err(|error| {
                Trouble::new(UNREACHABLE, format!("the answer to {told} broke off: {}", cause(&error)))
            })?;
            let Some(chunk) = chunk else { return Ok(bytes) };
            if bytes.len() + chunk.len() > MAX_BYTES {
                return Err(too_large(&format!("the answer to {told}")));
            }
            bytes.extend_from_slice(&chunk);
        }
    }
}

/// Whether an answer is a page for people, as servers and proxies send them in place of what was asked for. Line by line it
/// would pass for keys.
fn is_markup(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    ["<!", "<?xml", "<html", "<head", "<body"]
        .iter()
        .any(|start| bytes.get(..start.len()).is_some_and(|found| found.eq_ignore_ascii_case(start.as_bytes())))
}

#[cfg(test)]
mod tests;
