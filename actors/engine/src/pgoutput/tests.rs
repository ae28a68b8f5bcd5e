//! Every message kind, every way to be cut short, and arbitrary bytes.

use proptest::prelude::*;

use super::*;

fn bytes(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn update_with_old_row() -> Vec<u8> {
    bytes(&[
        b"U\0\0\0\x07O\0\x02b\0\0\0\x01\x01n",
        b"N\0\x02ut\0\0\0\x02ab",
    ])
}

fn examples() -> Vec<Vec<u8>> {
    vec![
        bytes(&[b"B", &[0, 0, 0, 0, 0, 0, 1, 0], &[0; 8], &[0, 0, 0, 9]]),
        bytes(&[b"C\0", &[1; 8], &[2; 8], &[3; 8]]),
        bytes(&[b"O", &[1; 8], b"upstream\0"]),
        b"R\0\0\0\x07\0t\0d\0\x01\x01id\0\0\0\0\x17\xff\xff\xff\xff".to_vec(),
        b"Y\0\0\x40\0public\0mood\0".to_vec(),
        b"I\0\0\0\x07N\0\x01b\0\0\0\x04\0\0\0\x05".to_vec(),
        update_with_old_row(),
        b"D\0\0\0\x07K\0\x01b\0\0\0\x01\x05".to_vec(),
        b"T\0\0\0\x02\x03\0\0\0\x07\0\0\0\x08".to_vec(),
        bytes(&[b"M\x01", &[5; 8], b"p\0\0\0\0\x03abc"]),
    ]
}

#[test]
fn an_update_carries_old_and_new_columns() {
    let message = update_with_old_row();
    let Ok(Message::Update(update)) = Message::parse(&message) else {
        panic!("not an update");
    };
    let Some(OldTuple::Full(old)) = update.old else {
        panic!("no old row");
    };
    let old: Vec<_> = old.columns().collect();
    assert_eq!(old, [ColumnValue::Binary(&[1]), ColumnValue::Null]);
    let new: Vec<_> = update.new.columns().collect();
    assert_eq!(new, [ColumnValue::Unchanged, ColumnValue::Text(b"ab")]);
}

#[test]
fn a_relation_lists_its_columns() {
    let message = &examples()[3];
    let Ok(Message::Relation(relation)) = Message::parse(message) else {
        panic!("not a relation");
    };
    assert_eq!((relation.schema, relation.table), ("", "t"));
    let columns: Vec<_> = relation.columns().collect();
    assert_eq!(
        columns,
        [RelationColumn {
            is_key: true,
            name: "id",
            type_oid: 23,
            type_modifier: -1
        }]
    );
}

#[test]
fn truncate_and_logical_messages_keep_their_flags() {
    let examples = examples();
    let Ok(Message::Truncate(truncate)) = Message::parse(&examples[8]) else {
        panic!("not a truncate");
    };
    assert!(truncate.is_cascade && truncate.restarts_identity);
    assert_eq!(truncate.relation_ids().collect::<Vec<_>>(), [7, 8]);
    let Ok(Message::Logical(logical)) = Message::parse(&examples[9]) else {
        panic!("not a message");
    };
    assert!(logical.is_transactional);
    assert_eq!((logical.prefix, logical.content), ("p", &b"abc"[..]));
}

#[test]
fn every_message_must_be_whole_and_nothing_more() {
    for example in examples() {
        assert!(Message::parse(&example).is_ok(), "{example:?}");
        for length in 1..example.len() {
            let cut = Message::parse(&example[..length]);
            assert!(cut.is_err(), "{example:?} cut to {length}: {cut:?}");
        }
        let longer = [&example[..], b"x"].concat();
        assert!(
            matches!(
                Message::parse(&longer),
                Err(ParseError::Trailing { count: 1, .. })
            ),
            "{longer:?}"
        );
    }
    assert_eq!(Message::parse(b""), Err(ParseError::Empty));
    assert_eq!(Message::parse(b"S"), Err(ParseError::UnknownKind(b'S')));
}

#[test]
fn a_length_beyond_the_message_is_refused() {
    for length in [[0, 0, 0, 2], [0xff; 4], [0x7f, 0xff, 0xff, 0xff]] {
        let message = bytes(&[b"I\0\0\0\x07N\0\x01b", &length, b"x"]);
        assert!(matches!(
            Message::parse(&message),
            Err(ParseError::CutShort { .. })
        ));
    }
    let truncate = b"T\xff\xff\xff\xff\0\0\0\0\x01";
    assert!(Message::parse(truncate).is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(mut noise in prop::collection::vec(any::<u8>(), 0..200), kind in 0_usize..10) {
        let _parsed = Message::parse(&noise);
        if let Some(first) = noise.first_mut() {
            *first = b"BCORYIUDTM"[kind];
        }
        walk(&noise);
    }

    #[test]
    fn a_flipped_byte_never_panics(example in 0_usize..10, place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut message = examples()[example].clone();
        let place = place.index(message.len());
        message[place] = byte;
        walk(&message);
    }
}

/// Parses and walks everything that a message offers.
fn walk(bytes: &[u8]) {
    match Message::parse(bytes) {
        Ok(Message::Insert(insert)) => {
            assert_eq!(
                insert.new.columns().count(),
                usize::from(insert.new.column_count())
            );
        }
        Ok(Message::Relation(relation)) => {
            assert_eq!(
                relation.columns().count(),
                usize::from(relation.column_count())
            );
        }
        Ok(Message::Truncate(truncate)) => drop(truncate.relation_ids().count()),
        Ok(_) | Err(_) => (),
    }
}
