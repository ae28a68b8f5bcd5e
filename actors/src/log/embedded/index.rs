//! Finds the block where a reader has to start.
//!
//! The headers of the segments tell which segment; inside one, an entry for about every MiB tells
//! where to begin to read. The entries are made by hopping over block headers when somebody first
//! seeks in a segment, and extended while it grows: a log that nobody seeks in costs nothing.

use std::{fs::File, io};

use pgcapture_engine::{
    checkpoint::Checkpoint,
    lsn::PgTime,
    segment::{BadBlock, HEADER_PAGE_BYTES, SegmentHeader},
};

use super::{
    blocks::{CHUNK_BYTES, Chunk, Stop},
    files::io_error,
    shared::{Segment, Shared},
};
use crate::log::{LogError, skip::Skip};

/// Distance of index entries: what a reader reads at once anyway.
const INDEX_EVERY_BYTES: u64 = CHUNK_BYTES;

/// What is known about one segment.
#[derive(Debug)]
pub(super) struct SegmentIndex {
    places: Vec<Place>,
    /// The place up to which the segment was walked.
    walked: Place,
    /// First entry and its block's commit time.
    first: Option<(Checkpoint, PgTime)>,
}

/// The state of the log before a block.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: u64,
    previous: Option<Checkpoint>,
    commit_time: PgTime,
}

impl Place {
    /// Tells whether everything that `skip` wants lies at this place or after it.
    fn is_before(&self, skip: Skip) -> bool {
        match skip {
            Skip::Nothing => false,
            Skip::Through(checkpoint) => self.previous <= Some(checkpoint),
            Skip::Before(time) => self.commit_time < time,
        }
    }
}

impl SegmentIndex {
    pub(super) const fn new(header: &SegmentHeader) -> Self {
        Self {
            places: Vec::new(),
            walked: Place {
                offset: header.base_offset,
                previous: header.previous,
                commit_time: header.commit_time,
            },
            first: None,
        }
    }

    /// Walks the block headers up to `end`, or until the first entry is known.
    fn walk(&mut self, segment: &Segment, end: u64, first_only: bool) -> Result<(), LogError> {
        if self.walked.offset >= end {
            return Ok(());
        }
        let file = File::open(&segment.path).map_err(io_error("open", &segment.path))?;
        let base = segment.header.base_offset;
        while self.walked.offset < end && !(first_only && self.first.is_some()) {
            let length = CHUNK_BYTES.min(end - self.walked.offset);
            let chunk = Chunk::read(&file, base, self.walked.offset, length);
            let mut chunk = chunk.map_err(io_error("read", &segment.path))?;
            let before = self.walked.offset;
            let stop = loop {
                match chunk.step_header() {
                    Ok(header) => self.add(header.span, header.commit_time, header.end()),
                    Err(stop) => break stop,
                }
            };
            if self.walked.offset == before {
                let bad = match stop {
                    Stop::Bad(bad) => bad,
                    Stop::Partial(_) | Stop::End => BadBlock::Header,
                };
                return Err(damaged(segment, before, bad));
            }
        }
        Ok(())
    }

    fn add(&mut self, span: Option<(Checkpoint, Checkpoint)>, time: PgTime, end: u64) {
        let newest = self.places.last().map(|place| place.offset);
        if newest.is_none_or(|newest| self.walked.offset >= newest + INDEX_EVERY_BYTES) {
            self.places.push(self.walked);
        }
        self.walked.offset = end;
        if let Some((first, last)) = span {
            self.first.get_or_insert((first, time));
            self.walked.previous = Some(last);
        }
        self.walked.commit_time = self.walked.commit_time.max(time);
    }
}

/// Returns the error for a block of `segment` that cannot be read.
pub(super) fn damaged(segment: &Segment, offset: u64, bad: BadBlock) -> LogError {
    LogError::Corrupt {
        file: segment.path.clone(),
        offset: HEADER_PAGE_BYTES + (offset - segment.header.base_offset),
        what: bad.to_string(),
    }
}

/// Returns the offset of a block at or before the first entry that `skip` leaves. Blocks.
pub(super) fn seek(shared: &Shared, skip: Skip) -> Result<u64, LogError> {
    let durable = shared.tail.borrow().offset;
    let segments = shared.segments();
    let starts = |segment: &SegmentHeader| Place {
        offset: segment.base_offset,
        previous: segment.previous,
        commit_time: segment.commit_time,
    };
    let after = segments.partition_point(|segment| starts(&segment.header).is_before(skip));
    let Some(segment) = segments.get(after.saturating_sub(1)) else {
        return Ok(durable);
    };
    if after == 0 {
        return Ok(segment.header.base_offset);
    }
    let next = segments.get(after);
    let end = next.map_or(durable, |next| next.header.base_offset);
    let index = segment.index.lock();
    let mut index = index.expect("no code panics under this lock");
    match index.walk(segment, end.min(durable), false) {
        // Retention has removed it since; the reader finds out whether anything is missed.
        Err(LogError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        walked => walked?,
    }
    let after = index.places.partition_point(|place| place.is_before(skip));
    let place = index.places.get(after.saturating_sub(1));
    Ok(place.map_or(segment.header.base_offset, |place| place.offset))
}

/// Returns the first entry of the log and its block's commit time. Blocks.
pub(super) fn first_entry(
    shared: &Shared,
    durable: u64,
) -> Result<Option<(Checkpoint, PgTime)>, LogError> {
    let segments = shared.segments();
    for (number, segment) in segments.iter().enumerate() {
        let next = segments.get(number + 1);
        let end = next.map_or(durable, |next| next.header.base_offset);
        let index = segment.index.lock();
        let mut index = index.expect("no code panics under this lock");
        index.walk(segment, end, true)?;
        if index.first.is_some() {
            return Ok(index.first);
        }
    }
    Ok(None)
}
