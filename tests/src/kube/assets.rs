//! Where the binaries of an API server are, by the convention of the field (envtest). It must not know how they are run.

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};

/// Names the directory of the binaries, instead of the usual one.
const VARIABLE: &str = "KUBEBUILDER_ASSETS";
const USUAL: &str = "/usr/local/kubebuilder/bin";
const HOW: &str = "`go install sigs.k8s.io/controller-runtime/tools/setup-envtest@latest && export \
                   KUBEBUILDER_ASSETS=$(setup-envtest use -p path)` fetches them";

/// The binaries of one Kubernetes.
#[derive(Debug, Clone)]
pub(super) struct Assets {
    pub(super) etcd: PathBuf,
    pub(super) api_server: PathBuf,
    pub(super) kubectl: PathBuf,
}

impl Assets {
    /// The binaries, or none if they are not installed; that is then said on standard error, whoever captures the
    /// output of tests.
    ///
    /// # Errors
    /// When `KUBEBUILDER_ASSETS` is set and something is missing there: whoever sets it wants these tests to run.
    pub(super) fn find(what: &str) -> Result<Option<Self>> {
        let given = env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        let directory = given.clone().unwrap_or_else(|| USUAL.into());
        let assets = Self {
            etcd: directory.join("etcd"),
            api_server: directory.join("kube-apiserver"),
            kubectl: kubectl(&directory),
        };
        let missing = assets.missing();
        if missing.is_empty() {
            return Ok(Some(assets));
        }
        let missing = format!("{} not found in {}: {HOW}", missing.join(" and "), directory.display());
        ensure!(given.is_none(), "{VARIABLE} is set, but {missing}");
        // The macros that print are captured by `cargo test`, which would hide this.
        writeln!(io::stderr(), "\nSKIPPED: {what} needs a Kubernetes API server; {missing}\n")?;
        Ok(None)
    }

    fn missing(&self) -> Vec<&str> {
        [("etcd", &self.etcd), ("kube-apiserver", &self.api_server), ("kubectl", &self.kubectl)]
            .into_iter()
            .filter_map(|(name, path)| (!path.is_file()).then_some(name))
            .collect()
    }
}

/// Beside the others, else from PATH.
fn kubectl(directory: &Path) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let beside = directory.join("kubectl");
    let candidates = env::split_paths(&path).map(|directory| directory.join("kubectl"));
    let found = std::iter::once(beside.clone()).chain(candidates).find(|candidate| candidate.is_file());
    found.and_then(|path| fs::canonicalize(path).ok()).unwrap_or(beside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("etcd"), "").unwrap();
        let path = |name: &str| directory.path().join(name);
        let assets = Assets { etcd: path("etcd"), api_server: path("kube-apiserver"), kubectl: path("kubectl") };
        assert_eq!(assets.missing(), ["kube-apiserver", "kubectl"]);
    }
}
