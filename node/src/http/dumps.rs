//! What the metrics of dumps and replicas mean.
//!
//! They are counted where things happen, in the controller of dumps and in the gateway.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Says what each metric of dumps means.
pub(super) fn describe() {
    describe_gauge!("pgcapture_dumps", "Dumps that are remembered, by state.");
    describe_counter!(
        "pgcapture_dump_rows_total",
        Unit::Count,
        "Existing rows that consumers have acknowledged, in finished ranges."
    );
    describe_counter!(
        "pgcapture_dump_bytes_total",
        Unit::Bytes,
        "Encoded bytes of these rows."
    );
    describe_counter!(
        "pgcapture_dump_chunks_total",
        "Ranges that ended, by how: finished, or why they were given back."
    );
    describe_histogram!(
        "pgcapture_dump_chunk_duration_seconds",
        Unit::Seconds,
        "Time from handing a range out to its last acknowledgement."
    );
    describe_gauge!(
        "pgcapture_dump_progress_ratio",
        "Finished part of the open dumps of a consumer, by pages; 1 when none is open."
    );
    describe_counter!(
        "pgcapture_dump_rows_delivered_total",
        "Existing rows that were sent to consumers, repeated ones included."
    );
    describe_counter!(
        "pgcapture_dump_bytes_delivered_total",
        Unit::Bytes,
        "Bytes of these rows."
    );
    describe_histogram!(
        "pgcapture_dump_hold_seconds",
        Unit::Seconds,
        "Time for which a range held back the changes that follow it."
    );
    describe_nodes();
    describe_gauge!(
        "pgcapture_replica_lag_seconds",
        Unit::Seconds,
        "How far a replica is behind its source."
    );
    describe_gauge!(
        "pgcapture_replica_busy_ratio",
        "Ranges read from a replica, of those that may be."
    );
}

/// Says what the metrics of the nodes that read mean.
fn describe_nodes() {
    describe_gauge!(
        "pgcapture_dump_reading_ranges",
        "Ranges that this node is reading, by replica."
    );
    describe_counter!(
        "pgcapture_dump_rows_read_total",
        Unit::Count,
        "Existing rows that this node has read, by replica, for consumers of any node."
    );
    describe_counter!(
        "pgcapture_dump_bytes_read_total",
        Unit::Bytes,
        "Encoded bytes of these rows."
    );
    describe_gauge!(
        "pgcapture_dump_node_ranges",
        "Ranges that each node is reading, as the node that leads has handed them out."
    );
    describe_counter!(
        "pgcapture_dump_node_chunks_total",
        "Ranges that this node has handed out while it led, by the node that reads them."
    );
    describe_gauge!(
        "pgcapture_replica_nodes",
        "Nodes that may read from a replica now, as the node that leads knows."
    );
}
