//! Where a row of usual size is put together before it goes to the batch in one piece.
//!
//! A row is a dozen short pieces, and a copy of a length that is not known costs more than the bytes
//! that it moves. So short pieces are copied as whole blocks: what lies behind them on both sides is
//! there to be touched, and the next piece overwrites it. The place is small and stays in the
//! processor's cache.

/// Bytes that are copied at once.
pub(super) const BLOCK_BYTES: usize = 32;

/// Larger rows gain nothing: their values are long.
const ROW_BYTES_MAX: usize = 4_096;

/// A place for one row.
#[derive(Debug)]
pub(super) struct Scratch {
    bytes: Box<[u8]>,
    length: usize,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; ROW_BYTES_MAX + BLOCK_BYTES].into_boxed_slice(),
            length: 0,
        }
    }

    /// Tells whether a row of this size fits.
    pub(super) const fn fits(row_bytes: usize) -> bool {
        row_bytes <= ROW_BYTES_MAX
    }

    /// Begins a row. The caller puts no more into it than [`Self::fits`].
    #[inline]
    pub(super) fn begin(&mut self) {
        self.length = 0;
    }

    /// Appends the first `count` bytes of `from`; what follows them may be read.
    #[inline]
    pub(super) fn put(&mut self, from: &[u8], count: usize) {
        let to = self.bytes.get_mut(self.length..).unwrap_or_default();
        if count <= BLOCK_BYTES
            && let (Some(to), Some(from)) = (to.first_chunk_mut(), from.first_chunk())
        {
            let to: &mut [u8; BLOCK_BYTES] = to;
            *to = *from;
        } else if let (Some(to), Some(from)) = (to.get_mut(..count), from.get(..count)) {
            to.copy_from_slice(from);
        }
        self.length += count;
    }

    /// Appends a tag and a length below 2^14, which every length in a row of this size is.
    #[inline]
    pub(super) fn put_length(&mut self, tag: u8, length: usize) {
        let mut bytes = [0; BLOCK_BYTES];
        bytes[0] = tag;
        if length < 0x80 {
            bytes[1] = low_bits(length);
            self.put(&bytes, 2);
        } else {
            bytes[1] = low_bits(length) | 0x80;
            bytes[2] = low_bits(length >> 7);
            self.put(&bytes, 3);
        }
    }

    /// Overwrites a byte that was put already.
    #[inline]
    pub(super) fn set(&mut self, at: usize, byte: u8) {
        if let Some(place) = self.bytes.get_mut(at) {
            *place = byte;
        }
    }

    #[inline]
    pub(super) const fn length(&self) -> usize {
        self.length
    }

    /// The row.
    #[inline]
    pub(super) fn row(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// The lowest seven bits.
#[expect(clippy::cast_possible_truncation, reason = "seven bits fit")]
const fn low_bits(value: usize) -> u8 {
    (value & 0x7F) as u8
}

/// Makes constant bytes ready to be put: a whole number of blocks.
pub(super) fn padded(bytes: &[u8]) -> Box<[u8]> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
    padded.into_boxed_slice()
}
