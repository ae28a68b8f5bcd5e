//! Events and metrics of dumps: what became of them, told once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use metrics::{counter, gauge, histogram};
use pgcapture_engine::{
    cluster::{Dump, DumpState, FinishedRange, State},
    dump::{
        DumpId, ReplicaHealth, cut,
        schedule::{Assignment, Schedule},
    },
};

use crate::dump::{GivenUp, RangeRemedy, RangeTicket};

/// What was told already.
#[derive(Debug, Default)]
pub(super) struct Chronicle {
    /// `None` before the first look: what was there before this life is not news.
    dumps: Option<BTreeMap<DumpId, DumpState>>,
    replicas: BTreeMap<String, &'static str>,
    /// Nodes whose work is shown.
    nodes: BTreeSet<String>,
    /// Subscriptions whose progress is shown.
    shown: BTreeSet<(String, String)>,
}

impl Chronicle {
    /// Tells what became of dumps.
    pub(super) fn state_changed(&mut self, state: &State) {
        let dumps = state.dumps.iter();
        let new: BTreeMap<_, _> = dumps.map(|(id, dump)| (*id, dump.state)).collect();
        if let Some(known) = &self.dumps {
            let is_news = |(id, state): &(&DumpId, &DumpState)| known.get(id) != Some(*state);
            for (id, _) in new.iter().filter(is_news) {
                if let Some(dump) = state.dumps.get(id) {
                    tell(dump, known.contains_key(id));
                    // A dump that ends before the next tick is shown too.
                    let key = (dump.stream.clone(), dump.consumer.clone());
                    if self.shown.insert(key.clone()) {
                        progress_gauge(&key).set(0.0);
                    }
                }
            }
        }
        for wanted in DumpState::ALL {
            let count = new.values().filter(|state| **state == wanted).count();
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            gauge!("pgcapture_dumps", "state" => wanted.as_str()).set(count as f64);
        }
        self.dumps = Some(new);
        self.replicas
            .retain(|name, _| state.replicas.contains_key(name));
    }

    #[expect(clippy::unused_self, reason = "tells nothing twice by itself")]
    pub(super) fn handed_out(&self, assignment: &Assignment) {
        let node = assignment.node.clone();
        counter!("pgcapture_dump_node_chunks_total", "node" => node).increment(1);
        tracing::debug!(
            dump = %assignment.dump,
            table = %assignment.heap.name,
            extent = %assignment.extent,
            replica = assignment.replica,
            node = assignment.node,
            ticket = assignment.ticket,
            "dump range handed out"
        );
    }

    #[expect(clippy::unused_self, reason = "tells nothing twice by itself")]
    pub(super) fn finished(&self, range: &FinishedRange, took: Duration) {
        counter!("pgcapture_dump_rows_total").increment(range.row_count);
        counter!("pgcapture_dump_bytes_total").increment(range.bytes);
        counter!("pgcapture_dump_chunks_total", "result" => "finished").increment(1);
        histogram!("pgcapture_dump_chunk_duration_seconds").record(took.as_secs_f64());
        tracing::debug!(
            dump = %range.dump,
            table = range.table,
            extent = %range.extent,
            row_count = range.row_count,
            seconds = took.as_secs_f64(),
            "dump range finished"
        );
    }

    #[expect(clippy::unused_self, reason = "tells nothing twice by itself")]
    pub(super) fn given_up(&self, ticket: &RangeTicket, reason: &GivenUp) {
        let result = reason.as_str();
        counter!("pgcapture_dump_chunks_total", "result" => result).increment(1);
        let (dump, table, extent) = (ticket.dump, &ticket.heap.name, ticket.extent);
        let replica = &ticket.replica;
        match reason {
            GivenUp::Disconnected | GivenUp::TooOld => {
                tracing::debug!(%dump, %table, %extent, replica, result, "dump range given back");
            }
            GivenUp::Stalled | GivenUp::Requeued(_) => {
                tracing::warn!(%dump, %table, %extent, replica, result, "dump range given back");
            }
            GivenUp::Failed(error) if error.remedy == RangeRemedy::Elsewhere => {
                let (code, node) = (error.explanation.code, &ticket.node);
                tracing::warn!(%dump, %table, %extent, node, %error, code, "dump range lost its node");
            }
            GivenUp::Failed(error) => {
                let code = error.explanation.code;
                if error.remedy == RangeRemedy::Replan {
                    tracing::info!(%dump, %table, %extent, replica, %error, code, "dump table was rewritten");
                } else {
                    tracing::warn!(%dump, %table, %extent, replica, %error, code, "dump range failed");
                }
            }
        }
    }

