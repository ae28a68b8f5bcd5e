//! Filters against entries that prost has encoded.

use pgcapture_proto::pgcapture::{Change, Field, Message, Relation, message};

use super::*;
use crate::{checkpoint::Checkpoint, lsn::Lsn};

fn encode(message: message::Type) -> Vec<u8> {
    Message {
        r#type: Some(message),
    }
    .encode_to_vec()
}

fn change(operation: i32, schema: &str, table: &str) -> Vec<u8> {
    encode(message::Type::Change(Change {
        op: operation,
        schema: schema.to_owned(),
        table: table.to_owned(),
        new: vec![Field {
            name: "id".to_owned(),
            ..Field::default()
        }],
        ..Change::default()
    }))
}

fn entry(payload: &[u8]) -> Entry<'_> {
    Entry {
        checkpoint: Checkpoint::new(Lsn(1), 1),
        kind: EntryKind::from_tag(payload[0]).unwrap(),
        payload,
    }
}

fn wants(filter: &mut Filter, payload: &[u8]) -> bool {
    filter.wants(&entry(payload)).unwrap()
}

fn patterns(texts: &[&str]) -> Vec<TablePattern> {
    texts
        .iter()
        .map(|text| TablePattern::parse(text).unwrap())
        .collect()
}

#[test]
fn a_filter_without_options_delivers_changes_only() {
    let mut filter = Filter::new(CaptureOptions::default());
    assert!(wants(&mut filter, &change(0, "public", "orders")));
    assert!(wants(&mut filter, &change(2, "pgcapture", "ddl_logs")));
    assert!(!wants(&mut filter, &change(1, "pgcapture", "sources")));
    assert!(wants(&mut filter, &change(1, "public", "sources")));
    for other in [
        message::Type::Begin(Default::default()),
        message::Type::Commit(Default::default()),
        message::Type::KeepAlive(Default::default()),
        message::Type::Truncate(Default::default()),
        message::Type::Logical(Default::default()),
        message::Type::Gap(Default::default()),
    ] {
        assert!(!wants(&mut filter, &encode(other)));
    }
}

#[test]
fn the_regex_looks_at_the_table_name_only() {
    let mut filter = Filter::new(CaptureOptions {
        table_regex: Some(go_regex::compile("^ord").unwrap()),
        ..CaptureOptions::default()
    });
    for _ in 0..2 {
        assert!(wants(&mut filter, &change(0, "public", "orders")));
        assert!(!wants(&mut filter, &change(0, "ord", "items")));
        assert!(!wants(&mut filter, &change(0, "", "")));
    }
}

#[test]
fn names_that_join_to_the_same_letters_are_told_apart() {
    let mut filter = Filter::new(CaptureOptions {
        tables: patterns(&["a.bc"]),
        ..CaptureOptions::default()
    });
    assert!(wants(&mut filter, &change(0, "a", "bc")));
    assert!(!wants(&mut filter, &change(0, "ab", "c")));
}

#[test]
fn lists_and_operations_narrow_further() {
    let parameters = prost_types::Struct {
        fields: [(
            "Operations".to_owned(),
            prost_types::Value {
                kind: Some(prost_types::value::Kind::StringValue("DELETE".to_owned())),
            },
        )]
        .into(),
    };
    let (mut options, _) = CaptureOptions::parse(&parameters).unwrap();
    options.tables = patterns(&["public.*", "shop.ord*s"]);
    options.exclude_tables = patterns(&["*.audit_*"]);
    options.with_truncate = true;
    let mut filter = Filter::new(options);
    assert!(wants(&mut filter, &change(2, "public", "x")));
    assert!(!wants(&mut filter, &change(0, "public", "x")));
    assert!(wants(&mut filter, &change(2, "shop", "orders")));
    assert!(!wants(&mut filter, &change(2, "shop", "order")));
    assert!(!wants(&mut filter, &change(2, "public", "audit_1")));
    let truncate = |schema: &str| {
        encode(message::Type::Truncate(Truncate {
            relations: vec![Relation {
                schema: schema.to_owned(),
                table: "t".to_owned(),
            }],
            ..Truncate::default()
        }))
    };
    assert!(wants(&mut filter, &truncate("public")));
    assert!(!wants(&mut filter, &truncate("other")));
}

#[test]
fn the_memory_of_verdicts_is_bounded_and_stays_right() {
    let mut filter = Filter::new(CaptureOptions {
        tables: patterns(&["public.*0"]),
        ..CaptureOptions::default()
    });
    for number in 0..2 * REMEMBERED_TABLES_MAX {
        let payload = change(0, "public", &format!("t{number}"));
        assert_eq!(wants(&mut filter, &payload), number % 10 == 0);
        assert!(filter.remembered.len() <= REMEMBERED_TABLES_MAX);
    }
}

#[test]
fn cut_changes_are_refused_and_never_panic() {
    let whole = change(1, "public", "orders");
    let inner = entry(&whole).inner().unwrap();
    for length in 0..inner.len() {
        // A cut behind the name is not seen here; the log's checksums see it.
        let peeked = peek_change(&inner[..length]);
        assert!(peeked.is_err() || peeked.is_ok_and(|peek| peek.operation <= 1));
    }
    assert_eq!(peek_change(&inner[..6]), Err(MalformedBatch));
}

#[test]
fn stars_match_anything() {
    for (pattern, text, expected) in [
        ("*", "", true),
        ("a*", "abc", true),
        ("*c", "abc", true),
        ("a*b*c", "a1b2c", true),
        ("a*b*c", "a1c2b", false),
        ("ab*ba", "aba", false),
        ("a", "ab", false),
    ] {
        assert_eq!(glob(pattern, text), expected, "{pattern} on {text}");
    }
}
