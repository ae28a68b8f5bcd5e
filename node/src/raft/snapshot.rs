//! Snapshots as files: everything that was agreed on at one place in the log.
//!
//! A file is made from one look at the store, under another name, synced and then renamed: what has
//! the name of a snapshot is whole. Its last bytes are a SHA-256 of all others, and it names the
//! cluster it belongs to: a damaged or foreign file is told and left out, and the one before it is
//! used, of which one is kept.
//!
//! ```text
//! "PGCSNAP" form | length, header | length, row | length, row | … | 0 | SHA-256
//! ```

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    machine::place,
    types::{ROW_BYTES_MAX, Snapshot, SnapshotMeta, from_bytes, row_from_bytes, to_bytes},
};
use crate::store::{ClusterId, FORMAT_VERSION, Mark, Row, SNAPSHOT_VERSION_MIN, Store, StoreError};

/// How a file begins; the last byte is its form.
const MAGIC: &[u8; 8] = b"PGCSNAP\x01";

/// Length of the checksum at the end.
const SUM_BYTES: u64 = 32;

/// Files that are kept: the newest, and the one before for the case that it is damaged.
const KEPT: usize = 2;

/// An open file. It can be read even when its name is gone. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFile {
    file: Arc<File>,
}

/// The snapshots of a node.
#[derive(Clone, Debug)]
pub(crate) struct Snapshots {
    folder: PathBuf,
    cluster: ClusterId,
}

/// What a snapshot says about itself.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    cluster: ClusterId,
    /// Version of the store that its rows come from.
    format: u32,
    meta: SnapshotMeta,
}

impl Snapshots {
    /// Opens the folder of a node's snapshots and removes what a crash left unfinished.
    pub(crate) fn open(directory: &Path, cluster: ClusterId) -> io::Result<Self> {
        let folder = directory.join("snapshots");
        fs::create_dir_all(&folder)?;
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "tmp") {
                fs::remove_file(path)?;
            }
        }
        Ok(Self { folder, cluster })
    }

    /// Makes a snapshot of what the store holds now. Blocking.
    pub(crate) fn build(&self, store: &Store) -> io::Result<Snapshot> {
        let view = store.view().map_err(io::Error::other)?;
        let (last_log_id, last_membership) =
            place(|mark| view.mark(mark).map_err(io::Error::other))?;
        let meta = SnapshotMeta {
            last_log_id,
            last_membership,
        };
        let temporary = self.temporary();
        let mut writer = Writer::create(&temporary)?;
        writer.frame(&to_bytes(&Header {
            cluster: self.cluster,
            // Nodes of the version before read it as long as there are any.
            format: view.version().map_err(io::Error::other)?,
            meta: meta.clone(),
        })?)?;
        view.each(|row| writer.frame(&to_bytes(&row)?).map_err(RowError::from))
            .map_err(|RowError(error)| error)?;
        writer.finish()?;
        let snapshot = self.keep(&temporary, &meta)?;
        Ok(Snapshot { meta, snapshot })
    }

    /// Puts what a snapshot holds in the place of what the store holds. Blocking. All or nothing.
    pub(crate) fn install(
        &self,
        store: &Store,
        meta: &SnapshotMeta,
        snapshot: &SnapshotFile,
    ) -> io::Result<()> {
        let rows = self.open_rows(snapshot, Some(meta))?;
        let version = rows.version;
        let rows = rows.map(|row| {
            row.map_err(|error| StoreError::Damaged {
                what: error.to_string(),
            })
        });
        let marks = [
            (Mark::Applied, to_bytes(&meta.last_log_id)?),
            (Mark::Membership, to_bytes(&meta.last_membership)?),
        ];
        store
            .replace(rows, version, &marks)
            .map_err(io::Error::other)?;
        let temporary = self.temporary();
        let mut source = snapshot.reader()?;
        let mut target = File::create(&temporary)?;
        io::copy(&mut source, &mut target)?;
        target.sync_all()?;
        self.keep(&temporary, meta).map(drop)
    }

    /// Returns the newest snapshot that is whole. Blocking.
    pub(crate) fn newest(&self) -> io::Result<Option<Snapshot>> {
        for path in self.files()? {
            let opened = SnapshotFile::open(&path);
            match opened.and_then(|snapshot| Ok((self.check(&snapshot)?, snapshot))) {
                Ok((meta, snapshot)) => return Ok(Some(Snapshot { meta, snapshot })),
                Err(error) => {
                    let file = path.display();
                    tracing::warn!(%file, %error, "a snapshot of the cluster's state is left out");
                }
            }
        }
        Ok(None)
    }

    /// Reads a snapshot whole and returns what it stands for.
    pub(crate) fn check(&self, snapshot: &SnapshotFile) -> io::Result<SnapshotMeta> {
        let mut rows = self.open_rows(snapshot, None)?;
        for row in rows.by_ref() {
            row?;
        }
        Ok(rows.meta)
    }

    /// Returns a file to receive a snapshot into.
    pub(crate) fn receive(&self) -> io::Result<(File, PathBuf)> {
        let path = self.temporary();
        let file = File::options();
        let file = file
            .clone()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)?;
        Ok((file, path))
    }

    /// Opens the rows of a snapshot of this cluster whose checksum is right.
    fn open_rows(
        &self,
        snapshot: &SnapshotFile,
        expected: Option<&SnapshotMeta>,
    ) -> io::Result<Rows> {
        snapshot.check_sum()?;
        let mut reader = snapshot.reader()?;
        let mut magic = [0; MAGIC.len()];
        reader.read_exact(&mut magic)?;
        if &magic != MAGIC {
            return Err(damaged("it does not begin like a snapshot"));
        }
        let header = frame(&mut reader)?.ok_or_else(|| damaged("it has no header"))?;
        let header: Header = from_bytes(&header)?;
        if header.cluster != self.cluster {
            return Err(damaged("it is of another cluster"));
        }
        if !(SNAPSHOT_VERSION_MIN..=FORMAT_VERSION).contains(&header.format) {
            return Err(damaged(
                "it was made by a version that this one does not know",
            ));
        }
        if expected.is_some_and(|meta| meta.signature() != header.meta.signature()) {
            return Err(damaged("it stands for another place in the log"));
        }
        Ok(Rows {
            reader,
            meta: header.meta,
            version: header.format,
        })
    }

    /// Gives a finished file its name, and removes what is older than what is kept.
    fn keep(&self, temporary: &Path, meta: &SnapshotMeta) -> io::Result<SnapshotFile> {
        let index = meta.last_log_id.map_or(0, |id| id.index());
        let path = self.folder.join(format!("{index:020}.snapshot"));
        fs::rename(temporary, &path)?;
        File::open(&self.folder)?.sync_all()?;
        for old in self.files()?.into_iter().skip(KEPT) {
            fs::remove_file(old)?;
        }
        SnapshotFile::open(&path)
    }

    /// Returns the files, newest first.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "snapshot")
            {
                files.push(path);
            }
        }
        files.sort_unstable_by(|a, b| b.cmp(a));
        Ok(files)
    }

    fn temporary(&self) -> PathBuf {
        self.folder
            .join(format!("{:016x}.tmp", rand::random::<u64>()))
    }
}

