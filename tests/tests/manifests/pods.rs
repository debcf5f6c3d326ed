//! What no pod of ours may do, whether it is the agents', a Redis for trying out, or an example: the profile `restricted` of
//! the Pod Security Standards, and more.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde_json::Value;

use super::{objects, whole_files};

/// Checks the pods of an object, if it makes any.
pub(super) fn check(place: &str, document: &Value) -> Result<()> {
    let Some(template) = objects::template(place, document)? else { return Ok(()) };
    let spec = template.spec.with_context(|| format!("{place} has no pods"))?;
    let labels = template.metadata.and_then(|metadata| metadata.labels).unwrap_or_default();
    let selector = document["spec"]["selector"]["matchLabels"].as_object().context("a selector has labels")?;
    for (key, value) in selector {
        ensure!(labels.get(key).map(String::as_str) == value.as_str(), "{place} does not select its own pods");
    }
    restricted(&spec).with_context(|| place.to_owned())?;
    // A token is for who talks to the API server: the agents alone.
    let is_agent = spec.service_account_name.as_deref() == Some("redis-allocator-agent");
    ensure!(spec.automount_service_account_token == Some(is_agent), "{place}: a token where none is needed, or none");
    Ok(())
}

fn restricted(spec: &PodSpec) -> Result<()> {
    let pod = spec.security_context.as_ref().context("no securityContext")?;
    ensure!(pod.run_as_non_root == Some(true), "it may run as root");
    ensure!(pod.run_as_user.is_some_and(|user| user > 0), "its user is left to the image");
    ensure!(pod.run_as_group.is_some_and(|group| group > 0), "its group is left to the image");
    ensure!(
        pod.seccomp_profile.as_ref().is_some_and(|profile| profile.type_ == "RuntimeDefault"),
        "no seccomp profile"
    );
    let shares = [spec.host_network, spec.host_pid, spec.host_ipc];
    ensure!(shares.iter().all(|share| !share.unwrap_or_default()), "it shares something of its host");
    ensure!(spec.termination_grace_period_seconds.is_none_or(|seconds| seconds >= 15), "it is killed too soon");
    for volume in spec.volumes.iter().flatten() {
        ensure!(volume.host_path.is_none(), "{} is a directory of the host", volume.name);
        if let Some(directory) = &volume.empty_dir {
            ensure!(directory.size_limit.is_some(), "{} may fill the disk", volume.name);
        }
    }
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    containers.into_iter().try_for_each(|container| contained(container).context(container.name.clone()))
}

fn contained(container: &Container) -> Result<()> {
    let security = container.security_context.as_ref().context("no securityContext")?;
    ensure!(security.allow_privilege_escalation == Some(false), "it may gain privileges");
    ensure!(security.read_only_root_filesystem == Some(true), "its root file system is writable");
    ensure!(!security.privileged.unwrap_or_default(), "it is privileged");
    let capabilities = security.capabilities.as_ref().context("it keeps its capabilities")?;
    ensure!(capabilities.drop.as_deref() == Some(&["ALL".to_owned()]), "it keeps capabilities");
    ensure!(capabilities.add.is_none(), "it gets capabilities");
    let resources = container.resources.as_ref().context("no resources")?;
    let requests = resources.requests.as_ref().context("no requests")?;
    ensure!(requests.contains_key("cpu") && requests.contains_key("memory"), "no requests");
    ensure!(resources.limits.as_ref().is_some_and(|limits| limits.contains_key("memory")), "its memory has no limit");
    let image = container.image.as_deref().context("no image")?;
    let tag = image.rsplit_once('/').map_or(image, |(_, name)| name).split_once(':').map(|(_, tag)| tag);
    ensure!(tag.is_some_and(|tag| tag != "latest"), "{image} is not one version");
    let arguments = container.command.iter().chain(&container.args).flatten();
    for argument in arguments {
        // What stands on a command line, every user of the node can read.
        ensure!(!argument.contains("://") && !argument.contains("requirepass"), "{argument:?} is on a command line");
    }
    Ok(())
}

#[test]
fn no_pod_may_do_more_than_it_must() -> Result<()> {
    for directory in ["manifests", "examples"] {
        for path in whole_files(directory)? {
            for (place, document) in objects::documents(&path)? {
                check(&place, &document)?;
            }
        }
    }
    Ok(())
}
