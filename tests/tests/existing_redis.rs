//! A Redis of a user's own, as `manifests/overlays/existing-redis` expects it: TLS by a private authority, and the users of
//! operations.md. The agent and a workload reach it by what that overlay gives to a pod, and by nothing less.

mod program;

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{Flavor, Server, eventually};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;
use tempfile::TempDir;

const SOON: Duration = Duration::from_mins(1);

const POOL: &str = "\
apiVersion: redis-allocator.dev/v1alpha1
kind: ResourcePool
metadata: {name: gpus, namespace: team-a}
spec: {resources: [{name: gpu-0}]}
";

fn read(path: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).with_context(|| format!("{} can't be read", path.display()))
}

/// Killed with the test.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An authority, and a certificate for `localhost` that it signed.
fn write_certificates(directory: &Path) -> Result<()> {
    let mut authority = CertificateParams::new([])?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate()?;
    fs::write(directory.join("ca.crt"), authority.self_signed(&authority_key)?.pem())?;
    let key = KeyPair::generate()?;
    let server = CertificateParams::new(["localhost".to_owned()])?;
    let server = server.signed_by(&key, &Issuer::new(authority, authority_key))?;
    fs::write(directory.join("tls.crt"), server.pem())?;
    Ok(fs::write(directory.join("tls.key"), key.serialize_pem())?)
}

/// The directory as the kubelet mounts a `ConfigMap`: files are links into a directory that a link names.
fn mount(directory: &Path, file: &Path) -> Result<()> {
    fs::create_dir_all(directory.join("..2026"))?;
    fs::copy(file, directory.join("..2026/ca.crt"))?;
    symlink("..2026", directory.join("..data"))?;
    Ok(symlink("..data/ca.crt", directory.join("ca.crt"))?)
}

/// The overlay's variable, with a directory of this machine in place of the one that it mounts.
fn certificates(mounted: &Path) -> Result<String> {
    let patch: Value = serde_saphyr::from_str(&read("manifests/overlays/existing-redis/tls.yaml")?)?;
    let container = &patch["spec"]["template"]["spec"]["containers"][0];
    ensure!(container["env"][0]["name"] == "SSL_CERT_DIR", "{container}");
    let value = container["env"][0]["value"].as_str().context("no value")?;
    let place = container["volumeMounts"][0]["mountPath"].as_str().context("no mount")?;
    let (images, given) = value.split_once(':').context("one directory")?;
    ensure!(given == place, "{value} does not name {place}");
    // Where the image keeps its certificates, this machine may have none.
    let images = if Path::new(images).is_dir() { format!("{images}:") } else { String::new() };
    Ok(images + &mounted.display().to_string())
}

fn run(url: &str, certificates: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = program::redis_allocator()?;
    command.args(arguments).env("REDIS_URL", url).env_remove("REDIS_ALLOCATOR_STATE_DIR");
    command.env_remove("SSL_CERT_FILE").env("SSL_CERT_DIR", certificates);
    Ok(command.output()?)
}

/// A server with TLS and the users of operations.md, and its TLS port; `None` if it was built without TLS.
async fn server(files: &Path) -> Result<Option<(Server, u16)>> {
    // Free until a moment ago: should it be taken meanwhile, the server says so.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let file = |name: &str| files.join(name).display().to_string();
    let mut builder = Server::builder(Flavor::Redis)
        .line(format!("tls-port {port}"))
        .line(format!("tls-cert-file {}", file("tls.crt")))
        .line(format!("tls-key-file {}", file("tls.key")))
        .line(format!("tls-ca-cert-file {}", file("ca.crt")))
        .line("tls-auth-clients no");
    let page = read("docs/operations.md")?;
    let users: Vec<_> = page.lines().filter(|line| line.starts_with("user ")).collect();
    ensure!(users.len() == 3, "{users:?}");
    for user in users {
        builder = builder.line(user);
    }
    match builder.start().await {
        Ok(server) => Ok(Some((server, port))),
        Err(error) if ["tls-port", "TLS support"].iter().any(|words| format!("{error:#}").contains(words)) => {
            writeln!(std::io::stderr(), "SKIPPED: TLS needs a redis-server that was built with it: {error:#}")?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[tokio::test]
async fn the_overlay_leads_to_a_redis_with_a_private_authority() -> Result<()> {
    let files = TempDir::new()?;
    write_certificates(files.path())?;
    let Some((_server, port)) = server(files.path()).await? else { return Ok(()) };
    let url = |user: &str, password: &str| format!("rediss://{user}:{password}@localhost:{port}");
    let team = url("team-a", "team-secret");

    // Without the ConfigMap the directory is there and empty: such a server is not trusted.
    let empty = files.path().join("empty");
    fs::create_dir(&empty)?;
    let refused = run(&team, &certificates(&empty)?, &["get", "pools", "-n", "team-a"])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && said.contains("certificate"), "{said}");
    ensure!(!said.contains("team-secret"), "the password is told: {said}");

    let mounted = files.path().join("ca");
    mount(&mounted, &files.path().join("ca.crt"))?;
    let certificates = certificates(&mounted)?;
    let pools = files.path().join("pools");
    fs::create_dir(&pools)?;
    fs::write(pools.join("gpus.yaml"), POOL)?;
    let mut agent = program::redis_allocator()?;
    agent.args(["agent", "--http-bind", "127.0.0.1:0", "--config"]).arg(&pools);
    agent.arg("--state-dir").arg(files.path().join("state")).env("REDIS_URL", url("agent", "agent-secret"));
    agent.env_remove("SSL_CERT_FILE").env("SSL_CERT_DIR", &certificates);
    let log = files.path().join("agent.log");
    let agent = Agent(agent.stdout(Stdio::null()).stderr(fs::File::create(&log)?).spawn()?);

    let leased = eventually(SOON, async || {
        let command = ["malloc", "team-a/gpus", "--", "sh", "-c", "echo $REDIS_ALLOCATOR_KEY"];
        let output = run(&team, &certificates, &command)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        ensure!(output.stdout == b"gpu-0\n", "{}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    });
    let leased = leased.await;
    drop(agent);
    let log = fs::read_to_string(&log)?;
    leased.with_context(|| log.clone())?;
    ensure!(!log.contains("agent-secret"), "the password is logged: {log}");
    Ok(())
}
