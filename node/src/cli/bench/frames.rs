//! gRPC frames of a Capture stream, read and written by hand.
//!
//! A measuring consumer must cost less than what it measures: it looks at the few bytes that an
//! acknowledgement needs and builds no protobuf values. Pure: bytes in, bytes out.

use anyhow::{Context as _, bail};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use pgcapture_proto::pgcapture::{CaptureInit, CaptureRequest, capture_request};
use prost::{Message as _, encoding::decode_varint};
use prost_types::{Struct, Value};

/// Compressed flag and length.
const HEADER_BYTES: usize = 5;

/// `CaptureMessage.checkpoint`, `CaptureBatch.messages`, `CaptureAck.checkpoint`.
const FIELD_1: u8 = 0x0a;

/// `CaptureMessage.batch`.
const BATCH: u8 = 0x42;

/// `CaptureRequest.ack`.
const ACK: u8 = 0x12;

/// `CaptureAck.cumulative` and its value.
const CUMULATIVE: [u8; 2] = [0x18, 1];

/// A delivered message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivered<'a> {
    /// Encoded checkpoint of the message, or of the last one of a batch.
    pub(super) checkpoint: &'a [u8],
    /// Changes in it.
    pub(super) changes: u64,
    /// Whether it is a batch.
    pub(super) is_batch: bool,
}

impl Delivered<'_> {
    /// Appends the frame that acknowledges this message.
    pub(super) fn acknowledge(&self, out: &mut BytesMut) {
        let length = u8::try_from(self.checkpoint.len()).unwrap_or(u8::MAX);
        let more: &[u8] = if self.is_batch { &CUMULATIVE } else { &[] };
        let ack = 2 + length + if self.is_batch { 2 } else { 0 };
        out.put_u8(0);
        out.put_u32(u32::from(ack) + 2);
        out.put_slice(&[ACK, ack, FIELD_1, length]);
        out.put_slice(self.checkpoint);
        out.put_slice(more);
    }

    /// Returns LSN and sequence number.
    pub(super) fn position(&self) -> anyhow::Result<(u64, u64)> {
        let mut rest = self.checkpoint;
        let mut position = (0, 0);
        while rest.has_remaining() {
            match decode_varint(&mut rest)? {
                0x08 => position.0 = decode_varint(&mut rest)?,
                0x10 => position.1 = decode_varint(&mut rest)?,
                _ => break,
            }
        }
        Ok(position)
    }
}

/// Takes the next whole message out of what was received.
pub(super) fn next_message(received: &mut BytesMut) -> Option<Bytes> {
    let mut header = received.get(1..HEADER_BYTES)?;
    let length = usize::try_from(header.get_u32()).ok()?;
    if received.len() < HEADER_BYTES + length {
        return None;
    }
    received.advance(HEADER_BYTES);
    Some(received.split_to(length).freeze())
}

/// Looks into a `CaptureMessage`.
pub(super) fn look(message: &[u8]) -> anyhow::Result<Delivered<'_>> {
    match message.split_first() {
        Some((&FIELD_1, mut rest)) => Ok(Delivered {
            checkpoint: take(&mut rest)?,
            changes: 1,
            is_batch: false,
        }),
        Some((&BATCH, mut rest)) => {
            let mut batch = take(&mut rest)?;
            let (mut changes, mut last) = (0, &[][..]);
            while let Some((&FIELD_1, mut rest)) = batch.split_first() {
                last = take(&mut rest)?;
                batch = rest;
                changes += 1;
            }
            let last = look(last)?;
            Ok(Delivered {
                changes,
                is_batch: true,
                ..last
            })
        }
        _ => bail!("a message without a checkpoint"),
    }
}

fn take<'a>(rest: &mut &'a [u8]) -> anyhow::Result<&'a [u8]> {
    let length = usize::try_from(decode_varint(rest)?)?;
    let (taken, after) = rest.split_at_checked(length).context("a message is cut")?;
    *rest = after;
    Ok(taken)
}

/// Returns the request that opens a stream.
pub(super) fn init(
    uri: &str,
    parameters: impl IntoIterator<Item = (&'static str, Value)>,
) -> CaptureRequest {
    let fields = parameters.into_iter();
    CaptureRequest {
        r#type: Some(capture_request::Type::Init(CaptureInit {
            uri: uri.to_owned(),
            parameters: Some(Struct {
                fields: fields
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect(),
            }),
        })),
    }
}

/// Returns the frame of a request.
pub(super) fn request(request: &CaptureRequest) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(u32::try_from(request.encoded_len()).unwrap_or(u32::MAX));
    out.put_slice(&request.encode_to_vec());
    out.freeze()
}

#[cfg(test)]
mod tests {
    use pgcapture_proto::pgcapture::{CaptureBatch, CaptureMessage, Change, Checkpoint};

    use super::*;

    fn message(seq: u32) -> CaptureMessage {
        CaptureMessage {
            checkpoint: Some(Checkpoint {
                lsn: 0x1_0000_0000,
                seq,
                ..Checkpoint::default()
            }),
            change: Some(Change::default()),
            ..CaptureMessage::default()
        }
    }

    fn acknowledged(delivered: Delivered<'_>) -> (u32, bool) {
        let mut out = BytesMut::new();
        delivered.acknowledge(&mut out);
        let frame = next_message(&mut out).unwrap();
        assert!(out.is_empty());
        match CaptureRequest::decode(frame).unwrap().r#type {
            Some(capture_request::Type::Ack(ack)) => (ack.checkpoint.unwrap().seq, ack.cumulative),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_single_message_is_acknowledged_by_its_checkpoint() {
        let bytes = message(7).encode_to_vec();
        let delivered = look(&bytes).unwrap();
        assert_eq!(delivered.changes, 1);
        assert_eq!(delivered.position().unwrap(), (0x1_0000_0000, 7));
        assert_eq!(acknowledged(delivered), (7, false));
    }

    #[test]
    fn a_batch_is_acknowledged_by_its_last_checkpoint() {
        let batch = CaptureMessage {
            batch: Some(CaptureBatch {
                messages: vec![message(1), message(2)],
            }),
            ..CaptureMessage::default()
        };
        let bytes = batch.encode_to_vec();
        let delivered = look(&bytes).unwrap();
        assert_eq!(delivered.changes, 2);
        assert_eq!(acknowledged(delivered), (2, true));
    }

    #[test]
    fn half_a_frame_is_no_message() {
        let mut received = BytesMut::from(&request(&init("u", []))[..4]);
        assert_eq!(next_message(&mut received), None);
    }
}
