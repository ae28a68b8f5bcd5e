//! The format of a segment file of the embedded log, and what may be concluded from damaged bytes.
//!
//! ```text
//! segment: header page of 4,096 bytes | block | block | … | zeros up to the allocated length
//! header page: SegmentHeader at 0 | durable mark at 2,048 | zeros
//! block: BlockHeader | the bytes of `Batch.entries`
//! ```
//!
//! An *offset* counts the bytes of all blocks since the first one ever; the header says which
//! offset the first block of its segment has. Every block says its own offset, so that bytes left
//! over from an earlier use of the same disk space are never taken for a block.

mod block;

use crate::{
    checkpoint::{Checkpoint, Epoch},
    lsn::{Lsn, PgTime},
};

pub use block::{BLOCK_HEADER_BYTES, BLOCK_MAGIC, BadBlock, BlockHeader};

/// Version of the format that this program writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Length of the header page: one page, so that a mark and a header are written without touching
/// a block, and blocks begin on a page.
pub const HEADER_PAGE_BYTES: u64 = 4_096;

/// Place of the durable mark in the header page: in another sector than the header, so that a
/// torn write of the one cannot damage the other.
pub const MARK_AT: u64 = 2_048;

/// Length of an encoded [`SegmentHeader`].
pub const SEGMENT_HEADER_BYTES: usize = 96;

/// Length of an encoded durable mark.
pub const MARK_BYTES: usize = 12;

const SEGMENT_MAGIC: &[u8; 8] = b"PGCAPLOG";
const HAS_PREVIOUS: u32 = 1;
const STARTS_ANEW: u32 = 2;

/// What stands at the head of every segment file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Number of the segment; they follow one another without a hole.
    pub number: u64,
    /// The epoch that may write when the segment begins.
    pub epoch: Epoch,
    /// Offset of the first block.
    pub base_offset: u64,
    /// Last entry before the segment; `None` when there never was one.
    pub previous: Option<Checkpoint>,
    /// The log's `resume_lsn` when the segment begins.
    pub resume_lsn: Lsn,
    /// Newest commit time before the segment; zero when unknown.
    pub commit_time: PgTime,
    /// When the segment was begun, by the clock of the machine that writes. It is also when the
    /// segment before was closed: what retention by time compares.
    pub created: PgTime,
    /// The log was started anew with this segment: older ones, if a crash left any, are not part of
    /// it.
    pub starts_anew: bool,
}

/// The first bytes of a file are not a segment header that this program can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSegment {
    /// Another kind of file.
    #[error("it does not begin as a pgcapture log segment does")]
    Foreign,
    /// Written by a newer pgcapture.
    #[error("it has format version {0}, newer than {FORMAT_VERSION}")]
    Newer(u32),
    /// Too short, or the checksum does not match.
    #[error("the segment header does not match its checksum")]
    Damaged,
}

impl SegmentHeader {
    /// Returns the bytes of the header, checksum included.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let previous = self.previous.unwrap_or_default();
        let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
        let flags =
            flag(self.previous.is_some(), HAS_PREVIOUS) | flag(self.starts_anew, STARTS_ANEW);
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let mut at = Fields::new(&mut bytes);
        at.put(SEGMENT_MAGIC);
        at.put(&FORMAT_VERSION.to_le_bytes());
        at.put(&[0; 4]); // the checksum
        at.put(&self.number.to_le_bytes());
        at.put(&self.epoch.0.to_le_bytes());
        at.put(&self.base_offset.to_le_bytes());
        at.put(&previous.lsn.0.to_le_bytes());
        at.put(&previous.seq.to_le_bytes());
        at.put(&flags.to_le_bytes());
        at.put(&self.resume_lsn.0.to_le_bytes());
        at.put(&self.commit_time.0.to_le_bytes());
        at.put(&self.created.0.to_le_bytes());
        let crc = header_crc(&bytes);
        if let Some(place) = bytes.get_mut(12..16) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    }

    /// Reads a header from the first bytes of a file.
    ///
    /// # Errors
    ///
    /// [`BadSegment`]. The version is looked at before the checksum: a newer version may keep its
    /// checksum elsewhere.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadSegment> {
        let mut at = Reader(bytes);
        match at.array::<8>() {
            Some(magic) if &magic == SEGMENT_MAGIC => {}
            Some(_) => return Err(BadSegment::Foreign),
            None => return Err(BadSegment::Damaged),
        }
        let version = at.u32().ok_or(BadSegment::Damaged)?;
        if version > FORMAT_VERSION {
            return Err(BadSegment::Newer(version));
        }
        let whole = bytes
            .get(..SEGMENT_HEADER_BYTES)
            .ok_or(BadSegment::Damaged)?;
        if at.u32() != Some(header_crc(whole)) {
            return Err(BadSegment::Damaged);
        }
        Self::fields(at).ok_or(BadSegment::Damaged)
    }

    fn fields(mut at: Reader<'_>) -> Option<Self> {
        let (number, epoch, base_offset) = (at.u64()?, Epoch(at.u64()?), at.u64()?);
        let previous = Checkpoint::new(Lsn(at.u64()?), at.u32()?);
        let flags = at.u32()?;
        let has_previous = flags & HAS_PREVIOUS != 0;
        Some(Self {
            number,
            epoch,
            base_offset,
            previous: has_previous.then_some(previous),
            resume_lsn: Lsn(at.u64()?),
            commit_time: PgTime(at.i64()?),
            created: PgTime(at.i64()?),
            starts_anew: flags & STARTS_ANEW != 0,
        })
    }
}

