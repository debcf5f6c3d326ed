//! Objects of a cluster, and lists in its `ConfigMaps` and Secrets. Asks for what a manifest names, in the pool's namespace
//! and nowhere else; only nodes are in none.

use std::{collections::BTreeSet, fmt::Debug};

use k8s_openapi::{
    api::{
        core::v1::{ConfigMap, Node, Pod, Secret},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector as ApiSelector, LabelSelectorRequirement},
};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{GetParams, ListParams},
    core::{Request, Selector},
};
use redis_allocator_crd::{
    LabelOperator, LabelSelector, MAX_SOURCE_ITEMS, Resource, SelectedObjects, SourceKeyRef, SourceKubernetes,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    list::{MAX_BYTES, Text, too_large},
    trouble::{INVALID, NOT_FOUND, REFUSED, STATUS, TOO_LARGE, Trouble, UNREACHABLE},
};

/// Objects of one page of a list.
const PAGE: u32 = 500;

pub(super) async fn fetch(
    client: &Client,
    namespace: &str,
    source: &SourceKubernetes,
) -> Result<Vec<Resource>, Trouble> {
    let client = client.clone();
    if let Some(selected) = &source.pods {
        let key = |pod: &Pod| {
            let ip = pod.status.as_ref()?.pod_ip.as_deref();
            selected.template.key(Some(&pod.name_any()), ip, None).filter(|_| is_ready_pod(pod))
        };
        list(&Api::namespaced(client, namespace), "pods", selected, key).await
    } else if let Some(selected) = &source.nodes {
        let key = |node: &Node| {
            selected.template.key(Some(&node.name_any()), internal_ip(node), None).filter(|_| is_ready_node(node))
        };
        list(&Api::all(client), "nodes", selected, key).await
    } else if let Some(selected) = &source.endpoint_slices {
        let keys = |slice: &EndpointSlice| endpoints(slice, selected);
        list(&Api::namespaced(client, namespace), "endpointslices", selected, keys).await
    } else if let Some(reference) = &source.config_map_key_ref {
        let api: Api<ConfigMap> = Api::namespaced(client, namespace);
        let what = format!("ConfigMap {namespace}/{}", reference.name);
        let found = api.get(&reference.name).await.map_err(|error| failed(&what, &error))?;
        let text = found.data.and_then(|mut data| data.remove(&reference.key)).map(String::into_bytes);
        let text = text.or_else(|| Some(found.binary_data?.remove(&reference.key)?.0));
        read(&what, reference, text, false).await
    } else if let Some(reference) = &source.secret_key_ref {
        let what = format!("Secret {namespace}/{}", reference.name);
        let found = secret(&client, namespace, &reference.name).await.map_err(|error| failed(&what, &error))?;
        let text = found.data.and_then(|mut data| data.remove(&reference.key)).map(|text| text.0);
        read(&what, reference, text, true).await
    } else {
        // Validation asks for exactly one of them.
        Ok(Vec::new())
    }
}

async fn read(
    what: &str,
    reference: &SourceKeyRef,
    text: Option<Vec<u8>>,
    secret: bool,
) -> Result<Vec<Resource>, Trouble> {
    let bytes = text.ok_or_else(|| Trouble::new(NOT_FOUND, format!("{what} has no key {}", reference.key)))?;
    if bytes.len() > MAX_BYTES {
        return Err(too_large(what));
    }
    let read = Text { bytes, format: reference.format, secret }.read().await;
    read.map_err(|trouble| trouble.about(&format!("{what}, key {}", reference.key)))
}

/// Read here, because the client logs an answer that it can't read.
async fn secret(client: &Client, namespace: &str, name: &str) -> Result<Secret, kube::Error> {
    let request = Request::new(Secret::url_path(&(), Some(namespace))).get(name, &GetParams::default());
    let text = client.request_text(request.map_err(kube::Error::BuildRequest)?).await?;
    serde_json::from_str(&text).map_err(kube::Error::SerdeError)
}

