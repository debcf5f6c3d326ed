//! Kustomizations: each names files that are there, each file is named by one, and each builds.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Component, Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde::Deserialize;
use serde_json::Value;

use super::{CRDS, agent::IMAGE, objects, pods, read, root, yaml_files};

const FILE: &str = "kustomization.yaml";

/// What a kustomization may say here. kustomize itself refuses other fields, too.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kustomization {
    api_version: String,
    kind: String,
    namespace: Option<String>,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    patches: Vec<Patch>,
    #[serde(default, rename = "labels")]
    _labels: Vec<Value>,
    #[serde(default, rename = "secretGenerator")]
    _secret_generator: Vec<Value>,
    #[serde(default, rename = "generatorOptions")]
    _generator_options: Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    path: String,
    #[serde(rename = "target")]
    _target: Value,
}

/// A path without `.` and `..`: kustomizations name what is above them.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
        plain
    })
}

/// Directories that have a kustomization, from the project's root.
fn directories() -> Result<Vec<PathBuf>> {
    let files = yaml_files("manifests")?;
    Ok(files.iter().filter_map(|path| Some(Path::new(path.strip_suffix(FILE)?).components().collect())).collect())
}

#[test]
fn kustomizations_name_what_is_there_and_all_of_it() -> Result<()> {
    let mut named = BTreeSet::new();
    for directory in directories()? {
        let path = directory.join(FILE);
        let place = path.display().to_string();
        let file: Kustomization = serde_saphyr::from_str(&read(&place)?).with_context(|| place.clone())?;
        let is_component = place.contains("/components/");
        let (version, kind) = if is_component { ("v1alpha1", "Component") } else { ("v1beta1", "Kustomization") };
        ensure!(file.api_version == format!("kustomize.config.k8s.io/{version}") && file.kind == kind, "{place}");
        ensure!(file.namespace.is_none_or(|namespace| namespace == "redis-allocator"), "{place}");
        for resource in file.resources.iter().chain(file.patches.iter().map(|patch| &patch.path)) {
            let target = plain(&directory.join(resource));
            let there = if target.extension().is_some() {
                // kustomize takes no file from outside of a kustomization's directory.
                target.starts_with(&directory) && root().join(&target).is_file()
            } else {
                root().join(&target).join(FILE).is_file()
            };
            ensure!(there, "{place} names {resource}, which is not there");
            named.insert(target);
        }
    }
    for path in yaml_files("manifests")?.iter().filter(|path| !path.ends_with(FILE)) {
        ensure!(named.contains(Path::new(path)), "no kustomization names {path}");
    }
    Ok(())
}

/// What kubectl builds from a directory; `None` where there is no kubectl.
fn build(directory: &Path) -> Result<Option<Vec<(String, Value)>>> {
    let name = directory.display().to_string();
    let output = match Command::new("kubectl").arg("kustomize").arg(root().join(directory)).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        output => output?,
    };
    ensure!(output.status.success(), "{name} does not build: {}", String::from_utf8_lossy(&output.stderr));
    objects::parse(&name, &String::from_utf8(output.stdout)?).map(Some)
}

/// Beside what `cargo test` captures.
fn say_skipped() -> Result<()> {
    let why = "SKIPPED: no kubectl on PATH, so no kustomization was built; kubectl 1.27 or newer would do it";
    Ok(writeln!(std::io::stderr(), "{why}")?)
}

fn find<'a>(objects: &'a [(String, Value)], name: &str) -> Result<&'a Value> {
    let found = objects.iter().find(|(_, object)| objects::name_of(object) == name);
    found.map(|(_, object)| object).with_context(|| format!("there is no {name}"))
}

