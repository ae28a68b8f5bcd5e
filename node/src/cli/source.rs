//! `pgcapture source add|ls|show|pause|resume|rm`.

mod add;
mod view;

use clap::{Args, Subcommand};
use pgcapture_proto::admin::v1::{
    GetSourceRequest, ListSourcesRequest, PauseSourceRequest, RemoveSourceRequest,
    ResumeSourceRequest,
};

pub(super) use self::{
    add::{check_lines, checks_value, count},
    view::{
        FailoverView, SourceView, TroubleView, failover_text, lag_text, mark, owner_text,
        trouble_text,
    },
};
use super::{
    Failure, Global, connect, output,
    removal::{self, Consent},
    watch::{self, WatchArgs},
};

/// Commands about sources.
#[derive(Debug, Subcommand)]
pub enum SourceCommand {
    /// Check a database, show the SQL, create publication and slot, start capturing.
    Add(add::AddArgs),
    /// List sources.
    Ls(ListArgs),
    /// Show one source.
    Show(ShowArgs),
    /// Stop reading; PostgreSQL keeps WAL until the source is resumed.
    Pause(NameArgs),
    /// Go on where it was paused, or after a declared gap.
    Resume(ResumeArgs),
    /// Drop slot and publication, remove the log; needs --yes.
    Rm(RemoveArgs),
}

/// Arguments of `source ls`.
#[derive(Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    watch: WatchArgs,
}

/// Arguments of `source show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// The source.
    name: String,
    #[command(flatten)]
    watch: WatchArgs,
}

/// A source by name.
#[derive(Args, Debug)]
pub struct NameArgs {
    /// The source.
    name: String,
}

/// Arguments of `source resume`.
#[derive(Args, Debug)]
pub struct ResumeArgs {
    /// The source.
    name: String,
    /// Go on after the gap at which the source has halted: makes the slot anew; what was lost
    /// stays lost and is declared to consumers. In a cluster what they have not read yet before
    /// it is then on the source's node alone, and declared as well if that node is lost.
    #[arg(long)]
    accept_gap: bool,
}

/// Arguments of `source rm`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// The source.
    name: String,
    #[command(flatten)]
    consent: Consent,
    /// Leave slot and publication in PostgreSQL; the slot goes on keeping WAL.
    #[arg(long)]
    keep_slot: bool,
}

pub(super) async fn run(global: &Global, command: SourceCommand) -> Result<(), Failure> {
    match command {
        SourceCommand::Add(args) => add::run(global, args).await,
        SourceCommand::Ls(args) => list(global, args.watch).await,
        SourceCommand::Show(args) => show(global, args).await,
        SourceCommand::Pause(args) => {
            let request = PauseSourceRequest { name: args.name };
            let mut client = connect::admin(global).await?;
            let source = client.pause_source(request).await?.into_inner();
            Ok(output::one(global, &SourceView::from(source))?)
        }
        SourceCommand::Resume(args) => {
            let request = ResumeSourceRequest {
                name: args.name,
                accept_gap: args.accept_gap,
            };
            let mut client = connect::admin(global).await?;
            let source = client.resume_source(request).await?.into_inner();
            Ok(output::one(global, &SourceView::from(source))?)
        }
        SourceCommand::Rm(args) => remove(global, args).await,
    }
}

async fn list(global: &Global, args: WatchArgs) -> Result<(), Failure> {
    let client = connect::admin(global).await?;
    watch::show(global, args, false, async || {
        let answer = client.clone().list_sources(ListSourcesRequest {}).await?;
        let sources = answer.into_inner().sources.into_iter();
        Ok(sources.map(SourceView::from).collect())
    })
    .await
}

async fn show(global: &Global, args: ShowArgs) -> Result<(), Failure> {
    let client = connect::admin(global).await?;
    watch::show(global, args.watch, true, async || {
        let name = args.name.clone();
        let answer = client.clone().get_source(GetSourceRequest { name }).await?;
        Ok(vec![SourceView::from(answer.into_inner())])
    })
    .await
}

async fn remove(global: &Global, args: RemoveArgs) -> Result<(), Failure> {
    let client = connect::admin(global).await?;
    let what = format!("source \"{}\"", args.name);
    removal::run(&what, args.consent, async |dry_run| {
        let request = RemoveSourceRequest {
            name: args.name.clone(),
            dry_run,
            keep_slot: args.keep_slot,
        };
        let answer = client.clone().remove_source(request).await?;
        Ok(answer.into_inner().actions)
    })
    .await
}
