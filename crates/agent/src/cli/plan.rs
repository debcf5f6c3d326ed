//! `redis-allocator plan --config DIR`: what an agent that starts now would change in Redis, for people and for programs.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{
    agent::declared_in,
    server::{ServerArgs, Told},
};
use crate::{
    agent::Declared,
    reconcile::plan::{
        Action, BindingPlan, PoolPlan, Question,
        origins::{Departing, HeldBack, OriginPlan},
    },
    source::{
        Declaration,
        files::{FileSource, read_once},
    },
};

/// What `plan` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes:
  0  everything is as declared
  1  there are errors: in files, of a pool or binding that can't be as declared, or the server can't be read
  2  something would change, or is held back; or the command line is wrong")]
pub(crate) struct PlanArgs {
    /// The directory of manifests, as the agent is given it.
    #[arg(long, value_name = "DIR")]
    config: PathBuf,

    #[command(flatten)]
    server: ServerArgs,

    /// The identity under which the agent manages pools [default: files:DIR, with the absolute path of the directory].
    #[arg(long, value_name = "ID")]
    manager_id: Option<String>,

    /// As if the agent took over pools that another declaration manages.
    #[arg(long)]
    takeover: bool,

    /// As if the agent took a directory without any object for the will to delete everything that is managed.
    #[arg(long)]
    allow_empty: bool,

    /// How to print.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Told,
}

/// All that is told.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether Redis would be changed.
    changes: bool,
    pools: Vec<PoolPlan>,
    /// What is wrong with files.
    errors: Vec<String>,
    /// What stands in the way of a whole answer.
    notes: Vec<String>,
}

pub(crate) async fn run(args: PlanArgs) -> Result<ExitCode> {
    let Declared::Files(dir) = declared_in(&args.config)? else { anyhow::bail!("--config names no directory") };
    let manager = args.manager_id.filter(|manager| !manager.is_empty());
    let manager = manager.unwrap_or_else(|| Declared::Files(dir.clone()).to_string());
    let mut notes = Vec::new();
    let remembered = match args.server.state_dir().and_then(|state| Ok(state.remembered(&manager)?)) {
        Ok(remembered) => remembered,
        Err(error) => {
            notes.push(format!("what the agent remembers of its pools is not known: {error:#}"));
            BTreeMap::new()
        }
    };
    let client = args.server.connect().await?;
    let source = FileSource { dir, allow_empty: args.allow_empty };
    let declaration =
        tokio::task::spawn_blocking(|| read_once(source)).await.context("reading the manifests failed")?;
    let question =
        Question { client: &client, declaration: &declaration, manager: &manager, takeover: args.takeover, remembered };
    let pools = question.answer().await?;
    let report = Report::new(pools, &declaration, notes);
    io::stdout().write_all(args.output.tell(&report, Report::text)?.as_bytes())?;
    Ok(ExitCode::from(report.code()))
}

impl Report {
    fn new(pools: Vec<PoolPlan>, declaration: &Declaration, mut notes: Vec<String>) -> Self {
        let mut errors: Vec<String> = declaration.trouble.iter().cloned().collect();
        errors.extend(declaration.errors.iter().flat_map(|file| file.errors.iter().cloned()));
        if !declaration.complete {
            notes.push(
                "not all that is declared could be read: what is managed and not declared stays as it is, until it can"
                    .to_owned(),
            );
        }
        for pool in declaration.desired.pools.values() {
            let names: Vec<_> = pool.sources().into_iter().map(|desired| desired.source.name).collect();
            if !names.is_empty() {
                notes.push(format!(
                    "pool {}: its sources are not looked at, only the agent asks them: {}",
                    pool.name,
                    names.join(", ")
                ));
            }
        }
        for binding in &declaration.desired.unpooled {
            let (namespace, pool) = (binding.pool.namespace(), &binding.pool);
            notes.push(format!("SoftBinding {namespace}/{}: pool {pool} is not declared", binding.object));
        }
        let changes = pools
            .iter()
            .any(|pool| matches!(pool.action, Action::Create | Action::Change | Action::Delete | Action::Abandon));
        Self { changes, pools, errors, notes }
    }

    fn count(&self, action: Action) -> usize {
        self.pools.iter().filter(|pool| pool.action == action).count()
    }

