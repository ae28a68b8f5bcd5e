//! The rules of the stream, one by one.

use pgcapture_engine::{
    batch::{BATCH_BYTES_TARGET, BATCH_ENTRIES_MAX, Batch, EntryKind},
    checkpoint::Checkpoint,
    codes,
    decoder::{DecodeError, Decoder, DecoderOptions},
    encode::RowError,
    lsn::{Lsn, PgTime},
};
use pgcapture_proto::pgcapture::{Change, Field, LogicalMessage, Truncate, field};
use prost::Message as _;

use crate::server::{self, Column, Value};

const OPTIONS: DecoderOptions = DecoderOptions {
    row_bytes_max: 1 << 20,
};

fn decoder() -> Decoder {
    Decoder::new(OPTIONS, None, Lsn::ZERO)
}

fn orders() -> Vec<u8> {
    let column = |name: &str, is_key, type_oid| Column {
        is_key,
        name: name.to_owned(),
        type_oid,
    };
    let columns = [column("id", true, 23), column("note", false, 25)];
    server::relation(7, "shop", "orders", b'd', &columns)
}

fn number(value: u8) -> Value {
    Value::Binary(vec![0, 0, 0, value])
}

fn text(value: &str) -> Value {
    Value::Text(value.as_bytes().to_vec())
}

fn insert(id: u8) -> Vec<u8> {
    server::insert(7, &[number(id), text("new")])
}

/// One transaction of INSERTs, the relation described first.
fn transaction(lsn: u64, rows: u8) -> Vec<Vec<u8>> {
    let mut messages = vec![server::begin(lsn, 5, 6), orders()];
    messages.extend((1..=rows).map(insert));
    messages.push(server::commit(lsn, lsn + 8, 5));
    messages
}

fn feed(decoder: &mut Decoder, messages: &[Vec<u8>]) {
    for message in messages {
        decoder.decode(message).unwrap();
    }
}

/// Kinds and checkpoints of a batch.
fn entries(batch: &Batch) -> Vec<(EntryKind, u64, u32)> {
    let entry = |entry: pgcapture_engine::batch::Entry<'_>| {
        (entry.kind, entry.checkpoint.lsn.0, entry.checkpoint.seq)
    };
    batch.iter().map(|each| entry(each.unwrap())).collect()
}

fn only_change(batch: &Batch) -> Change {
    let mut changes = batch
        .iter()
        .map(Result::unwrap)
        .filter(|entry| entry.kind == EntryKind::Change);
    let change = Change::decode(changes.next().unwrap().inner().unwrap()).unwrap();
    assert_eq!(changes.next(), None);
    change
}

fn text_field(name: &str, oid: u32, value: Option<field::Value>) -> Field {
    Field {
        name: name.to_owned(),
        oid,
        value,
    }
}

#[test]
fn begin_is_zero_changes_count_and_commit_is_last() {
    let mut decoder = decoder();
    feed(&mut decoder, &transaction(100, 2));
    let batch = decoder.take().unwrap();
    assert_eq!(
        entries(&batch),
        [
            (EntryKind::Begin, 100, 0),
            (EntryKind::Change, 100, 1),
            (EntryKind::Change, 100, 2),
            (EntryKind::Commit, 100, 3),
        ]
    );
    assert_eq!((batch.resume_lsn, batch.commit_time), (Lsn(108), PgTime(5)));
    assert_eq!(decoder.take(), None);
    assert_eq!(decoder.counters().insert_count, 2);
    assert_eq!(decoder.counters().transaction_count, 1);
}

#[test]
fn a_batch_inside_a_transaction_resumes_at_that_transaction() {
    let mut decoder = decoder();
    feed(&mut decoder, &transaction(100, 1));
    assert!(decoder.is_quiet() != decoder.take().is_some());
    feed(&mut decoder, &transaction(200, 3)[..3]);
    assert!(decoder.is_in_transaction() && !decoder.is_quiet());
    assert_eq!(decoder.take().unwrap().resume_lsn, Lsn(200));
    assert!(!decoder.is_quiet(), "a transaction is open");
    feed(&mut decoder, &transaction(200, 3)[3..]);
    assert_eq!(decoder.take().unwrap().resume_lsn, Lsn(208));
    assert!(decoder.is_quiet());
}

