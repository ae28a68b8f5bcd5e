//! Reads the bytes of a `CaptureMessage` in place: one pass, one allocation a row.
//!
//! The generated types would allocate every column name; at half a million messages a second
//! that is most of the work. This walker keeps positions inside the received buffer instead.
//! Unknown fields are skipped, as proto3 wants. Never panics on what the wire brings.

use bytes::Bytes;

use crate::{
    checkpoint::Checkpoint,
    error::Error,
    lsn::Lsn,
    raw::{Cell, CellKind, Operation, RawChange, RawRow, Span},
};

/// One parsed message: where it stands and what it says.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) body: Body,
    /// Microseconds since 2000-01-01 UTC; 0 = not sent.
    pub(crate) commit_time: u64,
}

/// What a message says. Rare kinds stay bytes and are decoded with the generated types.
#[derive(Debug)]
pub(crate) enum Body {
    Change(RawChange),
    Begin(Bytes),
    Commit(Bytes),
    Truncate(Bytes),
    Logical(Bytes),
    Gap(Bytes),
    Batch(Bytes),
    /// A message of a kind that this version does not know.
    Unknown,
}

const TRUNCATED: Error = Error::Protocol("a message ends too early");
const VARINT: Error = Error::Protocol("a number is too long");
const WIRE_TYPE: Error = Error::Protocol("a field has an unknown wire type");
const UTF8: Error = Error::Protocol("a name is not UTF-8");
const TOO_LARGE: Error = Error::Protocol("a message is larger than 4 GiB");

/// A field of a protobuf message.
enum Value<'a> {
    Number(u64),
    /// Start in the walked buffer, and the bytes.
    Bytes(usize, &'a [u8]),
}

/// Walks the fields of one message.
struct Walker<'a> {
    buf: &'a [u8],
    at: usize,
}

impl<'a> Walker<'a> {
    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = *self.buf.get(self.at).ok_or(TRUNCATED)?;
            self.at += 1;
            if shift == 63 && byte > 1 {
                return Err(VARINT);
            }
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(VARINT)
    }

    fn take(&mut self, len: u64) -> Result<(usize, &'a [u8]), Error> {
        let start = self.at;
        let len = usize::try_from(len).map_err(|_| TRUNCATED)?;
        let end = start.checked_add(len).ok_or(TRUNCATED)?;
        let bytes = self.buf.get(start..end).ok_or(TRUNCATED)?;
        self.at = end;
        Ok((start, bytes))
    }

    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, Error> {
        if self.at >= self.buf.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Bytes(self.take(8)?.0, &[]),
            2 => {
                let len = self.varint()?;
                let (start, bytes) = self.take(len)?;
                Value::Bytes(start, bytes)
            }
            5 => Value::Bytes(self.take(4)?.0, &[]),
            _ => return Err(WIRE_TYPE),
        };
        Ok(Some((key >> 3, value)))
    }
}

/// Parses one `CaptureMessage`.
pub(crate) fn parse(buf: &Bytes) -> Result<Parsed, Error> {
    let mut walker = Walker { buf, at: 0 };
    let mut checkpoint = Checkpoint::default();
    let mut body = Body::Unknown;
    let mut commit_time = 0;
    while let Some((number, value)) = walker.next()? {
        match (number, value) {
            (1, Value::Bytes(_, bytes)) => checkpoint = parse_checkpoint(buf, bytes)?,
            (2, Value::Bytes(start, bytes)) => {
                let end = start + bytes.len();
                body = Body::Change(parse_change(buf.slice(start..end))?);
            }
            (3, Value::Bytes(_, bytes)) => body = Body::Begin(buf.slice_ref(bytes)),
            (4, Value::Bytes(_, bytes)) => body = Body::Commit(buf.slice_ref(bytes)),
            (5, Value::Bytes(_, bytes)) => body = Body::Truncate(buf.slice_ref(bytes)),
            (6, Value::Bytes(_, bytes)) => body = Body::Logical(buf.slice_ref(bytes)),
            (7, Value::Bytes(_, bytes)) => body = Body::Gap(buf.slice_ref(bytes)),
            (8, Value::Bytes(_, bytes)) => body = Body::Batch(buf.slice_ref(bytes)),
            (9, Value::Number(micros)) => commit_time = micros,
            _ => {}
        }
    }
    Ok(Parsed {
        checkpoint,
        body,
        commit_time,
    })
}

