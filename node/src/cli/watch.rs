//! Showing something once, again and again (`--watch`), or until it is as wanted (`--until`).

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use pgcapture_engine::codes;

use super::{
    Failure, Global,
    output::{self, Format, View},
};
use crate::units::Span;

/// Flags of commands that can wait.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct WatchArgs {
    /// Show again every so often, until Ctrl-C.
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "2s")]
    pub(super) watch: Option<Span>,
    /// Wait for this, at most --timeout; exit code 6 when it does not come.
    #[arg(long, value_enum)]
    pub(super) until: Option<Until>,
}

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Until {
    /// Everything works.
    Healthy,
    /// Nothing is behind.
    CaughtUp,
    /// Everything has ended; for what never ends, nothing is behind.
    Done,
}

/// A view that knows whether it is as wanted.
pub(super) trait Awaited: View {
    /// Tells whether it is there.
    fn reaches(&self, until: Until) -> bool;
}

/// How often `--until` asks. A person does not notice the wait, a node does not notice the load.
pub(super) const UNTIL_INTERVAL: Span = Span(std::time::Duration::from_millis(200));

/// Shows what `fetch` returns as the flags say; `is_one` shows the first as a single thing.
pub(super) async fn show<T: Awaited>(
    global: &Global,
    args: WatchArgs,
    is_one: bool,
    mut fetch: impl AsyncFnMut() -> Result<Vec<T>, Failure>,
) -> Result<(), Failure> {
    let deadline = tokio::time::Instant::now() + global.timeout.0;
    loop {
        let items = fetch().await?;
        let is_there = |until| items.iter().all(|item| item.reaches(until));
        let wait = match (args.until, args.watch) {
            (Some(until), _) if is_there(until) => None,
            (Some(_), watch) => Some(watch.unwrap_or(UNTIL_INTERVAL)),
            (None, watch) => watch,
        };
        let Some(wait) = wait else {
            return print(global, is_one, &items);
        };
        if args.watch.is_some() {
            let is_screen = matches!(global.output, Format::Table | Format::Wide)
                && std::io::stdout().is_terminal();
            if is_screen {
                output::data("\u{1b}[H\u{1b}[2J")?;
            }
            print(global, is_one, &items)?;
        }
        if args.until.is_some() && tokio::time::Instant::now() >= deadline {
            print(global, is_one, &items)?;
            let text = format!("not reached within {}", global.timeout);
            return Err(Failure::new(6, &codes::node::UNREACHABLE, text)
                .next("look at the state above, or wait longer with --timeout"));
        }
        tokio::select! {
            () = tokio::time::sleep(wait.0) => (),
            _ = tokio::signal::ctrl_c() => return Err(Failure::interrupted()),
        }
    }
}

fn print<T: View>(global: &Global, is_one: bool, items: &[T]) -> Result<(), Failure> {
    match items.first() {
        Some(item) if is_one => output::one(global, item)?,
        _ => output::list(global, items)?,
    }
    Ok(())
}