    fn code(&self) -> u8 {
        let is_refused = |pool: &PoolPlan| {
            pool.action == Action::Refuse || pool.bindings.iter().any(|binding| binding.action == Action::Refuse)
        };
        let is_held_back = |pool: &PoolPlan| pool.origins.iter().any(|origin| origin.held_back.is_some());
        if !self.errors.is_empty() || self.pools.iter().any(is_refused) {
            1
        } else if self.changes || self.pools.iter().any(is_held_back) {
            2
        } else {
            0
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for pool in self.pools.iter().filter(|pool| !pool.is_kept()) {
            pool.tell(&mut text);
        }
        for error in &self.errors {
            let _ = writeln!(text, "error: {error}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        let counts = [
            (Action::Create, "to create"),
            (Action::Change, "to change"),
            (Action::Delete, "to delete"),
            (Action::Abandon, "to abandon"),
            (Action::HoldBack, "held back"),
            (Action::Refuse, "refused"),
            (Action::Keep, "as declared"),
        ];
        let counts = counts.into_iter().map(|(action, words)| (self.count(action), words));
        let counts: Vec<_> =
            counts.filter(|(count, _)| *count > 0).map(|(count, words)| format!("{count} {words}")).collect();
        let counts = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
        let _ = writeln!(text, "pools: {counts}");
        text
    }
}

impl PoolPlan {
    /// Whether there is nothing to tell of it.
    fn is_kept(&self) -> bool {
        self.action == Action::Keep && self.origins.is_empty() && self.bindings.is_empty()
    }

    // Writing to a String never fails.
    fn tell(&self, text: &mut String) {
        let _ = write!(text, "{} {}", verb(self.action), self.pool);
        let _ = writeln!(text, "{}", self.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default());
        for edit in &self.settings {
            let _ = writeln!(text, "  {}: {} -> {}", edit.field, edit.from, edit.to);
        }
        for origin in &self.origins {
            origin.tell(text);
        }
        for binding in &self.bindings {
            binding.tell(text);
        }
    }
}

fn verb(action: Action) -> &'static str {
    match action {
        Action::Create => "create",
        Action::Change => "change",
        Action::HoldBack => "hold back",
        Action::Delete => "delete",
        Action::Abandon => "abandon",
        Action::Refuse => "refuse",
        Action::Keep => "keep",
    }
}

impl OriginPlan {
    fn tell(&self, text: &mut String) {
        if let Some(HeldBack { found, peak, allowed_min }) = &self.held_back {
            let _ = writeln!(
                text,
                "  {}: held back, as {found} of {peak} resources are left and spec.maxShrinkPercent allows {allowed_min} or \
                 more: raise it if that is meant",
                self.origin
            );
        }
        let some = [
            ("add", &self.added),
            ("update", &self.updated),
            ("remove", &self.removed),
            ("remove when its lease ends", &self.draining),
            ("remove, ending its lease", &self.revoked),
            ("let go, kept by another origin", &self.kept),
        ];
        for (what, names) in some.into_iter().filter(|(_, names)| !names.is_empty()) {
            let first = names.first.iter().map(String::as_str);
            let _ = writeln!(text, "  {}: {what} {}", self.origin, told(names.count, first));
        }
        if !self.later.is_empty() {
            let first = self.later.first.iter().map(|Departing { name, at }| format!("{name} at {at:.0}"));
            let _ = writeln!(
                text,
                "  {}: let go later, unless declared again {}",
                self.origin,
                told(self.later.count, first)
            );
        }
    }
}

/// How many, and the first of them.
fn told(count: usize, first: impl ExactSizeIterator<Item: Display>) -> String {
    let more = if count > first.len() { ", …" } else { "" };
    let first: Vec<_> = first.map(|it| it.to_string()).collect();
    format!("{count}: {}{more}", first.join(", "))
}

impl BindingPlan {
    fn tell(&self, text: &mut String) {
        let Self { binding, action, from, to, why } = self;
        let none = "nothing";
        let (from, to) = (from.as_deref().unwrap_or(none), to.as_deref().unwrap_or(none));
        let why = why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let _ = writeln!(text, "  binding {binding}: {} {from} -> {to}{why}", verb(*action));
    }
}

#[cfg(test)]
mod tests {
    use redis_allocator::{Origin, PoolName};

