//! The header of a block: one accepted batch in a segment file.
//!
//! The header has a checksum of its own, so that its length can be trusted and blocks can be
//! walked without reading their payloads; the payload's checksum stands inside the header.

use bytes::Bytes;

use super::{Fields, Reader};
use crate::{
    batch::Batch,
    checkpoint::{Checkpoint, Epoch},
    lsn::{Lsn, PgTime},
};

/// Length of an encoded [`BlockHeader`].
pub const BLOCK_HEADER_BYTES: usize = 96;

/// The first bytes of every block: what recovery looks for beyond a damaged place.
pub const BLOCK_MAGIC: [u8; 4] = *b"PGB\xA7";

/// What stands before the bytes of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockHeader {
    /// CRC-32C of the payload.
    pub payload_crc: u32,
    /// Length of the payload in bytes.
    pub payload_length: u32,
    /// Number of entries.
    pub entry_count: u32,
    /// Number of entries that are changes.
    pub change_count: u32,
    /// The epoch of the writer.
    pub epoch: Epoch,
    /// The block's own offset in the log.
    pub offset: u64,
    /// Everything before this offset was durable when the block was written.
    pub durable: u64,
    /// See [`Batch::resume_lsn`].
    pub resume_lsn: Lsn,
    /// See [`Batch::commit_time`].
    pub commit_time: PgTime,
    /// First and last checkpoint; `None` when there are no entries.
    pub span: Option<(Checkpoint, Checkpoint)>,
}

/// The bytes are not a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBlock {
    /// Nothing was ever written here.
    #[error("there is no block")]
    Blank,
    /// The header does not match its checksum, or is cut.
    #[error("the block header does not match its checksum")]
    Header,
    /// The header belongs to another place in the log.
    #[error("the block belongs to another place")]
    Misplaced,
    /// The payload does not match its checksum, or is cut.
    #[error("the payload does not match its checksum")]
    Payload,
}

impl BlockHeader {
    /// Makes the header of `batch`, checksum of its bytes included.
    ///
    /// Returns `None` when the batch has 4 GiB or more; PostgreSQL's rows end at 1 GiB.
    #[must_use]
    pub fn of(batch: &Batch, epoch: Epoch, offset: u64, durable: u64) -> Option<Self> {
        Some(Self {
            payload_crc: crc32c::crc32c(&batch.entries),
            payload_length: u32::try_from(batch.entries.len()).ok()?,
            entry_count: batch.entry_count,
            change_count: batch.change_count,
            epoch,
            offset,
            durable,
            resume_lsn: batch.resume_lsn,
            commit_time: batch.commit_time,
            span: batch.span,
        })
    }

    /// Returns the bytes of the header, checksum included.
    #[must_use]
    pub fn encode(&self) -> [u8; BLOCK_HEADER_BYTES] {
        let (first, last) = self.span.unwrap_or_default();
        let mut bytes = [0; BLOCK_HEADER_BYTES];
        let mut at = Fields::new(&mut bytes);
        at.put(&BLOCK_MAGIC);
        at.put(&[0; 4]); // the checksum
        at.put(&self.payload_crc.to_le_bytes());
        at.put(&self.payload_length.to_le_bytes());
        at.put(&self.entry_count.to_le_bytes());
        at.put(&self.change_count.to_le_bytes());
        at.put(&u64::from(self.span.is_some()).to_le_bytes());
        at.put(&self.epoch.0.to_le_bytes());
        at.put(&self.offset.to_le_bytes());
        at.put(&self.durable.to_le_bytes());
        at.put(&self.resume_lsn.0.to_le_bytes());
        at.put(&self.commit_time.0.to_le_bytes());
        at.put(&first.lsn.0.to_le_bytes());
        at.put(&last.lsn.0.to_le_bytes());
        at.put(&first.seq.to_le_bytes());
        at.put(&last.seq.to_le_bytes());
        let crc = crc32c::crc32c(bytes.get(8..).unwrap_or_default());
        if let Some(place) = bytes.get_mut(4..8) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    }

    /// Reads the header of the block that has to begin at `offset`, from the first of `bytes`.
    ///
    /// # Errors
    ///
    /// [`BadBlock`]; never [`BadBlock::Payload`], as the payload is not looked at.
    pub fn decode(bytes: &[u8], offset: u64) -> Result<Self, BadBlock> {
        let Some(header) = bytes.first_chunk::<BLOCK_HEADER_BYTES>() else {
            let blank = bytes.iter().all(|byte| *byte == 0);
            return Err(if blank {
                BadBlock::Blank
            } else {
                BadBlock::Header
            });
        };
        if header == &[0; BLOCK_HEADER_BYTES] {
            return Err(BadBlock::Blank);
        }
        let mut at = Reader(header);
        let matches =
            at.array() == Some(BLOCK_MAGIC) && at.u32() == header.get(8..).map(crc32c::crc32c);
        let header = matches.then(|| Self::fields(at)).flatten();
        match header.ok_or(BadBlock::Header)? {
            header if header.offset == offset => Ok(header),
            _ => Err(BadBlock::Misplaced),
        }
    }

