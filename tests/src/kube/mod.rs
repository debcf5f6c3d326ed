//! A real Kubernetes API server with its etcd: no nodes, no controllers, so that objects are stored, validated,
//! authorised and watched, and nothing is run. It must not know what kinds a test adds to it.
//!
//! Its binaries are those of [envtest](https://book.kubebuilder.io/reference/envtest), looked for where everyone looks
//! for them: `$KUBEBUILDER_ASSETS`, else `/usr/local/kubebuilder/bin`; `kubectl` also on PATH. They are big and not
//! everyone's, so that a test without them is skipped, and says so on standard error.

mod access;
mod assets;
mod audit;
mod etcd;

use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt as _, process::Command};

pub use self::{access::client_of, audit::Request};
use self::{assets::Assets, etcd::Etcd};
use crate::{life::Life, ports, process::Process};

/// How long a server may take until it is ready, on a machine that does other things too.
const START: Duration = Duration::from_secs(90);

const LOG: &str = "kube-apiserver.log";
const AUDIT_POLICY: &str = "audit-policy.json";
const AUDIT_LOG: &str = "audit.log";

/// A running API server, or one that was killed and can be restarted on the same port with the same objects.
///
/// It ends when this value is dropped, or with the test process.
#[derive(Debug)]
pub struct ApiServer {
    assets: Assets,
    port: u16,
    /// Before the directory, which goes last.
    life: Life,
    etcd: Etcd,
    directory: TempDir,
}

impl ApiServer {
    /// Starts an empty one on a free port; `None` if it is not installed, which is then said on standard error as the
    /// reason for which `what` was skipped.
    ///
    /// # Errors
    /// When it does not become ready, with the end of its log; or when `KUBEBUILDER_ASSETS` is set and misses something.
    pub async fn start(what: &str) -> Result<Option<Self>> {
        let Some(assets) = Assets::find(what)? else { return Ok(None) };
        let directory = TempDir::new()?;
        let token = access::write_credentials(directory.path())?;
        fs::write(directory.path().join(AUDIT_POLICY), audit::policy().to_string())?;
        let etcd = Etcd::start(&assets.etcd)?;
        let port = ports::free()?;
        let life = Life::new(format!("kube-apiserver on 127.0.0.1:{port}"), directory.path().join(LOG));
        let server = Self { assets, port, life, etcd, directory };
        server.write_kubeconfig(&server.kubeconfig(), &token, "default")?;
        server.restart().await?;
        Ok(Some(server))
    }

    /// `https://127.0.0.1:<port>`, the same over restarts.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Ends the server at once, as a crash would (SIGKILL); what it stored stays. Killing a dead server is no error.
    pub fn kill(&self) {
        self.life.kill();
    }

    /// Stops the server without ending it (SIGSTOP): connections stay open, nothing is answered.
    ///
    /// # Errors
    /// When the server is not running.
    pub fn pause(&self) -> Result<()> {
        self.life.pause()
    }

    /// Lets a paused server go on (SIGCONT).
    ///
    /// # Errors
    /// When the server is not running.
    pub fn resume(&self) -> Result<()> {
        self.life.resume()
    }

    /// Kills the server if it runs, starts it again on its port with what it stored, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready; then with the end of its log.
    pub async fn restart(&self) -> Result<()> {
        self.kill();
        let process = Process::start(&self.assets.api_server, self.directory.path(), LOG, self.arguments())
            .context("cannot start kube-apiserver")?;
        self.life.begin(process);
        let client = self.client().await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let ready = self.life.ready(START, async |_| {
            let asked = http::Request::get("/readyz").body(Vec::new())?;
            let answer = client.request_text(asked).await?;
            ensure!(answer == "ok", "not ready: {answer}");
            // Made a moment after a first start, and everyone may rely on them.
            for name in ["default", "kube-system"] {
                namespaces.get(name).await?;
            }
            Ok(())
        });
        ready.await
    }

    /// Runs `kubectl` as someone who may do everything; what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with(arguments, "").await
    }

    /// Runs `kubectl` with this on standard input, for `-f -`; what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub async fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let cache = self.directory.path().join("kubectl-cache");
        let mut kubectl = Command::new(&self.assets.kubectl)
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--cache-dir")
            .arg(cache)
            .args(arguments)
            .env_remove("KUBECONFIG")
            .env("HOME", self.directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", self.assets.kubectl.display()))?;
        let mut stdin = kubectl.stdin.take().context("no standard input")?;
        let write = async move {
            // One that does not read its input has failed or needs none; its status tells.
            let _ = stdin.write_all(input.as_bytes()).await;
        };
        let (output, ()) = tokio::join!(kubectl.wait_with_output(), write);
        let output = output?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {} failed: {said}{text}", arguments.join(" "));
        Ok(text)
    }

    /// What the server was asked so far, over all its restarts.
    ///
    /// # Errors
    /// When its audit log can't be read.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let log = fs::read_to_string(self.directory.path().join(AUDIT_LOG)).context("cannot read the audit log")?;
        audit::parse(&log)
    }

    /// What the server logged so far, over all its restarts.
    pub fn log(&self) -> String {
        self.life.log()
    }

    fn arguments(&self) -> Vec<String> {
        let file = |name: &str| self.file(name).display().to_string();
        vec![
            format!("--etcd-servers={}", self.etcd.url()),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.port),
            format!("--tls-cert-file={}", file(access::CERTIFICATE)),
            format!("--tls-private-key-file={}", file(access::KEY)),
            format!("--cert-dir={}", file("certificates")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-signing-key-file={}", file(access::SIGNING_KEY)),
            format!("--service-account-key-file={}", file(access::VERIFYING_KEY)),
            format!("--token-auth-file={}", file(access::TOKENS)),
            "--authorization-mode=RBAC".to_owned(),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--audit-policy-file={}", file(AUDIT_POLICY)),
            format!("--audit-log-path={}", file(AUDIT_LOG)),
        ]
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
