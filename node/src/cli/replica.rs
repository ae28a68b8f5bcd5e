//! `pgcapture replica add|ls|show|rm`: where existing rows are read from.

mod add;
mod view;

use clap::{Args, Subcommand};
use pgcapture_proto::admin::v1::{GetReplicaRequest, ListReplicasRequest, RemoveReplicaRequest};

use self::view::ReplicaView;
use super::{
    Failure, Global, connect,
    removal::{self, Consent},
    watch::{self, WatchArgs},
};

/// Commands about replicas.
#[derive(Debug, Subcommand)]
pub enum ReplicaCommand {
    /// Check a physical standby, or the source itself, and read existing rows from it.
    Add(add::AddArgs),
    /// List replicas.
    Ls(ListArgs),
    /// Show one replica.
    Show(ShowArgs),
    /// Read no more rows from it; needs --yes.
    Rm(RemoveArgs),
}

/// Arguments of `replica ls`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only those of this source.
    #[arg(long)]
    source: Option<String>,
    #[command(flatten)]
    watch: WatchArgs,
}

/// Arguments of `replica show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// The replica.
    name: String,
    #[command(flatten)]
    watch: WatchArgs,
}

/// Arguments of `replica rm`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// The replica.
    name: String,
    #[command(flatten)]
    consent: Consent,
}

pub(super) async fn run(global: &Global, command: ReplicaCommand) -> Result<(), Failure> {
    match command {
        ReplicaCommand::Add(args) => add::run(global, args).await,
        ReplicaCommand::Ls(args) => list(global, args).await,
        ReplicaCommand::Show(args) => show(global, args).await,
        ReplicaCommand::Rm(args) => remove(global, args).await,
    }
}

async fn list(global: &Global, args: ListArgs) -> Result<(), Failure> {
    let client = connect::replicas(global).await?;
    watch::show(global, args.watch, false, async || {
        let source = args.source.clone().unwrap_or_default();
        let request = ListReplicasRequest { source };
        let answer = client.clone().list_replicas(request).await?;
        let replicas = answer.into_inner().replicas.into_iter();
        Ok(replicas.map(ReplicaView::from).collect())
    })
    .await
}

async fn show(global: &Global, args: ShowArgs) -> Result<(), Failure> {
    let client = connect::replicas(global).await?;
    watch::show(global, args.watch, true, async || {
        let name = args.name.clone();
        let request = GetReplicaRequest { name };
        let answer = client.clone().get_replica(request).await?;
        Ok(vec![ReplicaView::from(answer.into_inner())])
    })
    .await
}

async fn remove(global: &Global, args: RemoveArgs) -> Result<(), Failure> {
    let client = connect::replicas(global).await?;
    let what = format!("replica \"{}\"", args.name);
    removal::run(&what, args.consent, async |dry_run| {
        let name = args.name.clone();
        let request = RemoveReplicaRequest { name, dry_run };
        let answer = client.clone().remove_replica(request).await?;
        Ok(answer.into_inner().actions)
    })
    .await
}
