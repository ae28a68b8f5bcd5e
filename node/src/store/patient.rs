//! The store's file, which waits while the disk is full.
//!
//! redb takes nothing any more after a write failed, for the rest of a database's life. A full disk
//! passes, so the write waits here until there is space; what asks the store meanwhile is refused
//! by whoever looks at [`Space::is_full`]. Every other failure goes through: what a broken disk holds
//! is not known any more.

use std::{
    fmt::Debug,
    io::{self, ErrorKind},
    ops::Bound,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pgcapture_engine::codes;
use redb::{BackendError, StorageBackend};
use tokio::sync::watch;

/// A full disk is tried again this often.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Whether the disk has space. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Space {
    inner: Arc<(Mutex<Want>, Condvar)>,
    is_full: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Want {
    /// Writes that wait.
    waiting: usize,
    /// Nobody waits any more: the node stops.
    is_given_up: bool,
}

impl Space {
    /// Tells whether a write waits for space.
    pub(super) fn is_full(&self) -> bool {
        self.lock().waiting > 0
    }

    /// Watches that.
    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.is_full.subscribe()
    }

    /// Counts a write that begins to wait, or that waits no more.
    fn count(&self, change: impl FnOnce(&mut usize)) {
        let mut want = self.lock();
        change(&mut want.waiting);
        let is_full = want.waiting > 0;
        // Under the lock, so that nobody is told of an older count after a newer one.
        self.is_full
            .send_if_modified(|before| std::mem::replace(before, is_full) != is_full);
    }

    /// Lets every write that waits fail, now and from now on. The second call does nothing.
    pub(super) fn give_up(&self) {
        self.lock().is_given_up = true;
        self.inner.1.notify_all();
    }

    /// Waits a moment; returns whether to try again.
    fn wait(&self) -> bool {
        let want = self.lock();
        if want.is_given_up {
            return false;
        }
        let waited = self.inner.1.wait_timeout(want, LOOK_INTERVAL);
        let (want, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !want.is_given_up
    }

    /// A panic under the lock leaves a count that is right: go on.
    fn lock(&self) -> MutexGuard<'_, Want> {
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A backend whose writes wait for space.
#[derive(Debug)]
pub(super) struct PatientFile<B> {
    inner: B,
    space: Space,
}

impl<B> PatientFile<B> {
    pub(super) const fn new(inner: B, space: Space) -> Self {
        Self { inner, space }
    }

    fn patiently(&self, mut write: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        let first = match write() {
            Err(error) if is_full(&error) => error,
            done => return done,
        };
        let (code, next) = (
            codes::node::STORE_FAILED.code,
            codes::node::STORE_FAILED.next,
        );
        tracing::error!(code, next, error = %first, "the disk of the node's store is full: waiting");
        self.space.count(|waiting| *waiting += 1);
        let mut done = Err(first);
        while self.space.wait() {
            done = write();
            if !matches!(&done, Err(error) if is_full(error)) {
                break;
            }
        }
        self.space.count(|waiting| *waiting -= 1);
        if done.is_ok() {
            tracing::info!("the node's store takes writes again");
        }
        done
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

impl<B: StorageBackend> StorageBackend for PatientFile<B> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.patiently(|| self.inner.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.patiently(|| self.inner.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use redb::{Database, ReadableDatabase as _, TableDefinition, backends::InMemoryBackend};

    use super::*;

    const TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("t");

    /// Memory that is full while somebody says so.
    #[derive(Debug)]
    struct Small {
        memory: InMemoryBackend,
        is_full: Arc<AtomicBool>,
    }

    impl StorageBackend for Small {
        fn len(&self) -> io::Result<u64> {
            self.memory.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.memory.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.memory.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.memory.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            if self.is_full.load(Ordering::SeqCst) {
                return Err(ErrorKind::StorageFull.into());
            }
            self.memory.write(offset, data)
        }
    }

    fn small() -> (Database, Arc<AtomicBool>, Space) {
        let (is_full, space) = (Arc::new(AtomicBool::new(false)), Space::default());
        let small = Small {
            memory: InMemoryBackend::new(),
            is_full: Arc::clone(&is_full),
        };
        let file = PatientFile::new(small, space.clone());
        let database = Database::builder().create_with_backend(file).unwrap();
        (database, is_full, space)
    }

    fn write(database: &Database, value: u64) -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        transaction.open_table(TABLE)?.insert(1, value)?;
        transaction.commit()?;
        Ok(())
    }

    /// Returns once a write waits for space.
    fn await_full(space: &Space) {
        while !space.is_full() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_write_waits_for_space_and_the_file_goes_on() {
        let (database, is_full, space) = small();
        write(&database, 1).unwrap();
        is_full.store(true, Ordering::SeqCst);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| write(&database, 2));
            await_full(&space);
            is_full.store(false, Ordering::SeqCst);
            waiting.join().unwrap().unwrap();
        });
        assert!(!space.is_full());
        write(&database, 3).unwrap();
        let table = database.begin_read().unwrap().open_table(TABLE).unwrap();
        assert_eq!(table.get(1).unwrap().unwrap().value(), 3);
    }

    #[test]
    fn nobody_waits_once_the_node_stops() {
        let (database, is_full, space) = small();
        write(&database, 1).unwrap();
        is_full.store(true, Ordering::SeqCst);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| write(&database, 2));
            await_full(&space);
            space.give_up();
            waiting.join().unwrap().unwrap_err();
        });
    }
}
