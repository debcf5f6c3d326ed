//! The library's reading scripts as functions of one, so that all that is looked at after a step costs one call. It must
//! not know what is expected.

use anyhow::{Context, Result};
use redis_allocator::Pool;

/// What a script that needs nothing else begins with.
pub(crate) const HEAD: &str = "#!lua flags=no-writes\n";
/// Keys that `check` does not walk: it looks at them on its way, if at all.
const PASSED: [&str; 5] = ["meta", "origins", "missing", "alive", "sessions"];
/// Where a script's own part begins, after what it shares with others.
const OWN: &str = "local _, refused = read_settings()";

/// The text of a script below its first line.
fn body(script: &str) -> Result<&'static str> {
    let text = Pool::script_text(script).context("no such script")?;
    Ok(text.split_once('\n').context("no script")?.1)
}

/// A function that does what this script does, and takes its arguments as a list.
pub(crate) fn function(script: &str) -> Result<String> {
    Ok(format!("local function {script}(ARGV)\n{}\nend\n", body(script)?))
}

/// A function that walks all of a small pool by `check`, and returns what is broken, or what `check` says instead. What
/// `check` shares with other scripts, most of its text, is run once and not for each key.
pub(crate) fn check_all(pool: &Pool) -> Result<String> {
    let (shared, own) = body("check")?.split_once(OWN).context("check does not begin as scripts do")?;
    let parts = pool.script_keys().iter().filter_map(|key| key.rsplit(':').next());
    let parts: Vec<_> = parts.filter(|part| !PASSED.contains(part)).map(|part| format!("'{part}'")).collect();
    Ok(format!(
        "local function check_all(ARGV)
           {shared}
           local function check(ARGV)
             {OWN} {own}
           end
           local broken = {{}}
           for _, part in ipairs({{ {} }}) do
             local found = check({{ part, '0' }})
             if found[1] ~= 'ok' then return found end
             if found[2] ~= '0' then broken[#broken + 1] = part .. ' is longer than a page' end
             for _, word in ipairs(found[3]) do broken[#broken + 1] = word end
           end
           return broken
         end
",
        parts.join(", ")
    ))
}
