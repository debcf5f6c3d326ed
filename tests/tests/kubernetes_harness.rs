//! The harness does what it says: each control of `e2e::kube` against a real API server.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    eventually,
    kube::{ApiServer, Request, client_of},
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, api::PostParams};

const SOON: Duration = Duration::from_secs(10);
const MOMENT: Duration = Duration::from_millis(300);

const READER: &str = "\
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: default}
rules: [{apiGroups: [''], resources: [configmaps], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: default}]
";

fn config_map(name: &str) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.to_owned());
    map.data = Some(BTreeMap::from([("k".to_owned(), "v".to_owned())]));
    map
}

fn config_maps(client: Client) -> Api<ConfigMap> {
    Api::namespaced(client, "default")
}

/// One server for all of it: its start is most of what this costs.
#[tokio::test]
async fn an_api_server_stores_authorises_audits_and_survives() -> Result<()> {
    let Some(server) = ApiServer::start("the harness's API server").await? else { return Ok(()) };
    let admin = config_maps(server.client().await?);
    admin.create(&PostParams::default(), &config_map("kept")).await?;

    // A ServiceAccount may what its role says, and nothing else.
    let said = server.kubectl_with(&["apply", "-f", "-"], READER).await?;
    ensure!(said.contains("serviceaccount/reader created"), "{said}");
    let reader = config_maps(client_of(&server.service_account_kubeconfig("default", "reader").await?).await?);
    assert!(reader.get("kept").await.is_ok());
    let refused = reader.create(&PostParams::default(), &config_map("refused")).await;
    assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 403));

    // Both are in the audit log, in their order.
    let expected = [("get", "kept", 200, false), ("create", "", 403, true)];
    let requests = eventually(SOON, async || {
        let mut requests = server.requests()?;
        requests.retain(|request| request.user == "system:serviceaccount:default:reader");
        ensure!(requests.len() == expected.len(), "{requests:?}");
        Ok(requests)
    })
    .await?;
    let told: Vec<_> = requests.iter().map(summary).collect();
    assert_eq!(told, expected);

    // A wrong command fails with what kubectl said.
    let reason = format!("{:#}", server.kubectl(&["get", "nonsense"]).await.unwrap_err());
    assert!(reason.contains("kubectl get nonsense failed") && reason.contains("resource type"), "{reason}");

    // Paused, it answers later.
    server.pause()?;
    let mut answer = Box::pin(admin.get("kept"));
    assert!(tokio::time::timeout(MOMENT, &mut answer).await.is_err());
    server.resume()?;
    assert!(answer.await.is_ok());

    // Killed, it answers nobody, and comes back with what it stored.
    server.kill();
    assert!(admin.get("kept").await.is_err() && server.pause().is_err());
    server.restart().await?;
    let kept = config_maps(server.client().await?).get("kept").await?;
    assert_eq!(kept.data.context("no data")?["k"], "v");
    Ok(())
}

fn summary(request: &Request) -> (&str, &str, u16, bool) {
    (&request.verb, &request.name, request.status, request.is_write())
}
