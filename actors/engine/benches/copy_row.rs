//! How fast one core turns the bytes of a binary COPY into batches of rows:
//! `cargo bench -p pgcapture-engine --bench copy_row`.
//!
//! A narrow table (three numbers), that of the decoder's benchmark (six columns, some 150 bytes a
//! row), and a wide one with 60 columns. Rows come in frames of the protocol, one each, as
//! PostgreSQL sends them.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pgcapture_engine::{
    copy_row::{RowColumn, RowEncoder, ValueForm},
    dump::TableName,
};

const ROW_COUNT: usize = 100_000;

fn tuple(widths: &[usize]) -> Vec<u8> {
    let count = u16::try_from(widths.len()).unwrap_or_default();
    let mut bytes = count.to_be_bytes().to_vec();
    for width in widths {
        bytes.extend(u32::try_from(*width).unwrap_or_default().to_be_bytes());
        bytes.extend(vec![b'x'; *width]);
    }
    bytes
}

fn columns(count: usize) -> Vec<RowColumn> {
    let column = |place| RowColumn {
        name: format!("column_{place}"),
        type_oid: 20 + u32::try_from(place).unwrap_or_default(),
        form: ValueForm::Binary,
    };
    (0..count).map(column).collect()
}

fn encode(columns: &[RowColumn], header: &[u8], rows: &[u8], row_bytes: usize) {
    let label = TableName {
        schema: "public".to_owned(),
        table: "accounts".to_owned(),
    };
    let mut encoder = RowEncoder::new(&label, columns, 1 << 20);
    encoder.feed(header).expect("a header");
    for mut row in rows.chunks(row_bytes) {
        while !row.is_empty() {
            let used = encoder.feed(row).expect("rows");
            row = row.get(used..).unwrap_or_default();
            if encoder.is_full() {
                black_box(encoder.take());
            }
        }
    }
    black_box(encoder.take());
}

fn bench(criterion: &mut Criterion) {
    let header = [b"PGCOPY\n\xff\r\n\0".as_slice(), &[0; 8]].concat();
    let mut group = criterion.benchmark_group("copy_row");
    group.throughput(Throughput::Elements(ROW_COUNT as u64));
    for (name, widths) in [
        ("three_numbers", vec![8, 4, 4]),
        ("six_columns", vec![8, 4, 8, 8, 34, 84]),
        ("sixty_columns", vec![12; 60]),
    ] {
        let columns = columns(widths.len());
        let row = tuple(&widths);
        let rows = row.repeat(ROW_COUNT);
        group.bench_function(name, |bencher| {
            bencher.iter(|| encode(&columns, &header, &rows, row.len()));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