#[test]
fn what_the_log_has_is_dropped_also_in_the_middle_of_a_transaction() {
    let tail = Checkpoint::new(Lsn(200), 2);
    let mut decoder = Decoder::new(OPTIONS, Some(tail), Lsn(200));
    feed(&mut decoder, &transaction(100, 1));
    feed(&mut decoder, &transaction(200, 3));
    let batch = decoder.take().unwrap();
    assert_eq!(
        entries(&batch),
        [(EntryKind::Change, 200, 3), (EntryKind::Commit, 200, 4)]
    );
    assert_eq!(decoder.counters().dropped_count, 6);
    assert_eq!(decoder.counters().insert_count, 1);
}

#[test]
fn a_restarted_stream_repeats_nothing() {
    let mut decoder = decoder();
    feed(&mut decoder, &transaction(100, 3)[..4]);
    decoder.restart_stream();
    let row_without_relation = &[server::begin(100, 5, 6), insert(1), insert(2), insert(3)];
    assert!(matches!(
        row_without_relation
            .iter()
            .try_for_each(|message| decoder.decode(message)),
        Err(DecodeError::UnknownRelation { id: 7, .. })
    ));
    decoder.restart_stream();
    feed(&mut decoder, &transaction(100, 3));
    let seqs: Vec<_> = entries(&decoder.take().unwrap())
        .into_iter()
        .map(|(_, _, seq)| seq)
        .collect();
    assert_eq!(seqs, [0, 1, 2, 3, 4]);
}

#[test]
fn an_empty_transaction_leaves_no_entry_but_moves_on() {
    let mut decoder = decoder();
    feed(
        &mut decoder,
        &[server::begin(100, 5, 6), server::commit(100, 108, 5)],
    );
    assert_eq!(decoder.take(), None);
    assert_eq!(decoder.resume_lsn(), Lsn(108));
    assert_eq!(decoder.counters().empty_transaction_count, 1);
}

#[test]
fn unchanged_toast_is_left_out_and_null_is_kept() {
    let mut decoder = decoder();
    let update = server::update(7, None, &[Value::Null, Value::Unchanged]);
    feed(&mut decoder, &[server::begin(100, 5, 6), orders(), update]);
    let change = only_change(&decoder.take().unwrap());
    assert_eq!(change.new, [text_field("id", 23, None)]);
    assert_eq!(change.old, []);
}

#[test]
fn unchanged_toast_is_filled_from_a_full_old_row_but_not_from_a_key() {
    let new = [number(2), Value::Unchanged];
    let old = [number(1), text("large")];
    for (kind, filled) in [(b'O', 2), (b'K', 1)] {
        let mut decoder = decoder();
        let update = server::update(7, Some((kind, &old)), &new);
        feed(&mut decoder, &[server::begin(100, 5, 6), orders(), update]);
        let change = only_change(&decoder.take().unwrap());
        assert_eq!(change.new.len(), filled);
        let large = Some(field::Value::Text("large".to_owned()));
        assert_eq!(change.old[1], text_field("note", 25, large));
        assert_eq!(change.new.get(1), (filled == 2).then(|| &change.old[1]));
    }
}

#[test]
fn old_rows_leave_null_out() {
    let mut decoder = decoder();
    let delete = server::delete(7, b'K', &[number(1), Value::Null]);
    feed(&mut decoder, &[server::begin(100, 5, 6), orders(), delete]);
    let change = only_change(&decoder.take().unwrap());
    assert_eq!((change.op, change.new.len(), change.old.len()), (2, 0, 1));
}

#[test]
fn a_relation_that_changes_in_mid_transaction_names_the_rows_after_it() {
    let mut decoder = decoder();
    let column = Column {
        is_key: true,
        name: "number".to_owned(),
        type_oid: 20,
    };
    let altered = server::relation(7, "shop", "orders", b'd', &[column]);
    let after = server::insert(7, &[number(2)]);
    feed(
        &mut decoder,
        &[
            server::begin(100, 5, 6),
            orders(),
            insert(1),
            altered,
            after,
        ],
    );
    let batch = decoder.take().unwrap();
    let names: Vec<Vec<_>> = batch
        .iter()
        .skip(1)
        .map(|entry| Change::decode(entry.unwrap().inner().unwrap()).unwrap())
        .map(|change| change.new.into_iter().map(|field| field.name).collect())
        .collect();
    assert_eq!(names, [vec!["id", "note"], vec!["number"]]);
}

