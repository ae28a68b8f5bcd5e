//! A dump as it is shown.

use std::time::Duration;

use pgcapture_proto::admin::v1::{Dump, DumpProgress, DumpReading, DumpTable, PageRange, Trouble};
use serde::Serialize;

use crate::{
    cli::{
        output::{Column, View, joined},
        source::{TroubleView, trouble_text},
        stream::time_text,
        watch::{Awaited, Until},
    },
    units::{human_bytes, human_count, human_duration},
};

/// Tables that have failed are listed one by one up to this many; more are counted.
const FAILED_SHOWN_MAX: usize = 20;

/// A dump.
#[derive(Clone, Debug, Serialize)]
pub(super) struct DumpView {
    pub(super) id: String,
    pub(super) uri: String,
    source: String,
    pub(super) state: String,
    tables: Vec<String>,
    pages: Option<String>,
    rows: u64,
    bytes: u64,
    row_estimate: u64,
    pages_done: u64,
    pages_total: u64,
    ranges_finished: u64,
    ranges_running: u64,
    ranges_waiting: u64,
    retries: u64,
    rows_per_second: u64,
    bytes_per_second: u64,
    eta_seconds: Option<f64>,
    progress_ratio: f64,
    pub(super) waiting_for: Option<String>,
    parallel: u32,
    rate_limit: u64,
    priority: i32,
    cool_down_seconds: f64,
    created_at: Option<String>,
    ended_at: Option<String>,
    table_progress: Vec<TableView>,
    reading: Vec<ReadingView>,
    waiting: Vec<RetryView>,
    trouble: Option<TroubleView>,
    /// One of many: only what needs attention is said of it.
    #[serde(skip)]
    is_listed: bool,
    #[serde(skip)]
    told: Option<Trouble>,
    #[serde(skip)]
    took: Option<Duration>,
}

#[derive(Clone, Debug, Serialize)]
struct TableView {
    schema: String,
    table: String,
    label: String,
    state: String,
    sweep: String,
    rows: u64,
    row_estimate: u64,
    pages_done: u64,
    pages_total: u64,
    ranges_finished: u64,
    ranges_running: u32,
    ranges_waiting: u32,
    replans: u32,
    trouble: Option<TroubleView>,
}

/// A range that runs.
#[derive(Clone, Debug, Serialize)]
struct ReadingView {
    table: String,
    range: String,
    node: String,
    replica: String,
    age_seconds: f64,
    is_read: bool,
}

impl From<DumpReading> for ReadingView {
    fn from(reading: DumpReading) -> Self {
        Self {
            table: format!("{}.{}", reading.schema, reading.table),
            range: reading.range,
            node: reading.node,
            replica: reading.replica,
            age_seconds: span(reading.age_micros).as_secs_f64(),
            is_read: reading.is_read,
        }
    }
}

impl ReadingView {
    fn line(&self) -> String {
        let age = human_duration(Duration::from_secs_f64(self.age_seconds));
        let (verb, node) = match (self.is_read, self.node.as_str()) {
            (false, "") => ("read", "this node"),
            (true, "") => ("was read", "this node"),
            (false, node) => ("read", node),
            (true, node) => ("was read", node),
        };
        format!(
            "{} {}: {verb} by {node} from {}, for {age}",
            self.table, self.range, self.replica
        )
    }
}

#[derive(Clone, Debug, Serialize)]
struct RetryView {
    table: String,
    range: String,
    tries: u32,
    due_in_seconds: f64,
    reason: String,
}

impl From<DumpTable> for TableView {
    fn from(table: DumpTable) -> Self {
        Self {
            schema: table.schema,
            table: table.table,
            label: format!("{}.{}", table.label_schema, table.label_table),
            state: table.state,
            sweep: table.sweep,
            rows: table.row_count,
            row_estimate: table.row_estimate,
            pages_done: table.pages_done,
            pages_total: table.pages_total,
            ranges_finished: table.ranges_finished,
            ranges_running: table.ranges_running,
            ranges_waiting: table.ranges_waiting,
            replans: table.replan_count,
            trouble: table.trouble.map(TroubleView::from),
        }
    }
}

fn span(micros: i64) -> Duration {
    Duration::from_micros(micros.unsigned_abs())
}

