//! The encoder agrees with prost, however the bytes are cut, and refuses what is no COPY.

use pgcapture_proto::pgcapture::{Change, Field, Message, change::Operation, field, message::Type};
use proptest::{collection::vec, prelude::*, sample::Index};
use prost::Message as _;

use super::*;

const ROW_BYTES_MAX: usize = 1 << 20;

type Value = Option<Vec<u8>>;

fn label() -> TableName {
    TableName {
        schema: "shop".to_owned(),
        table: "orders".to_owned(),
    }
}

fn column(name: &str, form: ValueForm) -> RowColumn {
    RowColumn {
        name: name.to_owned(),
        type_oid: 23,
        form,
    }
}

fn header() -> Vec<u8> {
    [SIGNATURE.as_slice(), &[0; 8]].concat()
}

fn tuple(values: &[Value]) -> Vec<u8> {
    let mut bytes = i16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
    for value in values {
        let length = value
            .as_ref()
            .map_or(-1, |value| i32::try_from(value.len()).unwrap());
        bytes.extend(length.to_be_bytes());
        bytes.extend(value.iter().flatten());
    }
    bytes
}

fn copy(rows: &[Vec<Value>]) -> Vec<u8> {
    let rows = rows.iter().flat_map(|row| tuple(row));
    header()
        .into_iter()
        .chain(rows)
        .chain([0xff, 0xff])
        .collect()
}

fn message(columns: &[RowColumn], row: &[Value]) -> Message {
    let field = |(column, value): (&RowColumn, &Value)| Field {
        name: column.name.clone(),
        oid: column.type_oid,
        value: value.clone().map(|value| match column.form {
            ValueForm::Binary => field::Value::Binary(value.into()),
            ValueForm::Text => field::Value::Text(String::from_utf8(value).unwrap()),
        }),
    };
    let TableName { schema, table } = label();
    let change = Change {
        op: Operation::Update as i32,
        schema,
        table,
        new: columns.iter().zip(row).map(field).collect(),
        old: Vec::new(),
    };
    Message {
        r#type: Some(Type::Change(change)),
    }
}

/// Feeds everything, cut at the given places, and returns the batches.
fn encode(
    encoder: &mut RowEncoder,
    bytes: &[u8],
    cuts: &[usize],
) -> Result<Vec<EncodedRows>, CopyRowError> {
    let mut batches = Vec::new();
    let mut start = 0;
    for end in cuts.iter().copied().chain([bytes.len()]) {
        let mut chunk = &bytes[start..end];
        loop {
            let used = encoder.feed(chunk)?;
            chunk = &chunk[used..];
            if encoder.is_full() {
                batches.extend(encoder.take());
            } else if chunk.is_empty() {
                break;
            }
        }
        start = end;
    }
    batches.extend(encoder.take());
    Ok(batches)
}

fn messages(batches: &[EncodedRows]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    for batch in batches {
        let mut end = 0;
        for (start, length) in batch
            .rows
            .iter()
            .map(|(start, length)| (*start as usize, *length as usize))
        {
            assert_eq!(start, end, "rows lie one after another");
            end = start + length;
            messages.push(batch.bytes[start..end].to_vec());
        }
        assert_eq!(end, batch.bytes.len());
        assert!(batch.rows.len() <= 1_024);
        assert!(batch.rows.len() == 1 || batch.bytes.len() <= 256 * 1024);
    }
    messages
}

fn a_column() -> impl Strategy<Value = RowColumn> {
    let form = prop_oneof![Just(ValueForm::Binary), Just(ValueForm::Text)];
    ("[a-zä_]{1,140}", any::<u32>(), form).prop_map(|(name, type_oid, form)| RowColumn {
        name,
        type_oid,
        form,
    })
}

fn a_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        1 => Just(None),
        6 => "\\PC{0,40}".prop_map(|text| Some(text.into_bytes())),
        1 => "\\PC{50,200}".prop_map(|text| Some(text.into_bytes())),
        1 => (3_900_usize..4_200).prop_map(|count| Some(vec![b'y'; count])),
        1 => Just(Some(vec![b'x'; 40_000])),
    ]
}

proptest! {
    #[test]
    fn rows_are_the_bytes_that_prost_writes_however_they_are_cut(
        columns in vec(a_column(), 0..6),
        values in vec(vec(a_value(), 6), 0..30),
        cuts in vec(any::<Index>(), 0..40),
    ) {
        let rows: Vec<Vec<Value>> = values.iter().map(|row| row[..columns.len()].to_vec()).collect();
        let bytes = copy(&rows);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let mut encoder = RowEncoder::new(&label(), &columns, ROW_BYTES_MAX);
        let batches = encode(&mut encoder, &bytes, &cuts).unwrap();
        prop_assert!(encoder.is_done());
        let expected: Vec<_> = rows.iter().map(|row| message(&columns, row).encode_to_vec()).collect();
        prop_assert_eq!(messages(&batches), expected);
    }

    #[test]
    fn damaged_bytes_end_in_an_error_or_in_whole_rows(
        rows in vec(vec(a_value(), 3), 1..5),
        place in any::<Index>(),
        replacement in any::<u8>(),
    ) {
        let columns = ["a", "b", "c"].map(|name| column(name, ValueForm::Binary));
        let mut bytes = copy(&rows);
        let place = place.index(bytes.len());
        bytes[place] = replacement;
        let mut encoder = RowEncoder::new(&label(), &columns, ROW_BYTES_MAX);
        for message in messages(&encode(&mut encoder, &bytes, &[]).unwrap_or_default()) {
            prop_assert!(Message::decode(&message[..]).is_ok());
        }
    }
}

