//! Transactions for log tests: real encoded messages whose positions and times follow a rule.

use pgcapture_actors::log::{LogReader, LogWriter};
use pgcapture_engine::{
    batch::{Batch, BatchBuilder, EntryKind},
    checkpoint::Checkpoint,
    lsn::{Lsn, PgTime},
};
use pgcapture_proto::pgcapture::{Begin, Change, Commit, Message, message::Type};
use prost::Message as _;

/// Entries of a transaction of [`transaction`] with `rows` rows.
#[allow(dead_code, reason = "each test binary uses its part")]
pub(crate) const fn entries(rows: u32) -> usize {
    rows as usize + 2
}

/// Commit LSN of the transaction `number`.
pub(crate) const fn commit_lsn(number: u64) -> Lsn {
    Lsn(number * 100)
}

/// Commit time of the transaction `number`.
pub(crate) const fn commit_time(number: u64) -> PgTime {
    PgTime(number as i64 * 1_000)
}

/// One whole transaction: Begin, `rows` changes of some 200 bytes, Commit.
pub(crate) fn transaction(number: u64, rows: u32) -> Batch {
    let mut builder = BatchBuilder::default();
    push_transaction(&mut builder, number, rows);
    builder.finish(Lsn(commit_lsn(number).0 + 8), commit_time(number))
}

/// Appends the transaction `number` to `builder`.
pub(crate) fn push_transaction(builder: &mut BatchBuilder, number: u64, rows: u32) {
    let lsn = commit_lsn(number);
    let micros = commit_time(number).0.unsigned_abs();
    let begin = Type::Begin(Begin {
        final_lsn: lsn.0,
        commit_time: micros,
        remote_xid: 7,
    });
    push(builder, Checkpoint::new(lsn, 0), EntryKind::Begin, begin);
    for seq in 1..=rows {
        let change = Type::Change(Change {
            schema: "public".to_owned(),
            table: format!("{number:0>150}/{seq:0>30}"),
            ..Change::default()
        });
        push(
            builder,
            Checkpoint::new(lsn, seq),
            EntryKind::Change,
            change,
        );
    }
    let commit = Type::Commit(Commit {
        commit_lsn: lsn.0,
        end_lsn: lsn.0 + 8,
        commit_time: micros,
    });
    let last = Checkpoint::new(lsn, rows + 1);
    push(builder, last, EntryKind::Commit, commit);
}

fn push(builder: &mut BatchBuilder, checkpoint: Checkpoint, kind: EntryKind, inner: Type) {
    let message = Message {
        r#type: Some(inner),
    };
    builder.push(checkpoint, kind, &message.encode_to_vec());
}

/// Appends the transactions `numbers`, one a batch, and waits until they are durable.
#[allow(dead_code, reason = "each test binary uses its part")]
pub(crate) async fn append_all(
    writer: &mut Box<dyn LogWriter>,
    numbers: impl IntoIterator<Item = u64>,
    rows: u32,
) {
    for number in numbers {
        writer.append(transaction(number, rows)).await.unwrap();
    }
    writer.flush().await.unwrap();
}

/// Reads everything that is durable; checks every batch against its own header.
#[allow(dead_code, reason = "each test binary uses its part")]
pub(crate) async fn read_durable(reader: &mut Box<dyn LogReader>) -> Vec<Checkpoint> {
    let mut seen = Vec::new();
    while let Some(batch) = reader.try_next().await.unwrap() {
        collect(&batch, &mut seen);
    }
    seen
}

/// Adds the checkpoints of `batch` to `seen` and checks its span, counts and bytes.
pub(crate) fn collect(batch: &Batch, seen: &mut Vec<Checkpoint>) {
    let walked: Vec<_> = batch.iter().map(|entry| entry.unwrap()).collect();
    assert_eq!(walked.len(), batch.entry_count as usize);
    let changes = walked
        .iter()
        .filter(|entry| entry.kind == EntryKind::Change);
    assert_eq!(changes.count(), batch.change_count as usize);
    let span = walked.first().zip(walked.last());
    let span = span.map(|(first, last)| (first.checkpoint, last.checkpoint));
    assert_eq!(span, batch.span);
    seen.extend(walked.iter().map(|entry| entry.checkpoint));
}

/// The checkpoints of the transactions `numbers`.
#[allow(dead_code, reason = "each test binary uses its part")]
pub(crate) fn checkpoints(numbers: impl IntoIterator<Item = u64>, rows: u32) -> Vec<Checkpoint> {
    let mut all = Vec::new();
    for number in numbers {
        all.extend((0..=rows + 1).map(|seq| Checkpoint::new(commit_lsn(number), seq)));
    }
    all
}
