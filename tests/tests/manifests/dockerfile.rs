//! The image's recipe. Nothing here can build it, so this looks at what can be seen without: where it comes from, what goes
//! into it, and who it runs as.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{read, root};

/// An instruction with its arguments, continued lines joined.
struct Instruction {
    name: String,
    rest: String,
}

/// A stage: what it is built on, its name, and what is done in it.
struct Stage {
    base: String,
    name: String,
    steps: Vec<Instruction>,
}

fn instructions() -> Result<Vec<Instruction>> {
    let text = read("Dockerfile")?;
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
    let joined = lines.replace("\\\n", " ");
    let split = |line: &str| {
        let (name, rest) = line.split_once(' ').with_context(|| format!("{line:?} is no instruction"))?;
        Ok(Instruction { name: name.to_owned(), rest: rest.split_whitespace().collect::<Vec<_>>().join(" ") })
    };
    joined.lines().filter(|line| !line.trim().is_empty()).map(split).collect()
}

fn stages() -> Result<Vec<Stage>> {
    let mut stages: Vec<Stage> = Vec::new();
    for instruction in instructions()? {
        if instruction.name == "FROM" {
            let (base, name) = instruction.rest.split_once(" AS ").context("every stage has a name")?;
            stages.push(Stage { base: base.to_owned(), name: name.to_owned(), steps: Vec::new() });
        } else {
            stages.last_mut().context("the first instruction is FROM")?.steps.push(instruction);
        }
    }
    Ok(stages)
}

/// The arguments of the only instruction of a name.
fn only<'a>(stage: &'a Stage, name: &str) -> Result<&'a str> {
    let found: Vec<_> = stage.steps.iter().filter(|step| step.name == name).map(|step| step.rest.as_str()).collect();
    let [rest] = found[..] else { anyhow::bail!("{} has {} times {name}", stage.name, found.len()) };
    Ok(rest)
}

#[test]
fn only_known_instructions_and_pinned_images_are_used() -> Result<()> {
    let known = ["FROM", "WORKDIR", "COPY", "ENV", "RUN", "USER", "EXPOSE", "ENTRYPOINT", "LABEL"];
    let mut names = BTreeSet::new();
    let rust = read("Cargo.toml")?;
    let rust = rust.lines().find_map(|line| line.strip_prefix("rust-version = ")).context("no rust-version")?;
    for stage in stages()? {
        for step in &stage.steps {
            // ADD fetches and unpacks; ARG and ENV are where secrets end up for everybody to read.
            ensure!(known.contains(&step.name.as_str()), "{} in {}", step.name, stage.name);
            let lower = step.rest.to_lowercase();
            let bad = ["password", "secret", "token", "://"].into_iter().find(|word| lower.contains(word));
            ensure!(bad.is_none() || step.name == "LABEL", "{bad:?} in {} {}", step.name, step.rest);
        }
        if !names.contains(&stage.base) {
            let (name, tag) = stage.base.rsplit_once(':').with_context(|| format!("{} has no tag", stage.base))?;
            ensure!(tag != "latest" && name.contains('.'), "{} is not one image of one registry", stage.base);
            let is_rust = name.ends_with("/rust");
            ensure!(!is_rust || tag.starts_with(rust.trim_matches('"')), "{} is not Rust {rust}", stage.base);
        }
        names.insert(stage.name);
    }
    Ok(())
}

