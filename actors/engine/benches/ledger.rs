//! What one message costs the ledger and the filter: `cargo bench -p pgcapture-engine --bench ledger`.

use std::{hint::black_box, sync::Arc, time::Duration};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pgcapture_engine::{
    batch::{BatchBuilder, EntryKind},
    capture_options::CaptureOptions,
    checkpoint::Checkpoint,
    filter::{Filter, go_regex},
    ledger::{Ack, AckKind, Ledger, ParcelBody, Part, Position, SessionId, Slot, Terms},
    lsn::{Lsn, PgTime},
};
use pgcapture_proto::pgcapture::{Change, Message, message};
use prost::Message as _;

const COUNT: u32 = 100_000;
const PART: u32 = 1_000;
const SESSION: SessionId = SessionId(1);

fn at(number: u32) -> Checkpoint {
    Checkpoint::new(Lsn(1), number)
}

fn delivered() -> Ledger {
    let mut ledger = Ledger::restore(Position::default(), false);
    let terms = Terms {
        unacked_max: COUNT as usize,
        ack_timeout: None,
    };
    ledger.join(SESSION, terms);
    for first in (1..=COUNT).step_by(PART as usize) {
        let slot = |number| Slot {
            checkpoint: at(number),
            commit_time: PgTime(0),
            offset: 0,
            length: 10,
        };
        let last = first + PART - 1;
        let part = Part {
            first: at(first),
            last: at(last),
            commit_time: PgTime(0),
            body: Arc::new(ParcelBody {
                bytes: Bytes::from_static(&[0; 10]),
                slots: (first..=last).map(slot).collect(),
            }),
            has_restored: false,
        };
        ledger.admit(SESSION, part, Duration::ZERO);
    }
    ledger
}

fn acknowledge(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ledger");
    group.throughput(Throughput::Elements(u64::from(COUNT)));
    // 7,919 is prime: every number comes once, far from the one before.
    for (name, stride) in [("acks in order", 1), ("acks out of order", 7_919)] {
        let acks: Vec<Ack> = (0..u64::from(COUNT))
            .map(|index| (index * stride % u64::from(COUNT)) as u32 + 1)
            .map(|number| Ack {
                checkpoint: at(number),
                kind: AckKind::Done,
            })
            .collect();
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                delivered,
                |mut ledger| ledger.apply(SESSION, &acks, Duration::ZERO),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn select(criterion: &mut Criterion) {
    let change = Change {
        schema: "public".to_owned(),
        table: "orders".to_owned(),
        ..Change::default()
    };
    let payload = Message {
        r#type: Some(message::Type::Change(change)),
    }
    .encode_to_vec();
    let mut builder = BatchBuilder::default();
    for number in 1..=PART {
        builder.push(at(number), EntryKind::Change, &payload);
    }
    let batch = builder.finish(Lsn(1), PgTime(0));
    let options = CaptureOptions {
        table_regex: go_regex::compile("^ord").ok(),
        ..CaptureOptions::default()
    };
    let mut filter = Filter::new(options);
    let mut group = criterion.benchmark_group("filter");
    group.throughput(Throughput::Elements(u64::from(PART)));
    group.bench_function("table regex", |bencher| {
        bencher.iter(|| {
            let wanted = batch.iter().flatten().map(|entry| filter.wants(&entry));
            black_box(wanted.filter(|verdict| *verdict == Ok(true)).count())
        });
    });
    group.finish();
}

criterion_group!(benches, acknowledge, select);
criterion_main!(benches);
