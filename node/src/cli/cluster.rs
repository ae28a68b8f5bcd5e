//! `pgcapture cluster status|health|members|remove|transfer|events|hash|recover`.

mod health;
mod recover;
mod view;

use clap::{Args, Subcommand};
use pgcapture_engine::codes;
use pgcapture_proto::admin::v1::{
    GetClusterRequest, GetHashRequest, ListEventsRequest, RemoveNodeRequest,
    TransferLeadershipRequest,
};

use self::view::{ClusterView, EventView, HashView};
use super::{
    Failure, Global, connect,
    output::{self, Format},
    watch::{self, WatchArgs},
};

/// Commands about the nodes.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show leader, term and members; `-o json` for all of it.
    Status(StatusArgs),
    /// Say in one line whether everything works; exit code 3 when it does not.
    Health(StatusArgs),
    /// List the members.
    Members(StatusArgs),
    /// Take a node out for good; needs --yes.
    Remove(RemoveArgs),
    /// Let another member lead.
    Transfer(TransferArgs),
    /// What happened lately, as the nodes remember it.
    Events(EventsArgs),
    /// Compare the agreed state of all nodes; exit code 3 when it differs.
    Hash,
    /// Let a stopped node go on alone after a majority lost its disks; needs --yes.
    Recover(recover::RecoverArgs),
}

/// Arguments of commands that only look.
#[derive(Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    watch: WatchArgs,
}

/// Arguments of `cluster remove`.
#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// The node.
    name: String,
    /// Do it.
    #[arg(long)]
    yes: bool,
    /// Only say what would happen.
    #[arg(long)]
    dry_run: bool,
}

/// Arguments of `cluster transfer`.
#[derive(Args, Debug)]
pub struct TransferArgs {
    /// The node that shall lead.
    name: String,
}

/// Arguments of `cluster events`.
#[derive(Args, Debug)]
pub struct EventsArgs {
    /// How many of the newest; 0 for all that are remembered.
    #[arg(short = 'n', long, default_value_t = 50)]
    limit: u32,
}

pub(super) async fn run(global: &Global, command: ClusterCommand) -> Result<(), Failure> {
    match command {
        ClusterCommand::Status(args) => status(global, args).await,
        ClusterCommand::Health(args) => health::run(global, args.watch).await,
        ClusterCommand::Members(args) => members(global, args).await,
        ClusterCommand::Remove(args) => remove(global, args).await,
        ClusterCommand::Transfer(args) => transfer(global, args).await,
        ClusterCommand::Events(args) => events(global, &args).await,
        ClusterCommand::Hash => hash(global).await,
        ClusterCommand::Recover(args) => recover::run(global, args).await,
    }
}

async fn status(global: &Global, args: StatusArgs) -> Result<(), Failure> {
    let client = connect::cluster(global).await?;
    let fetch = async || {
        let status = client.clone().get_cluster(GetClusterRequest {}).await?;
        Ok::<_, Failure>(ClusterView::from(status.into_inner()))
    };
    if !matches!(global.output, Format::Table | Format::Wide) {
        return watch::show(global, args.watch, true, async || Ok(vec![fetch().await?])).await;
    }
    // For people: the members, and the group in one line under them.
    watch::show(global, args.watch, false, async || {
        Ok(fetch().await?.into_members_with_headline())
    })
    .await
}

async fn members(global: &Global, args: StatusArgs) -> Result<(), Failure> {
    let client = connect::cluster(global).await?;
    watch::show(global, args.watch, false, async || {
        let status = client.clone().get_cluster(GetClusterRequest {}).await?;
        Ok(ClusterView::from(status.into_inner()).members)
    })
    .await
}

async fn remove(global: &Global, args: RemoveArgs) -> Result<(), Failure> {
    let mut client = connect::cluster(global).await?;
    let request = |dry_run| RemoveNodeRequest {
        name: args.name.clone(),
        dry_run,
    };
    let plan = client.remove_node(request(true)).await?.into_inner();
    if args.dry_run || !args.yes {
        output::talk("would:\n");
        output::data(&output::bullets(&plan.actions))?;
        if args.dry_run {
            return Ok(());
        }
        let plan = format!("node \"{}\" still belongs to the cluster", args.name);
        return Err(Failure::needs_yes(&plan));
    }
    let done = client.remove_node(request(false)).await?.into_inner();
    Ok(output::data(&output::bullets(&done.actions))?)
}

async fn transfer(global: &Global, args: TransferArgs) -> Result<(), Failure> {
    let mut client = connect::cluster(global).await?;
    let name = args.name.clone();
    client
        .transfer_leadership(TransferLeadershipRequest { name })
        .await?;
    // It was asked to; it leads when the members say so.
    let deadline = tokio::time::Instant::now() + global.timeout.0;
    loop {
        let status = client.get_cluster(GetClusterRequest {}).await?.into_inner();
        if status.leader == args.name {
            if !global.quiet {
                output::talk(&format!(
                    "{} leads in term {}\n",
                    status.leader, status.term
                ));
            }
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            let text = format!("{} does not lead after {}", args.name, global.timeout);
            return Err(Failure::new(6, &codes::node::UNREACHABLE, text)
                .next("pgcapture cluster status; a member that is far behind cannot lead yet"));
        }
        tokio::time::sleep(watch::UNTIL_INTERVAL.0).await;
    }
}

async fn events(global: &Global, args: &EventsArgs) -> Result<(), Failure> {
    let mut client = connect::cluster(global).await?;
    let limit = args.limit;
    let answer = client
        .list_events(ListEventsRequest { limit })
        .await?
        .into_inner();
    let events: Vec<EventView> = answer.events.into_iter().map(EventView::from).collect();
    output::list(global, &events)?;
    super::tell_unreachable(global, &answer.unreachable, "what it remembers is missing");
    Ok(())
}

async fn hash(global: &Global) -> Result<(), Failure> {
    let mut client = connect::cluster(global).await?;
    let answer = client.get_hash(GetHashRequest {}).await?.into_inner();
    let hashes: Vec<HashView> = answer.nodes.into_iter().map(HashView::from).collect();
    output::list(global, &hashes)?;
    let verdict = view::verdict(&hashes);
    if let Some(differ) = verdict.differ {
        return Err(Failure::new(3, &codes::node::NOT_HEALTHY, differ).next(
            "remove one of them and let it join again with an empty data directory; report it",
        ));
    }
    if !global.quiet {
        output::talk(&format!("{}\n", verdict.said));
    }
    Ok(())
}
