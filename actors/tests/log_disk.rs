//! The embedded log on a disk that is full or read-only, and in a directory that is taken.
//!
//! The filesystems are real: a tmpfs is mounted for each test. Where mounting is refused the same
//! happens through the limits of a process; see [`Disk`].

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

#[path = "log_support/rows.rs"]
mod rows;

use std::{fs, io::Write as _, path::Path, process::Command, sync::Arc, time::Duration};

use pgcapture_actors::{
    log::{
        ChangeLog as _, LogError, LogHealth, Start,
        embedded::{EmbeddedLog, EmbeddedLogOptions},
    },
    supervise::{TaskKind, spawn},
};
use pgcapture_engine::{batch::BatchBuilder, checkpoint::Epoch, lsn::Lsn};
use rows::{append_all, checkpoints, commit_time, push_transaction, read_durable, transaction};
use tempfile::TempDir;

/// Far more than anything here takes, far less than the limit of a CI job.
const PATIENCE: Duration = Duration::from_secs(30);

/// A small filesystem of its own, unmounted when dropped.
struct Disk {
    mount: TempDir,
}

impl Disk {
    fn new(size: &str) -> Self {
        let mount = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(mount.path()));
        Self { mount }
    }

    fn log_directory(&self) -> std::path::PathBuf {
        self.mount.path().join("log")
    }

    fn make_read_only(&self) {
        run(Command::new("mount")
            .args(["-o", "remount,ro"])
            .arg(self.mount.path()));
    }

    /// Fills the disk but for `left` bytes; the space returns with [`Self::empty`].
    fn fill(&self, left: u64) {
        let path = self.mount.path().join("filler");
        let mut filler = fs::File::create(path).unwrap();
        // The log may take and give back space meanwhile: only a refused write proves it full.
        let mut length = 0;
        while let Ok(written) = filler.write(&[0; 4_096]) {
            length += written as u64;
        }
        filler.set_len(length.saturating_sub(left)).unwrap();
    }

    fn empty(&self) {
        fs::remove_file(self.mount.path().join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(self.mount.path()));
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {output:?} (these tests run as root)"
    );
}

fn options() -> EmbeddedLogOptions {
    EmbeddedLogOptions {
        segment_bytes: 64 << 10,
        queue_bytes_max: 64 << 10,
        ..EmbeddedLogOptions::default()
    }
}

fn open(directory: &Path) -> Result<Arc<EmbeddedLog>, LogError> {
    EmbeddedLog::open(directory, options())
}

async fn wait_for(log: &EmbeddedLog, wanted: impl Fn(&LogHealth) -> bool) -> LogHealth {
    let mut health = log.health();
    let reached = tokio::time::timeout(PATIENCE, health.wait_for(|health| wanted(health))).await;
    let last = log.health().borrow().clone();
    let reached = reached.unwrap_or_else(|_| panic!("the health stays {last:?}"));
    reached.unwrap().clone()
}

fn is_blocked(health: &LogHealth) -> bool {
    matches!(health, LogHealth::Blocked { .. })
}

