//! The durable state of one node: the agreed state and the cursors of consumers.
//!
//! One redb file in the data directory, guarded by a lock on `node.lock`, behind the two seams
//! [`Consensus`] and [`CursorStore`]. In a cluster Raft replaces the first. It never holds a secret:
//! a source names where its password is.
//!
//! # Invariants
//!
//! - A command or a cursor counts once its transaction is on disk; one transaction a call.
//! - A full disk fails what is asked of the store then and nothing later ([`file`]).
//! - The file's format version is read before anything else; a newer one is refused unchanged.
//! - Dumps lie in rows of their own, one a dump and one a table of it; a command writes only those
//!   that it changed.

mod dumps;
mod file;
mod format;
mod lock;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use pgcapture_actors::{
    consensus::{Consensus, ProposeError},
    cursors::{ACKED_RUNS_MAX, Cursor, CursorError, CursorStore, SubscriptionId},
};
use pgcapture_engine::{
    cluster::{Answer, Command, State},
    codes,
};
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

pub use self::format::FORMAT_VERSION;
use self::{file::StoreFile, lock::DirectoryLock};

/// A stored value is at most this long: 1,000 sources with their gaps stay far below, and a damaged
/// length cannot ask for more memory.
const VALUE_BYTES_MAX: usize = 16 << 20;

/// redb's page cache. The state is small; the default of 1 GiB is not.
const CACHE_BYTES: usize = 4 << 20;

const STATE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("state");
const CURSORS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("cursors");
const STATE_KEY: &str = "cluster";

/// The node's store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: StoreFile,
    /// Held while a command is applied, so that commands have one order.
    apply: Mutex<()>,
    state: watch::Sender<Arc<State>>,
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
        /// What is wrong.
        what: String,
    },
    /// The disk refused.
    #[error("{}: the node's store cannot be used: {what}", codes::node::STORE_FAILED.code)]
    Failed {
        /// What redb said.
        what: String,
    },
}

impl StoreError {
    /// Returns what the error means and what to do.
    #[must_use]
    pub const fn explanation(&self) -> &'static codes::Explanation {
        match self {
            Self::InUse { .. } => &codes::node::DATA_DIR_IN_USE,
            Self::Unwritable { .. } => &codes::node::DATA_DIR_UNWRITABLE,
            Self::NewerVersion { .. } => &codes::node::NEWER_STORE,
            Self::Damaged { .. } => &codes::node::STORE_DAMAGED,
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
        let (file, state) = StoreFile::open(&path)?;
        let (state, _) = watch::channel(Arc::new(state));
        Ok(Self {
            inner: Arc::new(Inner {
                file,
                apply: Mutex::new(()),
                state,
                _lock: lock,
            }),
        })
    }

    /// Runs blocking work on the store off the runtime's threads. The work goes on when the caller
    /// is dropped.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.inner);
        let work = move || {
            inner.recover()?;
            work(&inner)
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| StoreError::Failed {
                what: error.to_string(),
            })?
    }
}

#[async_trait]
impl Consensus for Store {
    async fn propose(&self, command: Command) -> Result<Answer, ProposeError> {
        let outcome = self.run(move |inner| inner.propose(command)).await;
        outcome
            .map_err(|error| ProposeError::Store {
                reason: error.to_string(),
            })?
            .map_err(ProposeError::from)
    }

    fn state(&self) -> watch::Receiver<Arc<State>> {
        self.inner.state.subscribe()
    }
}

#[async_trait]
impl CursorStore for Store {
    async fn load(&self, id: &SubscriptionId) -> Result<Option<Cursor>, CursorError> {
        let id = id.clone();
        let read = self.run(move |inner| inner.load_cursor(&id)).await;
        read.map_err(cursor_error)
    }

    async fn save(&self, cursors: Vec<(SubscriptionId, Cursor)>) -> Result<(), CursorError> {
        let saved = self.run(move |inner| inner.save_cursors(cursors)).await;
        saved.map_err(cursor_error)
    }

    async fn remove(&self, id: &SubscriptionId) -> Result<(), CursorError> {
        let id = id.clone();
        let removed = self.run(move |inner| inner.remove_cursor(&id)).await;
        removed.map_err(cursor_error)
    }

