//! What the agents may do in the cluster: exactly what `docs/kubernetes.md` lists with its reasons, and with the component
//! for discovery what `docs/discovery.md` does.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};
use serde_json::Value;

use super::{objects, read};

const NAME: &str = "redis-allocator-agent";

/// Each file that grants something, and the page and section that say why.
const GRANTS: [(&str, &str, &str); 2] = [
    ("manifests/base/rbac.yaml", "docs/kubernetes.md", "Permissions"),
    ("manifests/components/discovery/rbac.yaml", "docs/discovery.md", "In Kubernetes"),
];

/// One permission: where, API group, resource with its name if it is only one, verb.
type Permission = (&'static str, String, String, String);

fn expand(scope: &'static str, rules: Vec<PolicyRule>) -> Result<BTreeSet<Permission>> {
    let mut permissions = BTreeSet::new();
    for rule in rules {
        ensure!(rule.non_resource_urls.is_none(), "{rule:?}");
        let groups = rule.api_groups.context("a rule without groups")?;
        let resources = rule.resources.context("a rule without resources")?;
        let names = rule.resource_names.unwrap_or_default();
        for (group, resource) in groups.iter().flat_map(|group| resources.iter().map(move |it| (group, it))) {
            for verb in &rule.verbs {
                let single = names.iter().map(|name| format!("{resource}/{name}"));
                let all = names.is_empty().then(|| resource.clone());
                for resource in single.chain(all) {
                    permissions.insert((scope, group.clone(), resource, verb.clone()));
                }
            }
        }
    }
    Ok(permissions)
}

fn granted(file: &str) -> Result<BTreeSet<Permission>> {
    let mut permissions = BTreeSet::new();
    for (place, document) in objects::documents(file)? {
        let rules = match document["kind"].as_str() {
            Some("ClusterRole") => ("cluster", objects::strictly::<ClusterRole>(&place, &document)?.rules),
            Some("Role") => ("own namespace", objects::strictly::<Role>(&place, &document)?.rules),
            _ => continue,
        };
        permissions.extend(expand(rules.0, rules.1.context("a role without rules")?)?);
    }
    Ok(permissions)
}

/// The rows `| where | group | resources | verbs | why |` of a page's section.
fn documented(page: &str, section: &str) -> Result<BTreeSet<Permission>> {
    let text = read(page)?;
    let section =
        text.split(&format!("\n## {section}\n")).nth(1).with_context(|| format!("{page} has no section {section}"))?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut permissions = BTreeSet::new();
    for row in section.lines().filter(|line| line.starts_with("| cluster |") || line.starts_with("| own namespace |")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [scope, group, resources, verbs, why] = cells[..] else { anyhow::bail!("{row:?} has not five cells") };
        ensure!(!why.is_empty(), "{row:?} has no reason");
        let scope = if scope == "cluster" { "cluster" } else { "own namespace" };
        let words = |cell: &str| cell.split(',').map(|word| word.trim().replace('`', "")).collect::<Vec<_>>();
        let group = if group == "core" { String::new() } else { group.replace('`', "") };
        for resource in words(resources) {
            permissions.extend(words(verbs).into_iter().map(|verb| (scope, group.clone(), resource.clone(), verb)));
        }
    }
    Ok(permissions)
}

#[test]
fn what_is_granted_is_what_the_page_says() -> Result<()> {
    for (file, page, section) in GRANTS {
        let (granted, documented) = (granted(file)?, documented(page, section)?);
        let silent: Vec<_> = granted.difference(&documented).collect();
        let invented: Vec<_> = documented.difference(&granted).collect();
        ensure!(silent.is_empty() && invented.is_empty(), "not in {page}: {silent:?}; not in {file}: {invented:?}");
        ensure!(!granted.is_empty(), "{file} grants nothing");
    }
    Ok(())
}

#[test]
fn nothing_is_granted_by_a_wildcard_and_no_secret_is_read() -> Result<()> {
    let granted = GRANTS.map(|(file, _, _)| granted(file)).into_iter().collect::<Result<Vec<_>>>()?;
    for (scope, group, resource, verb) in granted.into_iter().flatten() {
        let words = [&group, &resource, &verb];
        ensure!(words.iter().all(|word| !word.contains('*')), "{scope}: {words:?}");
        ensure!(resource.split('/').next() != Some("secrets"), "{scope}: {words:?}");
        ensure!(
            !["delete", "deletecollection", "escalate", "bind", "impersonate"].contains(&verb.as_str()),
            "{words:?}"
        );
    }
    Ok(())
}

#[test]
fn the_roles_are_the_agents_alone() -> Result<()> {
    fn is_ours(place: &str, role: &RoleRef, kind: &str, subjects: Option<Vec<Subject>>) -> Result<()> {
        let is_known = role.name == NAME || role.name == format!("{NAME}-discovery");
        ensure!(role.kind == kind && is_known, "{place} binds {role:?}");
        let subjects = subjects.unwrap_or_default();
        let [subject] = &subjects[..] else { anyhow::bail!("{place} has {subjects:?}") };
        ensure!(subject.kind == "ServiceAccount" && subject.name == NAME, "{place} is for {subject:?}");
        ensure!(subject.namespace.as_deref() == Some("redis-allocator"), "{place} is for {subject:?}");
        Ok(())
    }
    let mut bindings = 0;
    let documents = GRANTS.map(|(file, _, _)| objects::documents(file)).into_iter().collect::<Result<Vec<_>>>()?;
    for (place, document) in documents.into_iter().flatten() {
        match document["kind"].as_str() {
            Some("ClusterRoleBinding") => {
                let binding: ClusterRoleBinding = objects::strictly(&place, &document)?;
                is_ours(&place, &binding.role_ref, "ClusterRole", binding.subjects)?;
            }
            Some("RoleBinding") => {
                let binding: RoleBinding = objects::strictly(&place, &document)?;
                is_ours(&place, &binding.role_ref, "Role", binding.subjects)?;
            }
            Some("ServiceAccount") => {
                ensure!(document["automountServiceAccountToken"] == Value::Bool(false), "{place} gives tokens to all");
                continue;
            }
            _ => continue,
        }
        bindings += 1;
    }
    ensure!(bindings == 3, "there are {bindings} bindings");
    Ok(())
}
