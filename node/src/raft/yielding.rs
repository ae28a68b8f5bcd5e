//! A leader that cannot write lets another one lead.
//!
//! While the disk is full the node goes on with everything that needs no write; as a leader it would show
//! that it lives, and nobody could change anything. So it hands leadership to whoever has the whole log.
//! What is under way reaches the others from memory, so that they can have it all.
//!
//! A leader that has begun to hand over takes no proposals any more, whatever becomes of its disk. So it
//! hands over again, to another one if need be, until somebody else leads.

use std::time::Duration;

use openraft::{ServerState, async_runtime::watch::WatchReceiver as _};

use super::Inner;

/// A full disk may have space again in a moment, since retention and others delete: leadership is not
/// handed over before this time.
const YIELD_AFTER: Duration = Duration::from_millis(300);

/// Whoever was asked to lead does so within this time, or the next one is asked; each time this much
/// longer.
const TAKE_MAX: Duration = Duration::from_millis(500);

/// The time grows up to this many times that.
const TAKE_GROWTH_MAX: u32 = 10;

impl Inner {
    /// Hands leadership over whenever this node has it and its disk is full: the body of an owned task.
    pub(super) async fn yield_when_full(&self) {
        let mut full = self.store.full();
        loop {
            if full.wait_for(|is_full| *is_full).await.is_err() {
                return;
            }
            let passing = tokio::time::timeout(YIELD_AFTER, full.wait_for(|is_full| !is_full));
            if matches!(passing.await, Ok(Ok(_))) {
                continue;
            }
            self.hand_over().await;
            // It may be chosen again while the disk is still full.
            let mut metrics = self.raft.server_metrics();
            tokio::select! {
                passed = full.wait_for(|is_full| !is_full) => if passed.is_err() {
                    return;
                },
                changed = metrics.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }

    /// Asks one after the other to lead, for as long as this node does.
    async fn hand_over(&self) {
        let mut metrics = self.raft.server_metrics();
        let mut asked: u32 = 0;
        while metrics.borrow_watched().state == ServerState::Leader {
            if asked == 0 && !self.store.is_full() {
                return;
            }
            let heirs = self.heirs();
            let next = asked as usize % heirs.len().max(1);
            if let Some(heir) = heirs.get(next).copied() {
                if asked == 0 {
                    let why =
                        "the disk is full and nothing can be agreed on: another node shall lead";
                    tracing::warn!(heir, "{why}");
                }
                asked += 1;
                if let Err(error) = self.raft.trigger().transfer_leader(heir).await {
                    tracing::warn!(%error, "leadership cannot be handed over");
                    return;
                }
            }
            let taken = async {
                while metrics.borrow_watched().state == ServerState::Leader {
                    if metrics.changed().await.is_err() {
                        return;
                    }
                }
            };
            // Whether it was taken is looked at again.
            let most = TAKE_MAX * asked.clamp(1, TAKE_GROWTH_MAX);
            drop(tokio::time::timeout(most, taken).await);
        }
    }

    /// Returns the other voters that have the whole log, those that are behind after them.
    fn heirs(&self) -> Vec<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let members = metrics.membership_config.membership();
        let last = metrics.last_log_index.unwrap_or(0);
        let known = metrics.replication.iter().flatten();
        let behind = known.map(|(id, matched)| {
            let matched = matched.as_ref().map_or(0, |matched| matched.index());
            (last.saturating_sub(matched), *id)
        });
        let mut heirs: Vec<(u64, u64)> = behind
            .filter(|(_, id)| *id != self.identity.id && members.voter_ids().any(|it| it == *id))
            .collect();
        heirs.sort_unstable();
        heirs.into_iter().map(|(_, id)| id).collect()
    }
}