impl SnapshotFile {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self::of)
    }

    pub(crate) fn of(file: File) -> Self {
        Self {
            file: Arc::new(file),
        }
    }

    /// Returns its length in bytes.
    pub(crate) fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Reads from the beginning.
    fn reader(&self) -> io::Result<BufReader<At>> {
        let length = self.length()?;
        Ok(BufReader::new(At {
            file: Arc::clone(&self.file),
            offset: 0,
            length,
        }))
    }

    /// Reads a piece; empty at the end.
    pub(crate) fn piece(&self, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
        let left = self.length()?.saturating_sub(offset);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes_max);
        let mut bytes = vec![0; length];
        std::os::unix::fs::FileExt::read_exact_at(&*self.file, &mut bytes, offset)?;
        Ok(bytes)
    }

    fn check_sum(&self) -> io::Result<()> {
        let length = self.length()?;
        let body = length.checked_sub(SUM_BYTES);
        let body = body.ok_or_else(|| damaged("it is too short"))?;
        let mut hasher = Sha256::new();
        let mut reader = self.reader()?;
        io::copy(&mut reader.by_ref().take(body), &mut hasher)?;
        let mut sum = [0; SUM_BYTES as usize];
        reader.read_exact(&mut sum)?;
        if hasher.finalize().as_slice() == sum {
            Ok(())
        } else {
            Err(damaged("its checksum is wrong"))
        }
    }
}

/// Reads a shared file at a place of its own.
struct At {
    file: Arc<File>,
    offset: u64,
    length: u64,
}

impl Read for At {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        debug_assert!(self.offset <= self.length, "nobody reads past the end");
        let count = std::os::unix::fs::FileExt::read_at(&*self.file, buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// Rows of a snapshot, from its header on.
struct Rows {
    reader: BufReader<At>,
    meta: SnapshotMeta,
    /// Version of the store that they come from.
    version: u32,
}

impl Iterator for Rows {
    type Item = io::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = frame(&mut self.reader).transpose()?;
        Some(row.and_then(|bytes| row_from_bytes(&bytes)))
    }
}

fn frame(reader: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    reader.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length == 0 {
        return Ok(None);
    }
    if length > ROW_BYTES_MAX {
        return Err(damaged("a row is longer than rows are"));
    }
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes)?;
    Ok(Some(bytes))
}

/// Writes a file with its checksum.
struct Writer {
    file: BufWriter<File>,
    hasher: Sha256,
}

impl Writer {
    fn create(path: &Path) -> io::Result<Self> {
        let mut writer = Self {
            file: BufWriter::new(File::create(path)?),
            hasher: Sha256::new(),
        };
        writer.put(MAGIC)?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }

    fn frame(&mut self, bytes: &[u8]) -> io::Result<()> {
        let too_long = || damaged("a row is longer than rows may be");
        if bytes.len() > ROW_BYTES_MAX {
            return Err(too_long());
        }
        let length = u32::try_from(bytes.len()).map_err(|_| too_long())?;
        self.put(&length.to_le_bytes())?;
        self.put(bytes)
    }

    fn finish(mut self) -> io::Result<()> {
        self.put(&0_u32.to_le_bytes())?;
        let sum = self.hasher.finalize();
        self.file.write_all(&sum)?;
        let file = self.file.into_inner().map_err(|error| error.into_error())?;
        file.sync_all()
    }
}

struct RowError(io::Error);

impl From<io::Error> for RowError {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

impl From<StoreError> for RowError {
    fn from(error: StoreError) -> Self {
        Self(io::Error::other(error))
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests;
