//! Reads `CaptureRequest`s from the body of a gRPC request.
//!
//! Acknowledgements come as fast as rows go out, so those are read by hand, in the form that every
//! client sends, without a protobuf value; anything else goes through prost. Owns the bytes of
//! incomplete frames, never more than one frame above the limit.

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use pgcapture_actors::gateway::{RequestError, RequestSource, Requested};
use pgcapture_engine::{
    capture_frame::LAST_ROW,
    checkpoint::Checkpoint,
    ledger::{ALL_ROWS, Ack, AckKind},
    lsn::Lsn,
};
use pgcapture_proto::pgcapture::{CaptureAck, CaptureRequest, capture_request};
use prost::{Message, encoding::decode_varint};
use tonic::body::Body;

/// A larger request is refused: an init with a thousand table patterns has some 64 KiB.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Acknowledgements that are handed on together at most.
const ACKS_TOGETHER_MAX: usize = 4_096;

/// A reason is kept with the range and shown; a consumer that sends a whole trace is cut short.
const REASON_CHARS_MAX: usize = 500;

/// Compressed flag and length.
const FRAME_HEADER_BYTES: usize = 5;

/// An idle stream keeps no more room than this for what it may receive.
const IDLE_BUFFER_BYTES: usize = 4_096;

/// The requests of one Capture stream.
#[derive(Debug)]
pub struct CaptureRequests {
    body: Body,
    buffer: BytesMut,
    is_ended: bool,
}

impl CaptureRequests {
    /// Reads requests from `body`.
    #[must_use]
    pub fn new(body: Body) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            is_ended: false,
        }
    }

    /// Reads requests from what has come already, then from `body`.
    #[must_use]
    pub fn after(buffer: BytesMut, body: Body) -> Self {
        Self {
            body,
            buffer,
            is_ended: false,
        }
    }

    /// Takes requests from the buffer: acknowledgements until something else comes.
    fn take(&mut self, acks: &mut Vec<Ack>) -> Result<Option<Requested>, RequestError> {
        while acks.len() < ACKS_TOGETHER_MAX {
            let Some(length) = frame_length(&self.buffer)? else {
                break;
            };
            let frame = self
                .buffer
                .get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + length)
                .unwrap_or_default();
            let request = match parse_ack(frame) {
                Some(ack) => Decoded::Ack(ack),
                None => decode(frame)?,
            };
            self.buffer.advance(FRAME_HEADER_BYTES + length);
            match request {
                Decoded::Ack(ack) => acks.push(ack),
                Decoded::Other(requested) => return Ok(Some(requested)),
            }
        }
        if self.buffer.is_empty() && self.buffer.capacity() > IDLE_BUFFER_BYTES {
            self.buffer = BytesMut::new();
        }
        Ok(None)
    }

    fn receive(
        &mut self,
        frame: Option<Result<http_body::Frame<bytes::Bytes>, tonic::Status>>,
    ) -> Result<(), RequestError> {
        match frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.buffer.extend_from_slice(data);
                }
                Ok(())
            }
            Some(Err(status)) => Err(RequestError::Disconnected {
                reason: status.message().to_owned(),
            }),
            None if self.buffer.is_empty() => {
                self.is_ended = true;
                Ok(())
            }
            None => Err(RequestError::Malformed {
                reason: "the stream ends in the middle of a message".to_owned(),
            }),
        }
    }
}

#[async_trait]
impl RequestSource for CaptureRequests {
    async fn next(&mut self, acks: &mut Vec<Ack>) -> Result<Requested, RequestError> {
        loop {
            if let Some(requested) = self.take(acks)? {
                return Ok(requested);
            }
            if acks.len() >= ACKS_TOGETHER_MAX {
                return Ok(Requested::Acks);
            }
            if self.is_ended {
                return Ok(Requested::End);
            }
            // What has arrived already is handed on together with what was there.
            let frame = if acks.is_empty() {
                self.body.frame().await
            } else {
                match self.body.frame().now_or_never() {
                    Some(frame) => frame,
                    None => return Ok(Requested::Acks),
                }
            };
            self.receive(frame)?;
        }
    }
}