    fn fields(mut at: Reader<'_>) -> Option<Self> {
        let mut header = Self {
            payload_crc: at.u32()?,
            payload_length: at.u32()?,
            entry_count: at.u32()?,
            change_count: at.u32()?,
            ..Self::default()
        };
        let has_span = at.u64()? != 0;
        header.epoch = Epoch(at.u64()?);
        header.offset = at.u64()?;
        header.durable = at.u64()?;
        header.resume_lsn = Lsn(at.u64()?);
        header.commit_time = PgTime(at.i64()?);
        let (first, last) = (Lsn(at.u64()?), Lsn(at.u64()?));
        let (first_seq, last_seq) = (at.u32()?, at.u32()?);
        header.span = has_span.then_some((
            Checkpoint::new(first, first_seq),
            Checkpoint::new(last, last_seq),
        ));
        Some(header)
    }

    /// Returns the length of the whole block.
    #[must_use]
    pub const fn block_length(&self) -> u64 {
        BLOCK_HEADER_BYTES as u64 + self.payload_length as u64
    }

    /// Returns the offset after the block.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.block_length())
    }

    /// Checks the payload.
    ///
    /// # Errors
    ///
    /// [`BadBlock::Payload`].
    pub fn check(&self, payload: &[u8]) -> Result<(), BadBlock> {
        let matches = payload.len() as u64 == u64::from(self.payload_length)
            && crc32c::crc32c(payload) == self.payload_crc;
        matches.then_some(()).ok_or(BadBlock::Payload)
    }

    /// Makes the batch again; `entries` are the checked payload.
    #[must_use]
    pub const fn batch(&self, entries: Bytes) -> Batch {
        Batch {
            entries,
            span: self.span,
            entry_count: self.entry_count,
            change_count: self.change_count,
            resume_lsn: self.resume_lsn,
            commit_time: self.commit_time,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, EntryKind};

    fn batch() -> Batch {
        let mut builder = BatchBuilder::default();
        builder.push(Checkpoint::new(Lsn(5), 0), EntryKind::Begin, &[0x0A, 0]);
        builder.push(Checkpoint::new(Lsn(5), 1), EntryKind::Change, &[0x1A, 0]);
        builder.finish(Lsn(6), PgTime(-7))
    }

    #[test]
    fn a_block_comes_back() {
        for batch in [batch(), Batch::progress(Lsn(8), PgTime(1))] {
            let header = BlockHeader::of(&batch, Epoch(2), 1_000, 500).unwrap();
            let read = BlockHeader::decode(&header.encode(), 1_000).unwrap();
            assert_eq!(read, header);
            assert_eq!(read.end(), 1_096 + batch.entries.len() as u64);
            read.check(&batch.entries).unwrap();
            assert_eq!(read.batch(batch.entries.clone()), batch);
        }
    }

    #[test]
    fn any_flipped_bit_of_a_block_is_seen() {
        let batch = batch();
        let header = BlockHeader::of(&batch, Epoch(2), 0, 0).unwrap();
        let bytes = header.encode();
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(BlockHeader::decode(&bytes, 0), Err(BadBlock::Header));
        }
        for bit in 0..batch.entries.len() * 8 {
            let mut payload = batch.entries.to_vec();
            payload[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(header.check(&payload), Err(BadBlock::Payload));
        }
        let cut = &batch.entries[1..];
        assert_eq!(header.check(cut), Err(BadBlock::Payload));
    }

    #[test]
    fn blank_space_and_a_block_of_another_place_are_told_apart() {
        assert_eq!(BlockHeader::decode(&[0; 200], 0), Err(BadBlock::Blank));
        assert_eq!(BlockHeader::decode(&[0; 20], 0), Err(BadBlock::Blank));
        assert_eq!(BlockHeader::decode(&[1; 20], 0), Err(BadBlock::Header));
        let header = BlockHeader::of(&batch(), Epoch(2), 96, 0).unwrap();
        let elsewhere = BlockHeader::decode(&header.encode(), 192);
        assert_eq!(elsewhere, Err(BadBlock::Misplaced));
    }
}
