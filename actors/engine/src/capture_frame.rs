//! Writes what a consumer receives: `CaptureMessage`s framed for gRPC.
//!
//! The encoded row of a log entry is copied once, untouched, behind its checkpoint; no protobuf value
//! is built. A frame is a zero byte (not compressed), the length as u32 big-endian, the message.

use bytes::{BufMut, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};

use crate::{
    batch::{Entry, EntryKind},
    checkpoint::Checkpoint,
    lsn::{Lsn, PgTime},
};

/// Bytes of a gRPC frame before its message.
pub const FRAME_HEADER_BYTES: usize = 5;

/// Tag of `CaptureMessage.batch`.
const BATCH_TAG: u8 = 0x42;

/// Tag of `CaptureMessage.commit_time`.
const COMMIT_TIME_TAG: u8 = 0x48;

/// Tag of `CaptureMessage.checkpoint` and of `CaptureBatch.messages`.
const FIRST_FIELD_TAG: u8 = 0x0A;

/// Tag of `Checkpoint.data`.
const DATA_TAG: u8 = 0x1A;

/// `Checkpoint.data` of the last row of a range.
pub const LAST_ROW: u8 = 1;

/// What a checkpoint says beside the position: `Checkpoint.data`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Data {
    /// Nothing.
    #[default]
    None,
    /// A row of a dump: its place in the range, from 1, so that a cumulative acknowledgement says
    /// how far. Four bytes, big-endian; only for sessions that asked for batches.
    Row(u32),
    /// The last row of a range: one byte.
    LastRow,
}

impl Data {
    /// Bytes on the wire, tag and length included.
    const fn length(self) -> usize {
        match self {
            Self::None => 0,
            Self::Row(_) => 6,
            Self::LastRow => 3,
        }
    }
}

/// One message to write.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Its position.
    pub checkpoint: Checkpoint,
    /// The encoded `pgcapture.Message` of the log.
    pub payload: &'a [u8],
    /// Commit time to put on it; `None` for consumers that did not ask.
    pub commit_time: Option<PgTime>,
    /// What its checkpoint says beside the position.
    pub data: Data,
}

impl Outgoing<'_> {
    #[inline]
    fn checkpoint_length(&self) -> usize {
        checkpoint_length(self.checkpoint) + self.data.length()
    }

    fn message_length(&self) -> usize {
        let time = self
            .commit_time
            .map_or(0, |time| 1 + encoded_len_varint(time.0.cast_unsigned()));
        2 + self.checkpoint_length() + self.payload.len() + time
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "a checkpoint takes at most 23 bytes"
    )]
    fn write(&self, out: &mut BytesMut) {
        let Some((log_tag, rest)) = self.payload.split_first() else {
            debug_assert!(false, "an entry has a payload");
            return;
        };
        let Checkpoint { lsn, seq } = self.checkpoint;
        out.put_u8(FIRST_FIELD_TAG);
        out.put_u8(self.checkpoint_length() as u8);
        if lsn.0 != 0 {
            out.put_u8(0x08);
            encode_varint(lsn.0, out);
        }
        if seq != 0 {
            out.put_u8(0x10);
            encode_varint(u64::from(seq), out);
        }
        match self.data {
            Data::None => {}
            Data::Row(place) => {
                out.put_slice(&[DATA_TAG, 4]);
                out.put_u32(place);
            }
            Data::LastRow => out.put_slice(&[DATA_TAG, 1, LAST_ROW]),
        }
        out.put_u8(capture_tag(*log_tag));
        out.extend_from_slice(rest);
        if let Some(time) = self.commit_time {
            out.put_u8(COMMIT_TIME_TAG);
            encode_varint(time.0.cast_unsigned(), out);
        }
    }
}

/// Appends one message as a frame of its own. Returns its length with the frame header.
pub fn push_message(out: &mut BytesMut, message: &Outgoing<'_>) -> usize {
    let length = message.message_length();
    push_header(out, length);
    message.write(out);
    FRAME_HEADER_BYTES + length
}

/// Appends all messages as one `CaptureMessage.batch`.
pub fn push_batch(out: &mut BytesMut, messages: &[Outgoing<'_>]) -> usize {
    let inner: usize = messages
        .iter()
        .map(|message| {
            let length = message.message_length();
            1 + encoded_len_varint(length as u64) + length
        })
        .sum();
    let length = 1 + encoded_len_varint(inner as u64) + inner;
    push_header(out, length);
    out.put_u8(BATCH_TAG);
    encode_varint(inner as u64, out);
    for message in messages {
        out.put_u8(FIRST_FIELD_TAG);
        encode_varint(message.message_length() as u64, out);
        message.write(out);
    }
    FRAME_HEADER_BYTES + length
}

/// Which rows of a dump these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRun {
    /// Number of the range.
    pub range: u32,
    /// Rows of the range that went out before.
    pub place_before: u32,
    /// Whether the last one here is the last of the range.
    pub is_last: bool,
}

