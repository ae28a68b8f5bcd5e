//! Hand-made streams: the good one makes a copy that equals its table, and every bad one is caught.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use pgcapture_chaos_tests::dump::{
    copy::Copy,
    table::{COLUMNS, Image, Row},
};
use pgcapture_proto::pgcapture::{Change, Field, change::Operation, field::Value};

/// A row of the table in clear.
#[derive(Clone, Copy)]
struct Clear {
    id: i64,
    version: i64,
    doc: &'static str,
}

const fn clear(id: i64, version: i64, doc: &'static str) -> Clear {
    Clear { id, version, doc }
}

impl Clear {
    fn value(&self, column: &str) -> Option<Vec<u8>> {
        match column {
            "id" => Some(self.id.to_be_bytes().to_vec()),
            "version" => Some(self.version.to_be_bytes().to_vec()),
            "doc" => Some(self.doc.as_bytes().to_vec()),
            "n" => Some(7_i32.to_be_bytes().to_vec()),
            _ => None,
        }
    }

    fn fields(&self) -> Vec<Field> {
        let field = |column: &pgcapture_chaos_tests::dump::table::Column| Field {
            name: column.name.to_owned(),
            oid: column.oid,
            value: self
                .value(column.name)
                .map(|bytes| Value::Binary(bytes.into())),
        };
        COLUMNS.iter().map(field).collect()
    }

    /// As the comparison reads it from the table.
    fn row(&self) -> Row {
        let mut image = Image::default();
        for (index, column) in COLUMNS.iter().enumerate() {
            image.add(index, self.value(column.name).as_deref());
        }
        image.finish().unwrap()
    }
}

fn of_table(op: Operation, new: Vec<Field>, old: Vec<Field>) -> Change {
    Change {
        op: op.into(),
        schema: "public".to_owned(),
        table: "dumped".to_owned(),
        new,
        old,
    }
}

fn key(id: i64) -> Vec<Field> {
    let mut fields = clear(id, 0, "").fields();
    fields.truncate(1);
    fields
}

/// An update that leaves both wide columns as they are.
fn narrow(row: Clear) -> Vec<Field> {
    let mut fields = row.fields();
    fields.retain(|field| field.name != "doc" && field.name != "data");
    fields
}

/// A step of a stream.
#[derive(Clone)]
enum Step {
    Session,
    Change(Change),
    Existing(Change),
}

fn insert(row: Clear) -> Step {
    Step::Change(of_table(Operation::Insert, row.fields(), Vec::new()))
}

fn update(row: Clear) -> Step {
    Step::Change(of_table(Operation::Update, narrow(row), Vec::new()))
}

fn moved(from: i64, row: Clear) -> Step {
    Step::Change(of_table(Operation::Update, narrow(row), key(from)))
}

fn delete(id: i64) -> Step {
    Step::Change(of_table(Operation::Delete, Vec::new(), key(id)))
}

fn existing(row: Clear) -> Step {
    Step::Existing(of_table(Operation::Update, row.fields(), Vec::new()))
}

/// Takes a stream and compares with a table; returns the kinds of findings.
fn kinds(mut copy: Copy, steps: &[Step], table: &[Clear]) -> Vec<String> {
    copy.begin_session();
    for step in steps {
        match step {
            Step::Session => copy.begin_session(),
            Step::Change(change) => copy.take(change, false),
            Step::Existing(change) => copy.take(change, true),
        }
    }
    for row in table {
        copy.compare(&row.row());
    }
    copy.finish_comparison();
    let found = copy.findings.kinds();
    found.into_iter().map(str::to_owned).collect()
}

fn judged(steps: &[Step], table: &[Clear]) -> Vec<String> {
    kinds(Copy::default(), steps, table)
}

/// Row 1 changes before the dump sees it, row 2 afterwards, row 3 moves to key 4, row 5 is deleted,
/// row 6 moves from an unread page to a read one, so that only the sweep brings its wide column.
fn good() -> (Vec<Step>, Vec<Clear>) {
    let steps = vec![
        update(clear(1, 11, "one")),
        existing(clear(1, 11, "one")),
        existing(clear(2, 0, "two")),
        existing(clear(3, 0, "three")),
        existing(clear(5, 0, "five")),
        update(clear(2, 12, "two")),
        moved(3, clear(4, 13, "three")),
        delete(5),
        update(clear(6, 14, "six")),
        insert(clear(5, 15, "again")),
        existing(clear(6, 14, "six")),
        existing(clear(2, 12, "two")),
        existing(clear(4, 13, "three")),
    ];
    let table = vec![
        clear(1, 11, "one"),
        clear(2, 12, "two"),
        clear(4, 13, "three"),
        clear(5, 15, "again"),
        clear(6, 14, "six"),
    ];
    (steps, table)
}

#[test]
fn a_good_stream_makes_the_table() {
    let (steps, table) = good();
    assert_eq!(judged(&steps, &table), Vec::<String>::new());
}

