//! A disk that fails, and one that counts.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use redb::StorageBackend;

use super::*;

/// What a disk does.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// Whether the next sync fails, and all after it seem to go well: what Linux does.
    pub(crate) is_failing: AtomicBool,
    /// Syncs so far.
    pub(crate) syncs: AtomicUsize,
    /// Times that the file became longer or shorter.
    pub(crate) resizes: AtomicUsize,
}

#[derive(Debug)]
struct Backend {
    file: FileBackend,
    disk: Arc<Disk>,
}

impl StorageBackend for Backend {
    fn len(&self) -> Result<u64, io::Error> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.disk.resizes.fetch_add(1, Ordering::SeqCst);
        self.file.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        if self.disk.is_failing.swap(false, Ordering::SeqCst) {
            return Err(io::Error::other("the disk is on fire"));
        }
        self.disk.syncs.fetch_add(1, Ordering::SeqCst);
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.file.write(offset, data)
    }
}

impl Store {
    /// Opens a store on a disk that fails when told to.
    pub(crate) fn open_failing(directory: &Path, disk: &Arc<Disk>) -> Self {
        let lock = DirectoryLock::take(directory).unwrap();
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join("node.redb"))
            .unwrap();
        let backend = Backend {
            file: FileBackend::new(file).unwrap(),
            disk: Arc::clone(disk),
        };
        Self::open_on(backend, directory, lock).unwrap()
    }
}

#[test]
fn after_a_failed_sync_nothing_is_written_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(Disk::default());
    let store = Store::open_failing(folder.path(), &disk);
    let vote = |byte| [LogWrite::Set(Mark::Vote, vec![byte])];
    store.write_log(&vote(1)).unwrap();
    assert_eq!(*store.failure().borrow(), None);
    disk.is_failing.store(true, Ordering::SeqCst);
    let error = store.write_log(&vote(2)).unwrap_err();
    assert_eq!(error.explanation().code, "PGC-N04");
    // The disk says that all is well again; it is not asked.
    let syncs = disk.syncs.load(Ordering::SeqCst);
    assert!(store.write_log(&vote(3)).is_err());
    assert!(
        store
            .agree(Proposal::State(Command::RemoveNode {
                name: "a".to_owned()
            }))
            .is_err()
    );
    assert_eq!(disk.syncs.load(Ordering::SeqCst), syncs);
    assert!(
        store
            .failure()
            .borrow()
            .as_ref()
            .unwrap()
            .contains("on fire")
    );
}
