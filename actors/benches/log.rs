//! What the embedded log costs: durable appends, sequential reads, recovery.
//!
//! `cargo bench -p pgcapture-actors --bench log`. Files lie in the target directory, so that the
//! figures are those of that disk. Rows have 200 bytes. CPU time is that of the whole process,
//! from `/proc/self/stat`, and is printed beside criterion's figures.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pgcapture_actors::log::{
    ChangeLog as _, Start,
    embedded::{EmbeddedLog, EmbeddedLogOptions},
};
use pgcapture_engine::{
    batch::{Batch, BatchBuilder, EntryKind},
    checkpoint::{Checkpoint, Epoch},
    lsn::{Lsn, PgTime},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const ROW_BYTES: usize = 200;

/// What the read benchmark reads: more than any cache of the log, less than the page cache.
const READ_BYTES: u64 = 512 << 20;

/// Ticks of `/proc/self/stat` per second on every Linux that matters.
const TICKS_PER_SECOND: f64 = 100.0;

fn batch(entries: u32) -> Batch {
    let mut builder = BatchBuilder::default();
    let mut row = vec![b'r'; ROW_BYTES];
    if let Some(tag) = row.first_mut() {
        *tag = EntryKind::Change.tag();
    }
    for seq in 1..=entries {
        builder.push(Checkpoint::new(Lsn(1), seq), EntryKind::Change, &row);
    }
    builder.finish(Lsn(1), PgTime(1))
}

/// The same bytes under the next position; the log does not look into them.
fn numbered(batch: &Batch, number: u64) -> Batch {
    let span = batch.span.map(|(first, last)| {
        let at = |place: Checkpoint| Checkpoint::new(Lsn(number), place.seq);
        (at(first), at(last))
    });
    Batch {
        span,
        ..batch.clone()
    }
}

fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the target directory is writable")
}

fn open(directory: &Path) -> Arc<EmbeddedLog> {
    let options = EmbeddedLogOptions {
        retention_bytes: Some(2 << 30),
        ..EmbeddedLogOptions::default()
    };
    EmbeddedLog::open(directory, options).expect("the log opens")
}

async fn append(log: &EmbeddedLog, batch: &Batch, batches: u64) {
    let epoch = log.tail().borrow().epoch;
    let last = log.tail().borrow().last.map_or(0, |last| last.lsn.0);
    let mut writer = log
        .open_writer(Epoch(epoch.0.max(1)))
        .await
        .expect("a writer");
    for number in last + 1..=last + batches {
        writer
            .append(numbered(batch, number))
            .await
            .expect("appended");
    }
    writer.flush().await.expect("flushed");
}

fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the process may hold blanks; the fields after it do not.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / TICKS_PER_SECOND
}

fn appends(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = criterion.benchmark_group("append_durable");
    for entries in [1, 100, 1_000] {
        let batch = batch(entries);
        let directory = directory();
        let log = open(directory.path());
        let (mut rows, mut cpu) = (0, 0.0);
        group.throughput(Throughput::Elements(u64::from(entries)));
        group.bench_function(format!("{entries}_rows_a_batch"), |bencher| {
            bencher.iter_custom(|batches| {
                let (began, before) = (Instant::now(), cpu_seconds());
                runtime.block_on(append(&log, &batch, batches));
                cpu += cpu_seconds() - before;
                rows += batches * u64::from(entries);
                began.elapsed()
            });
        });
        // Nothing was measured when a filter left this one out.
        if rows > 0 {
            eprintln!("CPU: {:.3} s per million rows", cpu / (rows as f64 / 1e6));
        }
    }
    group.finish();
    let mut group = criterion.benchmark_group("append_and_wait");
    let (batch, directory) = (batch(1), directory());
    let log = open(directory.path());
    let mut number = 0;
    group.bench_function("1_row", |bencher| {
        bencher.iter_custom(|batches| {
            runtime.block_on(async {
                let mut writer = log.open_writer(Epoch(1)).await.expect("a writer");
                let began = Instant::now();
                for _ in 0..batches {
                    number += 1;
                    writer
                        .append(numbered(&batch, number))
                        .await
                        .expect("appended");
                    writer.flush().await.expect("flushed");
                }
                began.elapsed()
            })
        });
    });
    group.finish();
}

async fn read_all(log: &EmbeddedLog) -> u64 {
    let mut reader = log.open_reader(Start::Earliest).await.expect("a reader");
    let mut bytes = 0;
    while let Some(batch) = reader.try_next().await.expect("readable") {
        bytes += batch.entries.len() as u64;
    }
    bytes
}

fn reads(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = criterion.benchmark_group("read_from_files");
    for entries in [1, 100, 1_000] {
        let batch = batch(entries);
        let directory = directory();
        let log = open(directory.path());
        let batches = READ_BYTES / batch.entries.len() as u64;
        runtime.block_on(append(&log, &batch, batches));
        let bytes = batches * batch.entries.len() as u64;
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function(format!("{entries}_rows_a_batch"), |bencher| {
            bencher.iter(|| assert_eq!(runtime.block_on(read_all(&log)), bytes));
        });
    }
    group.finish();
}

fn recovery(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = criterion.benchmark_group("open");
    for (name, bytes) in [
        ("almost_full_segment", 60_u64 << 20),
        ("one_gibibyte", (1 << 30) + (30 << 20)),
    ] {
        let batch = batch(1_000);
        let directory = directory();
        let log = open(directory.path());
        runtime.block_on(append(&log, &batch, bytes / batch.entries.len() as u64));
        runtime.block_on(log.close());
        drop(log);
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                let mut total = Duration::ZERO;
                for _ in 0..times {
                    let began = Instant::now();
                    let log = open(directory.path());
                    total += began.elapsed();
                    drop(log);
                }
                total
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(4));
    targets = appends, reads, recovery
}
criterion_main!(benches);