impl From<Dump> for DumpView {
    fn from(dump: Dump) -> Self {
        let progress: DumpProgress = dump.progress.unwrap_or_default();
        let eta = (progress.eta_micros > 0).then(|| span(progress.eta_micros).as_secs_f64());
        let waiting = dump.retries.into_iter().map(|retry| RetryView {
            table: format!("{}.{}", retry.schema, retry.table),
            range: retry.range,
            tries: retry.try_count,
            due_in_seconds: span(retry.due_in_micros).as_secs_f64(),
            reason: retry.reason,
        });
        Self {
            id: dump.id,
            uri: dump.uri,
            source: dump.source,
            state: dump.state,
            tables: dump.tables,
            pages: dump.pages.as_ref().map(pages_text),
            rows: progress.row_count,
            bytes: progress.bytes,
            row_estimate: progress.row_estimate,
            pages_done: progress.pages_done,
            pages_total: progress.pages_total,
            ranges_finished: progress.ranges_finished,
            ranges_running: progress.ranges_running,
            ranges_waiting: progress.ranges_waiting,
            retries: progress.retry_count,
            rows_per_second: progress.rows_per_second,
            bytes_per_second: progress.bytes_per_second,
            eta_seconds: eta,
            progress_ratio: progress.ratio,
            waiting_for: Some(progress.waiting_for).filter(|text| !text.is_empty()),
            parallel: dump.parallel,
            rate_limit: dump.bytes_per_second,
            priority: dump.priority,
            cool_down_seconds: span(dump.cool_down_micros).as_secs_f64(),
            created_at: time_text(dump.created_at),
            ended_at: time_text(dump.ended_at),
            table_progress: dump
                .table_progress
                .into_iter()
                .map(TableView::from)
                .collect(),
            reading: dump.readings.into_iter().map(ReadingView::from).collect(),
            waiting: waiting.collect(),
            trouble: dump.trouble.clone().map(TroubleView::from),
            is_listed: false,
            told: dump.trouble,
            took: (dump.ended_at > 0).then(|| span(dump.ended_at.saturating_sub(dump.created_at))),
        }
    }
}

/// Prints pages as they are typed.
fn pages_text(pages: &PageRange) -> String {
    match pages.last {
        Some(last) => format!("{}-{last}", pages.first),
        None => format!("{}-", pages.first),
    }
}

impl DumpView {
    /// The same as one of a list.
    pub(super) const fn listed(mut self) -> Self {
        self.is_listed = true;
        self
    }

    /// Tells whether nothing more will happen by itself.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state.as_str(), "finished" | "failed" | "cancelled")
    }

    /// How much is done, from 0 to 1.
    pub(super) const fn progress_ratio(&self) -> f64 {
        self.progress_ratio.clamp(0.0, 1.0)
    }

    fn percent_text(&self) -> String {
        format!("{:.0} %", (self.progress_ratio() * 100.0).floor())
    }

    /// How many rows: `1.32 M / 2.00 M rows`.
    pub(super) fn done_text(&self) -> String {
        let rows = human_count(self.rows);
        if self.row_estimate > self.rows && !self.has_ended() {
            format!("{rows} / {} rows", human_count(self.row_estimate))
        } else {
            format!("{rows} rows")
        }
    }

    /// One line of how it goes.
    pub(super) fn progress_text(&self) -> String {
        let mut parts = vec![self.percent_text(), self.done_text()];
        if self.rows_per_second > 0 {
            parts.push(format!("{} rows/s", human_count(self.rows_per_second)));
        }
        if let Some(eta) = self.eta_seconds {
            let eta = human_duration(Duration::from_secs_f64(eta));
            parts.push(format!("eta {eta}"));
        }
        if self.retries > 0 {
            parts.push(format!("{} range(s) retried", self.retries));
        }
        if self.state == "paused" {
            parts.push("paused".to_owned());
        }
        if let Some(missing) = &self.waiting_for {
            parts.push(format!("waiting for {missing}"));
        }
        parts.join("   ")
    }

    /// What happened, once it has ended.
    pub(super) fn end_text(&self) -> String {
        let took = self.took.unwrap_or_default();
        let rate = match took.as_secs_f64() {
            seconds if seconds > 0.0 => {
                format!(
                    ", {} rows/s",
                    human_count((self.rows as f64 / seconds) as u64)
                )
            }
            _ => String::new(),
        };
        format!(
            "{} in {}: {} rows, {}{rate}; the consumer acknowledged {} ranges",
            self.state,
            human_duration(took),
            self.rows,
            human_bytes(self.bytes),
            self.ranges_finished,
        )
    }

    /// What has failed.
    pub(super) const fn trouble(&self) -> Option<&Trouble> {
        self.told.as_ref()
    }

    /// The tables that have failed, each with its own reason.
    fn failure_lines(&self) -> Vec<String> {
        let failed = |table: &TableView| {
            let TroubleView { code, text, next } = table.trouble.as_ref()?;
            let name = format!("{}.{}", table.schema, table.table);
            Some(format!("! {name}: {code} {text}\n  next: {next}"))
        };
        let mut lines: Vec<_> = self.table_progress.iter().filter_map(failed).collect();
        let more = lines.len().saturating_sub(FAILED_SHOWN_MAX);
        lines.truncate(FAILED_SHOWN_MAX);
        if more > 0 {
            lines.push(format!(
                "! {more} more tables have failed; -o json shows them"
            ));
        }
        lines
    }

    fn retry_lines(&self) -> Vec<String> {
        let line = |retry: &RetryView| {
            let due = human_duration(Duration::from_secs_f64(retry.due_in_seconds));
            format!(
                "{} {}: try {} in {due}; {}",
                retry.table,
                retry.range,
                retry.tries.saturating_add(1),
                retry.reason
            )
        };
        self.waiting.iter().map(line).collect()
    }
}

