//! Fills the messages of dumps from what the controller says.

use std::{collections::BTreeSet, time::Duration};

use pgcapture_engine::{
    cluster::{self, DumpState, State, TableFailure, WantedPages},
    codes,
    dump::{
        DumpStatus, PageRange, Progress, RangeReading, RangeRetry, SweepStatus, TableStatus,
        WaitsFor,
    },
};
use pgcapture_proto::admin::v1::{
    self as wire, Dump, DumpProgress, DumpReading, DumpRetry, DumpTable, Trouble,
};

use crate::{rpc::admin::answer::unix_micros, units::human_duration};

/// Tells whether nothing more will happen by itself.
pub(super) const fn has_ended(status: &DumpStatus) -> bool {
    match status.state {
        DumpState::Active | DumpState::Paused => false,
        DumpState::Cancelled | DumpState::Finished | DumpState::Failed => true,
    }
}

/// A dump with how it goes.
pub(super) fn dump(status: &DumpStatus, state: &State) -> Dump {
    let agreed = state.dumps.get(&status.id);
    let options = &status.options;
    let labels = status.tables.iter().map(|table| table.label.to_string());
    // One label for all leaves of a partitioned table.
    let labels: BTreeSet<_> = labels.collect();
    let mut table_progress: Vec<_> = status.tables.iter().map(table).collect();
    if let Some(agreed) = agreed {
        for (wire, table) in table_progress.iter_mut().zip(&agreed.tables) {
            if table.is_done() {
                "finished".clone_into(&mut wire.state);
            }
        }
    }
    Dump {
        id: status.id.to_string(),
        uri: status.uri.clone(),
        source: status.source.clone(),
        state: status.state.as_str().to_owned(),
        created_at: unix_micros(status.created_at),
        ended_at: status.ended_at.map_or(0, unix_micros),
        tables: labels.into_iter().collect(),
        pages: agreed.and_then(|dump| pages(dump)),
        parallel: options.parallel,
        bytes_per_second: options.rate_bytes_per_second.unwrap_or(0),
        priority: options.priority,
        cool_down_micros: micros(options.cool_down),
        progress: Some(progress(status)),
        table_progress,
        trouble: failed_first(status),
        retries: status.retries.iter().map(retry).collect(),
        readings: status.readings.iter().map(reading).collect(),
    }
}

fn progress(status: &DumpStatus) -> DumpProgress {
    let Progress {
        pages_done,
        pages_total,
        row_count,
        row_estimate,
        bytes,
        range_count,
    } = status.progress;
    let is_open = !has_ended(status);
    DumpProgress {
        row_count,
        bytes,
        row_estimate,
        ranges_finished: range_count,
        ranges_running: status.running_count.into(),
        retry_count: status.given_up_count,
        rows_per_second: status.rows_per_second,
        eta_micros: status.remaining.filter(|_| is_open).map_or(0, micros),
        ratio: match pages_total {
            _ if status.state == DumpState::Finished => 1.0,
            0 => 0.0,
            _ => (pages_done as f64 / pages_total as f64).min(1.0),
        },
        waiting_for: match &status.waits_for {
            Some(missing) if is_open => waiting_for(missing, &status.uri),
            _ => String::new(),
        },
        pages_done,
        pages_total,
        bytes_per_second: status.bytes_per_second,
        ranges_waiting: status.retry_count.into(),
    }
}

fn waiting_for(missing: &WaitsFor, uri: &str) -> String {
    match missing {
        WaitsFor::Consumer => format!("a consumer of {uri}"),
        WaitsFor::Replica(what) => format!("a replica: {what}"),
        WaitsFor::Pace(rest) => format!("its pace, {}", human_duration(*rest)),
        WaitsFor::Retry(rest) => format!("the next try in {}", human_duration(*rest)),
    }
}

fn table(status: &TableStatus) -> DumpTable {
    let is_swept = matches!(status.sweep, SweepStatus::NotNeeded | SweepStatus::Done);
    let Progress {
        pages_done,
        pages_total,
        ..
    } = status.progress;
    let state = match &status.failure {
        Some(_) => "failed",
        None if is_swept && pages_total > 0 && pages_done >= pages_total => "finished",
        None => "active",
    };
    DumpTable {
        schema: status.name.schema.clone(),
        table: status.name.table.clone(),
        state: state.to_owned(),
        row_count: status.progress.row_count,
        ranges_finished: status.progress.range_count,
        trouble: status.failure.as_ref().map(trouble),
        label_schema: status.label.schema.clone(),
        label_table: status.label.table.clone(),
        row_estimate: status.progress.row_estimate,
        pages_done,
        pages_total,
        sweep: status.sweep.as_str().to_owned(),
        ranges_running: status.running_count,
        ranges_waiting: status.retry_count,
        replan_count: status.replan_count,
    }
}

fn trouble(failure: &TableFailure) -> Trouble {
    let known = codes::find(&failure.code);
    Trouble {
        code: failure.code.clone(),
        text: failure.text.clone(),
        next: known
            .map_or("look at the log of the node", |known| known.next)
            .to_owned(),
    }
}

/// The first failed table, and how many more there are.
fn failed_first(status: &DumpStatus) -> Option<Trouble> {
    let failed = |table: &TableStatus| Some((table.name.clone(), table.failure.clone()?));
    let mut failures = status.tables.iter().filter_map(failed);
    let (name, failure) = failures.next()?;
    let more = failures.count();
    let mut trouble = trouble(&failure);
    trouble.text = match more {
        0 => format!("{name}: {}", failure.text),
        _ => format!("{name}: {}; and {more} more table(s)", failure.text),
    };
    Some(trouble)
}

fn retry(retry: &RangeRetry) -> DumpRetry {
    DumpRetry {
        schema: retry.table.schema.clone(),
        table: retry.table.table.clone(),
        range: retry.extent.to_string(),
        try_count: retry.try_count,
        due_in_micros: micros(retry.due_in),
        reason: retry.reason.clone(),
    }
}

fn reading(reading: &RangeReading) -> DumpReading {
    DumpReading {
        schema: reading.table.schema.clone(),
        table: reading.table.table.clone(),
        range: reading.extent.to_string(),
        node: reading.node.clone(),
        replica: reading.replica.clone(),
        age_micros: micros(reading.since),
        is_read: reading.is_read,
    }
}

/// The one range that was asked for by hand, if it was one.
fn pages(dump: &cluster::Dump) -> Option<wire::PageRange> {
    let [table] = dump.tables.as_slice() else {
        return None;
    };
    let WantedPages::Ranges(ranges) = &table.wanted else {
        return None;
    };
    let [PageRange { first, last }] = *ranges.as_slice() else {
        return None;
    };
    let last = (last != PageRange::OPEN).then_some(last);
    Some(wire::PageRange { first, last })
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}
