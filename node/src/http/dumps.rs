//! The metrics of dumps and replicas: what they mean, and the gauges at the moment they are asked.
//!
//! Counters are counted where things happen; nothing here decides anything.

use std::collections::BTreeMap;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use pgcapture_actors::dump::DumpControllerHandle;
use pgcapture_engine::{
    cluster::DumpState,
    dump::{DumpStatus, ReplicaStatus},
};

use crate::resolver::subscription_of;

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
        "Finished part of the open dumps of a stream, by pages; 1 when none is open."
    );
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

/// Sets the gauges. While the controller is away they stay as they were.
pub(super) async fn report(dumps: &DumpControllerHandle) {
    if let Ok(statuses) = dumps.list().await {
        report_dumps(&statuses);
    }
    if let Ok(replicas) = dumps.replicas().await {
        report_replicas(&replicas);
    }
}

fn report_dumps(statuses: &[DumpStatus]) {
    for state in DumpState::ALL {
        let count = statuses
            .iter()
            .filter(|status| status.state == state)
            .count();
        gauge!("pgcapture_dumps", "state" => state.as_str()).set(count as f64);
    }
    for (stream, (done, total)) in pages_of_streams(statuses) {
        let ratio = if total == 0 {
            1.0
        } else {
            done as f64 / total as f64
        };
        gauge!("pgcapture_dump_progress_ratio", "stream" => stream).set(ratio.min(1.0));
    }
}

/// Pages that are done and wanted by the open dumps of each stream that has any dump.
fn pages_of_streams(statuses: &[DumpStatus]) -> BTreeMap<String, (u64, u64)> {
    let mut streams: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for status in statuses {
        let pages = streams
            .entry(subscription_of(&status.uri).stream)
            .or_default();
        if matches!(status.state, DumpState::Active | DumpState::Paused) {
            pages.0 = pages.0.saturating_add(status.progress.pages_done);
            pages.1 = pages.1.saturating_add(status.progress.pages_total);
        }
    }
    streams
}

fn report_replicas(replicas: &[ReplicaStatus]) {
    for replica in replicas {
        let labels = [
            ("replica", replica.name.clone()),
            ("source", replica.source.clone()),
        ];
        if let Some(lag) = replica.health.lag() {
            gauge!("pgcapture_replica_lag_seconds", &labels).set(lag.as_secs_f64());
        }
        let busy = f64::from(replica.running_count) / f64::from(replica.ranges_max.max(1));
        gauge!("pgcapture_replica_busy_ratio", &labels).set(busy);
    }
}