impl View for DumpView {
    const COLUMNS: &'static [Column] = &[
        ("DUMP", false),
        ("CONSUMER", false),
        ("STATE", false),
        ("DONE", false),
        ("ROWS", false),
        ("ROWS/S", false),
        ("ETA", false),
        ("RETRIES", false),
        ("TABLES", false),
        ("PAGES", true),
        ("BYTES", true),
        ("RANGES", true),
        ("RUNNING", true),
        ("PARALLEL", true),
        ("RATE", true),
        ("PRIORITY", true),
        ("COOL DOWN", true),
        ("STARTED", true),
        ("ENDED", true),
    ];

    fn cells(&self) -> Vec<String> {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "–".to_owned());
        let span = |seconds| human_duration(Duration::from_secs_f64(seconds));
        vec![
            self.id.clone(),
            self.uri.clone(),
            match self.state.as_str() {
                "failed" => "! failed".to_owned(),
                state => state.to_owned(),
            },
            self.percent_text(),
            human_count(self.rows),
            human_count(self.rows_per_second),
            self.eta_seconds.map_or_else(|| "–".to_owned(), span),
            self.retries.to_string(),
            joined(&self.tables),
            or_dash(&self.pages),
            human_bytes(self.bytes),
            self.ranges_finished.to_string(),
            self.ranges_running.to_string(),
            self.parallel.to_string(),
            match self.rate_limit {
                0 => "–".to_owned(),
                rate => format!("{}/s", human_bytes(rate)),
            },
            self.priority.to_string(),
            span(self.cool_down_seconds),
            or_dash(&self.created_at),
            or_dash(&self.ended_at),
        ]
    }

    fn hint(&self) -> Option<String> {
        let mut lines = self.failure_lines();
        if lines.is_empty() {
            lines.extend(trouble_text(&self.id, self.told.as_ref()));
        }
        if !self.is_listed {
            lines.extend(self.reading.iter().map(ReadingView::line));
        }
        lines.extend(self.retry_lines());
        if let Some(missing) = &self.waiting_for {
            lines.push(format!("{} is waiting for {missing}", self.id));
        }
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}

impl Awaited for DumpView {
    fn reaches(&self, until: Until) -> bool {
        match until {
            Until::Healthy => self.told.is_none() && self.state != "failed",
            Until::CaughtUp | Until::Done => self.has_ended(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_dump_is_one_line() {
        let dump = Dump {
            id: "d-41".to_owned(),
            state: "active".to_owned(),
            progress: Some(DumpProgress {
                row_count: 1_320_000,
                row_estimate: 2_000_000,
                rows_per_second: 164_000,
                eta_micros: 4_000_000,
                retry_count: 2,
                ratio: 0.669,
                ..DumpProgress::default()
            }),
            ..Dump::default()
        };
        let view = DumpView::from(dump);
        assert!(!view.has_ended());
        assert_eq!(
            view.progress_text(),
            "66 %   1.32 M / 2.00 M rows   164 k rows/s   eta 4.0s   2 range(s) retried"
        );
    }

    #[test]
    fn a_shown_dump_says_who_reads_what_and_a_listed_one_does_not() {
        let dump = Dump {
            readings: vec![DumpReading {
                schema: "public".to_owned(),
                table: "orders".to_owned(),
                range: "pages 0-511".to_owned(),
                node: "n2".to_owned(),
                replica: "r1".to_owned(),
                age_micros: 1_200_000,
                is_read: false,
            }],
            ..Dump::default()
        };
        let view = DumpView::from(dump);
        let told = "public.orders pages 0-511: read by n2 from r1, for 1.2s";
        assert_eq!(view.hint().as_deref(), Some(told));
        assert_eq!(view.listed().hint(), None);
    }

    #[test]
    fn an_ended_dump_says_what_it_brought() {
        let dump = Dump {
            id: "d-41".to_owned(),
            state: "finished".to_owned(),
            created_at: 1_000_000,
            ended_at: 13_300_000,
            progress: Some(DumpProgress {
                row_count: 2_000_000,
                bytes: 512 << 20,
                ranges_finished: 128,
                ratio: 1.0,
                ..DumpProgress::default()
            }),
            ..Dump::default()
        };
        let view = DumpView::from(dump);
        assert!(view.reaches(Until::Done));
        assert_eq!(
            view.end_text(),
            "finished in 12.3s: 2000000 rows, 512 MiB, 162 k rows/s; the consumer acknowledged \
             128 ranges"
        );
    }
}