const CLUSTER_WIDE: [&str; 4] = ["Namespace", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"];

#[test]
fn every_kustomization_builds_what_an_api_server_takes() -> Result<()> {
    for directory in directories()? {
        // A component is not built alone.
        if directory.starts_with("manifests/components") {
            continue;
        }
        let Some(built) = build(&directory)? else {
            return say_skipped();
        };
        for (place, object) in &built {
            objects::check(place, object)?;
            pods::check(place, object)?;
            let cluster_wide = CLUSTER_WIDE.contains(&object["kind"].as_str().unwrap_or_default());
            let namespace = object["metadata"]["namespace"].as_str();
            ensure!(namespace == (!cluster_wide).then_some("redis-allocator"), "{place} is in {namespace:?}");
            ensure!(object["metadata"]["labels"]["app.kubernetes.io/part-of"] == "redis-allocator", "{place}");
        }
        let names: BTreeSet<_> = built.iter().map(|(_, object)| objects::name_of(object)).collect();
        ensure!(names.len() == built.len(), "{} has objects of one name: {names:?}", directory.display());
        // Whatever overlay: the agents, all that they need, and a budget for them.
        for expected in [
            "Namespace/redis-allocator",
            "CustomResourceDefinition/resourcepools.redis-allocator.dev",
            "CustomResourceDefinition/softbindings.redis-allocator.dev",
            "ServiceAccount/redis-allocator-agent",
            "ClusterRole/redis-allocator-agent",
            "ClusterRoleBinding/redis-allocator-agent",
            "Role/redis-allocator-agent",
            "RoleBinding/redis-allocator-agent",
            "Deployment/redis-allocator-agent",
            "Service/redis-allocator-agent",
            "PodDisruptionBudget/redis-allocator-agent",
        ] {
            find(&built, expected).with_context(|| directory.display().to_string())?;
        }
        // kubectl reads the same out of the generated file as its writer put into it: no `no` that became false.
        for (place, definition) in objects::documents(CRDS)? {
            let mut seen = find(&built, &objects::name_of(&definition))?.clone();
            if let Some(metadata) = seen["metadata"].as_object_mut() {
                metadata.remove("labels");
            }
            let other = [objects::missing(&seen, &definition), objects::missing(&definition, &seen)].concat();
            ensure!(other.is_empty(), "kubectl reads {place} differently: {other:?}");
        }
    }
    Ok(())
}

/// Every Service, budget and policy selects pods that are there, and names ports that they have.
#[test]
fn what_selects_pods_finds_them() -> Result<()> {
    let Some(built) = build(Path::new("manifests"))? else {
        return say_skipped();
    };
    let mut pods = Vec::new();
    for (place, object) in &built {
        pods.extend(objects::template(place, object)?);
    }
    ensure!(pods.len() == 2, "the agents and Redis, not {}", pods.len());
    let mut selectors = 0;
    for (place, object) in &built {
        let spec = &object["spec"];
        let (selector, ports) = match object["kind"].as_str() {
            Some("Service") => (&spec["selector"], spec["ports"].as_array().cloned().unwrap_or_default()),
            Some("PodDisruptionBudget") => (&spec["selector"]["matchLabels"], Vec::new()),
            Some("NetworkPolicy") => {
                let ports = spec["ingress"][0]["ports"].as_array().cloned().unwrap_or_default();
                (&spec["podSelector"]["matchLabels"], ports)
            }
            _ => continue,
        };
        let selector = selector.as_object().with_context(|| format!("{place} selects all pods"))?;
        let is_selected = |pod: &&PodTemplateSpec| {
            let labels = pod.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
            selector
                .iter()
                .all(|(key, value)| labels.is_some_and(|it| it.get(key).map(String::as_str) == value.as_str()))
        };
        let selected: Vec<_> = pods.iter().filter(is_selected).collect();
        let [PodTemplateSpec { spec: Some(pod), .. }] = selected[..] else {
            anyhow::bail!("{place} selects {} kinds of pods", selected.len())
        };
        let names: Vec<_> = pod.containers.iter().flat_map(|it| it.ports.iter().flatten()).map(|it| &it.name).collect();
        for port in ports {
            // A Service names it as its target, a policy as the port itself.
            let name = port.get("targetPort").unwrap_or(&port["port"]).as_str().map(str::to_owned);
            ensure!(name.is_some() && names.contains(&&name), "{place} has the port {name:?}, its pods {names:?}");
        }
        selectors += 1;
    }
    ensure!(selectors == 4, "{selectors} selectors were looked at");
    Ok(())
}

#[test]
fn the_default_install_brings_a_redis_that_evicts_nothing() -> Result<()> {
    let Some(built) = build(Path::new("manifests"))? else {
        return say_skipped();
    };
    let secret = find(&built, "Secret/redis-allocator-redis")?;
    let service = find(&built, "Service/redis")?;
    // Base64 of redis://redis:6379, the Service's name and port.
    ensure!(secret["data"]["url"] == "cmVkaXM6Ly9yZWRpczo2Mzc5", "{secret}");
    ensure!(service["spec"]["ports"][0]["port"] == 6379, "{service}");
    let redis = &find(&built, "StatefulSet/redis")?["spec"]["template"];
    let args: Vec<_> = redis["spec"]["containers"][0]["args"].as_array().context("no args")?.iter().collect();
    ensure!(args.windows(2).any(|pair| pair[0] == "--maxmemory-policy" && pair[1] == "noeviction"), "{args:?}");
    // Its policy lets the agents in.
    let policy = find(&built, "NetworkPolicy/redis")?;
    let label = &policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"];
    let agent = find(&built, "Deployment/redis-allocator-agent")?;
    for (key, value) in label.as_object().context("no label")? {
        ensure!(&agent["spec"]["template"]["metadata"]["labels"][key] == value, "the agents lack the label {key}");
    }
    Ok(())
}

#[test]
fn an_existing_redis_needs_a_secret_and_no_password_in_a_file() -> Result<()> {
    let Some(built) = build(Path::new("manifests/overlays/existing-redis"))? else {
        return say_skipped();
    };
    ensure!(built.iter().all(|(_, object)| object["kind"] != "Secret"), "a Secret is committed");
    let agent = find(&built, "Deployment/redis-allocator-agent")?;
    let container = &agent["spec"]["template"]["spec"]["containers"][0];
    let env = container["env"].as_array().context("no environment")?;
    let variable = |name: &str| env.iter().find(|variable| variable["name"] == name).context(name.to_owned());
    ensure!(variable("REDIS_URL")?["valueFrom"]["secretKeyRef"]["key"] == "url", "{env:?}");
    let directories = variable("SSL_CERT_DIR")?["value"].as_str().context("no directories")?;
    let mounts = container["volumeMounts"].as_array().context("no mounts")?;
    let mounted = mounts.iter().find(|mount| mount["name"] == "redis-ca").context("no certificate is mounted")?;
    let place = mounted["mountPath"].as_str().context("no path")?;
    ensure!(directories.split(':').any(|directory| directory == place), "{directories}");
    Ok(())
}

/// An overlay of a user's own, outside of this project's directory, with every component.
#[test]
fn components_fit_the_overlays() -> Result<()> {
    let components: Vec<_> =
        directories()?.into_iter().filter(|directory| directory.starts_with("manifests/components")).collect();
    ensure!(components.len() == 3, "{components:?}");
    let project = root().canonicalize()?;
    for overlay in ["manifests/overlays/trial", "manifests/overlays/existing-redis"] {
        let own = tempfile::TempDir::new()?;
        let up: PathBuf = own.path().canonicalize()?.components().skip(1).map(|_| "..").collect();
        let from_here = |path: &Path| Ok(up.join(project.strip_prefix("/")?).join(path).display().to_string());
        let list = components.iter().map(|path| from_here(path)).collect::<Result<Vec<_>>>()?;
        let text = serde_json::json!({"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": [from_here(Path::new(overlay))?], "components": list,
            "images": [{"name": IMAGE, "newName": "registry.example.com/redis-allocator", "newTag": "of-mine"}]});
        fs::write(own.path().join(FILE), text.to_string())?;
        let Some(built) = build(own.path())? else {
            return say_skipped();
        };
        let agent = find(&built, "Deployment/redis-allocator-agent")?;
        let image = &agent["spec"]["template"]["spec"]["containers"][0]["image"];
        ensure!(image == "registry.example.com/redis-allocator:of-mine", "{image}");
        // Both select what the base calls its pods and its port.
        let service = find(&built, "Service/redis-allocator-agent")?;
        let monitor = &find(&built, "ServiceMonitor/redis-allocator-agent")?["spec"];
        for (key, value) in monitor["selector"]["matchLabels"].as_object().context("no label")? {
            ensure!(&service["metadata"]["labels"][key] == value, "the Service lacks the label {key}");
        }
        ensure!(monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"], "{monitor}");
        let policy = &find(&built, "NetworkPolicy/redis-allocator-agent")?["spec"];
        ensure!(policy["podSelector"] == agent["spec"]["selector"], "{policy}");
    }
    Ok(())
}