#[test]
fn changes_that_come_again_after_a_disconnect_are_no_finding() {
    let (steps, table) = good();
    // The node lost all acknowledgements: everything comes again, from every place.
    for cut in 1..=steps.len() {
        let mut all = steps[..cut].to_vec();
        all.push(Step::Session);
        all.extend(steps.iter().cloned());
        assert_eq!(judged(&all, &table), Vec::<String>::new(), "cut at {cut}");
    }
    // Existing rows were finished: only changes come again.
    let is_change = |step: &&Step| matches!(step, Step::Change(_));
    for from in 0..steps.len() {
        let mut all = steps.clone();
        all.push(Step::Session);
        all.extend(steps[from..].iter().filter(is_change).cloned());
        assert_eq!(judged(&all, &table), Vec::<String>::new(), "from {from}");
    }
}

#[test]
fn a_range_that_is_sent_back_comes_again_with_newer_rows() {
    let (mut steps, table) = good();
    let newer = existing(clear(2, 12, "two"));
    steps.extend([existing(clear(1, 11, "one")), newer]);
    assert_eq!(judged(&steps, &table), Vec::<String>::new());
}

#[test]
fn a_row_behind_a_newer_change_is_caught() {
    let (mut steps, table) = good();
    // Row 2 as it was before version 12.
    steps.push(existing(clear(2, 0, "two")));
    let found = judged(&steps, &table);
    assert!(found.contains(&"splice/row_behind_newer_change".to_owned()));
    assert!(found.contains(&"copy/row_outdated".to_owned()));
}

#[test]
fn a_row_that_comes_back_after_its_delete_is_caught() {
    let (mut steps, mut table) = good();
    steps.extend([delete(1), existing(clear(1, 11, "one"))]);
    table.remove(0);
    let found = judged(&steps, &table);
    assert!(found.contains(&"splice/row_behind_newer_change".to_owned()));
    assert!(found.contains(&"copy/row_too_many".to_owned()));
}

#[test]
fn a_row_that_comes_back_under_the_key_it_was_moved_from_is_caught() {
    let (mut steps, table) = good();
    steps.push(existing(clear(3, 0, "three")));
    let found = judged(&steps, &table);
    assert!(found.contains(&"splice/row_behind_newer_change".to_owned()));
    assert!(found.contains(&"copy/row_too_many".to_owned()));
}

#[test]
fn a_change_behind_a_row_that_has_it_already_is_caught() {
    let (mut steps, table) = good();
    // The row of the dump is from version 12 already.
    steps.insert(5, existing(clear(2, 12, "two")));
    let found = judged(&steps, &table);
    assert_eq!(found, ["splice/change_after_newer_row"]);
}

#[test]
fn a_moved_row_that_no_range_and_no_sweep_saw_is_caught() {
    let (mut steps, table) = good();
    steps.remove(10);
    assert_eq!(judged(&steps, &table), ["copy/row_incomplete"]);
}

#[test]
fn a_range_that_is_short_is_caught() {
    let (mut steps, table) = good();
    // Row 1 had changed before; its wide column is missing then.
    steps.remove(1);
    assert_eq!(judged(&steps, &table), ["copy/row_incomplete"]);
    steps.remove(0);
    assert_eq!(judged(&steps, &table), ["copy/row_missing"]);
}

#[test]
fn a_value_that_differs_in_one_byte_is_caught() {
    let (mut steps, table) = good();
    steps.push(existing(clear(1, 11, "onf")));
    assert_eq!(judged(&steps, &table), ["copy/row_different"]);
}

#[test]
fn a_row_for_a_uri_that_asked_for_nothing_is_caught() {
    let steps = [update(clear(1, 11, "one")), existing(clear(1, 11, "one"))];
    let found = kinds(Copy::bystander(), &steps, &[]);
    assert_eq!(found, ["isolation/row_of_another_uri"]);
}

#[test]
fn a_row_of_a_table_that_was_not_asked_for_is_caught() {
    let (mut steps, table) = good();
    let other = Change {
        table: "bystander".to_owned(),
        ..of_table(Operation::Update, key(1), Vec::new())
    };
    steps.push(Step::Existing(other));
    assert_eq!(judged(&steps, &table), ["isolation/row_not_asked_for"]);
}

#[test]
fn rows_of_another_shape_than_the_changes_are_caught() {
    let whole = clear(1, 20, "one");
    let mut text = whole.fields();
    text[3].value = Some(Value::Text("one".to_owned()));
    let mut typed = whole.fields();
    typed[2].oid = 20;
    let mut swapped = whole.fields();
    swapped.swap(5, 6);
    let update = Operation::Update;
    let cases = [
        (
            of_table(Operation::Insert, whole.fields(), Vec::new()),
            "existing_row",
        ),
        (of_table(update, whole.fields(), key(1)), "existing_row"),
        (
            of_table(update, narrow(whole), Vec::new()),
            "column_missing",
        ),
        (of_table(update, text, Vec::new()), "not_binary"),
        (of_table(update, typed, Vec::new()), "type"),
        (of_table(update, swapped, Vec::new()), "column_out_of_place"),
        (
            of_table(update, whole.fields()[1..].to_vec(), Vec::new()),
            "row_without_key",
        ),
    ];
    for (change, kind) in cases {
        let mut copy = Copy::default();
        copy.begin_session();
        copy.take(&change, true);
        let kind = format!("shape/{kind}");
        assert!(
            copy.findings.count(&kind) > 0,
            "{kind}: {:?}",
            copy.findings
        );
    }
}
