//! Bytes to frames: one growing buffer, frames borrowed from it.
//!
//! A frame of PostgreSQL is a tag, four bytes of length that count themselves, and a body. The
//! buffer is filled from the socket in large reads; complete frames are borrowed where they lie
//! and forgotten with the next read. Owns the limit on the size of one frame.

use std::io;

use super::transport::Transport;
use crate::postgres::error::PgError;

/// Bytes of tag and length.
pub(in crate::postgres) const HEADER_BYTES: usize = 5;
/// First size of a buffer: what a slow connection keeps.
const BUFFER_BYTES_FIRST: usize = 128 << 10;
/// A buffer that reads fill doubles up to this size; only one frame alone makes it larger. Whoever
/// reads by the clock finds some 100 KiB to 1 MiB at a time.
const BUFFER_BYTES_MAX: usize = 4 << 20;
/// After so many reads in a row that left seven eighths of it empty a buffer is halved. 500 sources
/// on a node must not keep for ever what each needed for a moment.
const SMALL_READS_MAX: u32 = 64;
/// Limit on one frame unless the caller sets a lower one: PostgreSQL cannot make a value above
/// 1 GiB, and a row above 2 GiB cannot be framed.
pub(in crate::postgres) const FRAME_BYTES_MAX: usize = (1 << 30) + (64 << 20);

/// One complete frame.
#[derive(Clone, Copy, Debug)]
pub(in crate::postgres) struct Frame<'a> {
    /// The kind of message.
    pub(in crate::postgres) tag: u8,
    /// What follows the length.
    pub(in crate::postgres) body: &'a [u8],
}

/// Received bytes: consumed, complete and incomplete.
#[derive(Debug)]
pub(in crate::postgres) struct Inbound {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    frame_bytes_max: usize,
    /// The size that the last reads ask for.
    usual_bytes: usize,
    small_reads: u32,
}

impl Inbound {
    pub(in crate::postgres) fn new() -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            end: 0,
            frame_bytes_max: FRAME_BYTES_MAX,
            usual_bytes: BUFFER_BYTES_FIRST,
            small_reads: 0,
        }
    }

    pub(in crate::postgres) fn limit_frames(&mut self, bytes_max: usize) {
        self.frame_bytes_max = bytes_max.min(FRAME_BYTES_MAX);
    }

    /// Returns the bytes that were received and not consumed.
    pub(in crate::postgres) fn unread(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Forgets the first `count` unread bytes.
    pub(in crate::postgres) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Returns the size of the first unread frame, header included, if it is complete.
    pub(in crate::postgres) fn complete(&self) -> Result<Option<usize>, PgError> {
        let unread = self.unread();
        let needed = frame_bytes(unread, self.frame_bytes_max)?;
        Ok(needed.filter(|needed| *needed <= unread.len()))
    }

    /// Returns the limit on one frame.
    pub(in crate::postgres) const fn frame_bytes_max(&self) -> usize {
        self.frame_bytes_max
    }

    /// Returns where to read to: makes room for the rest of the first frame, at least.
    pub(in crate::postgres) fn room(&mut self) -> Result<&mut [u8], PgError> {
        let needed = frame_bytes(self.unread(), self.frame_bytes_max)?.unwrap_or(HEADER_BYTES);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > self.usual_bytes {
                // One huge row, or a backlog that was read, is no reason to stay huge.
                self.buffer = Vec::new();
            }
        }
        let tail_is_short = self.buffer.len() - self.end < self.buffer.len() / 4;
        if self.start > 0 && (tail_is_short || self.start + needed > self.buffer.len()) {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let wanted = needed.max(self.usual_bytes);
        if self.buffer.len() < wanted {
            self.grow(wanted);
        }
        Ok(self.buffer.get_mut(self.end..).unwrap_or_default())
    }

    /// A fresh vector from the zeroed pool of the system: untouched pages cost nothing.
    fn grow(&mut self, wanted: usize) {
        let mut larger = vec![0; wanted];
        let old = self.buffer.get(..self.end).unwrap_or_default();
        if let Some(front) = larger.get_mut(..self.end) {
            front.copy_from_slice(old);
        }
        self.buffer = larger;
    }

    /// Notes that `count` bytes were read into [`Self::room`].
    pub(in crate::postgres) fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
        self.fit();
    }

    /// Fits the usual size to how full the last read left the buffer.
    fn fit(&mut self) {
        let size = self.buffer.len();
        if size - self.end < size / 4 {
            self.usual_bytes = (self.usual_bytes * 2).min(BUFFER_BYTES_MAX);
            self.small_reads = 0;
        } else if self.end > size / 8 {
            self.small_reads = 0;
        } else {
            self.small_reads += 1;
            if self.small_reads > SMALL_READS_MAX {
                self.usual_bytes = (self.usual_bytes / 2).max(BUFFER_BYTES_FIRST);
                self.small_reads = 0;
            }
        }
    }

    /// Reads until a frame is complete and consumes it. Cancellation-safe.
    pub(in crate::postgres) async fn next(
        &mut self,
        transport: &Transport,
    ) -> Result<Frame<'_>, PgError> {
        let size = loop {
            if let Some(size) = self.complete()? {
                break size;
            }
            let count = transport.read(self.room()?).await.map_err(PgError::Io)?;
            if count == 0 {
                return Err(PgError::Closed);
            }
            self.filled(count);
        };
        let start = self.start;
        self.start += size;
        let bytes = self.buffer.get(start..start + size).unwrap_or_default();
        let (tag, body) = (bytes.first(), bytes.get(HEADER_BYTES..));
        Ok(Frame {
            tag: tag.copied().unwrap_or_default(),
            body: body.unwrap_or_default(),
        })
    }
}

