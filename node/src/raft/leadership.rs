//! Telling who leads, by name.

use openraft::{ServerState, async_runtime::watch::WatchReceiver as _};
use pgcapture_actors::consensus::Leadership;
use tokio::sync::watch;

use super::types::Raft;
use crate::store::Store;

/// Tells who leads whenever it changes: the body of an owned task.
pub(super) async fn tell_leadership(
    raft: Raft,
    store: Store,
    leadership: watch::Sender<Leadership>,
) {
    let mut metrics = raft.server_metrics();
    let state = store.state();
    loop {
        let now = {
            let metrics = metrics.borrow_and_update();
            let members = metrics.membership_config.membership();
            let leader = metrics.current_leader;
            let state = state.borrow();
            let agreed = state.nodes.values().find(|node| Some(node.id) == leader);
            let name = agreed.map(|node| &node.name);
            let known = leader
                .and_then(|id| members.get_node(&id))
                .map(|peer| &peer.name);
            Leadership {
                term: metrics.vote.leader_id.term,
                leader: name.or(known).cloned(),
                is_me: metrics.state == ServerState::Leader,
            }
        };
        leadership.send_if_modified(|known| {
            let is_new = *known != now;
            *known = now;
            is_new
        });
        if metrics.changed().await.is_err() {
            return;
        }
    }
}
