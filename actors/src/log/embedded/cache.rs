//! The newest durable batches, kept in memory for the readers that follow the tail.
//!
//! The bytes are those that the decoder wrote: a batch is shared, never copied. Bounded in bytes;
//! a reader that falls behind reads from the files.

use std::collections::VecDeque;

use pgcapture_engine::batch::{BATCH_BYTES_TARGET, BATCH_ENTRIES_MAX, Batch};

/// What an entry costs beside its bytes; keeps batches without entries from being free.
const ENTRY_OVERHEAD_BYTES: usize = size_of::<(u64, Batch)>() + 64;

/// Consecutive blocks that end at the durable tail.
#[derive(Debug)]
pub(super) struct TailCache {
    /// Offset after the block, and the block.
    blocks: VecDeque<(u64, Batch)>,
    /// Offset of the first block.
    start: u64,
    bytes: usize,
    bytes_max: usize,
}

impl TailCache {
    pub(super) const fn new(start: u64, bytes_max: usize) -> Self {
        Self {
            blocks: VecDeque::new(),
            start,
            bytes: 0,
            bytes_max,
        }
    }

    /// Forgets everything; the next block begins at `start`.
    pub(super) fn restart(&mut self, start: u64) {
        *self = Self::new(start, self.bytes_max);
    }

    /// Adds the block that ends at `end`. A block that alone exceeds the bound empties the cache.
    pub(super) fn push(&mut self, end: u64, batch: Batch) {
        self.bytes += batch.entries.len() + ENTRY_OVERHEAD_BYTES;
        self.blocks.push_back((end, batch));
        while self.bytes > self.bytes_max {
            let Some((end, batch)) = self.blocks.pop_front() else {
                break;
            };
            self.bytes -= batch.entries.len() + ENTRY_OVERHEAD_BYTES;
            self.start = end;
        }
    }

    /// Returns the blocks from `offset` on, about as many as make a full batch, and the offset
    /// after them; `None` when the block at `offset` is not here.
    pub(super) fn read(&self, offset: u64) -> Option<(Vec<Batch>, u64)> {
        if offset < self.start {
            return None;
        }
        let first = self.blocks.partition_point(|(end, _)| *end <= offset);
        let (mut batches, mut next) = (Vec::new(), offset);
        let (mut entries, mut bytes) = (0, 0);
        for (end, batch) in self.blocks.iter().skip(first) {
            let is_full = entries + batch.entry_count > BATCH_ENTRIES_MAX
                || bytes + batch.entries.len() > BATCH_BYTES_TARGET;
            if is_full && !batches.is_empty() {
                break;
            }
            entries += batch.entry_count;
            bytes += batch.entries.len();
            batches.push(batch.clone());
            next = *end;
        }
        (!batches.is_empty()).then_some((batches, next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgcapture_engine::lsn::{Lsn, PgTime};

    fn block(lsn: u64) -> Batch {
        Batch::progress(Lsn(lsn), PgTime(0))
    }

    #[test]
    fn a_reader_finds_the_blocks_from_its_offset_on() {
        let mut cache = TailCache::new(100, 1 << 20);
        cache.push(200, block(1));
        cache.push(300, block(2));
        assert_eq!(cache.read(99), None);
        assert_eq!(cache.read(100), Some((vec![block(1), block(2)], 300)));
        assert_eq!(cache.read(200), Some((vec![block(2)], 300)));
        assert_eq!(cache.read(300), None);
    }

    #[test]
    fn the_oldest_blocks_make_room() {
        let mut cache = TailCache::new(0, 3 * ENTRY_OVERHEAD_BYTES);
        for number in 1..=10 {
            cache.push(number * 100, block(number));
        }
        assert_eq!(cache.read(600), None);
        assert_eq!(cache.read(700).map(|(blocks, _)| blocks.len()), Some(3));
        let mut none = TailCache::new(0, 0);
        none.push(100, block(1));
        assert_eq!(none.read(0), None);
    }
}
