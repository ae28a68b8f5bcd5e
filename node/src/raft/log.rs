//! The common log on this node's disk, as openraft wants it.
//!
//! An append can be read as soon as it returns, and is told durable once it is on disk. One task
//! writes: it takes all that waits and makes one transaction of it, so that several appends cost one
//! wait for the disk. Votes, truncations and purges go through the same queue, in order.
//!
//! A write that failed is never tried again: the store refuses everything after it, openraft stops,
//! and with it the node.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::Stream;
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    entry::RaftEntry as _,
    storage::{IOFlushed, RaftLogStorage},
};
use pgcapture_actors::supervise::{Task, TaskKind, spawn};
use tokio::sync::{mpsc, oneshot};

use super::types::{ENTRY_BYTES_MAX, Entry, LogId, Types, Vote, from_bytes, to_bytes};
use crate::store::{LogWrite, Mark, Store, StoreError};

/// Writes that wait for the disk. openraft appends what it has in one call, so that few wait.
const WRITES_MAX: usize = 256;

/// Entries that are read at once for applying.
const READ_CHUNK: u64 = 256;

/// The log of this node.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    writes: mpsc::Sender<Write>,
    _writer: Arc<Task<()>>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    /// Entries that are not on disk yet.
    pending: Mutex<BTreeMap<u64, Pending>>,
}

/// An entry that is not on disk yet.
#[derive(Clone, Debug)]
struct Pending {
    entry: Arc<Entry>,
    /// Its length on disk.
    bytes: usize,
}

/// A write on its way to the disk.
struct Write {
    what: Vec<LogWrite>,
    /// The entries in it: first and last index.
    entries: Option<(u64, u64)>,
    done: Done,
}

enum Done {
    Flushed(IOFlushed<Types>),
    Waiting(oneshot::Sender<io::Result<()>>),
}

impl Log {
    /// Opens the log and starts the task that writes. The task ends with the last clone.
    pub(crate) fn open(store: Store) -> Self {
        let (writes, queue) = mpsc::channel(WRITES_MAX);
        let shared = Arc::new(Shared {
            store,
            pending: Mutex::default(),
        });
        let writer = spawn(TaskKind::Raft, "log", write_all(Arc::clone(&shared), queue));
        Self {
            shared,
            writes,
            _writer: Arc::new(writer),
        }
    }

    /// Returns the last entry.
    pub(super) fn last_log_id(&self) -> io::Result<Option<LogId>> {
        self.shared.last_log_id()
    }