#[test]
fn single_bytes_are_enough_and_a_cut_copy_is_not_done() {
    let columns = [column("id", ValueForm::Binary)];
    let bytes = copy(&[vec![Some(vec![1])], vec![None]]);
    let cuts: Vec<usize> = (0..bytes.len()).collect();
    let mut encoder = RowEncoder::new(&label(), &columns, ROW_BYTES_MAX);
    assert_eq!(
        messages(&encode(&mut encoder, &bytes, &cuts).unwrap()).len(),
        2
    );
    encoder.finish().unwrap();
    for end in 0..bytes.len() {
        let mut encoder = RowEncoder::new(&label(), &columns, ROW_BYTES_MAX);
        encode(&mut encoder, &bytes[..end], &[]).unwrap();
        assert_eq!(
            encoder.finish(),
            Err(CopyRowError::Cut),
            "after {end} bytes"
        );
    }
}

#[test]
fn batches_are_full_at_1024_rows_or_256_kib_and_a_larger_row_goes_alone() {
    let columns = [column("v", ValueForm::Binary)];
    let rows = |bytes: usize, count: usize| vec![vec![Some(vec![7; bytes])]; count];
    let sizes = |rows: Vec<Vec<Value>>| -> Vec<usize> {
        let mut encoder = RowEncoder::new(&label(), &columns, ROW_BYTES_MAX);
        let batches = encode(&mut encoder, &copy(&rows), &[]).unwrap();
        messages(&batches);
        batches.iter().map(|batch| batch.rows.len()).collect()
    };
    assert_eq!(sizes(rows(4, 2_500)), [1_024, 1_024, 452]);
    assert_eq!(sizes(rows(100_000, 5)), [2, 2, 1]);
    assert_eq!(
        sizes([rows(4, 2), rows(300_000, 1), rows(4, 2)].concat()),
        [2, 1, 2]
    );
    assert_eq!(sizes(Vec::new()), [0; 0]);
}

#[test]
fn what_is_no_copy_of_these_columns_is_refused() {
    let columns = [column("a", ValueForm::Text), column("b", ValueForm::Binary)];
    let refused = |bytes: &[u8]| {
        let mut encoder = RowEncoder::new(&label(), &columns, 1_000);
        encode(&mut encoder, bytes, &[]).unwrap_err()
    };
    assert_eq!(refused(b"PGCOPY\n\xff\r\r\0"), CopyRowError::Header);
    let with_oids = [SIGNATURE.as_slice(), &[0, 1, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(refused(&with_oids), CopyRowError::Header);
    let expected = 2;
    let found = 1;
    assert_eq!(
        refused(&copy(&[vec![None]])),
        CopyRowError::ColumnCount { expected, found }
    );
    let not_utf8 = copy(&[vec![Some(vec![0xff]), None]]);
    let column = "a".to_owned();
    assert_eq!(refused(&not_utf8), CopyRowError::NotUtf8 { column });
    let negative = [header(), vec![0, 2, 0xff, 0xff, 0xff, 0xfe]].concat();
    let column = "a".to_owned();
    assert_eq!(
        refused(&negative),
        CopyRowError::Length { column, length: -2 }
    );
    let large = copy(&[vec![None, Some(vec![1; 1_000])]]);
    assert!(matches!(
        refused(&large),
        CopyRowError::TooLarge { limit: 1_000, .. }
    ));
    // It is refused before its bytes have come.
    let announced = [
        header(),
        vec![0, 2, 0xff, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff],
    ]
    .concat();
    assert!(matches!(refused(&announced), CopyRowError::TooLarge { .. }));
    let more = [copy(&[]), vec![0]].concat();
    assert_eq!(refused(&more), CopyRowError::AfterTrailer { bytes: 1 });
}

#[test]
fn a_header_may_have_an_extension() {
    let bytes = [
        SIGNATURE.as_slice(),
        &[0, 0, 0, 0, 0, 0, 0, 3, 9, 9, 9],
        &[0, 0],
        &[0xff, 0xff],
    ]
    .concat();
    let mut encoder = RowEncoder::new(&label(), &[], ROW_BYTES_MAX);
    let batches = encode(&mut encoder, &bytes, &[5, 21]).unwrap();
    assert_eq!(messages(&batches).len(), 1);
    encoder.finish().unwrap();
}