#[test]
fn truncate_names_every_relation_and_counts_as_one_change() {
    let mut decoder = decoder();
    feed(
        &mut decoder,
        &[
            server::begin(100, 5, 6),
            orders(),
            server::truncate(&[7, 7], 3),
            insert(1),
        ],
    );
    let batch = decoder.take().unwrap();
    let truncate = batch.iter().nth(1).unwrap().unwrap();
    let truncate = Truncate::decode(truncate.inner().unwrap()).unwrap();
    assert_eq!(truncate.relations.len(), 2);
    assert_eq!(truncate.relations[0].table, "orders");
    assert!(truncate.cascade && truncate.restart_identity);
    assert_eq!(entries(&batch)[2], (EntryKind::Change, 100, 2));
}

#[test]
fn a_message_outside_transactions_has_its_own_place() {
    let mut decoder = decoder();
    feed(&mut decoder, &transaction(100, 1));
    feed(
        &mut decoder,
        &[
            server::logical(false, 150, "mark", b"low"),
            server::logical(false, 90, "mark", b"again"),
            server::begin(200, 5, 6),
            server::logical(true, 180, "mark", &[0xff]),
            server::commit(200, 208, 5),
        ],
    );
    let batch = decoder.take().unwrap();
    assert_eq!(
        entries(&batch)[3..],
        [
            (EntryKind::Logical, 149, 1),
            (EntryKind::Begin, 200, 0),
            (EntryKind::Logical, 200, 1),
            (EntryKind::Commit, 200, 2),
        ]
    );
    let message = batch.iter().nth(3).unwrap().unwrap();
    let message = LogicalMessage::decode(message.inner().unwrap()).unwrap();
    assert_eq!((message.lsn, &*message.content), (150, &b"low"[..]));
    assert_eq!(decoder.counters().dropped_count, 1, "the one before 100");
}

#[test]
fn a_transaction_that_commits_right_behind_a_message_is_not_lost() {
    let mut decoder = decoder();
    let message = server::logical(false, 200, "mark", b"inside");
    decoder.decode(&message).unwrap();
    feed(&mut decoder, &transaction(200, 1));
    let batch = decoder.take().unwrap();
    assert_eq!(
        entries(&batch),
        [
            (EntryKind::Logical, 199, 1),
            (EntryKind::Begin, 200, 0),
            (EntryKind::Change, 200, 1),
            (EntryKind::Commit, 200, 2),
        ]
    );
    assert_eq!(decoder.counters().dropped_count, 0);
}

#[test]
fn origin_and_type_messages_leave_no_entry() {
    let mut decoder = decoder();
    let origin = [b"O".as_slice(), &[0; 8], b"upstream\0"].concat();
    let type_name = b"Y\0\0\x40\0public\0mood\0".to_vec();
    let mut messages = transaction(100, 1);
    messages.insert(1, type_name);
    messages.insert(1, origin);
    feed(&mut decoder, &messages);
    assert_eq!(decoder.take().unwrap().entry_count, 3);
}

#[test]
fn a_batch_never_holds_more_than_its_limit() {
    let mut decoder = decoder();
    feed(&mut decoder, &[server::begin(100, 5, 6), orders()]);
    let mut row_count = 0;
    while !decoder.is_full() {
        decoder.decode(&insert(1)).unwrap();
        row_count += 1;
    }
    let batch = decoder.take().unwrap();
    assert!(row_count > 1_000 && batch.entry_count <= BATCH_ENTRIES_MAX);
    assert_eq!(batch.change_count, row_count);
    assert!(!decoder.is_full());
}

#[test]
fn a_begin_that_waited_does_not_overfill_a_batch() {
    let mut decoder = decoder();
    // Three entries each: the change of the 342nd would bring its Begin along as number 1,024.
    for message in (1..500).flat_map(|number| transaction(number * 100, 1)) {
        decoder.decode(&message).unwrap();
        if decoder.is_full() {
            let batch = decoder.take().unwrap();
            assert!(
                batch.entry_count <= BATCH_ENTRIES_MAX,
                "{}",
                batch.entry_count
            );
        }
    }
}