/// Appends rows of a dump, encoded `pgcapture.Message`s, as one `CaptureMessage.batch`: what
/// [`push_batch`] writes of the same rows, faster.
pub fn push_rows(out: &mut BytesMut, run: RowRun, payloads: &[&[u8]]) {
    let before_data = checkpoint_length(Checkpoint::new(Lsn::ZERO, run.range));
    // The log's tag makes way for that of the change, which is as long.
    let length = |payload: &[u8], data: Data| 2 + before_data + data.length() + payload.len();
    let (last, others) = match payloads.split_last() {
        Some((last, others)) if run.is_last => (Some(*last), others),
        _ => (None, payloads),
    };
    let of_places = others.iter().map(|payload| length(payload, Data::Row(0)));
    let of_last = last.map(|payload| length(payload, Data::LastRow));
    let lengths = of_places.chain(of_last);
    let inner = lengths.map(|length| 1 + encoded_len_varint(length as u64) + length);
    let inner = inner.sum::<usize>();
    push_header(out, 1 + encoded_len_varint(inner as u64) + inner);
    out.put_u8(BATCH_TAG);
    encode_varint(inner as u64, out);
    let data = |(payload, place)| (payload, Data::Row(place));
    let places = run.place_before.saturating_add(1)..=u32::MAX;
    let places = others.iter().copied().zip(places).map(data);
    for (payload, data) in places.chain(last.map(|payload| (payload, Data::LastRow))) {
        let mut lead = Lead::default();
        lead.push(&[FIRST_FIELD_TAG]);
        lead.push_varint(length(payload, data) as u64);
        lead.push(&[FIRST_FIELD_TAG]);
        lead.push_varint((before_data + data.length()) as u64);
        if run.range != 0 {
            lead.push(&[0x10]);
            lead.push_varint(run.range.into());
        }
        match data {
            Data::None => {}
            Data::Row(place) => {
                lead.push(&[DATA_TAG, 4]);
                lead.push(&place.to_be_bytes());
            }
            Data::LastRow => lead.push(&[DATA_TAG, 1, LAST_ROW]),
        }
        let (log_tag, fields) = payload.split_first().unwrap_or((&0, &[]));
        lead.push(&[capture_tag(*log_tag)]);
        out.extend_from_slice(lead.written());
        out.extend_from_slice(fields);
    }
}

/// Most bytes of a row's message before its fields: tag and length of the message, of the checkpoint, its
/// range and its data, and the tag of the change.
const LEAD_BYTES_MAX: usize = (1 + 10) + (1 + 1) + (1 + 5) + 6 + 1;

/// What stands before the fields of a row, put together where it costs little.
#[derive(Default)]
struct Lead {
    bytes: [u8; LEAD_BYTES_MAX],
    length: usize,
}

impl Lead {
    #[inline]
    fn push(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        if let Some(place) = self.bytes.get_mut(self.length..end) {
            place.copy_from_slice(bytes);
            self.length = end;
        }
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "seven bits at a time")]
    fn push_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(&[value as u8 | 0x80]);
            value >>= 7;
        }
        self.push(&[value as u8]);
    }

    fn written(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

fn push_header(out: &mut BytesMut, length: usize) {
    out.reserve(FRAME_HEADER_BYTES + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).expect("a row is shorter than 4 GiB"));
}

#[inline]
fn checkpoint_length(checkpoint: Checkpoint) -> usize {
    let field = |value: u64| match value {
        0 => 0,
        value => 1 + encoded_len_varint(value),
    };
    field(checkpoint.lsn.0) + field(u64::from(checkpoint.seq))
}

/// Returns the tag under which `CaptureMessage` carries what the log has under `log_tag`.
const fn capture_tag(log_tag: u8) -> u8 {
    match EntryKind::from_tag(log_tag) {
        Some(EntryKind::Begin) => 0x1A,
        Some(EntryKind::Commit) => 0x22,
        Some(EntryKind::Truncate) => 0x2A,
        Some(EntryKind::Logical) => 0x32,
        Some(EntryKind::Gap) => 0x3A,
        Some(EntryKind::Change | EntryKind::KeepAlive) | None => 0x12,
    }
}

/// Tells whether the entry is one that carries a commit time, and which.
#[must_use]
pub fn begin_commit_time(entry: &Entry<'_>) -> Option<PgTime> {
    use pgcapture_proto::pgcapture::Begin;
    use prost::Message as _;

    if entry.kind != EntryKind::Begin {
        return None;
    }
    let begin = Begin::decode(entry.inner().ok()?).ok()?;
    Some(PgTime(begin.commit_time.cast_signed()))
}

#[cfg(test)]
mod tests {
    use pgcapture_proto::pgcapture::{
        Begin, CaptureBatch, CaptureMessage, Change, Checkpoint as WireCheckpoint, Commit, Gap,
        LogicalMessage, Message, Truncate, message,
    };
    use prost::Message as _;

    use super::*;
    use crate::lsn::Lsn;

