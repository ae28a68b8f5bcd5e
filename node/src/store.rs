//! The durable state of one node: what the cluster agreed on, and this node's part of its log.
//!
//! One redb file in the data directory, guarded by a lock on `node.lock`. Rows of bytes and one
//! value, [`Agreed`]; Raft itself is in `crate::raft`, which decides what is written when. It never
//! holds a secret: a source names where its password is.
//!
//! # Invariants
//!
//! - The log and the vote count once their transaction is on disk. What was applied is written
//!   without waiting for the disk: the log is durable and is applied again after a crash. All lies
//!   in one file, so that a crash leaves what some moment left, never a mixture.
//! - A full disk is waited for (`patient`). After any other write that failed nothing is written
//!   any more: what the disk holds is unknown.
//! - Every page is checked when the file is opened, and that it ends where it was promised to end
//!   (`attested`): damage is refused, never applied.
//! - The file's format version is read before any value; a newer one is refused unchanged.
//! - Dumps lie in rows of their own, one a dump and one a table of it, and so do cursors; an entry
//!   writes only those that it changed.

mod agreed;
mod attested;
mod dumps;
mod format;
mod lock;
mod log;
mod patient;
mod rows;

use std::{
    fs, io,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use pgcapture_engine::{
    cluster::{Agreed, CursorTable, State},
    codes,
};
use redb::{Database, Durability, TableDefinition, WriteTransaction, backends::FileBackend};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

#[cfg(test)]
pub(crate) use self::format::FORMAT_PROTOCOL_FIRST;
pub(crate) use self::format::SNAPSHOT_VERSION_MIN;
pub(crate) use self::{
    agreed::Batch,
    log::{LogWrite, Mark},
    rows::Row,
};
use self::{
    attested::Attested,
    lock::DirectoryLock,
    patient::{PatientFile, Space},
};
pub use self::{
    format::FORMAT_VERSION,
    log::{ClusterId, Identity},
};

/// A stored value is at most this long: 1,000 sources with their gaps stay far below, and a damaged
/// length cannot ask for more memory.
pub(crate) const VALUE_BYTES_MAX: usize = 16 << 20;

/// redb's page cache. The state is small; the default of 1 GiB is not.
const CACHE_BYTES: usize = 4 << 20;

const STATE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("state");
const CURSORS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("cursors");
const ANSWERED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("answered");
const STATE_KEY: &str = "cluster";

/// The node's store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    directory: PathBuf,
    agreed: Mutex<Agreed>,
    state: watch::Sender<Arc<State>>,
    /// Grows whenever a cursor has moved.
    cursor_moves: watch::Sender<u64>,
    /// What the first failed write said.
    failure: watch::Sender<Option<String>>,
    space: Space,
    attested: Attested,
    /// Encoded length of the agreed state, as it was written last.
    state_bytes: AtomicUsize,
    _lock: DirectoryLock,
}

/// The store cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the directory.
    #[error("{}: {} is in use by another node", codes::node::DATA_DIR_IN_USE.code, directory.display())]
    InUse {
        /// The directory.
        directory: PathBuf,
    },
    /// The directory cannot be created or written.
    #[error("{}: cannot {action} {}", codes::node::DATA_DIR_UNWRITABLE.code, path.display())]
    Unwritable {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Written by a newer version.
    #[error("{}: {} has format version {found}; this pgcapture reads up to {FORMAT_VERSION}", codes::node::NEWER_STORE.code, path.display())]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The file does not hold what we write.
    #[error("{}: the node's store is damaged: {what}", codes::node::STORE_DAMAGED.code)]
    Damaged {
        /// What is wrong, at the start with the file.
        what: String,
    },
    /// The file belongs to a member of a cluster, and the caller wants something else.
    #[error("{}: this data directory belongs to node \"{found}\" of a cluster, not to \"{wanted}\"", codes::cluster::NAME_CHANGED.code)]
    OtherNode {
        /// The name in the file.
        found: String,
        /// The name in the configuration.
        wanted: String,
    },
    /// The disk refused.
    #[error("{}: the node's store cannot be used: {what}", codes::node::STORE_FAILED.code)]
    Failed {
        /// What redb said.
        what: String,
    },
}