/// The checksum of everything in the header but the checksum itself.
fn header_crc(bytes: &[u8]) -> u32 {
    let (head, tail) = bytes.split_at(12.min(bytes.len()));
    crc32c::crc32c_append(crc32c::crc32c(head), tail.get(4..).unwrap_or_default())
}

/// Encodes the durable mark: everything before `offset` is durable.
#[must_use]
pub fn encode_mark(offset: u64) -> [u8; MARK_BYTES] {
    let mut bytes = [0; MARK_BYTES];
    let mut at = Fields::new(&mut bytes);
    at.put(&offset.to_le_bytes());
    at.put(&mark_crc(offset).to_le_bytes());
    bytes
}

/// Decodes the durable mark; `None` when none was written or it is damaged, which only means that
/// less is known.
#[must_use]
pub fn decode_mark(bytes: &[u8]) -> Option<u64> {
    let mut at = Reader(bytes);
    let offset = at.u64()?;
    (at.u32()? == mark_crc(offset)).then_some(offset)
}

/// The constant keeps twelve zero bytes from being a valid mark.
fn mark_crc(offset: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(b"mark"), &offset.to_le_bytes())
}

/// What a damaged place in the last segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The rest of a write that a crash interrupted: nobody was told that it is durable. Cut it.
    TornTail,
    /// Bytes that were durable once. Never cut: that would lose acknowledged entries in silence.
    Corruption,
}

/// Judges a damaged block at `offset`, when everything before `known_durable` is known to have
/// been durable.
///
/// A crash may leave the un-synced writes of the last group in any state: the disk persists pages
/// in any order, so that a good block may follow a damaged one. What may be cut is therefore not
/// told by what follows but by what can have been acknowledged. A group is written only after the
/// fsync of the group before has returned, and each block carries the durable offset of that
/// moment; when the log comes to rest, a mark in the header page says the same of the last group.
/// `known_durable` is the greatest of all these in the file: below it a damaged block had been
/// synced, at or beyond it the block belongs to the last group, whose fsync had not been attested.
#[must_use]
pub const fn judge_damage(offset: u64, known_durable: u64) -> Damage {
    if offset < known_durable {
        Damage::Corruption
    } else {
        Damage::TornTail
    }
}

/// Length of the first segment of a log. Its space is reserved at once: the logs of five hundred idle
/// sources must not fill a disk.
pub const FIRST_SEGMENT_BYTES: u64 = 1 << 20;

/// Returns the length of the segment after one of `before` bytes: twice as much, up to `bytes_max`, so that
/// a log that fills has large ones after a few.
#[must_use]
pub fn next_segment_bytes(before: u64, bytes_max: u64) -> u64 {
    before
        .saturating_mul(2)
        .clamp(FIRST_SEGMENT_BYTES.min(bytes_max), bytes_max)
}

/// How the space of the next segment is prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preparation {
    /// Written with zeros: later writes change no metadata, so that an fdatasync is one write to
    /// the device and no journal commit.
    Zeroed,
    /// Allocated only: later writes turn unwritten extents into written ones, which costs a
    /// journal commit an fdatasync, but the device is not made to write everything twice.
    Allocated,
}

