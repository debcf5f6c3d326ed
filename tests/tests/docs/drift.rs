//! What pages list of the code, compared with the code: nothing is missing, and nothing is there that no longer exists.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use regex::Regex;

use super::{
    PAGES, SHOWN,
    markdown::{Page, code, rows},
    page, program, read, root,
};

type Names = BTreeSet<String>;

/// Both lists are the same, or the message says what is where.
fn same(what: &str, in_code: &Names, in_docs: &Names) -> Result<()> {
    let undocumented: Vec<_> = in_code.difference(in_docs).collect();
    let invented: Vec<_> = in_docs.difference(in_code).collect();
    ensure!(
        undocumented.is_empty() && invented.is_empty(),
        "{what}: not documented {undocumented:?}; documented and not there {invented:?}"
    );
    Ok(())
}

fn found(pattern: &str, text: &str) -> Names {
    let pattern = Regex::new(pattern).unwrap();
    pattern.captures_iter(text).map(|found| found[1].to_owned()).collect()
}

/// The first backquoted word in a column of a section's tables.
fn column(page: &Page, section: &str, column: usize) -> Names {
    let rows = rows(&page.section(section));
    rows.iter().filter_map(|row| code(row.get(column)?).into_iter().next()).collect()
}

/// All Rust sources of a directory, without their unit tests.
fn sources(directory: &str) -> Result<String> {
    fn collect(directory: &Path, text: &mut String) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            let path: PathBuf = entry?.path();
            if path.is_dir() {
                collect(&path, text)?;
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = fs::read_to_string(&path)?;
                text.push_str(source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default());
            }
        }
        Ok(())
    }
    let mut text = String::new();
    collect(&root().join(directory), &mut text).with_context(|| format!("{directory} can't be read"))?;
    Ok(text)
}

