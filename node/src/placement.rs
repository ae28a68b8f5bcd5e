//! Gives sources to nodes while this node leads the Raft group.
//!
//! A thin shell around `cluster::placement`: watches what is agreed on and what was heard, proposes
//! what is due, and looks again when the next node would be given up. It never starts an agent: the
//! node that owns a source does that itself.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::StreamExt as _;
use pgcapture_actors::{
    consensus::{Consensus, ProposeError},
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::cluster::{Answer, Command, State, liveness::Life, placement};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    events::Events,
    liveness::{Book, probe::look_for_all},
};

/// Assignments under way at once: they share the syncs of the Raft log.
const ASSIGNMENTS_MAX: usize = 64;

/// Pause after an assignment that could not be agreed on.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_millis(200);

/// Starts the reconciler; it ends after `stop`.
#[must_use]
pub fn start(
    consensus: Arc<dyn Consensus>,
    book: Book,
    events: Events,
    stop: CancellationToken,
) -> Task<()> {
    spawn(TaskKind::Placement, "placement", async move {
        tokio::select! {
            () = run(consensus.as_ref(), &book, &events) => (),
            () = stop.cancelled() => (),
        }
    })
}

async fn run(consensus: &dyn Consensus, book: &Book, events: &Events) {
    let mut leadership = consensus.leadership();
    loop {
        book.close();
        if leadership.wait_for(|now| now.is_me).await.is_err() {
            return;
        }
        book.open();
        tracing::info!("this node leads: placing sources");
        tokio::select! {
            ((), ()) = async {
                tokio::join!(lead(consensus, book, events), look_for_all(consensus, book))
            } => (),
            ended = leadership.wait_for(|now| !now.is_me) => if ended.is_err() { return },
        }
        tracing::info!("this node does not lead any more");
    }
}

/// Proposes what is due, for as long as this node leads.
async fn lead(consensus: &dyn Consensus, book: &Book, events: &Events) {
    let mut lives = BTreeMap::new();
    let (mut state, mut changes) = (consensus.state(), book.changes());
    loop {
        let agreed = Arc::clone(&state.borrow_and_update());
        changes.borrow_and_update();
        let decided = book.read(|liveness, now| {
            note_lives(&mut lives, &agreed, events, |node| liveness.life(node, now));
            let next = liveness.next_look(&agreed, now);
            (placement::due(&agreed, liveness, now), next)
        });
        let Some((commands, next)) = decided else {
            return;
        };
        let has_failed = propose(consensus, commands).await;
        let next_look = async {
            match next {
                _ if has_failed => sleep(RETRY_AFTER).await,
                Some(at) => sleep_until(book.moment(at)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = next_look => (),
            changed = state.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// Tells of nodes that went and came back since the last look.
fn note_lives(
    lives: &mut BTreeMap<String, Life>,
    state: &State,
    events: &Events,
    life: impl Fn(&str) -> Life,
) {
    lives.retain(|node, _| state.nodes.contains_key(node));
    for node in state.nodes.keys() {
        let now = life(node);
        let before = lives.insert(node.clone(), now);
        let was_there = before.is_none_or(|before| before.is_there());
        match now {
            Life::Gone if was_there => events.node_gone(node, "nobody listens at its address"),
            Life::Silent if was_there => events.node_gone(node, "it was silent for too long"),
            Life::Alive if !was_there => events.node_back(node),
            Life::Alive | Life::Silent | Life::Gone | Life::Draining => {}
        }
    }
}

/// Proposes assignments side by side; returns whether one must be tried again.
async fn propose(consensus: &dyn Consensus, commands: Vec<Command>) -> bool {
    let proposals = commands.into_iter().map(|command| async move {
        let began = Instant::now();
        let Command::Assign { name, node, .. } = &command else {
            return false;
        };
        let (source, node) = (name.clone(), node.clone());
        match consensus.propose(command).await {
            Ok(Answer::Assigned(epoch)) => {
                let took_ms = began.elapsed().as_millis();
                tracing::info!(source, node, epoch = epoch.0, took_ms, "assigned a source");
                false
            }
            // Somebody else was faster: the state that comes says what is due then.
            Ok(_) | Err(ProposeError::Refused(_)) => false,
            Err(error) => {
                tracing::warn!(source, node, %error, "cannot assign a source");
                true
            }
        }
    });
    let outcomes = futures_util::stream::iter(proposals).buffer_unordered(ASSIGNMENTS_MAX);
    outcomes.any(std::future::ready).await
}
