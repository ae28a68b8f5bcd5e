//! Lines say what changed and never hide what was left out.

use pgcapture_proto::pgcapture::{Checkpoint, Gap, field};

use super::*;

fn text(name: &str, value: &str) -> Field {
    Field {
        name: name.to_owned(),
        oid: 25,
        value: Some(field::Value::Binary(value.as_bytes().to_vec().into())),
    }
}

fn message(op: Operation, new: Vec<Field>, old: Vec<Field>) -> CaptureMessage {
    CaptureMessage {
        checkpoint: Some(Checkpoint {
            lsn: 0x16_B374_D848,
            seq: 31,
            ..Checkpoint::default()
        }),
        change: Some(Change {
            op: op.into(),
            schema: "public".to_owned(),
            table: "orders".to_owned(),
            new,
            old,
        }),
        commit_time: 1_500_000,
        ..CaptureMessage::default()
    }
}

fn line(lines: &mut Lines, message: &CaptureMessage) -> String {
    let mut out = String::new();
    assert!(lines.write(&mut out, message));
    out
}

#[test]
fn a_change_is_one_line() {
    let mut lines = Lines::new(Some(Template::standard()));
    let insert = message(
        Operation::Insert,
        vec![text("id", "7"), text("note", "a \"b\"")],
        vec![],
    );
    assert_eq!(
        line(&mut lines, &insert),
        "2000-01-01T00:00:01.500Z INSERT public.orders id=7 {\"id\":\"7\",\"note\":\"a \\\"b\\\"\"}\n"
    );
}

#[test]
fn a_left_out_column_is_marked_unchanged() {
    let mut lines = Lines::new(Some(Template::parse("%j\\n").unwrap()));
    let insert = message(
        Operation::Insert,
        vec![text("id", "7"), text("note", "long"), text("x", "1")],
        vec![],
    );
    line(&mut lines, &insert);
    let update = message(
        Operation::Update,
        vec![text("id", "7"), text("x", "2")],
        vec![],
    );
    assert_eq!(
        line(&mut lines, &update),
        "{\"id\":\"7\",\"note\":<unchanged-toast>,\"x\":\"2\"}\n"
    );
    let mut lines = Lines::new(None);
    line(&mut lines, &insert);
    let json: Value = serde_json::from_str(&line(&mut lines, &update)).unwrap();
    assert_eq!(json["new"]["note"], json!({"unchanged": true}));
    assert_eq!(json["checkpoint"], "16/B374D848|1f");
}

#[test]
fn the_key_is_what_a_delete_has_shown() {
    let mut lines = Lines::new(Some(Template::parse("%o %k %c %l %s %% %T\\n").unwrap()));
    let delete = message(Operation::Delete, vec![], vec![text("sku", "a")]);
    assert_eq!(
        line(&mut lines, &delete),
        "DELETE sku=a 16/B374D848|1f 16/B374D848 31 % public.orders\n"
    );
    let insert = message(
        Operation::Insert,
        vec![text("id", "7"), text("sku", "b")],
        vec![],
    );
    assert!(line(&mut lines, &insert).starts_with("INSERT sku=b "));
}

#[test]
fn a_gap_is_shown_whatever_the_format() {
    let mut lines = Lines::new(Some(Template::parse("%j").unwrap()));
    let gap = CaptureMessage {
        gap: Some(Gap {
            from_lsn: 1,
            reason: "slot_lost".to_owned(),
            ..Gap::default()
        }),
        ..CaptureMessage::default()
    };
    assert_eq!(line(&mut lines, &gap), "- GAP 0/1..? slot_lost \n");
}

#[test]
fn an_unknown_directive_is_refused() {
    assert!(Template::parse("%q").unwrap_err().contains("%q"));
    assert!(Template::parse("%").is_err());
}