/// What all objects bring that the selector matches. Of the objects, no more than a page is kept at once.
async fn list<K, I>(
    api: &Api<K>,
    what: &str,
    selected: &SelectedObjects,
    keys: impl Fn(&K) -> I,
) -> Result<Vec<Resource>, Trouble>
where
    K: Clone + DeserializeOwned + Debug,
    I: IntoIterator<Item = String>,
{
    let selector = selector(&selected.label_selector)?;
    let mut params = ListParams::default().labels_from(&selector).limit(PAGE);
    // Sorted, as the order of objects means nothing; an endpoint may be in several slices.
    let mut found = BTreeSet::new();
    loop {
        let page = api.list(&params).await.map_err(|error| failed(what, &error))?;
        found.extend(page.items.iter().flat_map(&keys));
        if found.len() > MAX_SOURCE_ITEMS {
            let message = format!(
                "the {what} that match bring more than {MAX_SOURCE_ITEMS} resources, the most that a source may: narrow \
                 spec.sources"
            );
            return Err(Trouble::new(TOO_LARGE, message));
        }
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            return resources(found);
        }
    }
}

fn selector(declared: &LabelSelector) -> Result<Selector, Trouble> {
    let requirement = |declared: &redis_allocator_crd::LabelRequirement| LabelSelectorRequirement {
        key: declared.key.clone(),
        operator: match declared.operator {
            LabelOperator::In => "In",
            LabelOperator::NotIn => "NotIn",
            LabelOperator::Exists => "Exists",
            LabelOperator::DoesNotExist => "DoesNotExist",
        }
        .to_owned(),
        values: Some(declared.values.clone()).filter(|values| !values.is_empty()),
    };
    let selector = ApiSelector {
        match_labels: Some(declared.match_labels.clone()).filter(|labels| !labels.is_empty()),
        match_expressions: Some(declared.match_expressions.iter().map(requirement).collect::<Vec<_>>())
            .filter(|expressions| !expressions.is_empty()),
    };
    selector.try_into().map_err(|error| Trouble::new(INVALID, format!("the labelSelector can't be used: {error}")))
}

fn resources(keys: BTreeSet<String>) -> Result<Vec<Resource>, Trouble> {
    redis_allocator_crd::validate_items(keys.into_iter().map(Value::from)).map_err(|violations| {
        let first = violations.first().map_or_else(String::new, ToString::to_string);
        Trouble::new(INVALID, format!("the template makes what is no key: {first}"))
    })
}

fn is_ready_pod(pod: &Pod) -> bool {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none() && conditions.any(|it| it.type_ == "Ready" && it.status == "True")
}

fn is_ready_node(node: &Node) -> bool {
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    node.metadata.deletion_timestamp.is_none() && conditions.any(|it| it.type_ == "Ready" && it.status == "True")
}

fn internal_ip(node: &Node) -> Option<&str> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses.iter().find(|address| address.type_ == "InternalIP").map(|address| address.address.as_str())
}

/// The keys of the ready endpoints of a slice: one for each address, and for each port if that is asked for.
fn endpoints(slice: &EndpointSlice, selected: &SelectedObjects) -> Vec<String> {
    let numbers = slice.ports.iter().flatten().filter_map(|port| port.port);
    let mut ports: Vec<Option<String>> = numbers.map(|number| Some(number.to_string())).collect();
    if !selected.template.has_port() {
        ports = vec![None];
    }
    let is_ipv6 = slice.address_type == "IPv6";
    let mut keys = Vec::new();
    for endpoint in &slice.endpoints {
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready);
        // Unknown counts as ready: so the API says.
        if ready == Some(false) {
            continue;
        }
        let name = endpoint.target_ref.as_ref().and_then(|target| target.name.as_deref());
        for address in &endpoint.addresses {
            let address =
                if is_ipv6 && selected.template.has_port() { format!("[{address}]") } else { address.clone() };
            keys.extend(ports.iter().filter_map(|port| selected.template.key(name, Some(&address), port.as_deref())));
        }
    }
    keys
}

/// What is said of an error of the API server, which quotes no object.
fn failed(what: &str, error: &kube::Error) -> Trouble {
    match error {
        kube::Error::Api(status) if matches!(status.code, 401 | 403) => Trouble::new(
            REFUSED,
            format!("the agent may not read {what}: {}; give it the permission, see docs/discovery.md", status.message),
        ),
        kube::Error::Api(status) if status.code == 404 => Trouble::new(NOT_FOUND, format!("{what} is not there")),
        kube::Error::Api(status) => {
            Trouble::new(STATUS, format!("the API server refused to show {what}: {} ({})", status.message, status.code))
        }
        // What could not be read may be told by the error.
        kube::Error::SerdeError(_) => {
            Trouble::new(INVALID, format!("the API server's answer about {what} can't be read"))
        }
        error => {
            let cause = crate::address::cause(error);
            Trouble::new(UNREACHABLE, format!("the API server did not answer about {what}: {cause}"))
        }
    }
}

#[cfg(test)]
mod tests;
