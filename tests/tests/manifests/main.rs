//! What is installed in a cluster, looked at without one: the files under `manifests/` and `examples/kubernetes/`, and the
//! Dockerfile, which nothing here can build.
//!
//! | file | idea |
//! |---|---|
//! | [`agent`] | the agents' pods do what the program understands, as the version they name |
//! | [`dockerfile`] | the image, as far as its recipe tells |
//! | [`examples`] | what users apply: their pools, and the pods that lease from them |
//! | [`kustomize`] | kustomizations name all files and only files, and build |
//! | [`objects`] | documents, read strictly as what they claim to be |
//! | [`pods`] | what no pod may do |
//! | [`rbac`] | what the agents may do in the cluster: exactly what the page says |

#[path = "../program/mod.rs"]
mod program;

mod agent;
mod dockerfile;
mod examples;
mod kustomize;
mod objects;
mod pods;
mod rbac;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// Where the definitions of the kinds are installed from.
const CRDS: &str = "manifests/base/crds.yaml";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| format!("{path} can't be read"))
}

/// All YAML files below a directory of the project, as paths from its root.
fn yaml_files(directory: &str) -> Result<Vec<String>> {
    fn collect(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
        for entry in fs::read_dir(directory).with_context(|| format!("{} can't be read", directory.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                collect(&path, found)?;
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                found.push(path);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    collect(&root().join(directory), &mut found)?;
    let from_root = |path: PathBuf| Ok(path.strip_prefix(root())?.to_string_lossy().into_owned());
    let mut found = found.into_iter().map(from_root).collect::<Result<Vec<_>>>()?;
    ensure!(!found.is_empty(), "{directory} has no manifest");
    found.sort();
    Ok(found)
}

/// Those among them that hold whole objects: neither kustomizations nor the patches that these name.
fn whole_files(directory: &str) -> Result<Vec<String>> {
    let is_part = |path: &String| path.ends_with("/kustomization.yaml") || path.ends_with("/tls.yaml");
    Ok(yaml_files(directory)?.into_iter().filter(|path| !is_part(path)).collect())
}

#[test]
fn the_definitions_are_those_of_this_version() -> Result<()> {
    let output = program::redis_allocator()?.arg("crd").output()?;
    ensure!(output.status.success(), "crd failed: {}", String::from_utf8_lossy(&output.stderr));
    ensure!(
        String::from_utf8(output.stdout)? == read(CRDS)?,
        "{CRDS} is not what this version prints; renew it: cargo run -p redis-allocator-agent -- crd > {CRDS}"
    );
    Ok(())
}