    fn cases() -> Vec<(message::Type, CaptureMessage)> {
        let change = Change {
            op: 2,
            schema: "public".to_owned(),
            table: "t".repeat(200),
            ..Change::default()
        };
        let begin = Begin {
            final_lsn: 7,
            ..Begin::default()
        };
        let empty = CaptureMessage::default;
        vec![
            (
                message::Type::Change(change.clone()),
                CaptureMessage {
                    change: Some(change),
                    ..empty()
                },
            ),
            (
                message::Type::Begin(begin),
                CaptureMessage {
                    begin: Some(begin),
                    ..empty()
                },
            ),
            (
                message::Type::Commit(Commit::default()),
                CaptureMessage {
                    commit: Some(Commit::default()),
                    ..empty()
                },
            ),
            (
                message::Type::Truncate(Truncate::default()),
                CaptureMessage {
                    truncate: Some(Truncate::default()),
                    ..empty()
                },
            ),
            (
                message::Type::Logical(LogicalMessage::default()),
                CaptureMessage {
                    logical: Some(LogicalMessage::default()),
                    ..empty()
                },
            ),
            (
                message::Type::Gap(Gap::default()),
                CaptureMessage {
                    gap: Some(Gap::default()),
                    ..empty()
                },
            ),
        ]
    }

    #[test]
    fn rows_of_a_dump_are_what_any_batch_would_be() {
        let payloads: Vec<Vec<u8>> = [0, 1, 100, 127, 128, 20_000]
            .into_iter()
            .map(|size| [vec![EntryKind::Change.tag()], vec![7; size]].concat())
            .collect();
        let payloads: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
        for (range, place_before) in [(0, 0), (1, 5), (127, 255), (128, 1 << 20), (u32::MAX, 9)] {
            for is_last in [false, true] {
                for count in 0..=payloads.len() {
                    let payloads = &payloads[..count];
                    let (mut out, mut expected) = (BytesMut::new(), BytesMut::new());
                    let run = RowRun {
                        range,
                        place_before,
                        is_last,
                    };
                    push_rows(&mut out, run, payloads);
                    let messages = payloads.iter().zip(place_before + 1..);
                    let mut messages: Vec<_> = messages
                        .map(|(payload, place)| Outgoing {
                            checkpoint: Checkpoint::new(Lsn::ZERO, range),
                            payload,
                            commit_time: None,
                            data: Data::Row(place),
                        })
                        .collect();
                    if let Some(last) = messages.last_mut().filter(|_| is_last) {
                        last.data = Data::LastRow;
                    }
                    push_batch(&mut expected, &messages);
                    assert_eq!(out, expected, "{run:?} {count}");
                }
            }
        }
    }

    #[test]
    fn frames_are_what_prost_would_write() {
        let datas = [
            Data::None,
            Data::Row(258),
            Data::LastRow,
            Data::Row(u32::MAX),
        ];
        let positions = [(0, 0), (0, 1), (300, 0), (u64::MAX, u32::MAX)];
        for (checkpoint, data) in positions.into_iter().zip(datas) {
            let checkpoint = Checkpoint::new(Lsn(checkpoint.0), checkpoint.1);
            let wire_data: &'static [u8] = match data {
                Data::None => &[],
                Data::Row(258) => &[0, 0, 1, 2],
                Data::Row(_) => &[255; 4],
                Data::LastRow => &[1],
            };
            for commit_time in [None, Some(PgTime(1)), Some(PgTime(-1))] {
                let mut all = Vec::new();
                let payloads: Vec<_> = cases()
                    .into_iter()
                    .map(|(kind, mut expected)| {
                        expected.checkpoint = Some(WireCheckpoint {
                            lsn: checkpoint.lsn.0,
                            seq: checkpoint.seq,
                            data: bytes::Bytes::from_static(wire_data),
                        });
                        expected.commit_time = commit_time.map_or(0, |t| t.0.cast_unsigned());
                        all.push(expected);
                        Message { r#type: Some(kind) }.encode_to_vec()
                    })
                    .collect();
                let messages: Vec<_> = payloads
                    .iter()
                    .map(|payload| Outgoing {
                        checkpoint,
                        payload,
                        commit_time,
                        data,
                    })
                    .collect();
                for (message, expected) in messages.iter().zip(&all) {
                    let mut out = BytesMut::new();
                    let length = push_message(&mut out, message);
                    assert_eq!(length, out.len());
                    assert_eq!(out[5..], expected.encode_to_vec());
                    assert_eq!(out[1..5], (out.len() as u32 - 5).to_be_bytes());
                }
                let mut out = BytesMut::new();
                let length = push_batch(&mut out, &messages);
                assert_eq!(length, out.len());
                let expected = CaptureMessage {
                    batch: Some(CaptureBatch { messages: all }),
                    ..CaptureMessage::default()
                };
                assert_eq!(out[5..], expected.encode_to_vec());
            }
        }
    }
}
