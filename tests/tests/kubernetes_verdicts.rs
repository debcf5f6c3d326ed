//! The list of valid and invalid manifests, judged by a real API server with the generated definitions: the same
//! verdicts as in file mode, but for the differences that the list marks and explains.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use e2e::{eventually, kube::ApiServer};
use http::{Method, Request};
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};

/// Described beside the list, and in full in the test that runs it in file mode.
#[derive(Deserialize)]
struct Entry {
    case: String,
    manifest: Value,
    old: Option<Value>,
    #[serde(default)]
    violations: Vec<Value>,
    server: Option<String>,
}

fn cases() -> Result<Vec<Entry>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/manifests");
    let mut cases = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let list: Vec<Entry> =
                serde_saphyr::from_str(&fs::read_to_string(&path)?).with_context(|| path.display().to_string())?;
            cases.extend(list);
        }
    }
    Ok(cases)
}

/// Where kubectl would send an object: by what it says of itself.
fn collection(manifest: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace = match &manifest["metadata"]["namespace"] {
        Value::Null => "default".to_owned(),
        other => text(other),
    };
    let plural = format!("{}s", text(&manifest["kind"]).to_lowercase());
    format!("/apis/{}/namespaces/{namespace}/{plural}", text(&manifest["apiVersion"]))
}

/// Sends an object as `kubectl` does, by default strictly; `Err` is the server's refusal.
async fn send(client: &Client, method: Method, path: &str, object: &Value, dry: bool) -> Result<Result<(), String>> {
    let dry = if dry { "&dryRun=All" } else { "" };
    let request = Request::builder()
        .method(method)
        .uri(format!("{path}?fieldValidation=Strict{dry}"))
        .header("Content-Type", "application/json")
        .body(serde_json::to_vec(object)?)?;
    match client.request::<Value>(request).await {
        Ok(_) => Ok(Ok(())),
        Err(kube::Error::Api(status)) => Ok(Err(status.message.clone())),
        Err(other) => Err(other.into()),
    }
}

async fn judge(client: &Client, number: usize, entry: &Entry) -> Result<Result<(), String>> {
    let Some(old) = &entry.old else {
        return send(client, Method::POST, &collection(&entry.manifest), &entry.manifest, true).await;
    };
    // A rule about changes needs something that is there: in a namespace of the case's own, so that names may repeat.
    let namespace = format!("case-{number}");
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    send(client, Method::POST, "/api/v1/namespaces", &space, false).await?.map_err(anyhow::Error::msg)?;
    let (mut old, mut new) = (old.clone(), entry.manifest.clone());
    for object in [&mut old, &mut new] {
        object["metadata"]["namespace"] = namespace.clone().into();
    }
    let collection = collection(&old);
    let created = send(client, Method::POST, &collection, &old, false).await?;
    created.map_err(|refusal| anyhow::anyhow!("the old object of {:?} was refused: {refusal}", entry.case))?;
    let path = format!("{collection}/{}", old["metadata"]["name"].as_str().context("no name")?);
    let stored: Value = client.request(Request::get(&path).body(Vec::new())?).await?;
    new["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
    send(client, Method::PUT, &path, &new, true).await
}

#[tokio::test]
async fn an_api_server_has_the_same_verdict_on_every_manifest() -> Result<()> {
    let Some(server) = ApiServer::start("judging the list of manifests").await? else { return Ok(()) };
    let definitions: Vec<_> = redis_allocator_crd::crds().iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    let definitions = json!({"apiVersion": "v1", "kind": "List", "items": definitions}).to_string();
    server.kubectl_with(&["apply", "--server-side", "-f", "-"], &definitions).await.context("the CRDs are refused")?;
    server.kubectl(&["create", "namespace", "team-a"]).await?;
    let client = server.client().await?;
    eventually(Duration::from_secs(30), async || {
        for plural in ["resourcepools", "softbindings"] {
            let list = format!("/apis/redis-allocator.dev/v1alpha1/{plural}");
            client.request::<Value>(Request::get(list).body(Vec::new())?).await?;
        }
        Ok(())
    })
    .await?;

    let mut wrong = Vec::new();
    for (number, entry) in cases()?.iter().enumerate() {
        let verdict = judge(&client, number, entry).await?;
        let accepted = entry.violations.is_empty() || entry.server.as_deref() == Some("accepts");
        match verdict {
            Ok(()) if !accepted => wrong.push(format!("{:?}: accepted", entry.case)),
            Err(refusal) if accepted => wrong.push(format!("{:?}: refused, {refusal}", entry.case)),
            _ => {}
        }
    }
    ensure!(wrong.is_empty(), "{} verdicts differ:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}
