//! Kubernetes objects in files, read strictly: a field that their type does not have is an error, where the API server
//! would drop it.

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{Namespace, PodTemplateSpec, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use redis_allocator_crd::Kind;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{read, whole_files};

/// The documents of a file, each with the place it is from.
pub(super) fn documents(path: &str) -> Result<Vec<(String, Value)>> {
    parse(path, &read(path)?)
}

pub(super) fn parse(name: &str, text: &str) -> Result<Vec<(String, Value)>> {
    let values: Vec<Value> = serde_saphyr::from_multiple(text).with_context(|| format!("{name} is not YAML"))?;
    Ok(values.into_iter().map(|value| (format!("{} in {name}", name_of(&value)), value)).collect())
}

/// `Kind/name`, as people write it.
pub(super) fn name_of(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// The document as a type, provided that the type keeps all of it.
pub(super) fn strictly<T: DeserializeOwned + Serialize>(place: &str, document: &Value) -> Result<T> {
    let typed: T = serde_json::from_value(document.clone()).with_context(|| place.to_owned())?;
    let kept = serde_json::to_value(&typed)?;
    let lost = missing(document, &kept);
    ensure!(lost.is_empty(), "{place} has what its kind does not know: {lost:?}");
    Ok(typed)
}

/// The paths of all that is in `written` and not, or otherwise, in `kept`.
pub(super) fn missing(written: &Value, kept: &Value) -> Vec<String> {
    let mut found = Vec::new();
    differences("", written, kept, &mut found);
    found
}

fn differences(path: &str, written: &Value, kept: &Value, found: &mut Vec<String>) {
    match (written, kept) {
        (Value::Object(written), Value::Object(kept)) => {
            for (key, value) in written {
                differences(&format!("{path}.{key}"), value, kept.get(key).unwrap_or(&Value::Null), found);
            }
        }
        (Value::Array(written), Value::Array(kept)) if written.len() == kept.len() => {
            for (index, (written, kept)) in written.iter().zip(kept).enumerate() {
                differences(&format!("{path}[{index}]"), written, kept, found);
            }
        }
        (written, kept) if written == kept => {}
        (Value::Number(written), Value::Number(kept)) if written.as_f64() == kept.as_f64() => {}
        _ => found.push(path.to_owned()),
    }
}

/// As much of the Prometheus operator's kind as is used here.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServiceMonitor {
    api_version: String,
    kind: String,
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    spec: ServiceMonitorSpec,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServiceMonitorSpec {
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    endpoints: Vec<ServiceMonitorEndpoint>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServiceMonitorEndpoint {
    port: String,
    path: String,
    interval: String,
    honor_labels: bool,
}

/// Checks a document against the type that it claims to be.
pub(super) fn check(place: &str, document: &Value) -> Result<()> {
    let field = |name: &str| document[name].as_str().with_context(|| format!("{place} has no {name}"));
    match (field("apiVersion")?, field("kind")?) {
        ("v1", "Namespace") => strictly::<Namespace>(place, document).map(drop),
        ("v1", "Secret") => strictly::<Secret>(place, document).map(drop),
        ("v1", "Service") => strictly::<Service>(place, document).map(drop),
        ("v1", "ServiceAccount") => strictly::<ServiceAccount>(place, document).map(drop),
        ("apps/v1", "Deployment") => strictly::<Deployment>(place, document).map(drop),
        ("apps/v1", "StatefulSet") => strictly::<StatefulSet>(place, document).map(drop),
        ("policy/v1", "PodDisruptionBudget") => strictly::<PodDisruptionBudget>(place, document).map(drop),
        ("networking.k8s.io/v1", "NetworkPolicy") => strictly::<NetworkPolicy>(place, document).map(drop),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => strictly::<ClusterRole>(place, document).map(drop),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
            strictly::<ClusterRoleBinding>(place, document).map(drop)
        }
        ("rbac.authorization.k8s.io/v1", "Role") => strictly::<Role>(place, document).map(drop),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => strictly::<RoleBinding>(place, document).map(drop),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => {
            strictly::<CustomResourceDefinition>(place, document).map(drop)
        }
        ("monitoring.coreos.com/v1", "ServiceMonitor") => strictly::<ServiceMonitor>(place, document).map(drop),
        (redis_allocator_crd::API_VERSION, kind) => {
            let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind);
            let kind = kind.with_context(|| format!("{place} is of a kind that nobody knows"))?;
            redis_allocator_crd::validate(kind, document)
                .map(drop)
                .map_err(|violations| anyhow::anyhow!("{place} is not valid: {violations:?}"))
        }
        (version, kind) => bail!("{place}: nobody checks {kind} of {version}; teach this test to"),
    }
}

/// The template of the pods that an object makes, if it makes any.
pub(super) fn template(place: &str, document: &Value) -> Result<Option<PodTemplateSpec>> {
    Ok(match document["kind"].as_str() {
        Some("Deployment") => strictly::<Deployment>(place, document)?.spec.map(|spec| spec.template),
        Some("StatefulSet") => strictly::<StatefulSet>(place, document)?.spec.map(|spec| spec.template),
        Some("Pod" | "DaemonSet" | "Job" | "CronJob") => bail!("{place}: nobody looks into it; teach this test to"),
        _ => None,
    })
}

#[test]
fn every_document_is_what_it_claims_to_be() -> Result<()> {
    for directory in ["manifests", "examples"] {
        for path in whole_files(directory)? {
            for (place, document) in documents(&path)? {
                check(&place, &document)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_field_that_does_not_exist_is_found() {
    let service = serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"},
        "spec": {"ports": [{"port": 80, "targetport": 8080}]}});
    let error = check("here", &service).unwrap_err().to_string();
    assert!(error.contains(".spec.ports[0].targetport"), "{error}");
    let pool = serde_json::json!({"apiVersion": redis_allocator_crd::API_VERSION, "kind": "ResourcePool",
        "metadata": {"name": "a"}, "spec": {"ordr": "Random"}});
    assert!(check("here", &pool).unwrap_err().to_string().contains("ordr"));
}