#[tokio::test]
async fn a_full_disk_blocks_and_the_log_goes_on_when_there_is_space() {
    let disk = Disk::new("4m");
    let log = open(&disk.log_directory()).unwrap();
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, 1..=20, 5).await;
    disk.fill(32 << 10);

    let mut writing = spawn(TaskKind::Tool, "writing", async move {
        for number in 21..=1_000 {
            writer.append(transaction(number, 5)).await.unwrap();
        }
        writer.flush().await.unwrap();
        writer
    });
    let health = wait_for(&log, is_blocked).await;
    assert!(
        matches!(&health, LogHealth::Blocked { reason } if reason.starts_with("PGC-L01: ")),
        "{health:?}"
    );
    // Readers see whole transactions up to the tail, and nothing that is not durable.
    let tail = *log.tail().borrow();
    let numbers = tail.last.unwrap().lsn.0 / 100;
    assert!((20..1_000).contains(&numbers), "{tail:?}");
    let mut reader = log.open_reader(Start::Earliest).await.unwrap();
    assert_eq!(read_durable(&mut reader).await, checkpoints(1..=numbers, 5));
    assert!(!writing.is_finished(), "the queue is bounded");

    disk.empty();
    wait_for(&log, |health| *health == LogHealth::Writable).await;
    tokio::time::timeout(PATIENCE, writing.join())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        read_durable(&mut reader).await,
        checkpoints(numbers + 1..=1_000, 5)
    );
    log.close().await;
    let log = open(&disk.log_directory()).unwrap();
    let mut reader = log.open_reader(Start::Earliest).await.unwrap();
    assert_eq!(read_durable(&mut reader).await, checkpoints(1..=1_000, 5));
}

#[tokio::test]
async fn a_log_closed_on_a_full_disk_keeps_what_was_durable() {
    let disk = Disk::new("2m");
    let log = open(&disk.log_directory()).unwrap();
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, 1..=20, 5).await;
    disk.fill(16 << 10);
    let mut writing = spawn(TaskKind::Tool, "writing", async move {
        let mut number = 21;
        loop {
            if let Err(error) = writer.append(transaction(number, 5)).await {
                return error;
            }
            number += 1;
        }
    });
    wait_for(&log, is_blocked).await;
    log.close().await;
    let error = tokio::time::timeout(PATIENCE, writing.join())
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(error, LogError::Closed { .. }), "{error}");
    let tail = *log.tail().borrow();
    drop(log);

    // Even the disk as full as it is: what is there can be read.
    let log = open(&disk.log_directory()).unwrap();
    assert_eq!(*log.tail().borrow(), tail);
    let mut reader = log.open_reader(Start::Earliest).await.unwrap();
    let numbers = tail.last.unwrap().lsn.0 / 100;
    assert_eq!(read_durable(&mut reader).await, checkpoints(1..=numbers, 5));
}

#[tokio::test]
async fn a_log_with_a_size_limit_never_fills_its_disk() {
    let disk = Disk::new("2m");
    let options = EmbeddedLogOptions {
        retention_bytes: Some(512 << 10),
        ..options()
    };
    let log = EmbeddedLog::open(disk.log_directory(), options).unwrap();
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    tokio::time::timeout(PATIENCE, append_all(&mut writer, 1..=5_000, 5))
        .await
        .unwrap();
    let extent = log.extent();
    assert!(extent.bytes <= 640 << 10, "{extent:?}");
    assert_eq!(*log.health().borrow(), LogHealth::Writable);
}

#[tokio::test]
async fn an_epoch_waits_for_space_and_fences_all_the_same() {
    let disk = Disk::new("2m");
    let log = open(&disk.log_directory()).unwrap();
    let mut old = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut old, 1..=3, 5).await;
    disk.fill(4 << 10);
    let mut opening = spawn(TaskKind::Tool, "opening", {
        let log = Arc::clone(&log);
        async move { log.open_writer(Epoch(2)).await.map(drop) }
    });
    wait_for(&log, is_blocked).await;
    let refused = old.append(transaction(4, 5)).await;
    assert!(
        matches!(refused, Err(LogError::Fenced { .. })),
        "{refused:?}"
    );
    assert_eq!(log.tail().borrow().epoch, Epoch(1), "not durable yet");
    disk.empty();
    tokio::time::timeout(PATIENCE, opening.join())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(log.tail().borrow().epoch, Epoch(2));
    log.close().await;
    drop(log);
    let log = open(&disk.log_directory()).unwrap();
    assert_eq!(log.tail().borrow().epoch, Epoch(2), "the epoch was durable");
}

