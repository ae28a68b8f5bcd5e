//! What nodes can read for dumps: this one tells it with its reports, and the controller of dumps is told of
//! the others for as long as this node leads.

use std::{collections::BTreeSet, num::NonZero, sync::Arc, thread::available_parallelism};

use pgcapture_actors::{consensus::Consensus, dump::OtherNodes};
use pgcapture_engine::dump::schedule::{NODE_SEATS_MAX, NodeReach};
use tokio::{sync::watch, time::sleep_until};

use super::Book;
use crate::sources::Sources;

/// Ranges that a processor may have at once: one takes a part of it, and waits for its replica or its
/// consumer for the rest.
const SEATS_A_PROCESSOR: u32 = 8;

/// Returns how many ranges this machine reads at once, at most.
#[must_use]
pub fn seats() -> u32 {
    let count = available_parallelism().map_or(1, NonZero::get);
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    count.saturating_mul(SEATS_A_PROCESSOR).min(NODE_SEATS_MAX)
}

/// Tells the leader which replicas this node may read from, for ever.
pub async fn tell_leader(
    sources: Arc<Sources>,
    mut readable: watch::Receiver<Arc<BTreeSet<String>>>,
) {
    loop {
        let replicas = BTreeSet::clone(&readable.borrow_and_update());
        let seats = seats();
        sources.set_reach(NodeReach { seats, replicas });
        if readable.changed().await.is_err() {
            return;
        }
    }
}

/// Tells the controller of dumps what other nodes can read, for ever: nothing while this node does not
/// lead.
pub async fn tell_controller(
    consensus: Arc<dyn Consensus>,
    book: Book,
    others: watch::Sender<OtherNodes>,
) {
    let (mut state, mut changes) = (consensus.state(), book.changes());
    loop {
        let agreed = Arc::clone(&state.borrow_and_update());
        changes.borrow_and_update();
        let seen = book.read(|liveness, now| {
            let next = liveness.next_look(&agreed, now);
            (liveness.readers(&agreed, now), next)
        });
        let (readers, next) = seen.unwrap_or_default();
        others.send_if_modified(|known| {
            let is_new = **known != readers;
            if is_new {
                *known = Arc::new(readers);
            }
            is_new
        });
        let next_look = async {
            match next {
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
