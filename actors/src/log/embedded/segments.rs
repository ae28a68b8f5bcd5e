//! The files that the writer thread works on: the segment being written and the one after it.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::IoSlice,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use bytes::Bytes;
use pgcapture_engine::{
    batch::Batch,
    checkpoint::Epoch,
    retention::{ClosedSegment, Retention},
    segment::{
        BLOCK_HEADER_BYTES, BlockHeader, HEADER_PAGE_BYTES, MARK_AT, SegmentHeader, encode_mark,
        preparation,
    },
};
use rustix::io::pwritev;

use super::{
    files::{Disk, io_error, segment_path, sync_directory},
    shared::{Segment, Shared},
    spare::Spare,
};
use crate::{
    clock::now,
    log::{LogError, Tail},
};

/// Slices of one vectored write; the kernel takes no more (`IOV_MAX`).
const SLICES_MAX: usize = 1_024;

/// The next segment is prepared once this part of the current one is used: late enough to know
/// how fast the log fills, early enough to be done in time.
const PREPARE_AT_PART: u64 = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Segments {
    directory: PathBuf,
    pub(super) active: Active,
    spare: Spare,
    disk: Arc<dyn Disk>,
}

/// The segment being written.
#[derive(Debug)]
pub(super) struct Active {
    segment: Arc<Segment>,
    file: File,
    /// Offset after the last durable block.
    end: u64,
    /// Offset up to which a mark says that the log is durable.
    marked: u64,
    /// Since when the segment is written.
    began: Instant,
}

/// Blocks that are written together.
#[derive(Debug)]
pub(super) struct Group {
    blocks: Vec<([u8; BLOCK_HEADER_BYTES], Bytes, u64)>,
    /// Bytes that the first block needs, if it does not fit into the segment.
    needed: u64,
}

impl Group {
    /// Returns the size of the block that needs another segment, when none fits into this one.
    pub(super) fn blocked_by(&self) -> Option<u64> {
        self.blocks.is_empty().then_some(self.needed)
    }

    /// Returns the offset after each block.
    pub(super) fn ends(&self) -> Vec<u64> {
        self.blocks.iter().map(|(_, _, end)| *end).collect()
    }
}

impl Segments {
    pub(super) fn new(
        directory: PathBuf,
        segment: Arc<Segment>,
        file: File,
        end: u64,
        (spare, disk): (Spare, Arc<dyn Disk>),
    ) -> Self {
        let active = Active {
            segment,
            file,
            end,
            marked: 0,
            began: Instant::now(),
        };
        Self {
            directory,
            active,
            spare,
            disk,
        }
    }

    /// Writes a group to the active segment and syncs it.
    pub(super) fn write(&mut self, group: &Group) -> Result<(), LogError> {
        self.active.write(group, self.disk.as_ref())
    }

