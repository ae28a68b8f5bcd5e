//! `pgcapture cluster recover`: the last resort when the disks of a majority are lost.
//!
//! Asks no node and reaches none: it works on the data directory of a survivor that is stopped. It says
//! what it would do, and does it with `--yes`. It looks whether a node that it would drop still takes
//! connections: then the majority may be alive, and there is nothing to recover.

use std::time::Duration;

use clap::Args;
use pgcapture_engine::codes::{cluster, node};
use tokio::net::TcpStream;

use crate::{
    cli::{Failure, Global, config::FileArgs, output, start},
    raft::{self, RaftError, Recovery},
    store::Store,
};

/// A node that is alive takes a connection within this time.
const LOOK_MAX: Duration = Duration::from_millis(500);

/// Arguments of `cluster recover`.
#[derive(Args, Debug)]
pub struct RecoverArgs {
    #[command(flatten)]
    files: FileArgs,
    /// Do it.
    #[arg(long)]
    yes: bool,
    /// Only say what would happen.
    #[arg(long)]
    dry_run: bool,
    /// Do it even though something listens at the address of a node that is dropped.
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(global: &Global, args: RecoverArgs) -> Result<(), Failure> {
    let config = args.files.load(&[])?;
    let directory = config.node.data_dir;
    if !directory.join("node.redb").is_file() {
        let text = format!("{} holds no node", directory.display());
        return Err(Failure::new(4, &cluster::NOTHING_TO_RECOVER, text));
    }
    let store = Store::open(&directory).map_err(|error| refused(error.into()))?;
    let plan = raft::plan_recovery(&store).map_err(refused)?;
    let alive = look_for(&plan).await;
    if !args.yes || args.dry_run {
        output::talk("would:\n");
        output::data(&output::bullets(&lines(&plan)))?;
        output::talk(&output::bullets(&alive));
        if args.dry_run {
            return Ok(());
        }
        let text = format!("node \"{}\" is still one of several", plan.node);
        return Err(Failure::needs_yes(&text));
    }
    if !alive.is_empty() && !args.force {
        return Err(Failure::new(7, &cluster::STILL_ALIVE, alive.join("; ")));
    }
    let done = raft::recover(&store).map_err(refused)?;
    output::data(&output::bullets(&lines(&done)))?;
    if !global.quiet {
        output::talk(
            "done\n  next: start this node; then give every dropped node an empty data directory, list \
             this node in its [node] peers, and start it: it joins\n",
        );
    }
    Ok(())
}

fn lines(plan: &Recovery) -> Vec<String> {
    let dropped: Vec<String> = plan
        .dropped
        .iter()
        .map(|node| format!("{} ({})", node.name, node.address))
        .collect();
    let (node, index) = (&plan.node, plan.last_index);
    vec![
        format!(
            "let node {node} go on alone, with everything in its log up to entry {index} (term {})",
            plan.last_term
        ),
        format!(
            "keep {} source(s) and the positions of {} consumer(s)",
            plan.source_count, plan.cursor_count
        ),
        format!(
            "drop {}: with the data that they have they are refused from now on",
            output::joined(&dropped)
        ),
        format!(
            "lose what was agreed on after entry {index} and is only on their disks: sources, dumps and \
             nodes that were added or removed last, and the last acknowledgements; a consumer whose \
             acknowledgements are lost gets those changes again, or OUT_OF_RANGE where PostgreSQL has \
             removed them"
        ),
    ]
}

/// Says who of those that would be dropped still takes connections.
async fn look_for(plan: &Recovery) -> Vec<String> {
    let looks = plan.dropped.iter().map(|node| async {
        let connected = TcpStream::connect(&node.address);
        let connected = tokio::time::timeout(LOOK_MAX, connected).await;
        let is_alive = matches!(connected, Ok(Ok(_)));
        is_alive.then(|| {
            format!(
                "something listens at {}: is {} alive?",
                node.address, node.name
            )
        })
    });
    let found = futures_util::future::join_all(looks).await;
    found.into_iter().flatten().collect()
}

fn refused(error: RaftError) -> Failure {
    let is_conflict = error.explanation().code == node::DATA_DIR_IN_USE.code;
    let mut failure = start::cannot_start(&error.into());
    if is_conflict {
        failure.exit = 7;
    }
    failure
}
