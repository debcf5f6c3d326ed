//! What an API server was asked, from its audit log.

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Value, json};

/// One request to the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Who asked: `system:serviceaccount:<namespace>:<name>`, or `admin`.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, …
    pub verb: String,
    /// What was asked for: `resourcepools`, or `resourcepools/status`; empty for a path that is no resource.
    pub resource: String,
    /// The object's namespace; empty if it has none.
    pub namespace: String,
    /// The object's name; empty where a list was asked for.
    pub name: String,
    /// The answer's HTTP status.
    pub status: u16,
}

impl Request {
    /// Whether it asked for a change.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }
}

/// Everything, without bodies.
pub(super) fn policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{ "level": "Metadata" }],
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    stage: String,
    verb: String,
    user: User,
    #[serde(default)]
    object_ref: ObjectRef,
    response_status: Option<Status>,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ObjectRef {
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Deserialize)]
struct Status {
    code: u16,
}

/// The requests in an audit log, in the order of their answers.
pub(super) fn parse(log: &str) -> Result<Vec<Request>> {
    let mut requests = Vec::new();
    // The last line may be half written.
    for line in log.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let Entry { stage, verb, user, object_ref, response_status } =
            serde_json::from_str(line).with_context(|| format!("an audit entry that can't be read: {line}"))?;
        // A watch is answered for as long as it lasts, so that its beginning is what counts.
        if (stage == "ResponseStarted") != (verb == "watch" && stage != "Panic") {
            continue;
        }
        let ObjectRef { mut resource, subresource, namespace, name } = object_ref;
        if !subresource.is_empty() {
            resource = format!("{resource}/{subresource}");
        }
        let status = response_status.map_or(0, |status| status.code);
        requests.push(Request { user: user.username, verb, resource, namespace, name, status });
    }
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stage: &str, verb: &str, code: u16) -> String {
        let entry = json!({
            "stage": stage, "verb": verb, "user": {"username": "admin"}, "responseStatus": {"code": code},
            "objectRef": {"resource": "pods", "subresource": "status", "namespace": "default", "name": "a"},
        });
        format!("{entry}\n")
    }

    #[test]
    fn each_request_counts_once() {
        let log = [
            line("ResponseComplete", "patch", 200),
            line("ResponseStarted", "watch", 200),
            line("ResponseComplete", "watch", 200),
            line("ResponseStarted", "get", 200),
            line("ResponseComplete", "get", 403),
            "{\"stage\": \"Resp".to_owned(),
        ];
        let requests = parse(&log.concat()).unwrap();
        let told: Vec<_> =
            requests.iter().map(|it| (it.verb.as_str(), it.resource.as_str(), it.status, it.is_write())).collect();
        assert_eq!(
            told,
            [
                ("patch", "pods/status", 200, true),
                ("watch", "pods/status", 200, false),
                ("get", "pods/status", 403, false)
            ]
        );
    }
}