impl StoreError {
    /// Names the file that is damaged.
    fn in_file(self, path: &Path) -> Self {
        if let Self::Damaged { what } = self {
            let what = format!("{}: {what}", path.display());
            return Self::Damaged { what };
        }
        self
    }

    /// Returns what the error means and what to do.
    #[must_use]
    pub const fn explanation(&self) -> &'static codes::Explanation {
        match self {
            Self::InUse { .. } => &codes::node::DATA_DIR_IN_USE,
            Self::Unwritable { .. } => &codes::node::DATA_DIR_UNWRITABLE,
            Self::NewerVersion { .. } => &codes::node::NEWER_STORE,
            Self::Damaged { .. } => &codes::node::STORE_DAMAGED,
            Self::OtherNode { .. } => &codes::cluster::NAME_CHANGED,
            Self::Failed { .. } => &codes::node::STORE_FAILED,
        }
    }
}

impl Store {
    /// Opens or creates the store in `directory` and locks it until the last clone is dropped.
    /// Blocking; called once at the start.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was changed then.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(directory).map_err(|source| StoreError::Unwritable {
            action: "create",
            path: directory.to_owned(),
            source,
        })?;
        let lock = DirectoryLock::take(directory)?;
        let path = directory.join("node.redb");
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| StoreError::Unwritable {
                action: "open",
                path: path.clone(),
                source,
            })?;
        let backend = FileBackend::new(file).map_err(|error| open_error(error, &path))?;
        Self::open_on(backend, directory, lock)
    }

    fn open_on(
        backend: impl redb::StorageBackend,
        directory: &Path,
        lock: DirectoryLock,
    ) -> Result<Self, StoreError> {
        let path = directory.join("node.redb");
        let space = Space::default();
        let (attested, promised) =
            Attested::open(directory).map_err(|source| StoreError::Unwritable {
                action: "open",
                path: directory.join("node.attested"),
                source,
            })?;
        let file = PatientFile::new(backend, space.clone());
        let opened = without_panic(|| {
            let database = open_checked(file, &path)?;
            let agreed = format::read_or_create(&database, &path)?;
            let written = log::writes(&database)?;
            if written < promised {
                let what = format!(
                    "it ends with write {written}, and write {promised} was on disk: what was \
                     promised to others is missing"
                );
                return Err(StoreError::Damaged { what });
            }
            attested.attest(written);
            Ok((database, agreed))
        });
        let (database, agreed) = opened.map_err(|error| error.in_file(&path))?;
        let state_bytes = encode(&*agreed.state)?.len();
        let (state, _) = watch::channel(Arc::clone(&agreed.state));
        let (failure, _) = watch::channel(None);
        let store = Self {
            inner: Arc::new(Inner {
                database,
                directory: directory.to_owned(),
                agreed: Mutex::new(agreed),
                state,
                cursor_moves: watch::Sender::default(),
                failure,
                space,
                attested,
                state_bytes: AtomicUsize::default(),
                _lock: lock,
            }),
        };
        store.inner.note_state(state_bytes);
        Ok(store)
    }

    /// Returns the data directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// Returns the encoded length of the agreed state, without cursors and dumps.
    pub(crate) fn state_bytes(&self) -> usize {
        self.inner.state_bytes.load(Ordering::Relaxed)
    }

    /// Watches the agreed state.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<Arc<State>> {
        self.inner.state.subscribe()
    }

    /// Watches a number that grows whenever a cursor has moved.
    #[must_use]
    pub fn cursor_moves(&self) -> watch::Receiver<u64> {
        self.inner.cursor_moves.subscribe()
    }

    /// Watches for the first write that failed; nothing is written after it.
    #[must_use]
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.inner.failure.subscribe()
    }

    /// Tells whether the disk is full and writes wait for space.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.inner.space.is_full()
    }

    /// Watches whether the disk is full.
    pub(crate) fn full(&self) -> watch::Receiver<bool> {
        self.inner.space.watch()
    }

    /// Lets writes that wait for space fail: the node stops.
    pub fn give_up_waiting(&self) {
        self.inner.space.give_up();
    }

    /// Looks at the cursors as they are now. `look` must be short: it holds a lock.
    pub fn with_cursors<T>(&self, look: impl FnOnce(&CursorTable) -> T) -> T {
        look(&self.inner.agreed().cursors)
    }
}

