//! Opens what a process left behind, however it ended.
//!
//! Only the last segment is read, so that the time does not grow with the log: a segment is begun
//! only after everything before it was synced, and its header says where that ends. In the last
//! segment blocks are walked to the first one that is not good. What follows is cut if nobody can
//! have been told that it is durable, else the log refuses to open
//! ([`judge_damage`] has the argument).
//!
//! What was found good is written again where its sync is not attested, and synced, before it is
//! called durable: after `kill -9` it may lie in the page cache only, and after a failed fsync the
//! cache holds pages that look clean and are not on disk.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use pgcapture_engine::{
    checkpoint::{Checkpoint, Epoch},
    segment::{
        BLOCK_MAGIC, BadBlock, BlockHeader, Damage, HEADER_PAGE_BYTES, MARK_AT, MARK_BYTES,
        SegmentHeader, decode_mark, judge_damage,
    },
};

use super::{
    blocks::{CHUNK_BYTES, Chunk, Stop},
    files::{
        allocate, io_error, list_segments, read_at_most, read_header, segment_path, sync_directory,
    },
    shared::Segment,
};
use crate::log::{LogError, Tail};

/// A log as it was found, made clean.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) segments: VecDeque<Arc<Segment>>,
    pub(super) tail: Tail,
    /// The last segment, open for writing.
    pub(super) file: File,
}

/// What the walk over the last segment has found.
#[derive(Debug)]
struct Walk {
    tail: Tail,
    /// Everything before this offset is known to have been synced.
    attested: u64,
    /// Why the walk ended.
    bad: BadBlock,
}

/// Recovers the log in `directory`; `None` when there is none yet.
pub(super) fn recover(directory: &Path) -> Result<Option<Recovered>, LogError> {
    let mut headers = Vec::new();
    for number in list_segments(directory)? {
        let path = segment_path(directory, number);
        headers.push((read_header(&path, number)?, path));
    }
    remove_before_anew(directory, &mut headers)?;
    let mut segments = VecDeque::with_capacity(headers.len());
    for (at, (header, path)) in headers.iter().enumerate() {
        let length = path.metadata().map_err(io_error("inspect", path))?.len();
        if let Some((next, next_path)) = headers.get(at + 1) {
            check_neighbours(header, length, path, next, next_path)?;
        }
        segments.push_back(Segment::new(*header, path.clone(), length));
    }
    let Some(last) = segments.back() else {
        return Ok(None);
    };
    let (tail, file) = recover_last(last)?;
    Ok(Some(Recovered {
        segments,
        tail,
        file,
    }))
}

/// Removes what a crash left of the log that was there before it was started anew.
fn remove_before_anew(
    directory: &Path,
    headers: &mut Vec<(SegmentHeader, PathBuf)>,
) -> Result<(), LogError> {
    let anew = headers.iter().rposition(|(header, _)| header.starts_anew);
    let old: Vec<_> = headers.drain(..anew.unwrap_or(0)).collect();
    for (_, path) in &old {
        fs::remove_file(path).map_err(io_error("remove", path))?;
    }
    if old.is_empty() {
        return Ok(());
    }
    sync_directory(directory)
}

/// Checks that `next` goes on where a segment ends and that nothing of it is missing.
fn check_neighbours(
    header: &SegmentHeader,
    length: u64,
    path: &Path,
    next: &SegmentHeader,
    next_path: &Path,
) -> Result<(), LogError> {
    if next.number != header.number + 1 || next.base_offset < header.base_offset {
        return Err(LogError::Corrupt {
            file: next_path.to_owned(),
            offset: 0,
            what: format!("it does not follow segment {}", header.number),
        });
    }
    let end = HEADER_PAGE_BYTES + (next.base_offset - header.base_offset);
    if length < end {
        return Err(LogError::Corrupt {
            file: path.to_owned(),
            offset: length,
            what: format!("it ends there and should have {end} bytes"),
        });
    }
    Ok(())
}

fn recover_last(segment: &Segment) -> Result<(Tail, File), LogError> {
    let path = &segment.path;
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(io_error("open", path))?;
    let length = file.metadata().map_err(io_error("inspect", path))?.len();
    let mut walk = walk(segment, &file, length)?;
    let end = walk.tail.offset;
    let rest = look_beyond(segment, &file, end)?;
    walk.attested = walk.attested.max(rest.attested);
    if judge_damage(end, walk.attested) == Damage::Corruption {
        return Err(LogError::Corrupt {
            file: path.clone(),
            offset: HEADER_PAGE_BYTES + (end - segment.header.base_offset),
            what: format!("{}, and it had been durable", walk.bad),
        });
    }
    if rest.is_dirty {
        tracing::warn!(
            file = %path.display(),
            offset = end,
            "cut a write that a crash interrupted; it was never acknowledged"
        );
        let place = HEADER_PAGE_BYTES + (end - segment.header.base_offset);
        file.set_len(place).map_err(io_error("truncate", path))?;
        // Space that is short now is told by the writer, which waits for it.
        if allocate(&file, path, length).is_err() {
            tracing::warn!(file = %path.display(), "cannot allocate the rest of a segment");
        }
    }
    write_again(
        segment,
        &file,
        walk.attested.max(segment.header.base_offset),
        end,
    )?;
    file.sync_all().map_err(io_error("sync", path))?;
    Ok((walk.tail, file))
}

