//! What a user applies from `examples/`: pools that the agent takes, and pods whose programs understand their arguments and
//! lease from pools that are there.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Container;

use super::{objects, program, root, whole_files};

const DIRECTORY: &str = "examples/kubernetes";

/// Where nothing listens: a program that has understood its arguments finds that out, and says so.
const NOWHERE: &str = "redis://127.0.0.1:1";

/// The only container of a Deployment.
fn container(file: &str) -> Result<Container> {
    let documents = objects::documents(&format!("{DIRECTORY}/{file}"))?;
    let [(place, document)] = &documents[..] else { anyhow::bail!("{file} has {} objects", documents.len()) };
    let spec = objects::template(place, document)?.and_then(|template| template.spec).context("no pods")?;
    let [container] = &spec.containers[..] else { anyhow::bail!("{place} has several containers") };
    Ok(container.clone())
}

/// The pools that the examples declare, as `namespace/name`.
fn pools() -> Result<BTreeSet<String>> {
    let mut pools = BTreeSet::new();
    for path in whole_files(DIRECTORY)? {
        for (_, document) in
            objects::documents(&path)?.iter().filter(|(_, document)| document["kind"] == "ResourcePool")
        {
            let metadata = &document["metadata"];
            let text = |field: &str| metadata[field].as_str().context(field.to_owned());
            pools.insert(format!("{}/{}", text("namespace")?, text("name")?));
        }
    }
    Ok(pools)
}

/// Runs a program as its pod would, beside no Redis.
fn run(mut program: Command, args: &[String]) -> Result<(i32, String)> {
    let output = program.args(args).env("REDIS_URL", NOWHERE).output()?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Ok((output.status.code().context("it was killed")?, said.into_owned()))
}

#[test]
fn the_pools_and_bindings_are_valid() -> Result<()> {
    for directory in ["examples/pools", "examples/discovery", "examples/kubernetes/1-pools.yaml"] {
        let output = program::redis_allocator()?.arg("validate").arg(root().join(directory)).output()?;
        ensure!(output.status.success(), "{directory}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // From Kubernetes, `exec` is refused.
    for path in whole_files("examples")? {
        for (place, document) in objects::documents(&path)? {
            ensure!(document["spec"]["healthCheck"]["exec"].is_null(), "{place} has a probe by command");
        }
    }
    Ok(())
}

/// kubectl applies the files of a directory by name, each document in turn.
#[test]
fn a_namespace_is_there_before_what_is_in_it() -> Result<()> {
    let mut there = BTreeSet::new();
    for path in whole_files(DIRECTORY)? {
        for (place, document) in objects::documents(&path)? {
            if document["kind"] == "Namespace" {
                there.insert(document["metadata"]["name"].as_str().context("no name")?.to_owned());
            } else {
                let namespace = document["metadata"]["namespace"].as_str().with_context(|| place.clone())?;
                ensure!(there.contains(namespace), "{place} comes before its namespace");
            }
        }
    }
    Ok(())
}

#[test]
fn every_pod_has_the_secret_and_the_label_that_lead_to_redis() -> Result<()> {
    let mut secrets = BTreeSet::new();
    let mut pods = 0;
    for path in whole_files(DIRECTORY)? {
        for (place, document) in objects::documents(&path)? {
            if document["kind"] == "Secret" {
                secrets.insert(document["metadata"]["name"].as_str().context("no name")?.to_owned());
            }
            let Some(template) = objects::template(&place, &document)? else { continue };
            let labels = template.metadata.and_then(|metadata| metadata.labels).unwrap_or_default();
            ensure!(labels.get("redis-allocator.dev/redis-client").is_some_and(|value| value == "true"), "{place}");
            for container in template.spec.context("no pods")?.containers {
                let env = container.env.unwrap_or_default();
                let variable = |name: &str| env.iter().find(|it| it.name == name).and_then(|it| it.value_from.clone());
                let url = variable("REDIS_URL").and_then(|from| from.secret_key_ref).with_context(|| place.clone())?;
                ensure!(secrets.contains(&url.name) && url.key == "url", "{place} has no Secret {}", url.name);
                // Leases are told apart by their pods.
                ensure!(variable("POD_NAME").is_some() && variable("POD_NAMESPACE").is_some(), "{place}");
                pods += 1;
            }
        }
    }
    ensure!(pods == 2, "{pods} containers were found");
    Ok(())
}

#[test]
fn the_library_example_understands_its_arguments() -> Result<()> {
    let args = container("2-library.yaml")?.args.context("no arguments")?;
    let pool = args.iter().find_map(|argument| argument.strip_prefix("--pool=")).context("no pool")?;
    ensure!(pools()?.contains(pool), "{pool} is not declared");
    let (code, said) = run(Command::new(program::binary("worker")?), &args)?;
    // clap would end it with 2.
    ensure!(code == 1 && said.contains("127.0.0.1:1"), "it ended with {code}: {said}");
    Ok(())
}

#[test]
fn the_command_example_understands_its_arguments() -> Result<()> {
    let args = container("3-command.yaml")?.args.context("no arguments")?;
    ensure!(args.first().is_some_and(|command| command == "malloc"), "{args:?}");
    let namespace = args.iter().find_map(|argument| argument.strip_prefix("--namespace=")).context("no namespace")?;
    ensure!(pools()?.contains(&format!("{namespace}/{}", args[1])), "{} is not declared", args[1]);
    let (code, said) = run(program::redis_allocator()?, &args)?;
    // The server can't be reached; clap would end it with 2.
    ensure!(code == 69, "it ended with {code}: {said}");
    // And so does the program that it runs.
    let inner: Vec<_> = args.iter().skip_while(|argument| *argument != "--").skip(1).cloned().collect();
    let (program, inner) = inner.split_first().context("no command")?;
    ensure!(program == "redis-allocator", "{program} is not in the image");
    let (code, said) = run(program::redis_allocator()?, inner)?;
    ensure!(code == 1 && said.contains("127.0.0.1:1"), "it ended with {code}: {said}");
    Ok(())
}