#[test]
fn what_is_copied_is_there_and_is_not_ignored() -> Result<()> {
    let ignore = read(".dockerignore")?;
    let ignore: Vec<_> = ignore.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    ensure!(ignore.first() == Some(&"*"), "what is not named must be ignored: a build sees the whole directory");
    let mut sent: BTreeSet<_> = ignore.iter().filter_map(|line| line.strip_prefix('!')).collect();
    let stages = stages()?;
    let mut made = BTreeSet::new();
    for stage in &stages {
        for step in &stage.steps {
            let words: Vec<_> = step.rest.split(' ').collect();
            match (step.name.as_str(), &words[..]) {
                ("COPY", [from, source, _]) if from.starts_with("--from=") => {
                    let copied = (from.trim_start_matches("--from=").to_owned(), (*source).to_owned());
                    ensure!(made.contains(&copied), "{} copies {copied:?}, which no stage makes", stage.name);
                }
                ("COPY", [sources @ .., _]) => {
                    for source in sources {
                        ensure!(root().join(source).exists(), "{source} is not there");
                        ensure!(sent.remove(source), "{source} is ignored, or copied twice");
                    }
                }
                ("RUN", words) => {
                    ensure!(words.contains(&"--locked") && words.contains(&"--release"), "{}", step.rest);
                    let out = words.iter().filter(|word| word.starts_with("/out/"));
                    made.extend(out.map(|path| (stage.name.clone(), (*path).to_owned())));
                }
                _ => {}
            }
        }
    }
    ensure!(sent.is_empty(), "{sent:?} are sent to the builder, and nothing copies them");
    // All of the workspace, or cargo does not even begin.
    let workspace = read("Cargo.toml")?;
    let members = workspace.lines().find_map(|line| line.strip_prefix("members = ")).context("no members")?;
    for member in serde_json::from_str::<Vec<String>>(members)? {
        let top = member.split('/').next().unwrap_or_default().to_owned();
        ensure!(ignore.contains(&format!("!{top}").as_str()), "{member} is not sent to the builder");
    }
    Ok(())
}

#[test]
fn what_is_built_is_a_binary_of_the_workspace() -> Result<()> {
    for stage in stages()?.iter().filter(|stage| stage.name.starts_with("build")) {
        let run = only(stage, "RUN")?;
        let value = |flag: &str| run.split(' ').skip_while(|word| *word != flag).nth(1).context(flag.to_owned());
        let (package, binary) = (value("--package")?, value("--bin")?);
        let manifest = if package == "examples" { "examples/Cargo.toml" } else { "crates/agent/Cargo.toml" };
        let text = read(manifest)?;
        ensure!(text.contains(&format!("name = \"{package}\"")), "{manifest} is not of {package}");
        let there = text.contains(&format!("name = \"{binary}\""))
            || root().join(format!("examples/src/bin/{binary}.rs")).is_file();
        ensure!(there, "{package} has no binary {binary}");
        ensure!(run.contains(&format!("target/release/{binary} /out/{binary}")), "{run}");
    }
    Ok(())
}

#[test]
fn what_runs_is_small_and_not_root() -> Result<()> {
    let stages = stages()?;
    let last = stages.last().context("no stage")?;
    ensure!(last.name == "agent", "what `docker build .` makes is {}, not the agent", last.name);
    ensure!(only(last, "ENTRYPOINT")? == r#"["redis-allocator"]"#, "another entry point");
    for stage in stages.iter().filter(|stage| stage.steps.iter().any(|step| step.name == "ENTRYPOINT")) {
        // No compiler, no sources, no shell: what runs is made of copies from other stages.
        ensure!(stage.base.starts_with("gcr.io/distroless/cc-") && stage.base.ends_with(":nonroot"), "{}", stage.base);
        ensure!(stage.steps.iter().all(|step| step.name != "RUN"), "{} runs a command", stage.name);
        ensure!(only(stage, "COPY")?.starts_with("--from="), "{} copies from outside", stage.name);
        // A number, because Kubernetes can't tell that a name is not root; the one that the pods say.
        ensure!(only(stage, "USER")? == "65532:65532", "{} runs as another user", stage.name);
        let entry: Value = serde_json::from_str(only(stage, "ENTRYPOINT")?).context("a shell would get the signals")?;
        ensure!(entry.as_array().is_some_and(|words| words.len() == 1), "{entry}");
    }
    // The agent looks for certificates beside those of a private authority; see the overlay `existing-redis`.
    let overlay = read("manifests/overlays/existing-redis/tls.yaml")?;
    ensure!(overlay.contains("value: /etc/ssl/certs:"), "distroless keeps its certificates in /etc/ssl/certs");
    Ok(())
}
