//! `redis-allocator get`: what exists, who holds it, since when and until when, and what is kept back and why.
//!
//! | file | idea |
//! |---|---|
//! | [`fetch`] | what is asked of the server and of the agent's state directory |
//! | [`view`] | one printed thing of each kind, and its columns |
//! | [`callers`] | the same of those who wait in line, and of sessions |
//! | [`output`] | rows as a table, JSON or YAML |
//! | [`age`] | points in time as ages |

mod age;
mod callers;
mod fetch;
mod output;
mod view;

use std::{
    io::{self, BufWriter, Stdout, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, bail};
use jiff::Timestamp;
use redis_allocator::{Error, PoolName};
use tokio::time::sleep;

use self::{
    callers::{SessionView, WaiterView},
    fetch::{Ask, Fetch, Found, Scope},
    output::{Format, Printer, Row, closed},
    view::{BindingView, LeaseView, PoolView, ResourceView, SourceView},
};
use super::server::{NamespaceArgs, ServerArgs};

/// How often a watch looks for changes.
const LOOK: Duration = Duration::from_secs(1);

const AFTER_HELP: &str = "\
Examples:
  redis-allocator get pools                         every pool of the namespace default
  redis-allocator get leases -A                     who holds what, everywhere
  redis-allocator get resources gpus -o wide        every resource of the pool gpus, with labels and origins
  redis-allocator get resources gpus gpu-0 -o json  one of them, with everything known about it
  redis-allocator get waiters gpus                  who waits for what, in turn
  redis-allocator get leases gpus --watch           … and then each change";

/// What `get` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct GetArgs {
    /// What to list.
    #[arg(value_name = "WHAT")]
    what: What,

    /// The pool, as NAME or NAMESPACE/NAME [default: all pools of the namespace].
    pool: Option<String>,

    /// The one resource, binding or source of that pool, its leases on this resource, its waiters of this holder, its
    /// sessions of this name [default: all].
    name: Option<String>,

    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    namespace: NamespaceArgs,

    /// The pools of every namespace.
    #[arg(short = 'A', long, conflicts_with_all = ["pool", "namespace"])]
    all_namespaces: bool,

    /// How to print.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,

    /// Go on after the first list, and print what changes, until interrupted. JSON is then one document a line.
    #[arg(short, long)]
    watch: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum What {
    /// Pools: how much is free, leased, kept back; whether the agent is content.
    #[value(alias = "pool")]
    Pools,
    /// Resources: their state, who has them, what is quarantined and why.
    #[value(alias = "resource")]
    Resources,
    /// Leases: who holds what, since when, until when.
    #[value(alias = "lease")]
    Leases,
    /// Soft bindings: which name has which resource.
    #[value(alias = "binding")]
    Bindings,
    /// Sources: how many resources each brings, and what is wrong with it, as an agent on this machine says.
    #[value(alias = "source")]
    Sources,
    /// Waiters: who waits in line for what, since when, and how many are before it.
    #[value(alias = "waiter")]
    Waiters,
    /// Sessions: which are alive, which have died within the last hour, how many leases each has.
    #[value(alias = "session")]
    Sessions,
}

pub(crate) async fn run(args: GetArgs) -> Result<ExitCode> {
    let printed = match args.what {
        What::Pools => print::<PoolView>(&args).await,
        What::Resources => print::<ResourceView>(&args).await,
        What::Leases => print::<LeaseView>(&args).await,
        What::Bindings => print::<BindingView>(&args).await,
        What::Sources => print::<SourceView>(&args).await,
        What::Waiters => print::<WaiterView>(&args).await,
        What::Sessions => print::<SessionView>(&args).await,
    };
    match printed {
        Err(error) if closed(&error) => Ok(ExitCode::SUCCESS),
        printed => printed,
    }
}

/// The one named thing, whatever its kind calls its name: a pool's is the pool argument itself.
fn single(args: &GetArgs) -> Result<Option<&str>> {
    match (args.what, &args.name) {
        (What::Pools, Some(name)) => bail!("a pool has one name: {name:?} is too much"),
        (What::Pools, None) => Ok(args.pool.as_deref()),
        (_, name) => Ok(name.as_deref()),
    }
}

async fn print<T: Row + Fetch>(args: &GetArgs) -> Result<ExitCode> {
    let single = single(args)?;
    let scope = if args.all_namespaces {
        Scope::Everywhere
    } else if let Some(pool) = &args.pool {
        Scope::Pool(args.namespace.pool(pool)?)
    } else {
        Scope::Namespace(args.namespace.namespace.clone())
    };
    let client = args.server.connect().await?;
    let state = args.server.state_dir().ok();
    let ask = Ask { client: &client, scope, name: args.name.as_deref(), state: state.as_ref() };

    let Found { mut rows, unread } = T::fetch(&ask).await?;
    let mut printer = Printer::new(BufWriter::new(io::stdout()), args.output, args.all_namespaces);
    match rows.as_slice() {
        [] if single.is_some() && !args.watch => {
            bail!("there is no {} {:?} in {}", T::KIND, single.unwrap_or_default(), ask.scope)
        }
        [] if !unread.is_empty() => {}
        [] if matches!(args.output, Format::Table | Format::Wide) => {
            let _ = writeln!(io::stderr(), "no {} found in {}", T::PLURAL, ask.scope);
        }
        [row] if single.is_some() && T::NAMED_ONCE => printer.single(row, Timestamp::now())?,
        rows => printer.list(rows, Timestamp::now())?,
    }
    printer.flush()?;
    let mut unread = tell(unread, &[]);
    if !args.watch {
        return Ok(if unread.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let mut reachable = true;
    loop {
        sleep(LOOK).await;
        match T::fetch(&ask).await {
            Ok(Found { rows: mut newer, unread: now_unread }) => {
                reachable = true;
                // What can't be read is not gone.
                let is_unread = |row: &T| {
                    let (namespace, name, _) = row.id();
                    now_unread.iter().any(|(pool, _)| (pool.namespace(), pool.name()) == (namespace, name))
                };
                let kept: Vec<T> = rows.extract_if(.., |row| is_unread(row)).collect();
                print_changes(&mut printer, &rows, &newer)?;
                newer.extend(kept);
                rows = newer;
                unread = tell(now_unread, &unread);
            }
            Err(error) if error.downcast_ref().is_some_and(Error::is_transient) => {
                // Once, not with each attempt.
                if std::mem::replace(&mut reachable, false) {
                    let _ = writeln!(io::stderr(), "still watching, but: {}", super::told(&error));
                }
            }
            // The pool that was asked for is gone, and so is everything in it.
            Err(error) if matches!(error.downcast_ref(), Some(Error::UnknownPool { .. })) => {
                print_changes(&mut printer, &rows, &[])?;
                rows.clear();
            }
            Err(error) => return Err(error),
        }
    }
}

/// Says which pools can't be read, and why, unless that was `told`; returns what is now told.
fn tell(unread: Vec<(PoolName, Error)>, told: &[String]) -> Vec<String> {
    let lines =
        unread.into_iter().map(|(pool, error)| format!("reading pool {pool} failed: {}", super::told(&error.into())));
    let lines: Vec<_> = lines.collect();
    for line in lines.iter().filter(|line| !told.contains(line)) {
        let _ = writeln!(io::stderr(), "error: {line}");
    }
    lines
}

/// Prints what is new or differs, and what is gone.
fn print_changes<T: Row>(printer: &mut Printer<BufWriter<Stdout>>, older: &[T], newer: &[T]) -> Result<()> {
    let now = Timestamp::now();
    let known = by_id(older);
    for row in newer {
        if known.get(&row.id()).is_none_or(|known| row.differs(known)) {
            printer.update(row, false, now)?;
        }
    }
    let left = by_id(newer);
    for row in older {
        if !left.contains_key(&row.id()) {
            printer.update(row, true, now)?;
        }
    }
    printer.flush()
}

fn by_id<T: Row>(rows: &[T]) -> std::collections::HashMap<(&str, &str, &str), &T> {
    rows.iter().map(|row| (row.id(), row)).collect()
}