impl Inner {
    fn agreed(&self) -> MutexGuard<'_, Agreed> {
        // A panic while the lock was held leaves a value that was applied whole or not at all.
        self.agreed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of how long the encoded state is.
    fn note_state(&self, bytes: usize) {
        self.state_bytes.store(bytes, Ordering::Relaxed);
        metrics::gauge!("pgcapture_raft_state_bytes").set(bytes as f64);
    }

    /// Runs one transaction. One that finds damage is undone; after one that failed every later call
    /// fails.
    fn write<T>(
        &self,
        durability: Durability,
        work: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if let Some(what) = self.failure.borrow().clone() {
            return Err(StoreError::Failed { what });
        }
        let run = || {
            let transaction = begin(&self.database, durability).map_err(failed)?;
            let done = work(&transaction)?;
            let is_durable = matches!(durability, Durability::Immediate);
            let number = is_durable.then(|| log::count_write(&transaction));
            let number = number.transpose()?;
            transaction.commit().map_err(|error| failed(error.into()))?;
            if let Some(number) = number {
                self.attested.attest(number);
            }
            Ok(done)
        };
        let done = run();
        if let Err(StoreError::Failed { what }) = &done {
            self.failure.send_if_modified(|failure| {
                let is_first = failure.is_none();
                failure.get_or_insert_with(|| what.clone());
                is_first
            });
        }
        done
    }
}

fn begin(database: &Database, durability: Durability) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(durability)?;
    Ok(transaction)
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).map_err(|error| {
        StoreError::Failed {
            what: error.to_string(),
        }
    })
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    let config = bincode::config::standard().with_limit::<VALUE_BYTES_MAX>();
    let damaged = |what: String| StoreError::Damaged { what };
    let (value, length) = bincode::serde::decode_from_slice(bytes, config)
        .map_err(|error| damaged(error.to_string()))?;
    if length == bytes.len() {
        Ok(value)
    } else {
        Err(damaged("a value is longer than its contents".to_owned()))
    }
}

/// Opens the database and checks every page. A transaction that a crash cut off is given up.
fn open_checked(
    file: PatientFile<impl redb::StorageBackend>,
    path: &Path,
) -> Result<Database, StoreError> {
    let mut builder = Database::builder();
    let builder = builder.set_cache_size(CACHE_BYTES);
    let opened = builder.create_with_backend(file);
    let mut database = opened.map_err(|error| open_error(error, path))?;
    // redb itself looks at checksums after a crash only, and a disk does not rot in crashes only.
    let checked = database.check_integrity();
    if !checked.map_err(|error| open_error(error, path))? {
        tracing::warn!(file = %path.display(), "the last change of the node's store was not whole and is given up");
    }
    Ok(database)
}

/// Runs something that may panic on bytes that no program of ours wrote.
fn without_panic<T>(open: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    // Whatever it has built is gone with it.
    let opened = panic::catch_unwind(AssertUnwindSafe(open));
    opened.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        let what = text.unwrap_or("it cannot be read").to_owned();
        Err(StoreError::Damaged { what })
    })
}

fn open_error(error: redb::DatabaseError, path: &Path) -> StoreError {
    let (action, path, what) = ("open", path.to_owned(), error.to_string());
    if let redb::Error::Io(source) = redb::Error::from(error)
        // A file that ends too early or begins otherwise is no fault of the disk.
        && !matches!(source.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
    {
        return StoreError::Unwritable {
            action,
            path,
            source,
        };
    }
    StoreError::Damaged { what }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err wants"
)]
fn failed(error: redb::Error) -> StoreError {
    StoreError::Failed {
        what: error.to_string(),
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use self::tests::Disk;
