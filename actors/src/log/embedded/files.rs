//! The directory of a log: names, lock, creation and the syncs that make names durable.
//!
//! ```text
//! lock                      held by the process that has the log open
//! 0000000000000001.segment  segments, numbered without a hole
//! next.spare                the segment being prepared; worthless after a crash
//! ```
//!
//! A name is durable only once its directory was synced: every create, rename and unlink that
//! matters is followed by [`sync_directory`].

use std::{
    fmt::Debug,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use pgcapture_engine::segment::{BadSegment, FORMAT_VERSION, HEADER_PAGE_BYTES, SegmentHeader};
use rustix::{
    fs::{FallocateFlags, FlockOperation, fallocate, fdatasync, flock},
    io::Errno,
};

use crate::log::LogError;

/// How written bytes reach the device: the seam at which a test lets a disk fail.
pub trait Disk: Debug + Send + Sync {
    /// Makes everything that was written to the file durable, as `fdatasync` does.
    ///
    /// # Errors
    ///
    /// What the system says. Nothing is known of the bytes then.
    fn sync(&self, file: &File) -> io::Result<()>;
}

/// The disk of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn sync(&self, file: &File) -> io::Result<()> {
        Ok(fdatasync(file)?)
    }
}

/// Zeros are written in pieces of this size: large enough for the device, small enough that a
/// writer that closes does not wait for the rest.
const ZEROS: &[u8] = &[0; 1 << 20];

/// Makes an error of the operating system one of the log.
pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Io {
        action,
        path,
        source,
    }
}

/// Tells whether an error says that there is no space left, which passes, unlike the others.
pub(super) fn is_full(error: &LogError) -> bool {
    let LogError::Io { source, .. } = error else {
        return false;
    };
    matches!(
        source.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

pub(super) fn segment_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016}.segment"))
}

pub(super) fn spare_path(directory: &Path) -> PathBuf {
    directory.join("next.spare")
}

/// Creates the directory if it is not there and locks it for this process. The lock lasts as long
/// as the file that is returned.
pub(super) fn lock_directory(directory: &Path) -> Result<File, LogError> {
    if !directory.is_dir() {
        fs::create_dir_all(directory).map_err(io_error("create", directory))?;
        if let Some(parent) = directory.parent().filter(|path| path.is_dir()) {
            sync_directory(parent)?;
        }
    }
    let path = directory.join("lock");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io_error("create", &path))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => Err(LogError::InUse {
            directory: directory.to_owned(),
        }),
        Err(error) => Err(io_error("lock", &path)(error.into())),
    }
}

pub(super) fn sync_directory(directory: &Path) -> Result<(), LogError> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(io_error("sync", directory))
}

/// Returns the numbers of the segments, in order.
pub(super) fn list_segments(directory: &Path) -> Result<Vec<u64>, LogError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory).map_err(io_error("list", directory))? {
        let entry = entry.map_err(io_error("list", directory))?;
        let name = entry.file_name();
        let stem = name.to_str().and_then(|name| name.strip_suffix(".segment"));
        numbers.extend(stem.and_then(|stem| stem.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads and checks the header of the segment `number`.
pub(super) fn read_header(path: &Path, number: u64) -> Result<SegmentHeader, LogError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    let mut page = vec![0; HEADER_PAGE_BYTES as usize];
    let length = read_at_most(&file, &mut page, 0).map_err(io_error("read", path))?;
    let corrupt = |what: String| LogError::Corrupt {
        file: path.to_owned(),
        offset: 0,
        what,
    };
    let header = SegmentHeader::decode(page.get(..length).unwrap_or_default());
    match header {
        Ok(header) if header.number == number => Ok(header),
        Ok(header) => Err(corrupt(format!("it is segment {}", header.number))),
        Err(BadSegment::Newer(found)) => Err(LogError::NewerVersion {
            file: path.to_owned(),
            found,
            supported: FORMAT_VERSION,
        }),
        Err(error @ (BadSegment::Foreign | BadSegment::Damaged)) => Err(corrupt(error.to_string())),
    }
}

/// Reads until `buffer` is full or the file ends; returns the number of bytes.
pub(super) fn read_at_most(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Creates a file of `length` allocated bytes, all zero. With `zeroing` the zeros are written and
/// synced too, until it tells that nobody wants the file any more.
pub(super) fn create_allocated(
    path: &Path,
    length: u64,
    zeroing: Option<&dyn Fn() -> bool>,
) -> Result<File, LogError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(path)
        .map_err(io_error("create", path))?;
    allocate(&file, path, length)?;
    let Some(is_cancelled) = zeroing else {
        return Ok(file);
    };
    let mut at = 0;
    while at < length {
        if is_cancelled() {
            return Ok(file);
        }
        let piece = ZEROS
            .len()
            .min(usize::try_from(length - at).unwrap_or(ZEROS.len()));
        let zeros = ZEROS.get(..piece).unwrap_or(ZEROS);
        file.write_all_at(zeros, at)
            .map_err(io_error("write", path))?;
        at += piece as u64;
    }
    file.sync_all().map_err(io_error("sync", path))?;
    Ok(file)
}

/// Makes `file` at least `length` bytes long, the space reserved. On a filesystem that cannot
/// reserve, the file grows as it is written.
pub(super) fn allocate(file: &File, path: &Path, length: u64) -> Result<(), LogError> {
    match fallocate(file, FallocateFlags::empty(), 0, length) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(io_error("allocate", path)(error.into())),
    }
}
