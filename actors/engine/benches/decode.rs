//! How fast one core turns pgoutput messages into batches: `cargo bench -p pgcapture-engine`.
//!
//! Three workloads: 1,000-row transactions of a table with six columns and some 150 bytes a row,
//! one-row transactions over four tables as pgbench has them, and a wide table with 60 columns.

#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "shared with the tests, which use all of it"
)]
#[path = "../tests/decode/server.rs"]
mod server;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pgcapture_engine::{
    decoder::{Decoder, DecoderOptions},
    lsn::Lsn,
};
use server::{Column, Value};

const OPTIONS: DecoderOptions = DecoderOptions {
    row_bytes_max: 64 << 20,
};

/// Messages and how many of them are changes.
struct Workload {
    messages: Vec<Vec<u8>>,
    change_count: u64,
}

/// Widths of the values of a row: id, two numbers, a time, two texts.
const SIX_COLUMNS: [usize; 6] = [8, 4, 8, 8, 34, 84];

fn columns(widths: &[usize]) -> Vec<Column> {
    let column = |place: usize| Column {
        is_key: place == 0,
        name: format!("column_{place}"),
        type_oid: 20 + u32::try_from(place).unwrap_or_default(),
    };
    (0..widths.len()).map(column).collect()
}

fn row(widths: &[usize]) -> Vec<Value> {
    let value = |width: &usize| Value::Binary(vec![b'x'; *width]);
    widths.iter().map(value).collect()
}

/// `transactions` transactions of `rows` INSERTs each, round robin over `tables` tables.
fn inserts(transactions: u64, rows: u32, tables: u32, widths: &[usize]) -> Workload {
    let columns = columns(widths);
    let row = row(widths);
    let mut messages = Vec::new();
    for transaction in 1..=transactions {
        let lsn = transaction * 1_000;
        messages.push(server::begin(lsn, 7, 8));
        if transaction == 1 {
            for table in 0..tables {
                let name = format!("accounts_{table}");
                messages.push(server::relation(table, "public", &name, b'd', &columns));
            }
        }
        for place in 0..rows {
            messages.push(server::insert(place % tables, &row));
        }
        messages.push(server::commit(lsn, lsn + 10, 7));
    }
    Workload {
        messages,
        change_count: transactions * u64::from(rows),
    }
}

fn decode(workload: &Workload) {
    let mut decoder = Decoder::new(OPTIONS, None, Lsn::ZERO);
    for message in &workload.messages {
        decoder.decode(message).expect("the messages are whole");
        if decoder.is_full() {
            black_box(decoder.take());
        }
    }
    black_box(decoder.take());
}

fn bench(criterion: &mut Criterion) {
    let workloads = [
        (
            "six_columns_1000_rows",
            inserts(100, 1_000, 1, &SIX_COLUMNS),
        ),
        ("six_columns_1_row", inserts(50_000, 1, 1, &SIX_COLUMNS)),
        ("four_tables_4_rows", inserts(25_000, 4, 4, &SIX_COLUMNS)),
        ("sixty_columns_1000_rows", inserts(10, 1_000, 1, &[12; 60])),
    ];
    let mut group = criterion.benchmark_group("decode");
    for (name, workload) in &workloads {
        group.throughput(Throughput::Elements(workload.change_count));
        group.bench_function(*name, |bencher| bencher.iter(|| decode(workload)));
    }
    // The same first workload in bytes of pgoutput.
    if let Some((name, workload)) = workloads.first() {
        let bytes = workload.messages.iter().map(|message| message.len() as u64);
        group.throughput(Throughput::Bytes(bytes.sum()));
        group.bench_function(format!("{name}_bytes"), |bencher| {
            bencher.iter(|| decode(workload));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