#[test]
fn a_long_transaction_passes_with_one_batch_of_memory() {
    let mut decoder = decoder();
    feed(&mut decoder, &[server::begin(100, 5, 6), orders()]);
    let (mut change_count, row) = (0_u32, insert(1));
    for _ in 0..1_000_000 {
        decoder.decode(&row).unwrap();
        if decoder.is_full() {
            let batch = decoder.take().unwrap();
            assert!(batch.entries.len() <= BATCH_BYTES_TARGET + row.len());
            change_count += batch.change_count;
        }
    }
    feed(&mut decoder, &[server::commit(100, 108, 5)]);
    let last = decoder.take().unwrap();
    assert_eq!(change_count + last.change_count, 1_000_000);
    assert_eq!(last.span.unwrap().1, Checkpoint::new(Lsn(100), 1_000_001));
}

#[test]
fn a_row_larger_than_the_limit_names_its_table() {
    let options = DecoderOptions { row_bytes_max: 100 };
    let mut decoder = Decoder::new(options, None, Lsn::ZERO);
    feed(
        &mut decoder,
        &[server::begin(100, 5, 6), orders(), insert(1)],
    );
    let wide = server::insert(7, &[number(2), text(&"x".repeat(200))]);
    let error = decoder.decode(&wide).unwrap_err();
    assert!(error.is_definite());
    let shown = error.to_string();
    assert!(
        shown.contains("PGC-S41") && shown.contains("shop.orders"),
        "{shown}"
    );
    let batch = decoder.take().unwrap();
    assert_eq!(batch.entry_count, 2, "what came before can be taken");
    let large = server::logical(true, 99, "p", &[0; 101]);
    assert!(matches!(
        decoder.decode(&large),
        Err(DecodeError::MessageTooLarge {
            bytes: 101,
            limit: 100,
            ..
        })
    ));
}

#[test]
fn text_that_is_not_utf8_names_its_column() {
    let mut decoder = decoder();
    feed(&mut decoder, &[server::begin(100, 5, 6), orders()]);
    let bad = server::insert(7, &[number(1), Value::Text(vec![0xff])]);
    let error = decoder.decode(&bad).unwrap_err();
    assert!(error.is_definite());
    let DecodeError::Row { table, source, .. } = error else {
        panic!("{error}");
    };
    let column = "note".to_owned();
    assert_eq!((&*table, source), ("orders", RowError::NotUtf8 { column }));
}

#[test]
fn broken_rules_are_typed_errors_with_a_known_code() {
    let begin = server::begin(100, 5, 6);
    let commit = server::commit(100, 108, 5);
    let cases: Vec<(Vec<Vec<u8>>, &str)> = vec![
        (vec![vec![b'?']], "the stream is damaged"),
        (vec![insert(1)], "a row came outside a transaction"),
        (vec![commit.clone()], "a Commit came outside a transaction"),
        (vec![server::truncate(&[7], 0)], "a Truncate came outside"),
        (
            vec![server::logical(true, 1, "", b"")],
            "message came outside",
        ),
        (
            vec![begin.clone(), server::logical(false, 1, "", b"")],
            "came inside transaction",
        ),
        (vec![begin.clone(), begin.clone()], "begins inside"),
        (
            vec![begin.clone(), server::commit(99, 108, 5)],
            "the commit of",
        ),
        (
            vec![begin.clone(), commit.clone(), begin.clone()],
            "came after",
        ),
        (vec![begin.clone(), insert(1)], "was not described"),
        (
            vec![begin.clone(), server::truncate(&[9], 0)],
            "was not described",
        ),
        (
            vec![begin, orders(), server::insert(7, &[number(1)])],
            "cannot be encoded",
        ),
    ];
    for (messages, expected) in cases {
        let mut decoder = decoder();
        let error = messages
            .iter()
            .try_for_each(|message| decoder.decode(message))
            .unwrap_err();
        let shown = error.to_string();
        assert!(shown.contains(expected), "{shown}");
        assert!(!error.is_definite(), "{shown}");
        assert_eq!(
            codes::find(error.explanation().code),
            Some(error.explanation())
        );
        assert!(shown.starts_with(error.explanation().code), "{shown}");
    }
}
