//! What the agents may do in the cluster: exactly what `docs/kubernetes.md` lists with its reasons.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};
use serde_json::Value;

use super::{objects, read};

const FILE: &str = "manifests/base/rbac.yaml";
const PAGE: &str = "docs/kubernetes.md";
const NAME: &str = "redis-allocator-agent";

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

fn granted() -> Result<BTreeSet<Permission>> {
    let mut permissions = BTreeSet::new();
    for (place, document) in objects::documents(FILE)? {
        let rules = match document["kind"].as_str() {
            Some("ClusterRole") => ("cluster", objects::strictly::<ClusterRole>(&place, &document)?.rules),
            Some("Role") => ("own namespace", objects::strictly::<Role>(&place, &document)?.rules),
            _ => continue,
        };
        permissions.extend(expand(rules.0, rules.1.context("a role without rules")?)?);
    }
    Ok(permissions)
}

/// The rows `| where | group | resources | verbs | why |` of the page's section on RBAC.
fn documented() -> Result<BTreeSet<Permission>> {
    let page = read(PAGE)?;
    let section = page.split("\n## Permissions\n").nth(1).context("the page has no section `Permissions`")?;
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
    let (granted, documented) = (granted()?, documented()?);
    let silent: Vec<_> = granted.difference(&documented).collect();
    let invented: Vec<_> = documented.difference(&granted).collect();
    ensure!(silent.is_empty() && invented.is_empty(), "not in {PAGE}: {silent:?}; not in {FILE}: {invented:?}");
    Ok(())
}

#[test]
fn nothing_is_granted_by_a_wildcard_and_no_secret_is_read() -> Result<()> {
    for (scope, group, resource, verb) in granted()? {
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
        ensure!(role.kind == kind && role.name == NAME, "{place} binds {role:?}");
        let subjects = subjects.unwrap_or_default();
        let [subject] = &subjects[..] else { anyhow::bail!("{place} has {subjects:?}") };
        ensure!(subject.kind == "ServiceAccount" && subject.name == NAME, "{place} is for {subject:?}");
        ensure!(subject.namespace.as_deref() == Some("redis-allocator"), "{place} is for {subject:?}");
        Ok(())
    }
    let mut bindings = 0;
    for (place, document) in objects::documents(FILE)? {
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
    ensure!(bindings == 2, "{FILE} has {bindings} bindings");
    Ok(())
}
