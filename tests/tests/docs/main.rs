//! The documentation does what it says: each page's manifests are valid, its commands run against a real agent and print
//! what the page shows, and whatever it lists of the code is what the code has.
//!
//! The fence of a block says what is done with it:
//!
//! | fence | |
//! |---|---|
//! | `yaml` | a manifest: validated; if its first line is `# FILE.yaml`, written there for the page's commands |
//! | `sh` | commands, run in order in a directory of the page's own; `redis-allocator agent …` stays until the page ends |
//! | `console` | lines `$ COMMAND` are run, and must print what follows; `…` stands for anything |
//! | `rust` | compiled as a documentation test of the crate `examples`, which includes the page |
//! | `acl` | users of Redis, tried in `access` |
//! | the rest of [`SHOWN`] | only shown |

#[path = "../program/mod.rs"]
mod program;

mod access;
mod drift;
mod markdown;
mod session;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};

use self::{
    markdown::{Block, Page},
    session::Session,
};

/// Every page of the project, from its root.
const PAGES: [&str; 14] = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/concepts.md",
    "docs/discovery.md",
    "docs/from-python.md",
    "docs/kubernetes.md",
    "docs/library.md",
    "docs/manifests.md",
    "docs/operations.md",
    "docs/performance.md",
    "docs/sessions.md",
    "docs/waiting.md",
    "manifests/README.md",
];

/// What is only shown: files of other programs, and commands that need what a test has not.
const SHOWN: [&str; 6] = ["text", "toml", "sql", "ini", "conf", "yml"];

/// How long a page may take.
const LIMIT: Duration = Duration::from_mins(5);

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| format!("{path} can't be read"))
}

fn page(path: &'static str) -> Result<Page> {
    Ok(Page::parse(path, &read(path)?))
}

/// Runs what a page says.
async fn follow(path: &'static str) -> Result<()> {
    // Built here, if need be: that may take longer.
    program::binary("redis-allocator")?;
    tokio::time::timeout(LIMIT, run(path)).await.with_context(|| format!("{path} takes longer than {LIMIT:?}"))?
}

async fn run(path: &'static str) -> Result<()> {
    let page = page(path)?;
    let mut session = Session::start()?;
    for block in &page.blocks {
        let Block { language, line, text } = block;
        let done = match language.as_str() {
            "yaml" => session.manifest(text).await,
            "sh" => session.script(text).await,
            "console" => session.console(text).await,
            "rust" => is_compiled(path),
            "acl" => Ok(()),
            shown if SHOWN.contains(&shown) => Ok(()),
            unknown => Err(anyhow::anyhow!("nobody knows what to do with a block of {unknown:?}")),
        };
        done.with_context(|| format!("the block in line {line} of {path}"))?;
    }
    session.end().await
}

fn is_compiled(path: &str) -> Result<()> {
    let included = read("examples/src/documentation.rs")?.contains(&format!("\"../../{path}\""));
    ensure!(included, "examples/src/documentation.rs does not include the page, so its Rust is not compiled");
    Ok(())
}

macro_rules! pages {
    ($($name:ident = $path:literal,)*) => {
        $(
            #[tokio::test]
            async fn $name() -> Result<()> {
                follow($path).await
            }
        )*
    };
}

pages! {
    the_readme_works = "README.md",
    the_concepts_work = "docs/concepts.md",
    the_discovery_page_works = "docs/discovery.md",
    the_python_page_works = "docs/from-python.md",
    the_kubernetes_page_works = "docs/kubernetes.md",
    the_library_guide_works = "docs/library.md",
    the_manifest_reference_works = "docs/manifests.md",
    the_operations_page_works = "docs/operations.md",
    the_performance_page_works = "docs/performance.md",
    the_page_of_sessions_works = "docs/sessions.md",
    the_page_of_waiting_works = "docs/waiting.md",
}

#[test]
fn every_page_is_known() -> Result<()> {
    let mut found = Vec::new();
    for directory in ["", "docs", "manifests"] {
        for entry in fs::read_dir(root().join(directory))? {
            let file = entry?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if file.extension().is_some_and(|extension| extension == "md") {
                found.push(if directory.is_empty() { name } else { format!("{directory}/{name}") });
            }
        }
    }
    let unknown: Vec<_> = found.iter().filter(|path| !PAGES.contains(&path.as_str())).collect();
    ensure!(unknown.is_empty(), "no test follows {unknown:?}: add them to PAGES and pages!");
    Ok(())
}
