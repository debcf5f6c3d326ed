//! The library's reading scripts as functions of one, so that all that is looked at after a step costs one call. It must
//! not know what is expected.

use anyhow::{Context, Result};
use redis_allocator::Pool;

/// Keys that `check` does not walk: it looks at them on its way, if at all.
const PASSED: [&str; 5] = ["meta", "origins", "missing", "alive", "sessions"];

/// The head of a script that has these scripts as functions, each of which takes its arguments as a list.
pub(crate) fn functions(scripts: &[&str]) -> Result<String> {
    let mut code = vec!["#!lua flags=no-writes\n".to_owned()];
    for script in scripts {
        let text = Pool::script_text(script).context("no such script")?;
        let (_, body) = text.split_once('\n').context("no script")?;
        code.push(format!("local function {script}(ARGV)\n{body}\nend\n"));
    }
    Ok(code.concat())
}

/// A function that walks all of a small pool by `check`, which must be one, too. It returns what is broken, or what `check`
/// says instead.
pub(crate) fn check_all(pool: &Pool) -> String {
    let parts = pool.script_keys().iter().filter_map(|key| key.rsplit(':').next());
    let parts: Vec<_> = parts.filter(|part| !PASSED.contains(part)).map(|part| format!("'{part}'")).collect();
    format!(
        "local function check_all()
           local broken = {{}}
           for _, part in ipairs({{ {} }}) do
             local found = check({{ ARGV[1], ARGV[2], part, '0' }})
             if found[1] ~= 'ok' then return found end
             if found[2] ~= '0' then broken[#broken + 1] = part .. ' is longer than a page' end
             for _, word in ipairs(found[3]) do broken[#broken + 1] = word end
           end
           return broken
         end
",
        parts.join(", ")
    )
}