/// Bytes per second above which zeroing no longer pays. Measured on ext4 over virtio: a zeroed
/// file takes 2 to 2.5 times as many syncs a second when a group has 2 to 20 kB, but only 1.2 times
/// when it has 200 kB, and the zeros are as many bytes as the log itself. A log that fills at this
/// rate is catching up, in large groups, and needs the device for the data.
const ZEROING_RATE_MAX: u64 = 32 << 20;

/// Decides how to prepare the segment after one that took `bytes` in `micros`.
#[must_use]
pub const fn preparation(bytes: u64, micros: u64) -> Preparation {
    let micros = if micros == 0 { 1 } else { micros };
    if bytes.saturating_mul(1_000_000) / micros > ZEROING_RATE_MAX {
        Preparation::Allocated
    } else {
        Preparation::Zeroed
    }
}

/// Writes fields one after another into a buffer of known length.
struct Fields<'a> {
    rest: &'a mut [u8],
}

impl<'a> Fields<'a> {
    const fn new(rest: &'a mut [u8]) -> Self {
        Self { rest }
    }

    fn put(&mut self, field: &[u8]) {
        let rest = std::mem::take(&mut self.rest);
        let (place, rest) = rest.split_at_mut(field.len());
        place.copy_from_slice(field);
        self.rest = rest;
    }
}

/// Reads fields one after another; `None` past the end.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            number: 7,
            epoch: Epoch(3),
            base_offset: 1 << 40,
            previous: Some(Checkpoint::new(Lsn(9), 4)),
            resume_lsn: Lsn(10),
            commit_time: PgTime(-5),
            created: PgTime(77),
            starts_anew: true,
        }
    }

    #[test]
    fn a_segment_header_comes_back() {
        for header in [header(), SegmentHeader::default()] {
            assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn any_flipped_bit_of_a_segment_header_is_seen() {
        let bytes = header().encode();
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&bytes).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(
                SegmentHeader::decode(&bytes[..length]),
                Err(BadSegment::Damaged)
            );
        }
    }

    #[test]
    fn a_newer_version_and_a_foreign_file_are_told_apart() {
        let mut newer = header().encode();
        newer[8] = 2;
        assert_eq!(SegmentHeader::decode(&newer), Err(BadSegment::Newer(2)));
        assert_eq!(
            SegmentHeader::decode(b"SQLite format 3\0"),
            Err(BadSegment::Foreign)
        );
    }

    #[test]
    fn a_mark_is_valid_only_when_written() {
        assert_eq!(decode_mark(&encode_mark(12)), Some(12));
        assert_eq!(decode_mark(&encode_mark(0)), Some(0));
        assert_eq!(decode_mark(&[0; MARK_BYTES]), None);
        let mut flipped = encode_mark(12);
        flipped[1] ^= 1;
        assert_eq!(decode_mark(&flipped), None);
    }

    #[test]
    fn only_what_may_have_been_acknowledged_is_corruption() {
        assert_eq!(judge_damage(99, 100), Damage::Corruption);
        assert_eq!(judge_damage(100, 100), Damage::TornTail);
    }

    #[test]
    fn segments_grow_to_their_limit_and_never_beyond() {
        let mib = 1 << 20;
        let mut lengths = vec![next_segment_bytes(0, 64 * mib)];
        while lengths.len() < 9 {
            let last = lengths.last().copied().unwrap_or_default();
            lengths.push(next_segment_bytes(last, 64 * mib));
        }
        assert_eq!(lengths, [1, 2, 4, 8, 16, 32, 64, 64, 64].map(|it| it * mib));
        assert_eq!(next_segment_bytes(0, 65_536), 65_536);
        assert_eq!(next_segment_bytes(65_536, 65_536), 65_536);
        // A large batch made a larger one.
        assert_eq!(next_segment_bytes(80 * mib, 64 * mib), 64 * mib);
    }

    #[test]
    fn zeroing_stops_when_the_log_fills_fast() {
        let mib = 1 << 20;
        assert_eq!(preparation(64 * mib, 60_000_000), Preparation::Zeroed);
        assert_eq!(preparation(64 * mib, 500_000), Preparation::Allocated);
        assert_eq!(preparation(64 * mib, 0), Preparation::Allocated);
    }
}
