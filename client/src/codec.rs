//! The gRPC codec of the `Capture` call: requests by prost, answers as they are.
//!
//! An answer is taken as a slice of the receive buffer and read in place by `wire`.

use bytes::{Buf, Bytes};
use pgcapture_proto::pgcapture::CaptureRequest;
use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Read and write buffers: large reads mean few wake-ups at hundreds of thousands of messages
/// a second.
const BUFFER_BYTES: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CaptureCodec;

impl Codec for CaptureCodec {
    type Encode = CaptureRequest;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for CaptureCodec {
    type Item = CaptureRequest;
    type Error = Status;

    fn encode(&mut self, item: CaptureRequest, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buf)
            .map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, BUFFER_BYTES)
    }
}

impl Decoder for CaptureCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, BUFFER_BYTES)
    }
}