    /// Writes and waits until it is on disk.
    async fn write(&self, what: Vec<LogWrite>) -> io::Result<()> {
        let (done, outcome) = oneshot::channel();
        let write = Write {
            what,
            entries: None,
            done: Done::Waiting(done),
        };
        let closed = || io::Error::other("the task that writes the log has ended");
        self.writes.send(write).await.map_err(|_| closed())?;
        outcome.await.map_err(|_| closed())?
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, BTreeMap<u64, Pending>> {
        // Nothing in here panics half way.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_log_id(&self) -> io::Result<Option<LogId>> {
        if let Some((_, last)) = self.pending().last_key_value() {
            return Ok(Some(last.entry.log_id()));
        }
        let last = self.store.last_entry().map_err(io::Error::other)?;
        last.map(|(_, bytes)| Ok(from_bytes::<Entry>(&bytes)?.log_id()))
            .transpose()
    }

    /// Reads entries in order, as many as fit; at least one when there is one.
    fn read(&self, first: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        // What waits first: an entry leaves it only once it can be read from the disk.
        let waiting: Vec<_> = {
            let pending = self.pending();
            let range = pending.range(first..end.max(first));
            range.map(|(index, it)| (*index, it.clone())).collect()
        };
        let on_disk = waiting.first().map_or(end, |(index, _)| *index);
        let mut entries = Vec::new();
        if first < on_disk {
            let rows = self.store.entries((first, on_disk), bytes_max);
            for (_, bytes) in rows.map_err(io::Error::other)? {
                entries.push(from_bytes(&bytes)?);
            }
            // Cut at the limit, or a hole that openraft must see: nothing may follow it.
            if first + (entries.len() as u64) < on_disk {
                return Ok(entries);
            }
        }
        let mut left = bytes_max;
        for (_, it) in waiting {
            if !entries.is_empty() && it.bytes > left {
                break;
            }
            left = left.saturating_sub(it.bytes);
            entries.push(Entry::clone(&it.entry));
        }
        Ok(entries)
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (first, end) = bounds(&range);
        self.shared.read(first, end, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.shared.read(start, end, ENTRY_BYTES_MAX)
    }

    async fn entries_stream<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend {
        let (first, end) = bounds(&range);
        let shared = Arc::clone(&self.shared);
        let ready = Vec::new().into_iter();
        futures_util::stream::try_unfold((first, ready), move |(next, mut ready)| {
            let shared = Arc::clone(&shared);
            async move {
                if let Some(entry) = ready.next() {
                    return Ok(Some((entry, (next, ready))));
                }
                let until = end.min(next.saturating_add(READ_CHUNK));
                let mut ready = shared.read(next, until, ENTRY_BYTES_MAX)?.into_iter();
                let next = next + ready.len() as u64;
                Ok(ready.next().map(|entry| (entry, (next, ready))))
            }
        })
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        let bytes = self.shared.store.mark(Mark::Vote);
        let bytes = bytes.map_err(io::Error::other)?;
        bytes.map(|bytes| from_bytes(&bytes)).transpose()
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let purged = self.shared.store.mark(Mark::Purged);
        let purged = purged.map_err(io::Error::other)?;
        let purged: Option<LogId> = purged.map(|bytes| from_bytes(&bytes)).transpose()?;
        Ok(LogState {
            last_log_id: self.shared.last_log_id()?.or(purged),
            last_purged_log_id: purged,
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = LogWrite::Set(Mark::Vote, to_bytes(vote)?);
        self.write(vec![vote]).await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut rows = Vec::new();
        let mut waiting = Vec::new();
        for entry in entries {
            let (index, row) = (entry.index(), to_bytes(&entry)?);
            let (entry, bytes) = (Arc::new(entry), row.len());
            waiting.push((index, Pending { entry, bytes }));
            rows.push((index, row));
        }
        let ends = rows.first().zip(rows.last());
        let ends = ends.map(|((first, _), (last, _))| (*first, *last));
        self.shared.pending().extend(waiting);
        let write = Write {
            what: vec![LogWrite::Append(rows)],
            entries: ends,
            done: Done::Flushed(callback),
        };
        let sent = self.writes.send(write).await;
        sent.map_err(|_| io::Error::other("the task that writes the log has ended"))
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let first = last_log_id.map_or(0, |id| id.index() + 1);
        self.write(vec![LogWrite::Truncate(first)]).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let mark = LogWrite::Set(Mark::Purged, to_bytes(&log_id)?);
        self.write(vec![LogWrite::Purge(log_id.index()), mark])
            .await
    }
}

/// Writes until nobody can append any more.
async fn write_all(shared: Arc<Shared>, mut queue: mpsc::Receiver<Write>) {
    let mut batch = Vec::with_capacity(WRITES_MAX);
    while queue.recv_many(&mut batch, WRITES_MAX).await > 0 {
        let mut what = Vec::new();
        for write in &mut batch {
            what.append(&mut write.what);
        }
        let store = shared.store.clone();
        let written = tokio::task::spawn_blocking(move || store.write_log(&what)).await;
        let written = written
            .map_err(|error| StoreError::Failed {
                what: error.to_string(),
            })
            .flatten();
        if let Err(error) = &written {
            let explanation = error.explanation();
            tracing::error!(%error, code = explanation.code, next = explanation.next, "the log of the cluster cannot be written");
        }
        let outcome = written.map_err(|error| error.to_string());
        for write in batch.drain(..) {
            if let (Some((first, last)), Ok(())) = (write.entries, &outcome) {
                let mut pending = shared.pending();
                for index in first..=last {
                    pending.remove(&index);
                }
            }
            let outcome = outcome.clone().map_err(io::Error::other);
            match write.done {
                Done::Flushed(flushed) => flushed.io_completed(outcome),
                // Who asked may be gone.
                Done::Waiting(waiting) => drop(waiting.send(outcome)),
            }
        }
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let first = match range.start_bound() {
        Bound::Included(first) => *first,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (first, end.max(first))
}

#[cfg(test)]
mod tests;
