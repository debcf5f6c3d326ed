//! Who may talk to an API server, and how: keys, tokens, kubeconfigs, clients.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;

use super::ApiServer;

pub(super) const CERTIFICATE: &str = "tls.crt";
pub(super) const KEY: &str = "tls.key";
pub(super) const SIGNING_KEY: &str = "service-account.key";
pub(super) const VERIFYING_KEY: &str = "service-account.pub";
pub(super) const TOKENS: &str = "tokens.csv";
pub(super) const ADMIN: &str = "admin.kubeconfig";

/// Writes what an API server needs to be known by and to know its clients by; the administrator's token.
pub(super) fn write_credentials(directory: &Path) -> Result<String> {
    let write = |name: &str, text: &str| {
        fs::write(directory.join(name), text).with_context(|| format!("cannot write {name} of the API server"))
    };
    let server = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    write(CERTIFICATE, &server.cert.pem())?;
    write(KEY, &server.signing_key.serialize_pem())?;
    let accounts = rcgen::KeyPair::generate()?;
    write(SIGNING_KEY, &accounts.serialize_pem())?;
    write(VERIFYING_KEY, &accounts.public_key_pem())?;
    let token = format!("{:016x}{:016x}", getrandom::u64()?, getrandom::u64()?);
    write(TOKENS, &format!("{token},admin,admin,\"system:masters\"\n"))?;
    Ok(token)
}

impl ApiServer {
    /// A client that may do everything, with a connection of its own.
    ///
    /// # Errors
    /// When the credentials can't be read.
    pub async fn client(&self) -> Result<Client> {
        client_of(&self.kubeconfig()).await
    }

    /// The kubeconfig of someone who may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.file(ADMIN)
    }

    /// A kubeconfig with an hour's token of a `ServiceAccount`, whose own namespace is the one it is used in.
    ///
    /// # Errors
    /// When there is no such `ServiceAccount`.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, namespace);
        let spec = TokenRequestSpec { expiration_seconds: Some(3600), ..TokenRequestSpec::default() };
        let asked = TokenRequest { spec, ..TokenRequest::default() };
        let given = accounts
            .create_token_request(name, &PostParams::default(), &asked)
            .await
            .with_context(|| format!("no token for the ServiceAccount {namespace}/{name}"))?;
        let path = self.file(&format!("{name}-{}.kubeconfig", NEXT.fetch_add(1, Ordering::Relaxed)));
        self.write_kubeconfig(&path, &given.status.context("an answer without a token")?.token, namespace)?;
        Ok(path)
    }

    pub(super) fn write_kubeconfig(&self, path: &Path, token: &str, namespace: &str) -> Result<()> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "it", "cluster": {
                "server": self.url(), "certificate-authority": self.file(CERTIFICATE),
            }}],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [{"name": "here", "context": {"cluster": "it", "user": "me", "namespace": namespace}}],
            "current-context": "here",
        });
        fs::write(path, config.to_string()).context("cannot write a kubeconfig")
    }
}

/// A client for whom a kubeconfig is.
///
/// # Errors
/// When the file can't be read or is no kubeconfig.
pub async fn client_of(kubeconfig: &Path) -> Result<Client> {
    // A second call finds the first one's, which is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &options).await?;
    Ok(Client::try_from(config)?)
}
