//! Reads blocks from a segment file, in large pieces.
//!
//! Everything that looks at stored blocks goes through here: readers, the index and recovery. It
//! blocks its thread; the callers see to that this is not a thread of the runtime.

use std::{fs::File, io};

use bytes::Bytes;
use pgcapture_engine::segment::{BLOCK_HEADER_BYTES, BadBlock, BlockHeader, HEADER_PAGE_BYTES};
use rustix::{buffer::spare_capacity, io::pread};

/// Read at once: the device and the kernel's read-ahead are at full speed with 1 MiB, and a
/// reader holds no more than that.
pub(super) const CHUNK_BYTES: u64 = 1 << 20;

/// A piece of a segment.
#[derive(Debug)]
pub(super) struct Chunk {
    bytes: Bytes,
    /// Offset in the log of the first byte that was not walked over yet.
    offset: u64,
}

/// Why a walk over a chunk ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The chunk ends inside a block that is this long.
    Partial(u64),
    /// The chunk is used up, or ends inside a header.
    End,
    /// The bytes are not a block.
    Bad(BadBlock),
}

impl Chunk {
    /// Reads `length` bytes at `offset` of the log, fewer at the end of the file.
    pub(super) fn read(file: &File, base: u64, offset: u64, length: u64) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(length.max(1));
        let start = HEADER_PAGE_BYTES + (offset - base);
        while bytes.len() < length {
            let place = start + bytes.len() as u64;
            let count = match pread(file, spare_capacity(&mut bytes), place) {
                Err(rustix::io::Errno::INTR) => continue,
                result => result?,
            };
            if count == 0 {
                break;
            }
        }
        bytes.truncate(length);
        Ok(Self {
            bytes: Bytes::from(bytes),
            offset,
        })
    }

    /// Returns what was not walked over yet.
    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes
    }

    /// Walks over the next block and checks its payload. Does not move when it stops.
    pub(super) fn step(&mut self) -> Result<(BlockHeader, Bytes), Stop> {
        let header = self.header()?;
        let length = header.block_length();
        if length > self.bytes.len() as u64 {
            return Err(Stop::Partial(length));
        }
        let length = usize::try_from(length).map_err(|_| Stop::End)?;
        let payload = self.bytes.slice(BLOCK_HEADER_BYTES..length);
        header.check(&payload).map_err(Stop::Bad)?;
        self.bytes = self.bytes.slice(length..);
        self.offset = header.end();
        Ok((header, payload))
    }

    /// Walks over the next block without looking at its payload, which may lie beyond the chunk.
    pub(super) fn step_header(&mut self) -> Result<BlockHeader, Stop> {
        let header = self.header()?;
        let length = usize::try_from(header.block_length()).unwrap_or(usize::MAX);
        self.bytes = self.bytes.slice(length.min(self.bytes.len())..);
        self.offset = header.end();
        Ok(header)
    }

    fn header(&self) -> Result<BlockHeader, Stop> {
        if self.bytes.len() < BLOCK_HEADER_BYTES {
            return Err(Stop::End);
        }
        BlockHeader::decode(&self.bytes, self.offset).map_err(Stop::Bad)
    }
}