/// Returns the size of the frame that starts with `bytes`, header included; `None` when the header
/// is incomplete.
pub(in crate::postgres) fn frame_bytes(
    bytes: &[u8],
    bytes_max: usize,
) -> Result<Option<usize>, PgError> {
    let Some([tag, length @ ..]) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let bytes = u32::from_be_bytes(*length) as usize + 1;
    if bytes < HEADER_BYTES {
        return Err(PgError::Protocol(format!(
            "a message with tag {tag} of length {}",
            bytes - 1
        )));
    }
    if bytes > bytes_max {
        let limit = bytes_max;
        return Err(PgError::MessageTooLarge { bytes, limit });
    }
    Ok(Some(bytes))
}

/// Reads a big-endian `u64` at `at`.
pub(in crate::postgres) fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes: &[u8; 8] = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_be_bytes(*bytes))
}

/// Reads a big-endian `i32` at `at`.
pub(in crate::postgres) fn read_i32(bytes: &[u8], at: usize) -> Option<i32> {
    let bytes: &[u8; 4] = bytes.get(at..)?.first_chunk()?;
    Some(i32::from_be_bytes(*bytes))
}

/// Reads a big-endian `i16` at `at`.
pub(in crate::postgres) fn read_i16(bytes: &[u8], at: usize) -> Option<i16> {
    let bytes: &[u8; 2] = bytes.get(at..)?.first_chunk()?;
    Some(i16::from_be_bytes(*bytes))
}

/// Makes the error for a message that cannot be read.
pub(in crate::postgres) fn malformed(what: &str) -> PgError {
    PgError::Protocol(format!("a malformed {what}"))
}

/// Turns an error of the message writers into ours: they fail on a NUL byte only.
pub(in crate::postgres) fn unwritable(error: &io::Error) -> PgError {
    PgError::Protocol(format!("a text cannot be sent: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(inbound: &mut Inbound, bytes: &[u8]) {
        inbound.room().unwrap()[..bytes.len()].copy_from_slice(bytes);
        inbound.filled(bytes.len());
    }

    #[test]
    fn a_frame_is_complete_with_its_last_byte_only() {
        let mut inbound = Inbound::new();
        let frame = [b'd', 0, 0, 0, 6, 1, 2];
        for (index, byte) in frame.iter().enumerate() {
            assert_eq!(inbound.complete().unwrap(), None, "after {index} bytes");
            feed(&mut inbound, &[*byte]);
        }
        assert_eq!(inbound.complete().unwrap(), Some(7));
    }

    #[test]
    fn a_frame_larger_than_the_buffer_grows_it_and_the_buffer_shrinks_again() {
        let mut inbound = Inbound::new();
        let size = BUFFER_BYTES_MAX * 3;
        feed(&mut inbound, b"d");
        feed(
            &mut inbound,
            &u32::try_from(size - 1).unwrap().to_be_bytes(),
        );
        let mut left = size - HEADER_BYTES;
        while left > 0 {
            let room = inbound.room().unwrap().len().min(left);
            inbound.filled(room);
            left -= room;
        }
        assert_eq!(inbound.complete().unwrap(), Some(size));
        inbound.consume(size);
        assert!(inbound.room().unwrap().len() <= BUFFER_BYTES_MAX);
    }

    #[test]
    fn a_buffer_grows_while_reads_fill_it_and_halves_when_they_are_small() {
        let mut inbound = Inbound::new();
        assert_eq!(inbound.room().unwrap().len(), BUFFER_BYTES_FIRST);
        for _ in 0..10 {
            let bytes = inbound.room().unwrap().len();
            inbound.filled(bytes);
            inbound.consume(bytes);
        }
        assert_eq!(inbound.room().unwrap().len(), BUFFER_BYTES_MAX);
        let mut sizes = Vec::new();
        for _ in 0..10 * SMALL_READS_MAX {
            sizes.push(inbound.room().unwrap().len());
            inbound.filled(100);
            inbound.consume(100);
        }
        assert_eq!(sizes.last(), Some(&BUFFER_BYTES_FIRST));
        assert!(
            sizes
                .windows(2)
                .all(|pair| pair[1] == pair[0] || pair[1] * 2 == pair[0])
        );
    }

    #[test]
    fn a_stream_that_needs_what_it_has_keeps_it() {
        let mut inbound = Inbound::new();
        for _ in 0..1_000 {
            assert_eq!(inbound.room().unwrap().len(), BUFFER_BYTES_FIRST);
            inbound.filled(BUFFER_BYTES_FIRST / 2);
            inbound.consume(BUFFER_BYTES_FIRST / 2);
        }
    }

    #[test]
    fn a_frame_that_cannot_be_is_an_error_before_anything_is_allocated() {
        let too_short = frame_bytes(&[b'd', 0, 0, 0, 3], 100).unwrap_err();
        assert!(matches!(too_short, PgError::Protocol(_)), "{too_short}");
        let too_long = frame_bytes(&[b'd', 0, 0, 1, 0], 100).unwrap_err();
        assert!(
            matches!(
                too_long,
                PgError::MessageTooLarge {
                    bytes: 257,
                    limit: 100
                }
            ),
            "{too_long}"
        );
    }
}
