//! Reading what the scripts answer, in the reference's words. It must not know what is expected.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use redis::Value;
use serde_json::Value as Json;

use super::step::{KEYS, Name, Reply};

impl Reply {
    pub(super) fn list(&self) -> &[Self] {
        match self {
            Self::List(list) => list,
            _ => &[],
        }
    }

    pub(super) fn at(&self, i: usize) -> &Self {
        self.list().get(i).unwrap_or(&Self::Nothing)
    }

    pub(super) fn str(&self) -> &str {
        match self {
            Self::Text(text) => text,
            _ => "",
        }
    }

    pub(super) fn option(&self) -> Option<&str> {
        (*self != Self::Nothing).then(|| self.str())
    }

    /// Pairs of texts.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.list().chunks_exact(2).map(|pair| (pair[0].str(), pair[1].str()))
    }
}

pub(super) fn plain(value: Value) -> Reply {
    match value {
        Value::Nil | Value::Boolean(false) => Reply::Nothing,
        Value::Int(number) => Reply::text(number),
        Value::BulkString(bytes) => Reply::text(String::from_utf8_lossy(&bytes)),
        Value::SimpleString(text) => Reply::Text(text),
        Value::Array(values) => Reply::List(values.into_iter().map(plain).collect()),
        Value::Okay => Reply::text("OK"),
        other => Reply::Text(format!("{other:?}")),
    }
}

/// Puts the items' records of a grant into the form of the reference's; what was granted.
pub(super) fn normal_grant(result: &mut Reply) -> Vec<Name> {
    let Reply::List(parts) = result else { return Vec::new() };
    let mut granted = Vec::new();
    for grant in parts.chunks_exact_mut(4) {
        granted.extend(KEYS.into_iter().find(|key| *key == grant[0].str()));
        if let Some(record) = normal(grant[3].str()) {
            grant[3] = Reply::Text(record);
        }
    }
    granted
}

/// An item's record without the length of its origins, which may be written in two ways.
fn normal(record: &str) -> Option<String> {
    let (head, rest) = record.split_at_checked(14)?;
    let length: usize = rest.get(..4)?.parse().ok()?;
    let (origins, facts) = rest[4..].split_at_checked(length)?;
    let origins: Json = serde_json::from_str(origins).ok()?;
    Some(format!("{head}{origins}{facts}"))
}

pub(super) fn see_info(info: &Reply, view: &mut BTreeMap<String, String>) -> Result<()> {
    let meta: BTreeMap<_, _> = info.at(1).pairs().collect();
    let names =
        ["items", "free", "leases", "quarantined", "bindings", "reserved", "draining", "now", "waiting", "sessions"];
    for (i, name) in names.into_iter().enumerate().filter(|(_, name)| *name != "now") {
        view.insert(format!("count of {name}"), info.at(3 + i).str().to_owned());
    }
    let field = |name| meta.get(name).copied().unwrap_or("0").to_owned();
    view.insert("count of gathering".to_owned(), field("gathering"));
    for (name, shown) in [
        ("last", "last"),
        ("longest", "longest"),
        ("granted", "granted"),
        ("expired", "expired"),
        ("revoked", "revoked"),
        ("quarantined", "ever quarantined"),
    ] {
        view.insert(format!("meta {shown}"), field(name));
    }
    ensure!(!meta.is_empty(), "info says {info:?}");
    Ok(())
}

pub(super) fn see_resources(snapshot: &Reply, view: &mut BTreeMap<String, String>) -> Result<()> {
    for (i, key) in snapshot.at(3).list().iter().enumerate() {
        let of = |part: usize| snapshot.at(part).at(i).option();
        let item = of(4).map_or_else(|| Some("undeclared".to_owned()), normal);
        let mut text = vec![item.context("an item's record")?];
        if let Some(score) = of(7) {
            text.push(format!(" free {score}"));
        }
        if let Some(until) = of(8) {
            text.push(format!(" quarantined {until}"));
        }
        if let Some(name) = of(10) {
            text.push(format!(" reserved {name}"));
        }
        if let Some(marks) = of(9) {
            let marks: BTreeMap<String, Json> = serde_json::from_str(marks)?;
            for (cause, mark) in marks {
                let until = mark["until"].as_i64().context("no end of a mark")?;
                let until = if until == -1 { "inf".to_owned() } else { until.to_string() };
                text.push(format!(" {cause} {until}"));
            }
        }
        if let (Some(expiry), Some(record)) = (of(5), of(6)) {
            text.push(format!(" held until {expiry} {record}"));
        }
        if let [holders, ..] = snapshot.at(11).at(i).list() {
            text.push(format!(" holders {}", holders.str()));
        }
        for held in snapshot.at(11).at(i).list().get(1..).unwrap_or(&[]).chunks_exact(3) {
            text.push(format!(" held until {} {}", held[1].str(), held[2].str()));
        }
        view.insert(format!("resource {}", key.str()), text.concat());
    }
    Ok(())
}

pub(super) fn see_line(waiters: &Reply, sessions: &Reply, view: &mut BTreeMap<String, String>) {
    for (place, waiter) in waiters.at(1).list().chunks_exact(4).enumerate() {
        let request: Json = serde_json::from_str(waiter[1].str()).unwrap_or_default();
        let (id, alive, offered) = (waiter[0].str(), waiter[2].str(), waiter[3].str());
        let text = format!("{id} n={} alive until {alive} offered {offered}", request["n"]);
        view.insert(format!("waiter {place}"), text);
    }
    for session in sessions.at(2).list().chunks_exact(3) {
        let text = format!("{} leases {}", session[1].str(), session[2].str());
        view.insert(format!("session {}", session[0].str()), text);
    }
}

pub(super) fn see_bindings(binds: &Reply, expiries: &Reply, missing: &Reply, view: &mut BTreeMap<String, String>) {
    let expiries: BTreeMap<_, _> = expiries.pairs().collect();
    for (name, record) in binds.pairs() {
        let until = expiries.get(name).copied().unwrap_or("inf");
        view.insert(format!("binding {name}"), format!("{record} {until}"));
    }
    for (entry, at) in missing.pairs() {
        view.insert(format!("missing {}", entry.replace('\0', " ")), at.to_owned());
    }
}