#[tokio::test]
async fn a_read_only_disk_is_told_with_the_path() {
    let disk = Disk::new("2m");
    let log = open(&disk.log_directory()).unwrap();
    log.close().await;
    disk.make_read_only();
    let error = open(&disk.log_directory()).unwrap_err();
    let LogError::Io { path, source, .. } = &error else {
        panic!("{error}")
    };
    assert!(path.starts_with(disk.log_directory()));
    assert_eq!(source.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let missing = open(&disk.mount.path().join("other")).unwrap_err();
    assert!(
        matches!(
            missing,
            LogError::Io {
                action: "create",
                ..
            }
        ),
        "{missing}"
    );
}

#[tokio::test]
async fn a_directory_belongs_to_one_log_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    let reader = log.open_reader(Start::Earliest).await.unwrap();
    let error = open(directory.path()).unwrap_err();
    assert!(
        matches!(&error, LogError::InUse { directory: path } if path == directory.path()),
        "{error}"
    );
    log.close().await;
    drop(log);
    open(directory.path()).unwrap();
    drop(reader);
}

#[tokio::test]
async fn a_batch_larger_than_a_segment_and_the_queue_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, 1..=3, 2).await;
    let mut builder = BatchBuilder::default();
    push_transaction(&mut builder, 4, 20_000);
    let large = builder.finish(Lsn(408), commit_time(4));
    assert!(large.entries.len() > 3 << 20);
    writer.append(large.clone()).await.unwrap();
    append_all(&mut writer, 5..=6, 2).await;
    for tail_cache_bytes in [0, 16 << 20] {
        log.close().await;
        let options = EmbeddedLogOptions {
            tail_cache_bytes,
            ..options()
        };
        let log = EmbeddedLog::open(directory.path(), options).unwrap();
        let mut reader = log.open_reader(Start::Earliest).await.unwrap();
        let mut wanted = checkpoints(1..=3, 2);
        wanted.extend(checkpoints([4], 20_000));
        wanted.extend(checkpoints(5..=6, 2));
        assert_eq!(read_durable(&mut reader).await, wanted);
        log.close().await;
    }
}

#[tokio::test]
async fn a_write_that_fails_ends_the_log_and_loses_nothing_durable() {
    let parent = tempfile::tempdir().unwrap();
    let (directory, elsewhere) = (parent.path().join("log"), parent.path().join("elsewhere"));
    let log = open(&directory).unwrap();
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, 1..=20, 5).await;
    let mut reader = log.open_reader(Start::Latest).await.unwrap();
    // Nothing can be created any more, and that is not a matter of space.
    fs::rename(&directory, &elsewhere).unwrap();
    let mut number = 21;
    let error = loop {
        let batch = transaction(number, 5);
        match writer.append(batch).await {
            Ok(()) => number += 1,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(&error, LogError::Closed { reason } if reason.starts_with("PGC-L02: ")),
        "{error}"
    );
    assert!(matches!(writer.flush().await, Err(LogError::Closed { .. })));
    assert!(matches!(
        log.open_writer(Epoch(2)).await,
        Err(LogError::Closed { .. })
    ));
    wait_for(&log, |health| matches!(health, LogHealth::Failed { .. })).await;
    // Readers get what was durable, from memory or from files, and are then told.
    let durable = log.tail().borrow().last.unwrap().lsn.0 / 100;
    let mut last = 20;
    let end = loop {
        match tokio::time::timeout(PATIENCE, reader.next()).await.unwrap() {
            Ok(batch) => last = batch.span.unwrap().1.lsn.0 / 100,
            Err(error) => break error,
        }
    };
    assert_eq!(last, durable);
    assert!(matches!(end, LogError::Closed { .. }), "{end}");
    drop(log);

    fs::rename(&elsewhere, &directory).unwrap();
    let log = open(&directory).unwrap();
    let mut reader = log.open_reader(Start::Earliest).await.unwrap();
    let seen = read_durable(&mut reader).await;
    assert_eq!(seen, checkpoints(1..=durable, 5));
}