enum Decoded {
    Ack(Ack),
    Other(Requested),
}

/// Returns the first frame's message once all of it is there.
pub(super) fn first_frame(buffer: &[u8]) -> Result<Option<&[u8]>, RequestError> {
    let length = frame_length(buffer)?;
    Ok(length.and_then(|length| buffer.get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + length)))
}

/// Returns the length of the first frame's message once all of it is there.
fn frame_length(buffer: &[u8]) -> Result<Option<usize>, RequestError> {
    let Some(([flag, length @ ..], rest)) = buffer.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Ok(None);
    };
    if *flag != 0 {
        return Err(RequestError::Malformed {
            reason: "compressed messages are not supported".to_owned(),
        });
    }
    let length = u32::from_be_bytes(*length) as usize;
    if length > REQUEST_BYTES_MAX {
        return Err(RequestError::TooLarge {
            length,
            most: REQUEST_BYTES_MAX,
        });
    }
    Ok((rest.len() >= length).then_some(length))
}

/// Reads `CaptureRequest { ack: CaptureAck { checkpoint, requeue_reason, cumulative } }` as every
/// client encodes it; `None` when it is anything else.
#[inline]
fn parse_ack(frame: &[u8]) -> Option<Ack> {
    let (ack, rest) = field(frame, 0x12)?;
    if !rest.is_empty() {
        return None;
    }
    let (mut checkpoint, mut rest) = field(ack, 0x0A)?;
    let mut kind = AckKind::Done;
    if let Some((reason, after)) = field(rest, 0x12) {
        if !reason.is_empty() {
            kind = AckKind::Requeue;
        }
        rest = after;
    }
    if kind == AckKind::Done && rest == [0x18, 0x01] {
        (kind, rest) = (AckKind::UpTo, &[]);
    }
    let lsn = varint(&mut checkpoint, 0x08)?;
    let seq = varint(&mut checkpoint, 0x10)?;
    // `data` is empty on everything that this gateway sends; left out or sent as empty.
    // `data` is empty on changes, left out or sent as empty, and short on rows of dumps.
    let data = match checkpoint {
        [] => &[],
        [0x1A, length, data @ ..] if usize::from(*length) == data.len() => data,
        _ => return None,
    };
    if !rest.is_empty() || (lsn != 0 && !data.is_empty()) {
        return None;
    }
    // The reason of a row that is sent back counts: see `decode`.
    if lsn == 0 && kind == AckKind::Requeue {
        return None;
    }
    Some(Ack {
        checkpoint: Checkpoint::new(Lsn(lsn), u32::try_from(seq).ok()?),
        kind: with_data(kind, lsn, data),
    })
}

/// A cumulative acknowledgement of a row of a dump says by `data` how far. Without it, in a session
/// without batches, it can stand for no more than one row: which one is not known.
fn with_data(kind: AckKind, lsn: u64, data: &[u8]) -> AckKind {
    match (kind, lsn, data) {
        (AckKind::UpTo, 0, [LAST_ROW]) => AckKind::UpToRow(ALL_ROWS),
        (AckKind::UpTo, 0, &[a, b, c, d]) => AckKind::UpToRow(u32::from_be_bytes([a, b, c, d])),
        (AckKind::UpTo, 0, _) => AckKind::Done,
        (kind, ..) => kind,
    }
}

/// Splits off a length-delimited field of this tag.
#[inline]
fn field(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, mut rest) = bytes.split_first()?;
    if *found != tag {
        return None;
    }
    let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
    rest.split_at_checked(length)
}

/// Reads the varint of this tag if it comes next; 0 is left out by proto3.
#[inline]
fn varint(bytes: &mut &[u8], tag: u8) -> Option<u64> {
    match bytes.split_first() {
        Some((found, rest)) if *found == tag => {
            *bytes = rest;
            decode_varint(bytes).ok()
        }
        _ => Some(0),
    }
}

