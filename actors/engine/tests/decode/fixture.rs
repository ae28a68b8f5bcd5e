//! Streams captured from real servers (`fixtures/capture.sql`), compared with what a consumer
//! should see, as text that a human can check against the SQL.

use std::fmt::Write as _;

use pgcapture_engine::{
    batch::Batch,
    decoder::{Decoder, DecoderOptions},
    lsn::Lsn,
};
use pgcapture_proto::pgcapture::{Change, Field, Message, field, message::Type};
use prost::Message as _;

const OPTIONS: DecoderOptions = DecoderOptions {
    row_bytes_max: 1 << 20,
};

/// Values longer than this are shown by their length.
const SHOWN_BYTES_MAX: usize = 64;

/// The values of a `COPY … (FORMAT binary)` with one column that is never NULL.
fn copied_values(file: &[u8]) -> Vec<&[u8]> {
    let mut rest = file
        .strip_prefix(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0")
        .unwrap();
    let mut values = Vec::new();
    while let Some(row) = rest.strip_prefix(&[0, 1]) {
        let (length, after) = row.split_first_chunk::<4>().unwrap();
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap();
        let (value, after) = after.split_at(length);
        values.push(value);
        rest = after;
    }
    assert_eq!(rest, [0xff, 0xff]);
    values
}

fn shown(file: &[u8]) -> String {
    let mut decoder = Decoder::new(OPTIONS, None, Lsn::ZERO);
    for message in copied_values(file) {
        decoder.decode(message).unwrap();
    }
    let batch = decoder.take().unwrap();
    let mut text = show(&batch);
    writeln!(text, "resume at {}", batch.resume_lsn).unwrap();
    text
}

fn show(batch: &Batch) -> String {
    let mut text = String::new();
    for entry in batch {
        let entry = entry.unwrap();
        let message = Message::decode(entry.payload).unwrap().r#type.unwrap();
        write!(text, "{} ", entry.checkpoint).unwrap();
        match message {
            Type::Begin(_) => writeln!(text, "begin"),
            Type::Commit(commit) => writeln!(text, "commit, ends at {}", Lsn(commit.end_lsn)),
            Type::Change(change) => write!(text, "{}", show_change(&change)),
            Type::Truncate(truncate) => writeln!(text, "{truncate:?}"),
            Type::Logical(message) => writeln!(
                text,
                "message {:?} {:?}, transactional: {}",
                message.prefix, message.content, message.transactional
            ),
            Type::KeepAlive(_) | Type::Gap(_) => panic!("no server sends those"),
        }
        .unwrap();
    }
    text
}

fn show_change(change: &Change) -> String {
    let mut text = format!("{:?} {}.{}\n", change.op(), change.schema, change.table);
    for (side, fields) in [("new", &change.new), ("old", &change.old)] {
        for field in fields {
            writeln!(text, "    {side} {}", show_field(field)).unwrap();
        }
    }
    text
}

fn show_field(field: &Field) -> String {
    let value = match &field.value {
        None => "NULL".to_owned(),
        Some(field::Value::Text(text)) if text.len() > SHOWN_BYTES_MAX => {
            format!("text of {} bytes", text.len())
        }
        Some(field::Value::Text(text)) => format!("text {text:?}"),
        Some(field::Value::Binary(bytes)) if bytes.len() > SHOWN_BYTES_MAX => {
            format!("binary of {} bytes", bytes.len())
        }
        Some(field::Value::Binary(bytes)) => format!("binary {bytes:02x}"),
    };
    format!("{} ({}) = {value}", field.name, field.oid)
}

/// Prints what was decoded when it differs, to be looked at and then stored.
fn assert_shown(file: &[u8], expected: &str) {
    let shown = shown(file);
    assert!(
        shown == expected,
        "decoded otherwise than expected:\n{shown}"
    );
}

#[test]
fn a_stream_of_postgres_15_in_binary_form_decodes_as_expected() {
    assert_shown(
        include_bytes!("../../fixtures/postgres-15-binary.copy"),
        include_str!("../../fixtures/postgres-15-binary.expected"),
    );
}

#[test]
fn a_stream_of_postgres_15_in_text_form_decodes_as_expected() {
    assert_shown(
        include_bytes!("../../fixtures/postgres-15-text.copy"),
        include_str!("../../fixtures/postgres-15-text.expected"),
    );
}