    /// Tells how a replica is; returns whether that is another word than before.
    pub(super) fn replica_seen(&mut self, replica: &str, health: &ReplicaHealth) -> bool {
        if let Some(lag) = health.lag() {
            gauge!("pgcapture_replica_lag_seconds", "replica" => replica.to_owned())
                .set(lag.as_secs_f64());
        }
        let word = health.as_str();
        let before = self.replicas.insert(replica.to_owned(), word);
        if before == Some(word) {
            return false;
        }
        match health {
            ReplicaHealth::Ready { .. } | ReplicaHealth::Unknown => {
                tracing::info!(replica, "replica is ready for dumps");
            }
            ReplicaHealth::Behind { lag } => {
                let lag_seconds = lag.as_secs_f64();
                tracing::warn!(
                    replica,
                    lag_seconds,
                    "replica is too far behind; dumps wait"
                );
            }
            ReplicaHealth::Busy { what, .. } => {
                tracing::info!(replica, what, "replica is busy; dumps wait");
            }
            ReplicaHealth::Unusable { code, what } => {
                tracing::warn!(
                    replica,
                    code,
                    error = what,
                    "replica cannot be used; dumps wait"
                );
            }
        }
        true
    }

    /// Sets the gauges that follow from the schedule.
    pub(super) fn tick(&mut self, state: &State, schedule: &Schedule) {
        for replica in schedule.replica_statuses() {
            let busy = f64::from(replica.running_count) / f64::from(replica.ranges_max.max(1));
            gauge!("pgcapture_replica_busy_ratio", "replica" => replica.name.clone()).set(busy);
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let nodes = schedule.node_count(&replica.name) as f64;
            gauge!("pgcapture_replica_nodes", "replica" => replica.name).set(nodes);
        }
        self.tick_nodes(schedule);
        let mut sums: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
        for dump in state.dumps.values().filter(|dump| !dump.is_over()) {
            let key = (dump.stream.clone(), dump.consumer.clone());
            let (done, total) = sums.entry(key).or_default();
            for table in &dump.tables {
                let (pages_done, pages_total) = cut::page_counts(table);
                *done += pages_done;
                *total += pages_total;
            }
        }
        for gone in self.shown.iter().filter(|key| !sums.contains_key(*key)) {
            progress_gauge(gone).set(1.0);
        }
        for (key, (done, total)) in &sums {
            #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
            let ratio = *done as f64 / (*total).max(1) as f64;
            progress_gauge(key).set(ratio);
        }
        self.shown = sums.into_keys().collect();
    }
}

impl Chronicle {
    /// Shows how many ranges each node reads; a node that reads none any more once more.
    fn tick_nodes(&mut self, schedule: &Schedule) {
        let reading = schedule.reading_by_node();
        let gauge = |node: &str| gauge!("pgcapture_dump_node_ranges", "node" => node.to_owned());
        for gone in &self.nodes {
            if !reading.contains_key(gone.as_str()) {
                gauge(gone).set(0.0);
            }
        }
        for (node, count) in &reading {
            gauge(node).set(f64::from(*count));
        }
        self.nodes = reading.into_keys().map(str::to_owned).collect();
    }
}

fn progress_gauge((stream, consumer): &(String, String)) -> metrics::Gauge {
    let labels = [("stream", stream.clone()), ("consumer", consumer.clone())];
    gauge!("pgcapture_dump_progress_ratio", &labels)
}

fn tell(dump: &Dump, is_known: bool) {
    let (id, uri, source) = (dump.id, &dump.uri, &dump.source);
    let rows: u64 = dump.tables.iter().map(|table| table.row_count).sum();
    match dump.state {
        DumpState::Active if is_known => tracing::info!(dump = %id, uri, source, "dump goes on"),
        DumpState::Active => {
            let table_count = dump.tables.len();
            tracing::info!(dump = %id, uri, source, table_count, "dump created");
            for table in &dump.tables {
                tracing::debug!(
                    dump = %id,
                    table = %table.heap.name,
                    pages = table.layout.pages_end,
                    needs_sweep = table.needs_sweep,
                    "dump table planned"
                );
            }
        }
        DumpState::Paused => tracing::info!(dump = %id, uri, source, "dump paused"),
        DumpState::Cancelled => tracing::info!(dump = %id, uri, source, rows, "dump cancelled"),
        DumpState::Finished => tracing::info!(dump = %id, uri, source, rows, "dump finished"),
        DumpState::Failed => {
            let failed = dump
                .tables
                .iter()
                .filter_map(|table| table.failure.as_ref());
            let failed_count = failed.count();
            tracing::error!(dump = %id, uri, source, rows, failed_count, "dump failed");
        }
    }
}
