//! What the schedule tells people: see [`DumpStatus`].

use std::{collections::BTreeMap, time::Duration};

use super::{Schedule, books::Job};
use crate::{
    cluster::{Dump, DumpTable},
    dump::{
        DumpId, DumpStatus, Progress, READINGS_SHOWN_MAX, RETRIES_SHOWN_MAX, RangeReading,
        RangeRetry, ReplicaHealth, ReplicaStatus, SweepStatus, TableStatus, WaitsFor, cut,
    },
};

impl Schedule {
    /// Tells how a dump of the agreed state is.
    #[must_use]
    pub fn status(&self, dump: &Dump, now: Duration) -> DumpStatus {
        let job = self.jobs.get(&dump.id);
        let counts = self.counts(dump.id);
        let tables: Vec<_> = (0..)
            .zip(&dump.tables)
            .map(|(index, table)| {
                let is_swept = job.is_some_and(|job| job.is_sweep_taken(index));
                let counts = counts.get(&index).copied().unwrap_or_default();
                table_status(table, is_swept, counts)
            })
            .collect();
        let mut progress = Progress::default();
        for table in &tables {
            progress.add(&table.progress);
        }
        let left = dump.tables.iter().filter(|table| table.failure.is_none());
        let bytes_left: u64 = left.map(|table| cut::guess_bytes_left(table)).sum();
        let (rows_per_second, bytes_per_second) = job.map_or((0, 0), |job| job.meter.rates(now));
        let is_going = bytes_per_second > 0 && bytes_left > 0;
        DumpStatus {
            id: dump.id,
            uri: dump.uri.clone(),
            source: dump.source.clone(),
            state: dump.state,
            options: dump.options.clone(),
            created_at: dump.created_at,
            ended_at: dump.ended_at,
            progress,
            rows_per_second,
            bytes_per_second,
            remaining: is_going.then(|| Duration::from_secs(bytes_left.div_ceil(bytes_per_second))),
            running_count: sum(&tables, |table| table.running_count),
            readings: self.readings(dump, now),
            retries: job.map_or_else(Vec::new, |job| retries(job, now)),
            retry_count: sum(&tables, |table| table.retry_count),
            given_up_count: job.map_or(0, |job| job.given_up_count),
            waits_for: job.and_then(|job| self.waits_for(job, now)),
            tables,
        }
    }

    /// Tells how every replica is, by name.
    pub fn replica_statuses(&self) -> impl Iterator<Item = ReplicaStatus> {
        self.replicas.iter().filter_map(|(name, book)| {
            let definition = book.definition.as_ref()?;
            Some(ReplicaStatus {
                name: name.clone(),
                source: definition.source.clone(),
                health: self.health(name, book),
                running_count: book.reading,
                ranges_max: definition.ranges_max,
            })
        })
    }

    /// Tells which ranges of a dump run where, the oldest first.
    fn readings(&self, dump: &Dump, now: Duration) -> Vec<RangeReading> {
        let running = self.running.values().filter(|range| range.dump == dump.id);
        let readings = running.filter_map(|range| {
            Some(RangeReading {
                table: dump.table(range.table)?.heap.name.clone(),
                extent: range.extent,
                replica: range.place.replica.clone(),
                node: range.place.node.clone(),
                since: now.saturating_sub(range.since),
                is_read: range.is_read,
            })
        });
        readings.take(READINGS_SHOWN_MAX).collect()
    }

    /// Counts running ranges and those that wait for their next try, by table.
    fn counts(&self, id: DumpId) -> BTreeMap<u32, (u32, u32)> {
        let mut counts: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
        for range in self.running.values().filter(|range| range.dump == id) {
            counts.entry(range.table).or_default().0 += 1;
        }
        let job = self.jobs.get(&id);
        for retry in job.into_iter().flat_map(|job| job.retries.values()) {
            counts.entry(retry.table).or_default().1 += 1;
        }
        counts
    }