/// Walks the blocks up to the first that is not good.
fn walk(segment: &Segment, file: &File, length: u64) -> Result<Walk, LogError> {
    let header = &segment.header;
    let mut mark = [0; MARK_BYTES];
    let read = read_at_most(file, &mut mark, MARK_AT);
    read.map_err(io_error("read", &segment.path))?;
    let tail = Tail {
        epoch: header.epoch,
        last: header.previous,
        resume_lsn: header.resume_lsn,
        commit_time: header.commit_time,
        offset: header.base_offset,
    };
    let mut walk = Walk {
        tail,
        attested: decode_mark(&mark).unwrap_or(0),
        bad: BadBlock::Blank,
    };
    let end = header.base_offset + length.saturating_sub(HEADER_PAGE_BYTES);
    let mut piece = CHUNK_BYTES;
    loop {
        let at = walk.tail.offset;
        let chunk = Chunk::read(file, header.base_offset, at, piece.min(end - at));
        let mut chunk = chunk.map_err(io_error("read", &segment.path))?;
        piece = CHUNK_BYTES;
        let stop = loop {
            match chunk.step() {
                Ok((block, _)) => {
                    check_order(segment, &walk.tail, &block)?;
                    walk.attested = walk.attested.max(block.durable);
                    advance(&mut walk.tail, &block);
                }
                Err(stop) => break stop,
            }
        };
        match stop {
            Stop::Bad(bad) => {
                walk.bad = bad;
                return Ok(walk);
            }
            Stop::Partial(block) if block > end - walk.tail.offset => {
                walk.bad = BadBlock::Payload;
                return Ok(walk);
            }
            Stop::Partial(block) => piece = block.max(CHUNK_BYTES),
            Stop::End if walk.tail.offset > at => {}
            Stop::End => {
                if chunk.rest().iter().any(|byte| *byte != 0) {
                    walk.bad = BadBlock::Header;
                }
                return Ok(walk);
            }
        }
    }
}

/// Both checksums match, so that what is wrong here was written wrong.
fn check_order(segment: &Segment, tail: &Tail, block: &BlockHeader) -> Result<(), LogError> {
    let follows = block.span.is_none_or(|(first, _)| Some(first) > tail.last);
    if follows && block.epoch >= tail.epoch {
        return Ok(());
    }
    Err(LogError::Corrupt {
        file: segment.path.clone(),
        offset: HEADER_PAGE_BYTES + (block.offset - segment.header.base_offset),
        what: "the block does not follow the one before".to_owned(),
    })
}

/// Moves the tail over a block.
pub(super) fn advance(tail: &mut Tail, block: &BlockHeader) {
    let last: Option<Checkpoint> = block.span.map(|(_, last)| last);
    tail.epoch = Epoch::max(tail.epoch, block.epoch);
    tail.last = last.or(tail.last);
    tail.resume_lsn = block.resume_lsn;
    tail.commit_time = tail.commit_time.max(block.commit_time);
    tail.offset = block.end();
}

/// What lies beyond the last good block.
#[derive(Debug, Default)]
struct Beyond {
    /// Greatest durable offset that a block there attests.
    attested: u64,
    /// Something other than zeros is there.
    is_dirty: bool,
}

/// Looks for blocks beyond a place that is not one. Their payloads do not matter: a good header
/// proves what was durable when it was written.
fn look_beyond(segment: &Segment, file: &File, from: u64) -> Result<Beyond, LogError> {
    let base = segment.header.base_offset;
    let overlap = pgcapture_engine::segment::BLOCK_HEADER_BYTES as u64;
    let (mut at, mut beyond) = (from, Beyond::default());
    loop {
        let chunk = Chunk::read(file, base, at, CHUNK_BYTES);
        let chunk = chunk.map_err(io_error("read", &segment.path))?;
        let bytes = chunk.rest();
        if bytes.iter().any(|byte| *byte != 0) {
            beyond.is_dirty = true;
            let mut place = 0;
            while let Some(found) = find_magic(bytes, place) {
                let header = bytes.get(found..).unwrap_or_default();
                if let Ok(block) = BlockHeader::decode(header, at + found as u64) {
                    beyond.attested = beyond.attested.max(block.durable);
                }
                place = found + 1;
            }
        }
        if (bytes.len() as u64) < CHUNK_BYTES {
            return Ok(beyond);
        }
        // A header that spans two chunks is whole in the next one.
        at += CHUNK_BYTES - overlap;
    }
}

fn find_magic(bytes: &[u8], from: usize) -> Option<usize> {
    let [first, ..] = BLOCK_MAGIC;
    let mut at = from;
    loop {
        let rest = bytes.get(at..)?;
        at += rest.iter().position(|byte| *byte == first)?;
        if bytes.get(at..)?.starts_with(&BLOCK_MAGIC) {
            return Some(at);
        }
        at += 1;
    }
}

/// Makes the pages of `from..end` dirty again, so that the next sync writes them.
fn write_again(segment: &Segment, file: &File, from: u64, end: u64) -> Result<(), LogError> {
    let base = segment.header.base_offset;
    let mut at = from;
    while at < end {
        let chunk = Chunk::read(file, base, at, CHUNK_BYTES.min(end - at));
        let chunk = chunk.map_err(io_error("read", &segment.path))?;
        let place = HEADER_PAGE_BYTES + (at - base);
        let written = file.write_all_at(chunk.rest(), place);
        written.map_err(io_error("write", &segment.path))?;
        at += chunk.rest().len() as u64;
        if chunk.rest().is_empty() {
            break;
        }
    }
    Ok(())
}