    /// Prepares the next segment when it is time to.
    pub(super) fn prepare_next(&mut self) {
        let capacity = self.active.segment.bytes.load(Ordering::Relaxed);
        let used = self.active.end - self.active.segment.header.base_offset;
        if used < capacity / PREPARE_AT_PART {
            return;
        }
        let micros = u64::try_from(self.active.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.spare.prepare(preparation(used, micros));
    }

    /// Removes what was prepared: space is short.
    pub(super) fn give_back(&mut self) {
        self.spare.discard();
    }

    /// Begins a new segment; returns the one before and the new one. It is larger when the one before was
    /// full: `needed` is what had no room. A new epoch alone says nothing of how fast the log fills.
    pub(super) fn rotate(
        &mut self,
        tail: &Tail,
        needed: u64,
    ) -> Result<(Arc<Segment>, Arc<Segment>), LogError> {
        if needed == 0 {
            let length = self.active.segment.bytes.load(Ordering::Relaxed);
            self.spare.stay(length);
        }
        self.begin(tail, needed, false)
    }

    /// Begins the log anew with a segment at `tail`, durably; what was before is still there.
    pub(super) fn begin_anew(&mut self, tail: &Tail) -> Result<Arc<Segment>, LogError> {
        self.spare.start_small();
        self.begin(tail, 0, true).map(|(_, segment)| segment)
    }

    /// Removes segments that are no longer part of the log. What cannot be removed is removed when
    /// the log is opened the next time.
    pub(super) fn remove(&self, segments: VecDeque<Arc<Segment>>) {
        for segment in segments {
            if let Err(error) = fs::remove_file(&segment.path) {
                tracing::warn!(%error, file = %segment.path.display(), "cannot remove a log segment");
            }
        }
        if let Err(error) = sync_directory(&self.directory) {
            tracing::warn!(%error, "cannot sync the directory of a log");
        }
    }

    fn begin(
        &mut self,
        tail: &Tail,
        needed: u64,
        starts_anew: bool,
    ) -> Result<(Arc<Segment>, Arc<Segment>), LogError> {
        let header = SegmentHeader {
            number: self.active.segment.header.number + 1,
            epoch: tail.epoch,
            base_offset: tail.offset,
            previous: tail.last,
            resume_lsn: tail.resume_lsn,
            commit_time: tail.commit_time,
            created: now(),
            starts_anew,
        };
        let (segment, file) = begin(&self.directory, &mut self.spare, header, needed)?;
        let closed = std::mem::replace(
            &mut self.active,
            Active {
                segment: Arc::clone(&segment),
                file,
                end: tail.offset,
                marked: tail.offset,
                began: Instant::now(),
            },
        );
        Ok((closed.segment, segment))
    }

    /// Removes expired segments. What cannot be removed now is tried again at the next call.
    pub(super) fn retain(&self, shared: &Shared, retention: Retention) -> Result<(), LogError> {
        let segments = shared.segments();
        let closed: Vec<_> = segments
            .iter()
            .zip(segments.iter().skip(1))
            .map(|(segment, next)| ClosedSegment {
                bytes: segment.bytes.load(Ordering::Relaxed),
                closed: next.header.created,
            })
            .collect();
        let open_bytes = self.active.segment.bytes.load(Ordering::Relaxed);
        let expired = retention.expired(&closed, open_bytes, now());
        for segment in segments.iter().take(expired) {
            fs::remove_file(&segment.path).map_err(io_error("remove", &segment.path))?;
            let mut kept = shared.segments.write();
            let kept = kept.as_mut().expect("no code panics under this lock");
            kept.pop_front();
            tracing::debug!(file = %segment.path.display(), "retention removed a segment");
        }
        if expired > 0 {
            sync_directory(&self.directory)?;
        }
        Ok(())
    }
}

/// Makes the file of `header` durable, name included.
pub(super) fn begin(
    directory: &std::path::Path,
    spare: &mut Spare,
    header: SegmentHeader,
    needed: u64,
) -> Result<(Arc<Segment>, File), LogError> {
    let (file, bytes) = spare.take(HEADER_PAGE_BYTES + needed)?;
    let path = segment_path(directory, header.number);
    let write = || {
        file.write_all_at(&header.encode(), 0)?;
        file.write_all_at(&encode_mark(header.base_offset), MARK_AT)?;
        file.sync_all()
    };
    write().map_err(io_error("write", spare.path()))?;
    fs::rename(spare.path(), &path).map_err(io_error("rename", &path))?;
    sync_directory(directory)?;
    Ok((Segment::new(header, path, bytes), file))
}

impl Active {
    /// Makes blocks of the batches that fit into the segment.
    pub(super) fn frame<'a>(
        &self,
        batches: impl Iterator<Item = (&'a Batch, Epoch)>,
        tail: &Tail,
    ) -> Result<Group, LogError> {
        let capacity = self.segment.bytes.load(Ordering::Relaxed) - HEADER_PAGE_BYTES;
        let limit = self.segment.header.base_offset + capacity;
        let mut group = Group {
            blocks: Vec::new(),
            needed: 0,
        };
        let mut at = self.end;
        for (batch, epoch) in batches {
            let length = (BLOCK_HEADER_BYTES + batch.entries.len()) as u64;
            if at + length > limit {
                group.needed = length;
                break;
            }
            let header = BlockHeader::of(batch, epoch, at, tail.offset).ok_or_else(|| {
                let too_long = std::io::Error::other("a batch of 4 GiB or more");
                io_error("write", &self.segment.path)(too_long)
            })?;
            at = header.end();
            group
                .blocks
                .push((header.encode(), batch.entries.clone(), at));
        }
        Ok(group)
    }

    fn write(&mut self, group: &Group, disk: &dyn Disk) -> Result<(), LogError> {
        let path = &self.segment.path;
        let mut slices = Vec::with_capacity(group.blocks.len() * 2);
        for (header, entries, end) in &group.blocks {
            slices.push(IoSlice::new(header));
            if !entries.is_empty() {
                slices.push(IoSlice::new(entries));
            }
            debug_assert!(*end > self.end, "blocks lie after the end");
        }
        let mut at = HEADER_PAGE_BYTES + (self.end - self.segment.header.base_offset);
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            let now = rest.get(..SLICES_MAX.min(rest.len())).unwrap_or_default();
            let written = match pwritev(&self.file, now, at) {
                Err(rustix::io::Errno::INTR) => continue,
                Ok(0) => Err(std::io::ErrorKind::WriteZero.into()),
                result => result.map_err(std::io::Error::from),
            };
            let written = written.map_err(io_error("write", path))?;
            IoSlice::advance_slices(&mut rest, written);
            at += written as u64;
        }
        // Not `is_full` even if the system says so: after a failed sync nothing is known.
        disk.sync(&self.file).map_err(|error| LogError::Io {
            action: "sync",
            path: path.clone(),
            source: std::io::Error::other(error),
        })?;
        if let Some((_, _, end)) = group.blocks.last() {
            self.end = *end;
        }
        Ok(())
    }

    /// Tells whether the segment says that its last group is durable.
    pub(super) const fn is_marked(&self) -> bool {
        self.marked >= self.end
    }

    /// Says in the segment that its last group is durable. Needs no sync of its own: it only adds
    /// to what is known.
    pub(super) fn mark(&mut self) -> Result<(), LogError> {
        if !self.is_marked() {
            let written = self.file.write_all_at(&encode_mark(self.end), MARK_AT);
            written.map_err(io_error("write", &self.segment.path))?;
            self.marked = self.end;
        }
        Ok(())
    }

    /// Gives back the space that a closed segment did not use.
    pub(super) fn trim(closed: &Segment, end: u64) {
        let trim = || {
            let file = File::options().write(true).open(&closed.path)?;
            let used = HEADER_PAGE_BYTES + (end - closed.header.base_offset);
            file.set_len(used)?;
            closed.bytes.store(used, Ordering::Relaxed);
            Ok::<_, std::io::Error>(())
        };
        if let Err(error) = trim() {
            tracing::warn!(%error, file = %closed.path.display(), "cannot trim a closed segment");
        }
    }
}
