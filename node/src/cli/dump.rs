//! `pgcapture dump start|ls|show|watch|pause|resume|cancel|retry`: existing rows on demand.

mod follow;
mod start;
mod view;

use clap::{Args, Subcommand};
use pgcapture_proto::admin::v1::{
    CancelDumpRequest, GetDumpRequest, ListDumpsRequest, PauseDumpRequest, ResumeDumpRequest,
    RetryDumpRequest,
};

use self::view::DumpView;
use super::{
    Failure, Global, connect, output,
    watch::{self, WatchArgs},
};

/// Commands about dumps.
#[derive(Debug, Subcommand)]
pub enum DumpCommand {
    /// Ask for the existing rows of tables on a consumer's stream, and show how it goes on.
    Start(start::StartArgs),
    /// List dumps, the newest first.
    Ls(ListArgs),
    /// Show one dump and its tables.
    Show(ShowArgs),
    /// Show how a dump goes on until it ends; Ctrl-C leaves it running.
    Watch(IdArgs),
    /// Begin no more ranges; those that run end.
    Pause(IdArgs),
    /// Go on where it was paused.
    Resume(IdArgs),
    /// End a dump for good; rows that were delivered stay delivered. Needs --yes.
    Cancel(CancelArgs),
    /// Run again what has failed; what was finished stays finished.
    Retry(IdArgs),
}

/// Arguments of `dump ls`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only those of this stream.
    #[arg(long)]
    stream: Option<String>,
    /// Only those that have not ended.
    #[arg(long)]
    open: bool,
    #[command(flatten)]
    watch: WatchArgs,
}

/// Arguments of `dump show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// The dump, such as d-41.
    id: String,
    #[command(flatten)]
    watch: WatchArgs,
}

/// A dump by its id.
#[derive(Args, Debug)]
pub struct IdArgs {
    /// The dump, such as d-41.
    id: String,
}

/// Arguments of `dump cancel`.
#[derive(Args, Debug)]
pub struct CancelArgs {
    /// The dump, such as d-41.
    id: String,
    /// Do it.
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(global: &Global, command: DumpCommand) -> Result<(), Failure> {
    match command {
        DumpCommand::Start(args) => start::run(global, args).await,
        DumpCommand::Ls(args) => list(global, args).await,
        DumpCommand::Show(args) => show(global, args).await,
        DumpCommand::Watch(args) => follow::run(global, &args.id).await,
        DumpCommand::Pause(IdArgs { id }) => {
            let paused = connect::dumps(global)
                .await?
                .pause_dump(PauseDumpRequest { id })
                .await?;
            Ok(output::one(global, &DumpView::from(paused.into_inner()))?)
        }
        DumpCommand::Resume(IdArgs { id }) => {
            let request = ResumeDumpRequest { id };
            let resumed = connect::dumps(global).await?.resume_dump(request).await?;
            Ok(output::one(global, &DumpView::from(resumed.into_inner()))?)
        }
        DumpCommand::Cancel(args) => cancel(global, args).await,
        DumpCommand::Retry(IdArgs { id }) => {
            let retried = connect::dumps(global)
                .await?
                .retry_dump(RetryDumpRequest { id })
                .await?;
            Ok(output::one(global, &DumpView::from(retried.into_inner()))?)
        }
    }
}

async fn list(global: &Global, args: ListArgs) -> Result<(), Failure> {
    let client = connect::dumps(global).await?;
    watch::show(global, args.watch, false, async || {
        let request = ListDumpsRequest {
            stream: args.stream.clone().unwrap_or_default(),
            uri: String::new(),
            only_open: args.open,
        };
        let answer = client.clone().list_dumps(request).await?;
        let dumps = answer.into_inner().dumps.into_iter();
        let views = dumps.map(|dump| DumpView::from(dump).listed());
        Ok(views.collect())
    })
    .await
}

async fn show(global: &Global, args: ShowArgs) -> Result<(), Failure> {
    let client = connect::dumps(global).await?;
    watch::show(global, args.watch, true, async || {
        let id = args.id.clone();
        let answer = client.clone().get_dump(GetDumpRequest { id }).await?;
        Ok(vec![DumpView::from(answer.into_inner())])
    })
    .await
}

async fn cancel(global: &Global, args: CancelArgs) -> Result<(), Failure> {
    let mut client = connect::dumps(global).await?;
    let id = args.id;
    if !args.yes {
        let request = GetDumpRequest { id: id.clone() };
        let dump = client.get_dump(request).await?.into_inner();
        let view = DumpView::from(dump);
        let plan = format!("dump {id} is {} ({})", view.state, view.done_text());
        return Err(Failure::needs_yes(&plan));
    }
    let cancelled = client.cancel_dump(CancelDumpRequest { id }).await?;
    Ok(output::one(
        global,
        &DumpView::from(cancelled.into_inner()),
    )?)
}