fn parse_checkpoint(buf: &Bytes, bytes: &[u8]) -> Result<Checkpoint, Error> {
    let mut walker = Walker { buf: bytes, at: 0 };
    let (mut lsn, mut seq, mut data) = (0, 0, Bytes::new());
    while let Some((number, value)) = walker.next()? {
        match (number, value) {
            (1, Value::Number(number)) => lsn = number,
            (2, Value::Number(number)) => {
                seq = u32::try_from(number).map_err(|_| VARINT)?;
            }
            (3, Value::Bytes(_, bytes)) if !bytes.is_empty() => data = buf.slice_ref(bytes),
            _ => {}
        }
    }
    Ok(Checkpoint::new(Lsn::new(lsn), seq, data))
}

/// Takes the next message off a `CaptureBatch`; `None` at its end.
pub(crate) fn next_of_batch(batch: &mut Bytes) -> Result<Option<Parsed>, Error> {
    while !batch.is_empty() {
        let mut walker = Walker { buf: batch, at: 0 };
        let field = walker.next()?;
        let taken = walker.at;
        let message = match field {
            Some((1, Value::Bytes(start, bytes))) => Some(start..start + bytes.len()),
            _ => None,
        };
        let head = batch.split_to(taken);
        if let Some(range) = message {
            let parsed = parse(&head.slice(range))?;
            if matches!(parsed.body, Body::Batch(_)) {
                return Err(Error::Protocol("a batch inside a batch"));
            }
            return Ok(Some(parsed));
        }
    }
    Ok(None)
}

fn span(start: usize, bytes: &[u8]) -> Span {
    // The length of the whole buffer was checked against u32 in `parse_change`.
    Span {
        start: start as u32,
        len: bytes.len() as u32,
    }
}

fn parse_change(buf: Bytes) -> Result<RawChange, Error> {
    if u32::try_from(buf.len()).is_err() {
        return Err(TOO_LARGE);
    }
    let mut walker = Walker { buf: &buf, at: 0 };
    let (mut op, mut schema, mut table) = (0, Span::default(), Span::default());
    let (mut new, mut old) = (Vec::new(), Vec::new());
    while let Some((number, value)) = walker.next()? {
        match (number, value) {
            (1, Value::Number(number)) => op = number,
            (2, Value::Bytes(start, bytes)) => schema = name_span(start, bytes)?,
            (3, Value::Bytes(start, bytes)) => table = name_span(start, bytes)?,
            (4, Value::Bytes(start, bytes)) => push_cell(&mut new, start, bytes)?,
            (5, Value::Bytes(start, bytes)) => push_cell(&mut old, start, bytes)?,
            _ => {}
        }
    }
    let op = match op {
        0 => Operation::Insert,
        1 => Operation::Update,
        2 => Operation::Delete,
        _ => return Err(Error::Protocol("an unknown operation")),
    };
    let new = RawRow::new(buf.clone(), schema, table, new);
    let old = RawRow::new(buf, schema, table, old);
    Ok(RawChange::new(op, new, old))
}

fn push_cell(cells: &mut Vec<Cell>, start: usize, bytes: &[u8]) -> Result<(), Error> {
    if cells.is_empty() {
        cells.reserve_exact(8);
    }
    cells.push(parse_cell(start, bytes)?);
    Ok(())
}

fn name_span(start: usize, bytes: &[u8]) -> Result<Span, Error> {
    std::str::from_utf8(bytes).map_err(|_| UTF8)?;
    Ok(span(start, bytes))
}