    async fn list(&self) -> Result<Vec<(SubscriptionId, Cursor)>, CursorError> {
        self.run(Inner::list_cursors).await.map_err(cursor_error)
    }
}

impl Inner {
    fn recover(&self) -> Result<(), StoreError> {
        self.file.recover(|state| {
            self.state.send_if_modified(|published| {
                let is_other = **published != state;
                if is_other {
                    *published = Arc::new(state);
                }
                is_other
            });
        })
    }

    fn propose(
        &self,
        command: Command,
    ) -> Result<Result<Answer, pgcapture_engine::cluster::Refusal>, StoreError> {
        // A panic while the lock was held left the published state untouched: go on.
        let _order = self.apply.lock().unwrap_or_else(PoisonError::into_inner);
        // The one before may have met a full disk, and may be on it all the same.
        self.recover()?;
        let before = Arc::clone(&self.state.borrow());
        let mut state = State::clone(&before);
        let answer = match state.apply(command) {
            Ok(answer) => answer,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if answer != Answer::Unchanged {
            let bytes = encode(&state)?;
            let changes = dumps::changes(&before, &state)?;
            self.write(|transaction| {
                let mut table = transaction.open_table(STATE)?;
                table.insert(STATE_KEY, bytes.as_slice())?;
                dumps::write(transaction, &changes)
            })?;
            self.state.send_replace(Arc::new(state));
        }
        Ok(Ok(answer))
    }

    fn load_cursor(&self, id: &SubscriptionId) -> Result<Option<Cursor>, StoreError> {
        let bytes = self.file.with(|database| {
            let table = database.begin_read()?.open_table(CURSORS)?;
            let value = table.get((id.stream.as_str(), id.consumer.as_str()))?;
            Ok(value.map(|value| value.value().to_vec()))
        })?;
        bytes.map(|bytes| decode(&bytes)).transpose()
    }

    fn save_cursors(&self, cursors: Vec<(SubscriptionId, Cursor)>) -> Result<(), StoreError> {
        let mut encoded = Vec::with_capacity(cursors.len());
        for (id, mut cursor) in cursors {
            cursor.acked_above.truncate(ACKED_RUNS_MAX);
            encoded.push((id, encode(&cursor)?));
        }
        self.write(|transaction| {
            let mut table = transaction.open_table(CURSORS)?;
            for (id, bytes) in &encoded {
                table.insert((id.stream.as_str(), id.consumer.as_str()), bytes.as_slice())?;
            }
            Ok(())
        })
    }

    fn remove_cursor(&self, id: &SubscriptionId) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(CURSORS)?;
            table.remove((id.stream.as_str(), id.consumer.as_str()))?;
            Ok(())
        })
    }

    fn list_cursors(&self) -> Result<Vec<(SubscriptionId, Cursor)>, StoreError> {
        let rows = self.file.with(|database| {
            let table = database.begin_read()?.open_table(CURSORS)?;
            let mut rows = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                let (stream, consumer) = key.value();
                let id = SubscriptionId {
                    stream: stream.to_owned(),
                    consumer: consumer.to_owned(),
                };
                rows.push((id, value.value().to_vec()));
            }
            Ok(rows)
        })?;
        rows.into_iter()
            .map(|(id, bytes)| Ok((id, decode(&bytes)?)))
            .collect()
    }

    /// Runs one transaction that is on disk when this returns.
    fn write(
        &self,
        work: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        self.file.with(|database| {
            let transaction = database.begin_write()?;
            work(&transaction)?;
            transaction.commit()?;
            Ok(())
        })
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).map_err(|error| {
        StoreError::Failed {
            what: error.to_string(),
        }
    })
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
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

fn open_error(error: redb::DatabaseError, path: &Path) -> StoreError {
    let (action, path, what) = ("open", path.to_owned(), error.to_string());
    if let redb::Error::Io(source) = redb::Error::from(error) {
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

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err wants"
)]
fn cursor_error(error: StoreError) -> CursorError {
    CursorError {
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests;