fn decode(frame: &[u8]) -> Result<Decoded, RequestError> {
    let request = CaptureRequest::decode(frame).map_err(|error| RequestError::Malformed {
        reason: error.to_string(),
    })?;
    Ok(match request.r#type {
        Some(capture_request::Type::Init(init)) => Decoded::Other(Requested::Init(init)),
        Some(capture_request::Type::Credit(credit)) => {
            Decoded::Other(Requested::Credit(credit.messages))
        }
        Some(capture_request::Type::Ack(ack)) => {
            let Ack { checkpoint, kind } = to_ack(&ack)?;
            match kind {
                AckKind::Requeue if checkpoint.lsn == Lsn::ZERO => {
                    Decoded::Other(Requested::RefuseRow {
                        range: checkpoint.seq,
                        reason: ack.requeue_reason.chars().take(REASON_CHARS_MAX).collect(),
                    })
                }
                AckKind::Requeue | AckKind::Done | AckKind::UpTo | AckKind::UpToRow(_) => {
                    Decoded::Ack(Ack { checkpoint, kind })
                }
            }
        }
        // Nothing that this version knows: a newer client's, to be ignored.
        None => Decoded::Other(Requested::Acks),
    })
}

fn to_ack(ack: &CaptureAck) -> Result<Ack, RequestError> {
    let checkpoint = ack
        .checkpoint
        .as_ref()
        .ok_or_else(|| RequestError::Malformed {
            reason: "an ack without a checkpoint".to_owned(),
        })?;
    let kind = if !ack.requeue_reason.is_empty() {
        AckKind::Requeue
    } else if ack.cumulative {
        AckKind::UpTo
    } else {
        AckKind::Done
    };
    Ok(Ack {
        checkpoint: Checkpoint::new(Lsn(checkpoint.lsn), checkpoint.seq),
        kind: with_data(kind, checkpoint.lsn, &checkpoint.data),
    })
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use pgcapture_proto::pgcapture::{CaptureInit, Checkpoint as WireCheckpoint, Credit};

    use super::*;

    fn ack(lsn: u64, seq: u32, reason: &str, cumulative: bool) -> CaptureRequest {
        CaptureRequest {
            r#type: Some(capture_request::Type::Ack(CaptureAck {
                checkpoint: Some(WireCheckpoint {
                    lsn,
                    seq,
                    ..WireCheckpoint::default()
                }),
                requeue_reason: reason.to_owned(),
                cumulative,
            })),
        }
    }

    fn framed(request: &CaptureRequest) -> Vec<u8> {
        let message = request.encode_to_vec();
        let mut frame = vec![0];
        frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(&message);
        frame
    }

    fn body(chunks: Vec<Vec<u8>>) -> CaptureRequests {
        let frames = chunks
            .into_iter()
            .map(|chunk| Ok::<_, tonic::Status>(http_body::Frame::data(chunk.into())));
        let stream = futures_util::stream::iter(frames);
        CaptureRequests::new(Body::new(StreamBody::new(stream)))
    }

    #[test]
    fn the_fast_path_reads_what_prost_reads() {
        let answers = [("", false), ("busy", false), ("", true), ("b", true)];
        for lsn in [0, 1, 300, u64::MAX] {
            for seq in [0, 1, u32::MAX] {
                for (reason, cumulative) in answers {
                    let request = ack(lsn, seq, reason, cumulative);
                    let bytes = request.encode_to_vec();
                    // A reason beside `cumulative` is rare enough for the slow path, and one about a
                    // row of a dump is no mere acknowledgement.
                    let is_rare = !reason.is_empty() && (cumulative || lsn == 0);
                    match decode(&bytes) {
                        Ok(Decoded::Ack(expected)) => {
                            assert_eq!(parse_ack(&bytes), (!is_rare).then_some(expected));
                        }
                        _ => assert!(is_rare && lsn == 0 && parse_ack(&bytes).is_none()),
                    }
                }
            }
        }
        assert_eq!(parse_ack(&CaptureRequest::default().encode_to_vec()), None);
    }

    #[test]
    fn the_data_of_a_row_says_how_far_a_cumulative_answer_goes() {
        let kind_of = |lsn, cumulative, data: &'static [u8]| {
            let mut request = ack(lsn, 7, "", cumulative);
            if let Some(capture_request::Type::Ack(ack)) = &mut request.r#type {
                let checkpoint = ack.checkpoint.as_mut().unwrap();
                checkpoint.data = bytes::Bytes::from_static(data);
            }
            let bytes = request.encode_to_vec();
            let Ok(Decoded::Ack(slow)) = decode(&bytes) else {
                panic!("an ack");
            };
            assert!(parse_ack(&bytes).is_none_or(|fast| fast == slow));
            // What is answered a million times a second must not take the slow path.
            assert!(parse_ack(&bytes).is_some() || lsn > 0);
            slow.kind
        };
        for (cumulative, data, expected) in [
            (false, &[][..], AckKind::Done),
            (false, &[1], AckKind::Done),
            (false, &[0, 0, 1, 2], AckKind::Done),
            (true, &[], AckKind::Done),
            (true, &[1], AckKind::UpToRow(ALL_ROWS)),
            (true, &[0, 0, 1, 2], AckKind::UpToRow(258)),
            (true, &[2, 2], AckKind::Done),
        ] {
            assert_eq!(kind_of(0, cumulative, data), expected, "{data:?}");
        }
        assert_eq!(
            kind_of(9, true, &[1]),
            AckKind::UpTo,
            "a change has its own position"
        );
    }

    #[tokio::test]
    async fn a_refused_row_comes_with_its_reason_cut_short() {
        let long = "x".repeat(REASON_CHARS_MAX + 1);
        let mut bytes = framed(&ack(0, 7, "", false));
        bytes.extend(framed(&ack(0, 7, &long, false)));
        let (mut requests, mut acks) = (body(vec![bytes]), Vec::new());
        let refused = requests.next(&mut acks).await.unwrap();
        let reason = long[1..].to_owned();
        assert_eq!(refused, Requested::RefuseRow { range: 7, reason });
        assert_eq!(acks.len(), 1, "what came before comes first");
    }

    #[tokio::test]
    async fn frames_cut_anywhere_come_out_whole() {
        let init = CaptureRequest {
            r#type: Some(capture_request::Type::Init(CaptureInit {
                uri: "shop".to_owned(),
                parameters: None,
            })),
        };
        let credit = CaptureRequest {
            r#type: Some(capture_request::Type::Credit(Credit { messages: 3 })),
        };
        let mut bytes = framed(&init);
        for seq in 1..=3 {
            bytes.extend(framed(&ack(9, seq, "", false)));
        }
        bytes.extend(framed(&credit));
        for size in 1..bytes.len() {
            let mut requests = body(bytes.chunks(size).map(<[u8]>::to_vec).collect());
            let mut acks = Vec::new();
            let first = requests.next(&mut acks).await.unwrap();
            assert!(matches!(first, Requested::Init(init) if init.uri == "shop"));
            let mut requested = Requested::Acks;
            while requested == Requested::Acks {
                requested = requests.next(&mut acks).await.unwrap();
            }
            assert_eq!(requested, Requested::Credit(3));
            let seqs: Vec<_> = acks.iter().map(|ack| ack.checkpoint.seq).collect();
            assert_eq!(seqs, [1, 2, 3]);
            assert_eq!(requests.next(&mut acks).await, Ok(Requested::End));
        }
    }

    #[tokio::test]
    async fn bad_frames_are_refused() {
        let too_large = u32::try_from(REQUEST_BYTES_MAX).unwrap() + 1;
        let mut oversized = vec![0];
        oversized.extend_from_slice(&too_large.to_be_bytes());
        for (bytes, expected) in [
            (oversized, "larger than the limit"),
            (vec![1, 0, 0, 0, 0], "compressed"),
            (vec![0, 0, 0, 0, 1, 0xFF], "malformed"),
            (vec![0, 0, 0, 0, 9, 1], "middle"),
            (framed(&ack(1, 1, "", false))[..9].to_vec(), "middle"),
            (vec![0, 0, 0, 0, 2, 0x12, 0], "without a checkpoint"),
        ] {
            let error = body(vec![bytes]).next(&mut Vec::new()).await.unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