    use super::*;
    use crate::reconcile::plan::{
        Edit,
        origins::{Departures, Names},
    };

    fn pool(action: Action) -> PoolPlan {
        let pool: PoolName = "gpus".parse().unwrap();
        PoolPlan { pool, action, why: None, settings: Vec::new(), origins: Vec::new(), bindings: Vec::new() }
    }

    fn report(pools: Vec<PoolPlan>) -> Report {
        Report::new(pools, &Declaration { complete: true, ..Declaration::default() }, Vec::new())
    }

    fn held_back() -> OriginPlan {
        OriginPlan {
            held_back: Some(HeldBack { found: 1, peak: 4, allowed_min: 2 }),
            ..OriginPlan::idle(&Origin::Spec)
        }
    }

    /// Three resources are let go of later, and the first two are told of.
    fn later() -> OriginPlan {
        let departing = |name: &str, second: i64| Departing {
            name: name.to_owned(),
            at: jiff::Timestamp::from_millisecond(second * 1000 + 999).unwrap(),
        };
        let later = Departures { count: 3, first: vec![departing("d", 60), departing("e", 3600)] };
        OriginPlan { later, ..OriginPlan::idle(&Origin::Source("eu".to_owned())) }
    }

    #[test]
    fn the_exit_code_tells_nothing_changes_and_errors_apart() {
        assert_eq!(report(Vec::new()).code(), 0);
        assert_eq!(report(vec![pool(Action::Keep)]).code(), 0);
        assert_eq!(report(vec![PoolPlan { origins: vec![later()], ..pool(Action::Keep) }]).code(), 0);
        for action in [Action::Create, Action::Change, Action::Delete, Action::Abandon] {
            assert_eq!(report(vec![pool(Action::Keep), pool(action)]).code(), 2, "{action:?}");
        }
        assert_eq!(report(vec![PoolPlan { origins: vec![held_back()], ..pool(Action::HoldBack) }]).code(), 2);
        assert_eq!(report(vec![pool(Action::Change), pool(Action::Refuse)]).code(), 1);
        let conflict = BindingPlan {
            binding: "b".to_owned(),
            action: Action::Refuse,
            from: None,
            to: Some("x".to_owned()),
            why: Some("BindingConflict".to_owned()),
        };
        assert_eq!(report(vec![PoolPlan { bindings: vec![conflict], ..pool(Action::Keep) }]).code(), 1);
        let trouble = Declaration { trouble: Some("reading x failed".to_owned()), ..Declaration::default() };
        let report = Report::new(Vec::new(), &trouble, Vec::new());
        assert_eq!(report.code(), 1);
        assert!(report.text().contains("error: reading x failed\nnote: not all"), "{}", report.text());
    }

    #[test]
    fn what_is_let_go_of_later_is_told_of_a_pool_that_is_kept_too() {
        let plan = PoolPlan { origins: vec![later()], ..pool(Action::Keep) };
        assert_eq!(
            report(vec![plan, pool(Action::Keep)]).text(),
            "keep default/gpus\n  source/eu: let go later, unless declared again 3: d at 1970-01-01T00:01:00Z, e at \
             1970-01-01T01:00:00Z, …\npools: 2 as declared\n"
        );
    }

    #[test]
    fn a_pools_changes_are_told_line_by_line() {
        let origin = OriginPlan {
            added: Names { count: 12, first: vec!["a".to_owned(), "b".to_owned()] },
            draining: Names { count: 1, first: vec!["c".to_owned()] },
            held_back: None,
            ..held_back()
        };
        let plan = PoolPlan {
            settings: vec![Edit { field: "lease.maxTTL", from: "none".to_owned(), to: "1h".to_owned() }],
            origins: vec![origin, OriginPlan { origin: "range/r".to_owned(), ..held_back() }],
            ..pool(Action::Change)
        };
        assert_eq!(
            report(vec![plan, pool(Action::Keep)]).text(),
            "change default/gpus\n  lease.maxTTL: none -> 1h\n  spec: add 12: a, b, …\n  spec: remove when its lease ends 1: c\n  \
             range/r: held back, as 1 of 4 resources are left and spec.maxShrinkPercent allows 2 or more: raise it if that \
             is meant\npools: 1 to change, 1 as declared\n"
        );
    }
}
