//! The agents' pods: the version they run is this one, and the program understands what they tell it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Container, PodSpec, Probe, Service},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use regex::Regex;

use super::{objects, program, whole_files};

/// The image, without its tag.
pub(super) const IMAGE: &str = "ghcr.io/redis-allocator/redis-allocator";

fn deployment() -> Result<Deployment> {
    let (place, document) = objects::documents("manifests/base/deployment.yaml")?.pop().context("no Deployment")?;
    objects::strictly(&place, &document)
}

fn pod() -> Result<PodSpec> {
    deployment()?.spec.and_then(|spec| spec.template.spec).context("the Deployment has no pods")
}

fn container() -> Result<Container> {
    pod()?.containers.pop().context("the pods have no container")
}

/// The flags of `redis-allocator COMMAND` as its help lists them, and those among them that take a value.
fn flags(command: &str) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let output = program::redis_allocator()?.args([command, "--help"]).output()?;
    ensure!(output.status.success(), "{command} --help failed");
    let help = String::from_utf8(output.stdout)?;
    let line = Regex::new(r"(?m)^\s+(?:-\w, )?(--[a-z-]+)( <)?")?;
    let all = line.captures_iter(&help).map(|found| found[1].to_owned()).collect();
    let valued = line.captures_iter(&help).filter(|found| found.get(2).is_some());
    Ok((all, valued.map(|found| found[1].to_owned()).collect()))
}

/// That the program has the flags, with a value where it takes one.
fn understands(command: &str, arguments: &[String]) -> Result<()> {
    let (known, valued) = flags(command)?;
    for argument in arguments {
        let (flag, value) = argument.split_once('=').map_or((argument.as_str(), None), |(flag, it)| (flag, Some(it)));
        ensure!(known.contains(flag), "{command} has no {flag}");
        ensure!(valued.contains(flag) == value.is_some(), "{argument:?} with or without a value?");
    }
    Ok(())
}

#[test]
fn every_image_of_ours_is_of_this_version() -> Result<()> {
    let mut images = 0;
    for path in whole_files("manifests")?.into_iter().chain(whole_files("examples")?) {
        for (place, document) in objects::documents(&path)? {
            let containers = objects::template(&place, &document)?.and_then(|it| it.spec).map(|it| it.containers);
            for image in containers.into_iter().flatten().filter_map(|container| container.image) {
                if image.contains("redis-allocator") {
                    let tag = image.rsplit_once(':').map(|(_, tag)| tag);
                    ensure!(tag == Some(env!("CARGO_PKG_VERSION")), "{place}: {image} is not of this version");
                    images += 1;
                }
            }
        }
    }
    ensure!(images >= 2, "only {images} images were found");
    Ok(())
}

#[test]
fn the_program_understands_its_arguments() -> Result<()> {
    let args = container()?.args.context("no arguments")?;
    let (command, flags) = args.split_first().context("no arguments")?;
    ensure!(command == "agent" && flags.contains(&"--kubernetes".to_owned()), "{args:?}");
    understands("agent", flags)
}

#[test]
fn what_the_arguments_name_is_there() -> Result<()> {
    let container = container()?;
    let args = container.args.context("no arguments")?;
    let value = |flag: &str| args.iter().find_map(|argument| argument.strip_prefix(flag)?.strip_prefix('='));
    // The only writable place is a volume, and the state directory is in it.
    let state = value("--state-dir").context("no state directory")?;
    let mounts = container.volume_mounts.context("nothing is mounted")?;
    let mount = mounts.iter().find(|mount| mount.mount_path == state).context("the state directory is no volume")?;
    let volumes = pod()?.volumes.unwrap_or_default();
    ensure!(volumes.iter().any(|volume| volume.name == mount.name && volume.empty_dir.is_some()), "{mounts:?}");
    // Probes, and the Service, ask where it listens.
    let port = value("--http-bind").and_then(|bind| bind.rsplit_once(':')).context("no port")?.1.parse::<i32>()?;
    let ports = container.ports.context("no ports")?;
    ensure!(ports.iter().any(|it| it.container_port == port && it.name.as_deref() == Some("http")), "{ports:?}");
    for (probe, path) in [
        (&container.startup_probe, "/healthz"),
        (&container.liveness_probe, "/healthz"),
        (&container.readiness_probe, "/readyz"),
    ] {
        let Some(Probe { http_get: Some(get), .. }) = probe else { anyhow::bail!("a probe is missing") };
        ensure!(get.path.as_deref() == Some(path) && get.port == IntOrString::String("http".to_owned()), "{get:?}");
    }
    // The URL, with its password, comes from the Secret.
    let env = container.env.context("no environment")?;
    let url = env.iter().find(|variable| variable.name == "REDIS_URL").context("no REDIS_URL")?;
    let secret = url.value_from.as_ref().and_then(|from| from.secret_key_ref.as_ref()).context("no Secret")?;
    ensure!((secret.name.as_str(), secret.key.as_str()) == ("redis-allocator-redis", "url"), "{secret:?}");
    Ok(())
}

#[test]
fn one_of_two_is_always_there() -> Result<()> {
    let spec = deployment()?.spec.context("no spec")?;
    ensure!(spec.replicas == Some(2), "{:?}", spec.replicas);
    ensure!(pod()?.topology_spread_constraints.is_some_and(|spread| spread.len() == 2), "nothing spreads the agents");
    let (place, document) =
        objects::documents("manifests/base/disruption-budget.yaml")?.pop().context("no disruption budget")?;
    let budget: PodDisruptionBudget = objects::strictly(&place, &document)?;
    let budget = budget.spec.context("no budget")?;
    ensure!(budget.max_unavailable == Some(IntOrString::Int(1)), "{budget:?}");
    ensure!(budget.selector.as_ref() == Some(&spec.selector), "the budget is of other pods: {budget:?}");
    let (place, document) = objects::documents("manifests/base/service.yaml")?.pop().context("no Service")?;
    let service: Service = objects::strictly(&place, &document)?;
    let selected = service.spec.and_then(|spec| spec.selector);
    ensure!(selected == spec.selector.match_labels, "the Service is of other pods: {selected:?}");
    Ok(())
}