    /// Says why an active dump hands out nothing now; `None` while it does, or while all is running.
    fn waits_for(&self, job: &Job, now: Duration) -> Option<WaitsFor> {
        let is_running = || self.running.values().any(|range| range.dump == job.dump.id);
        if !job.is_active() || is_running() {
            return None;
        }
        if !job.has_work(now) {
            let next = job
                .retries
                .keys()
                .map(|(due, _)| *due)
                .find(|due| *due > now)?;
            return Some(WaitsFor::Retry(next - now));
        }
        let source = &job.dump.source;
        let named = || self.replicas.iter().filter(|(_, book)| book.is_of(source));
        if !named().any(|(name, book)| self.is_ready(name, book)) {
            let texts = named().map(|(name, book)| format!("{name}: {}", describe(&book.health)));
            let text = texts.collect::<Vec<_>>().join("; ");
            return Some(WaitsFor::Replica(match text.is_empty() {
                true => format!("source \"{source}\" has none"),
                false => text,
            }));
        }
        if job.pace() > now {
            return Some(WaitsFor::Pace(job.pace() - now));
        }
        let usable = named().filter(|(name, book)| self.is_ready(name, book));
        let rested = usable.map(|(_, book)| book.rates.rested_at().unwrap_or_default());
        if let Some(until) = rested.min().filter(|until| *until > now) {
            return Some(WaitsFor::Pace(until - now));
        }
        (!job.is_asked(now)).then_some(WaitsFor::Consumer)
    }
}

fn table_status(
    table: &DumpTable,
    is_swept: bool,
    (running_count, retry_count): (u32, u32),
) -> TableStatus {
    let (pages_done, pages_total) = cut::page_counts(table);
    TableStatus {
        name: table.heap.name.clone(),
        label: table.heap.label.clone(),
        progress: Progress {
            pages_done,
            pages_total,
            row_count: table.row_count,
            row_estimate: table.layout.row_estimate,
            bytes: table.bytes,
            range_count: table.range_count,
        },
        sweep: sweep_status(table, is_swept),
        running_count,
        retry_count,
        replan_count: table.replan_count,
        failure: table.failure.clone(),
    }
}

impl Progress {
    fn add(&mut self, other: &Self) {
        self.pages_done += other.pages_done;
        self.pages_total += other.pages_total;
        self.row_count = self.row_count.saturating_add(other.row_count);
        self.row_estimate = self.row_estimate.saturating_add(other.row_estimate);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.range_count += other.range_count;
    }
}

const fn sweep_status(table: &DumpTable, is_taken: bool) -> SweepStatus {
    match (table.needs_sweep, table.sweep_done, is_taken) {
        (false, ..) => SweepStatus::NotNeeded,
        (true, true, _) => SweepStatus::Done,
        (true, false, true) => SweepStatus::Running,
        (true, false, false) => SweepStatus::Waiting,
    }
}

fn describe(health: &ReplicaHealth) -> String {
    match health {
        ReplicaHealth::Unknown => "was not asked yet".to_owned(),
        ReplicaHealth::Ready { .. } => "is ready".to_owned(),
        ReplicaHealth::Behind { lag } => format!("is {} s behind", lag.as_secs()),
        ReplicaHealth::Busy { what, .. } => format!("is busy: {what}"),
        ReplicaHealth::Unusable { code, what } => format!("{code}: {what}"),
    }
}

fn retries(job: &Job, now: Duration) -> Vec<RangeRetry> {
    let mut retries: Vec<_> = job.retries.iter().collect();
    retries.sort_by_key(|(_, retry)| std::cmp::Reverse(retry.tries.count));
    let shown = retries.into_iter().take(RETRIES_SHOWN_MAX);
    shown
        .filter_map(|((due, _), retry)| {
            Some(RangeRetry {
                table: job.dump.table(retry.table)?.heap.name.clone(),
                extent: retry.extent,
                try_count: retry.tries.count,
                due_in: due.saturating_sub(now),
                reason: retry.tries.reason.clone(),
            })
        })
        .collect()
}

fn sum(tables: &[TableStatus], count: impl Fn(&TableStatus) -> u32) -> u32 {
    tables.iter().map(count).fold(0, u32::saturating_add)
}
