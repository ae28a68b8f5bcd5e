//! A reader of the embedded log: from memory at the tail, from the files behind it.
//!
//! Files are read on the runtime's blocking threads, a chunk at a time, opened for that chunk: an
//! idle reader holds a position and a watch, nothing else, so that thousands of them are cheap.
//!
//! # Invariants
//!
//! - Only what lies before the durable tail is looked at.
//! - The position moves only together with `ready`, never across an await: a dropped call loses
//!   nothing, and the read that it began is taken up by the next call.

use std::{collections::VecDeque, fs::File, io, sync::Arc};

use async_trait::async_trait;
use pgcapture_engine::{
    batch::{Batch, MalformedBatch},
    checkpoint::Checkpoint,
    segment::BadBlock,
};
use tokio::{sync::watch, task::JoinHandle};

use super::{
    blocks::{CHUNK_BYTES, Chunk, Stop},
    files::io_error,
    index::damaged,
    merge::Merger,
    shared::{Located, Segment, Shared},
};
use crate::log::{LogError, LogReader, Tail, skip::Skip};

/// See the module.
#[derive(Debug)]
pub(super) struct EmbeddedReader {
    shared: Arc<Shared>,
    tail: watch::Receiver<Tail>,
    position: Position,
    ready: VecDeque<Batch>,
    reading: Option<JoinHandle<Result<Piece, LogError>>>,
}

/// Where a reader stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    /// Offset of the next block.
    pub(super) offset: u64,
    /// Nothing at or before this entry is missed if it is removed.
    pub(super) passed: Option<Checkpoint>,
    pub(super) skip: Skip,
}

/// What was read, and where the reader stands after it.
#[derive(Debug)]
struct Piece {
    batches: VecDeque<Batch>,
    position: Position,
}

impl EmbeddedReader {
    pub(super) fn new(shared: Arc<Shared>, position: Position) -> Self {
        Self {
            tail: shared.tail.clone(),
            shared,
            position,
            ready: VecDeque::new(),
            reading: None,
        }
    }

    /// Returns the next durable batch, or `None` at the tail.
    async fn fill(&mut self) -> Result<Option<Batch>, LogError> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some(batch));
            }
            if let Some(reading) = &mut self.reading {
                let joined = reading.await;
                self.reading = None;
                let piece = joined.map_err(|error| LogError::Closed {
                    reason: format!("a read ended with {error}"),
                })?;
                self.accept(piece.inspect_err(|error| self.count(error))?);
                continue;
            }
            let durable = self.tail.borrow_and_update().offset;
            if self.position.offset >= durable {
                return Ok(None);
            }
            let cached = self.shared.cache().read(self.position.offset);
            if let Some((batches, next)) = cached {
                let piece = self.position.take_cached(batches, next);
                let piece = piece.map_err(|error| self.malformed(error))?;
                self.accept(piece);
                continue;
            }
            let (shared, position) = (Arc::clone(&self.shared), self.position);
            let read = move || read_piece(&shared, position, durable);
            self.reading = Some(tokio::task::spawn_blocking(read));
        }
    }

    fn accept(&mut self, piece: Piece) {
        self.position = piece.position;
        self.ready = piece.batches;
    }

    fn count(&self, error: &LogError) {
        if matches!(error, LogError::Corrupt { .. }) {
            self.shared.metrics.corruptions.increment(1);
        }
    }

    /// The batch was appended malformed: its checksum is right, its entries are not.
    fn malformed(&self, error: MalformedBatch) -> LogError {
        LogError::Corrupt {
            file: self.shared.directory.clone(),
            offset: self.position.offset,
            what: error.to_string(),
        }
    }
}

#[async_trait]
impl LogReader for EmbeddedReader {
    async fn next(&mut self) -> Result<Batch, LogError> {
        loop {
            if let Some(batch) = self.fill().await? {
                return Ok(batch);
            }
            if self.tail.changed().await.is_err() {
                return Err(self.shared.queue.why_closed());
            }
        }
    }

    async fn try_next(&mut self) -> Result<Option<Batch>, LogError> {
        self.fill().await
    }
}

impl Position {
    /// Moves over `batches`, which end at `next`.
    fn take_cached(mut self, batches: Vec<Batch>, next: u64) -> Result<Piece, MalformedBatch> {
        let mut merger = Merger::default();
        for batch in batches {
            self.take(batch, &mut merger)?;
        }
        self.offset = next;
        Ok(Piece {
            batches: merger.finish(),
            position: self,
        })
    }

    fn take(&mut self, batch: Batch, merger: &mut Merger) -> Result<(), MalformedBatch> {
        self.passed = batch.span.map(|(_, last)| last).max(self.passed);
        if let Some(batch) = self.skip.apply(batch)? {
            merger.push(batch);
        }
        Ok(())
    }
}

/// Reads the blocks of one chunk. Blocks the thread.
fn read_piece(shared: &Shared, mut position: Position, durable: u64) -> Result<Piece, LogError> {
    loop {
        let Located { segment, end } = match shared.locate(position.offset) {
            Some(located) => located,
            None => {
                position = after_removal(shared, position)?;
                if position.offset >= durable {
                    let batches = VecDeque::new();
                    return Ok(Piece { batches, position });
                }
                continue;
            }
        };
        let file = match File::open(&segment.path) {
            Ok(file) => file,
            // Retention has removed it since; it is no longer located then.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && shared.oldest().number > segment.header.number =>
            {
                continue;
            }
            Err(error) => return Err(io_error("open", &segment.path)(error)),
        };
        let end = end.unwrap_or(durable).min(durable);
        return read_chunk(&segment, &file, position, end);
    }
}

/// Goes on at the oldest segment when nothing was missed, else tells what was.
fn after_removal(shared: &Shared, position: Position) -> Result<Position, LogError> {
    let oldest = shared.oldest();
    let floor = oldest.previous;
    if floor <= position.passed {
        return Ok(Position {
            offset: oldest.base_offset,
            ..position
        });
    }
    let earliest = *shared.earliest();
    let earliest = earliest.map(|(first, _)| first).or(floor);
    Err(LogError::Removed {
        asked: match position.passed {
            Some(passed) => passed.to_string(),
            None => "the beginning".to_owned(),
        },
        earliest: earliest.unwrap_or_default(),
    })
}

fn read_chunk(
    segment: &Segment,
    file: &File,
    mut position: Position,
    end: u64,
) -> Result<Piece, LogError> {
    let base = segment.header.base_offset;
    let (mut length, mut merger) = (CHUNK_BYTES, Merger::default());
    let before = position.offset;
    loop {
        let rest = end.saturating_sub(before);
        let chunk = Chunk::read(file, base, before, length.min(rest));
        let mut chunk = chunk.map_err(io_error("read", &segment.path))?;
        let stop = loop {
            match chunk.step() {
                Ok((header, payload)) => {
                    let taken = position.take(header.batch(payload), &mut merger);
                    taken.map_err(|_| damaged(segment, header.offset, BadBlock::Payload))?;
                    position.offset = header.end();
                }
                Err(stop) => break stop,
            }
        };
        if position.offset > before {
            // What is good is delivered first; the next call meets what is not.
            break;
        }
        match stop {
            // The first block is longer than a chunk: read it whole.
            Stop::Partial(block) if block > length && block <= rest => length = block,
            Stop::Bad(bad) => return Err(damaged(segment, before, bad)),
            Stop::Partial(_) | Stop::End => {
                return Err(damaged(segment, before, BadBlock::Payload));
            }
        }
    }
    Ok(Piece {
        batches: merger.finish(),
        position,
    })
}
