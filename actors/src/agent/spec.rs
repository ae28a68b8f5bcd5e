//! What an agent is told when it starts: its source, its rights, its limits.
//!
//! Two of these change while it runs: the lease, and the least cursor of the consumers. Both come
//! from the agreed state; the agent only watches them.

use pgcapture_engine::{
    checkpoint::{Checkpoint, Epoch},
    fence::ClusterId,
    wal_guard::WalGuard,
};
use tokio::sync::watch;

/// What an agent needs to know of its source.
#[derive(Clone, Debug)]
pub struct AgentSpec {
    /// Name of the source; label of metrics and logs.
    pub source: String,
    /// Name of this node, for `application_name`.
    pub node: String,
    /// The right under which the log is written.
    pub epoch: Epoch,
    /// Replication slot (plugin pgoutput).
    pub slot: String,
    /// Publication.
    pub publication: String,
    /// Whether values come in binary; text only where a captured type has no binary form.
    pub is_binary: bool,
    /// Whether to go on after a declared gap instead of halting; creates a lost slot anew.
    pub accepts_gap: bool,
    /// Tells agents of this cluster from others on the same PostgreSQL.
    pub cluster: ClusterId,
    /// What survives the loss of this node.
    pub durability: Durability,
    /// Whether this node can prove its right to the epoch.
    pub lease: Lease,
    /// How much WAL the source may keep for the slot; `None` does not look.
    pub wal_guard: Option<WalGuard>,
    /// Limits.
    pub limits: AgentLimits,
}

/// The limits of one agent.
#[derive(Clone, Debug)]
pub struct AgentLimits {
    /// A row larger than this halts the source with a clear error.
    pub row_bytes_max: usize,
    /// Backlog (bytes of WAL) from which the slot is read by COPY.
    pub catch_up_above: u64,
    /// Backlog below which the slot is followed by walsender again.
    pub follow_below: u64,
    /// WAL distance of one COPY call; bounds the temporary space on the source.
    pub catch_up_chunk: u64,
}

/// A message of pgoutput holds a row twice at most (the old one and the new one), and lengths.
const MESSAGE_ROWS_MAX: usize = 2;

/// Room for names and lengths in a message, whatever the row.
const MESSAGE_OVERHEAD_BYTES: usize = 1 << 20;

impl AgentLimits {
    /// Returns the largest message that is read from PostgreSQL. The decoder's own limit comes
    /// first and names the table.
    #[must_use]
    pub const fn message_bytes_max(&self) -> usize {
        self.row_bytes_max
            .saturating_mul(MESSAGE_ROWS_MAX)
            .saturating_add(MESSAGE_OVERHEAD_BYTES)
    }
}

impl Default for AgentLimits {
    fn default() -> Self {
        Self {
            row_bytes_max: 64 << 20,
            catch_up_above: 256 << 20,
            follow_below: 32 << 20,
            catch_up_chunk: 128 << 20,
        }
    }
}

/// What survives the loss of a node.
#[derive(Clone, Debug, Default)]
pub enum Durability {
    /// The log: PostgreSQL may forget what it holds durably. A log on this node's disk alone, or one
    /// that is replicated by itself.
    #[default]
    Log,
    /// The slot: the log of this node is a cache, and PostgreSQL may forget only what every
    /// subscription has consumed. See [`pgcapture_engine::confirm`].
    Slot {
        /// The least of the subscriptions' cursors, as agreed on; `None` while there is no
        /// subscription: never while that is not known yet, since then the log alone counts. A
        /// subscription that has no cursor yet does not count. An entry, not an LSN:
        /// only so can it be told from the last one of the log.
        floor: watch::Receiver<Option<Checkpoint>>,
    },
}

/// Whether a node can prove its right to an epoch.
#[derive(Clone, Debug, Default)]
pub struct Lease(Option<watch::Receiver<bool>>);

impl Lease {
    /// The right of a single node, which nobody else can have.
    #[must_use]
    pub const fn permanent() -> Self {
        Self(None)
    }

    /// A right that comes and goes. It is lost for good when the sender is dropped.
    #[must_use]
    pub const fn watched(lease: watch::Receiver<bool>) -> Self {
        Self(Some(lease))
    }

    /// Tells whether it is held now.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let held = |lease: &watch::Receiver<bool>| *lease.borrow() && lease.has_changed().is_ok();
        self.0.as_ref().is_none_or(held)
    }

    /// Waits until it is held; for ever when it cannot come back.
    pub(super) async fn held(&self) {
        let Some(lease) = &self.0 else { return };
        if !self.is_held() && lease.clone().wait_for(|held| *held).await.is_err() || !self.is_held()
        {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until it is lost.
    pub(super) async fn lost(&self) {
        let Some(lease) = &self.0 else {
            return std::future::pending().await;
        };
        // A sender that is gone cannot prove anything either.
        drop(lease.clone().wait_for(|held| !*held).await);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_lease_without_its_keeper_is_lost() {
        let (keeper, lease) = watch::channel(true);
        let lease = Lease::watched(lease);
        assert!(lease.is_held() && lease.lost().now_or_never().is_none());
        keeper.send_replace(false);
        assert!(!lease.is_held() && lease.lost().now_or_never().is_some());
        assert!(lease.held().now_or_never().is_none());
        keeper.send_replace(true);
        assert!(lease.held().now_or_never().is_some());
        drop(keeper);
        assert!(!lease.is_held() && lease.lost().now_or_never().is_some());
        assert!(lease.held().now_or_never().is_none());
        assert!(Lease::permanent().is_held());
        assert!(Lease::permanent().lost().now_or_never().is_none());
    }
}
