//! What the metrics of the Raft group mean.
//!
//! They are set where entries are applied.

use metrics::{Unit, describe_gauge};

/// Says what each metric of the Raft group means.
pub(super) fn describe() {
    describe_gauge!(
        "pgcapture_raft_applied_index",
        "Last entry of the common log that this node has applied: its growth is what the cluster agrees \
         on a second."
    );
    describe_gauge!(
        "pgcapture_raft_state_bytes",
        Unit::Bytes,
        "Encoded size of the agreed state, without cursors and dumps, as it was written last."
    );
}