fn help(command: &[&str]) -> Result<String> {
    let output = program::redis_allocator()?.args(command).arg("--help").output()?;
    ensure!(output.status.success(), "{command:?} --help failed");
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn every_link_leads_somewhere() -> Result<()> {
    let mut dead = Vec::new();
    for path in PAGES {
        let page = page(path)?;
        let folder = Path::new(path).parent().context("a page is in a folder")?;
        for link in page.links().into_iter().filter(|link| !link.starts_with("https://")) {
            let (file, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let target = if file.is_empty() { root().join(path) } else { root().join(folder).join(file) };
            let leads = match anchor {
                None => target.exists(),
                Some(anchor) => fs::read_to_string(&target)
                    .is_ok_and(|text| Page::parse(path, &text).anchors().iter().any(|found| found == anchor)),
            };
            if !leads {
                dead.push(format!("{path}: {link}"));
            }
        }
    }
    ensure!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
    Ok(())
}

#[test]
fn every_make_target_exists() -> Result<()> {
    let targets = found(r"(?m)^([a-z]+):", &read("Makefile")?);
    for path in PAGES {
        let page = page(path)?;
        let shown =
            page.blocks.iter().filter(|block| block.language == "console" || SHOWN.contains(&block.language.as_str()));
        let mut named: Names = shown.flat_map(|block| found(r"(?m)^(?:\$ )?make ([a-z]+)", &block.text)).collect();
        named.extend(code(&page.prose).iter().filter_map(|code| Some(code.strip_prefix("make ")?.to_owned())));
        let missing: Vec<_> = named.difference(&targets).collect();
        ensure!(missing.is_empty(), "{path} names the targets {missing:?}, which the Makefile does not have");
    }
    Ok(())
}

#[test]
fn every_metric_is_listed() -> Result<()> {
    let sources = sources("crates/agent/src")?;
    let register = Regex::new(r#"register!\(\s*"([a-z_]+)",\s*"[^"]*",\s*(seconds)?"#).unwrap();
    let counters = found(r"([a-z_]+): (?:Family<\w+, Counter>|Counter)", &sources);
    let fields = Regex::new(r#"([a-z_]+): register!\(\s*"([a-z_]+)""#).unwrap();
    let counting: Names =
        fields.captures_iter(&sources).filter(|it| counters.contains(&it[1])).map(|it| it[2].to_owned()).collect();
    let in_code: Names = register
        .captures_iter(&sources)
        .map(|found| {
            let unit = if found.get(2).is_some() { "_seconds" } else { "" };
            let total = if counting.contains(&found[1]) { "_total" } else { "" };
            format!("redis_allocator_{}{unit}{total}", &found[1])
        })
        .collect();
    ensure!(in_code.len() > 10, "the sources register only {in_code:?}: does this test still understand them?");
    let operations = page("docs/operations.md")?;
    same("metrics", &in_code, &column(&operations, "Metrics", 0))?;
    // Alerts are made of what exists.
    let alerts = operations.blocks.iter().filter(|block| block.language == "yml");
    let used: Names = alerts.flat_map(|block| found(r"(redis_allocator_[a-z_]+)", &block.text)).collect();
    ensure!(used.is_subset(&in_code) && !used.is_empty(), "alerts on {:?}", used.difference(&in_code));
    Ok(())
}

#[test]
fn every_condition_has_a_row() -> Result<()> {
    let reconcile = sources("crates/agent/src/reconcile")? + &sources("crates/agent/src")?;
    // Reasons are words in quotes that stand alone, behind a condition's type and status or as an error's kind.
    let mut in_code = found(r#"Verdict::(?:new|unknown)\(\s*"\w+",(?:\s*(?:true|false),)?\s*"([A-Z]\w+)""#, &reconcile);
    in_code.extend(found(r#"=> degraded\(\s*"([A-Z]\w+)""#, &reconcile));
    in_code.extend(found(r#"=> "([A-Z][A-Za-z]+)",\n"#, &sources("crates/agent/src/reconcile")?));
    let mut bindings = found(r#"BindingVerdict::failed\(\s*"([A-Z]\w+)""#, &reconcile);
    bindings.extend(found(r#"reason: "([A-Z]\w+)","#, &reconcile));
    ensure!(
        in_code.len() > 15 && bindings.len() > 4,
        "found only {in_code:?} {bindings:?}: does this test still understand the sources?"
    );
    in_code.extend(bindings);

    let rows = rows(&page("docs/operations.md")?.section("Conditions"));
    let of_pools = rows.iter().filter(|row| row.len() == 4).filter_map(|row| code(&row[1]).into_iter().next());
    let of_bindings = rows.iter().filter(|row| row.len() == 3).filter_map(|row| code(&row[0]).into_iter().next());
    same("reasons of conditions", &in_code, &of_pools.chain(of_bindings).collect())
}

/// Of the Events: a condition's reason is the Event's as well, and stands in the table of conditions.
#[test]
fn every_event_has_a_row() -> Result<()> {
    let source = read("crates/agent/src/source/kubernetes/events.rs")?;
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let mut in_code = found(r#"reason: "([A-Z]\w+)"\.to_owned"#, source);
    in_code.extend(found(r#"\((?:true|false),\s*"([A-Z]\w+)""#, source));
    in_code.extend(found(r#"=> \(\s*(?:true|false),\s*"([A-Z]\w+)""#, source));
    ensure!(in_code.len() > 5, "found only {in_code:?}: does this test still understand the source?");
    let kubernetes = rows(&page("docs/kubernetes.md")?.section("Events"));
    let listed: Names = kubernetes.iter().flat_map(|row| code(&row[0])).collect();
    let conditions = rows(&page("docs/operations.md")?.section("Conditions"));
    let conditions: Names = conditions.iter().flatten().flat_map(|cell| code(cell)).collect();
    same("reasons of Events", &in_code, &listed.difference(&conditions).cloned().collect())
}

#[test]
fn every_check_of_the_doctor_has_a_row() -> Result<()> {
    let sources = sources("crates/agent/src/cli/doctor")?;
    let mut in_code = found(r#"Finding::(?:ok|warning|error|unknown)\(\s*"([a-z]+)""#, &sources);
    in_code.extend(found(r#"const CHECK: &str = "([a-z]+)""#, &sources));
    in_code.extend(found(r#"unknown\("([a-z]+)"\)"#, &sources));
    let rows = rows(&page("docs/operations.md")?.section("A check-up"));
    let listed = rows.iter().flat_map(|row| code(&row[0])).collect();
    same("checks of the doctor", &in_code, &listed)
}

#[test]
fn every_error_has_a_row() -> Result<()> {
    let source = read("crates/lib/src/error.rs")?;
    let (errors, rest) = source.split_once("pub enum LostReason").context("error.rs has LostReason behind Error")?;
    let library = page("docs/library.md")?;
    let variants = found(r"(?m)^    ([A-Z]\w+) \{$", errors);
    same("errors", &variants, &column(&library, "Errors", 0))?;
    let reasons = rest.split_once('}').map_or("", |(body, _)| body);
    same("reasons of a loss", &found(r"(?m)^    ([A-Z]\w+),$", reasons), &column(&library, "Keep it", 0))
}

#[test]
fn every_flag_of_the_agent_is_listed() -> Result<()> {
    let mut flags = found(r"(?m)^\s+(?:-\w, )?(--[a-z-]+)", &help(&["agent"])?);
    for general in ["--help", "--version"] {
        flags.remove(general);
    }
    let listed = column(&page("docs/operations.md")?, "The agent", 0);
    let listed = listed.iter().filter_map(|row| row.split(' ').next()).filter(|word| word.starts_with("--"));
    same("flags of the agent", &flags, &listed.map(str::to_owned).collect())
}

#[test]
fn what_the_pages_say_of_the_command_exists() -> Result<()> {
    let commands = found(r"(?m)^  ([a-z]+) {2,}", &help(&[])?);
    let mut flags = Names::new();
    for command in commands.iter().filter(|command| *command != "help") {
        flags.extend(found(r"(?m)(--[a-z-]+)", &help(&[command])?));
    }
    let malloc = help(&["malloc"])?;
    let variables = found(r"(REDIS_ALLOCATOR_[A-Z_]+)", &(malloc.clone() + &help(&["agent"])?));
    for path in PAGES {
        let page = page(path)?;
        let shown =
            page.blocks.iter().filter(|block| matches!(block.language.as_str(), "sh" | "console" | "text" | "ini"));
        let mut said = code(&page.prose);
        said.extend(shown.flat_map(|block| block.text.lines().map(str::to_owned).collect::<Vec<_>>()));
        for said in said {
            for used in found(r"(REDIS_ALLOCATOR_[A-Z_]+)", &said) {
                // `REDIS_ALLOCATOR_PARAM_<NAME>` stands for many.
                let is =
                    |variable: &String| used == *variable || (variable.ends_with('_') && used.starts_with(variable));
                let known = variables.iter().any(is);
                ensure!(known, "{path} names {used}, which no --help does");
            }
            let Some((_, call)) = said.split_once("redis-allocator ") else { continue };
            let own = call.split(" -- ").next().unwrap_or_default();
            let Some(command) =
                own.split([' ', ',']).next().filter(|word| word.chars().all(|c| c.is_ascii_lowercase()))
            else {
                continue;
            };
            ensure!(commands.contains(command), "{path} names the command {command:?} in {said:?}");
            let used = found(r"(--[a-z-]+)", own);
            let unknown: Vec<_> = used.difference(&flags).collect();
            ensure!(unknown.is_empty(), "{path} uses {unknown:?} in {said:?}");
        }
    }
    let listed = column(&page("docs/operations.md")?, "The command", 0);
    let listed = listed.iter().filter_map(|row| Some(row.split(' ').next()?.to_owned())).collect::<Names>();
    let missing: Vec<_> = commands
        .iter()
        .filter(|name| *name != "help" && *name != "unquarantine")
        .filter(|name| !listed.contains(*name))
        .collect();
    ensure!(missing.is_empty(), "operations.md does not list {missing:?}");

    let codes = malloc.split_once("Exit codes:").context("malloc tells its exit codes")?.1;
    let table: String =
        rows(&page("docs/operations.md")?.section("Exit codes")).iter().map(|row| row[0].clone() + " ").collect();
    for code in found(r"(?m)^\s+(\d+) ", codes) {
        ensure!(found(r"(\d+)", &table).contains(&code), "operations.md does not list the exit code {code}");
    }
    Ok(())
}

#[test]
fn the_keys_are_as_in_the_source() -> Result<()> {
    let source = read("crates/lib/src/keys.rs")?;
    let concepts = page("docs/concepts.md")?;
    let rows: Vec<_> =
        source.lines().filter_map(|line| line.strip_prefix("//! ")).filter(|line| line.starts_with("| `")).collect();
    ensure!(rows.len() == 20, "a pool has twenty keys");
    for row in rows {
        ensure!(concepts.prose.contains(row), "docs/concepts.md lacks the row\n{row}");
    }
    Ok(())
}