fn parse_cell(base: usize, bytes: &[u8]) -> Result<Cell, Error> {
    let mut walker = Walker { buf: bytes, at: 0 };
    let mut cell = Cell::default();
    while let Some((number, value)) = walker.next()? {
        match (number, value) {
            (1, Value::Bytes(start, bytes)) => cell.name = name_span(base + start, bytes)?,
            (2, Value::Number(number)) => {
                cell.oid = u32::try_from(number).map_err(|_| VARINT)?;
            }
            (3, Value::Bytes(start, bytes)) => {
                cell.kind = CellKind::Binary;
                cell.value = span(base + start, bytes);
            }
            (4, Value::Bytes(start, bytes)) => {
                cell.kind = CellKind::Text;
                cell.value = name_span(base + start, bytes)?;
            }
            _ => {}
        }
    }
    Ok(cell)
}

#[cfg(test)]
mod tests {
    use pgcapture_proto::pgcapture as proto;
    use prost::Message;

    use super::*;

    fn sample() -> proto::CaptureMessage {
        let field = |name: &str, value| proto::Field {
            name: name.into(),
            oid: 23,
            value,
        };
        proto::CaptureMessage {
            checkpoint: Some(proto::Checkpoint {
                lsn: u64::MAX,
                seq: 7,
                data: Bytes::from_static(b"pos"),
            }),
            change: Some(proto::Change {
                op: proto::change::Operation::Update.into(),
                schema: "public".into(),
                table: "orders".into(),
                new: vec![
                    field(
                        "id",
                        Some(proto::field::Value::Binary(vec![0, 0, 0, 9].into())),
                    ),
                    field("note", Some(proto::field::Value::Text("hi".into()))),
                    field("gone", None),
                ],
                old: vec![field(
                    "id",
                    Some(proto::field::Value::Binary(vec![1].into())),
                )],
            }),
            commit_time: 42,
            ..Default::default()
        }
    }

    #[test]
    fn walker_agrees_with_the_generated_types() {
        let parsed = parse(&sample().encode_to_vec().into()).unwrap();
        assert_eq!(parsed.checkpoint.lsn(), Lsn::new(u64::MAX));
        assert_eq!(
            (parsed.checkpoint.seq(), parsed.checkpoint.data()),
            (7, &b"pos"[..])
        );
        assert_eq!(parsed.commit_time, 42);
        let Body::Change(change) = parsed.body else {
            panic!("not a change")
        };
        assert_eq!((change.schema(), change.table()), ("public", "orders"));
        let names: Vec<_> = change
            .new_row()
            .columns()
            .map(|(name, _)| name.to_owned())
            .collect();
        assert_eq!(names, ["id", "note", "gone"]);
        assert_eq!(change.new_row().get::<i32>("id").unwrap(), 9);
        assert_eq!(change.new_row().get::<String>("note").unwrap(), "hi");
        assert_eq!(change.new_row().get::<Option<i32>>("gone").unwrap(), None);
        assert_eq!(change.old_row().columns().count(), 1);
    }

    #[test]
    fn every_truncation_and_bit_flip_is_an_error_or_a_message_but_never_a_panic() {
        let bytes = sample().encode_to_vec();
        for end in 0..bytes.len() {
            let _parsed = parse(&Bytes::copy_from_slice(&bytes[..end]));
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                if let Ok(Parsed {
                    body: Body::Change(change),
                    ..
                }) = parse(&flipped.into())
                {
                    let _read = change.new_row().get::<i32>("id");
                    let _text = format!("{change:?}");
                }
            }
        }
    }

    #[test]
    fn batches_are_taken_apart_in_order_and_do_not_nest() {
        let mut second = sample();
        second.commit_time = 43;
        let batch = proto::CaptureBatch {
            messages: vec![sample(), second],
        };
        let mut bytes = Bytes::from(batch.encode_to_vec());
        assert_eq!(next_of_batch(&mut bytes).unwrap().unwrap().commit_time, 42);
        assert_eq!(next_of_batch(&mut bytes).unwrap().unwrap().commit_time, 43);
        assert!(next_of_batch(&mut bytes).unwrap().is_none());
        let nested = proto::CaptureBatch {
            messages: vec![proto::CaptureMessage {
                batch: Some(batch),
                ..Default::default()
            }],
        };
        assert!(next_of_batch(&mut nested.encode_to_vec().into()).is_err());
    }
}
