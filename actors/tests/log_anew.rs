//! A log that is started anew, and a crash in the middle of that: it is the old one or the new one.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

#[path = "log_support/rows.rs"]
mod rows;

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use pgcapture_actors::log::{
    ChangeLog as _, LogError, Start,
    embedded::{EmbeddedLog, EmbeddedLogOptions},
};
use pgcapture_engine::{
    checkpoint::{Checkpoint, Epoch},
    confirm::Origin,
    lsn::Lsn,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rows::{append_all, commit_lsn, read_durable};

const DIRECTORY: &str = "PGCAPTURE_TEST_LOG_DIRECTORY";
const ROUNDS: u32 = 15;

/// Transactions between two starts, and how far the next one is ahead.
const STRIDE: u64 = 10;

fn open(directory: &Path) -> Result<Arc<EmbeddedLog>, LogError> {
    let options = EmbeddedLogOptions {
        segment_bytes: 64 << 10,
        ..EmbeddedLogOptions::default()
    };
    EmbeddedLog::open(directory, options)
}

fn before(number: u64) -> Origin {
    let lsn = commit_lsn(number);
    Origin {
        previous: Some(Checkpoint::new(Lsn(lsn.0 - 1), u32::MAX)),
        resume_lsn: lsn,
    }
}

fn copy_segments(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|found| found == "segment") {
            let target = to.join(path.file_name().unwrap());
            if !target.exists() {
                fs::copy(&path, target).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn what_a_crash_left_of_the_old_log_is_removed() {
    let (directory, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = open(directory.path()).unwrap();
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, 1..=40, 20).await;
    copy_segments(directory.path(), kept.path());
    let segments = |path: &Path| fs::read_dir(path).unwrap().count();
    assert!(segments(kept.path()) > 2, "several segments");
    writer.reset(before(50)).await.unwrap();
    assert_eq!(log.extent().segments, 1);
    append_all(&mut writer, 50..=51, 1).await;
    log.close().await;

    // The new segment has its name, the old ones are still there.
    copy_segments(kept.path(), directory.path());
    let log = open(directory.path()).unwrap();
    assert_eq!(log.extent().segments, 1);
    let mut reader = log.open_reader(Start::Earliest).await.unwrap();
    let found = read_durable(&mut reader).await;
    assert_eq!(found.first(), Some(&Checkpoint::new(commit_lsn(50), 0)));
    let refused = log.open_reader(Start::AtLsn(commit_lsn(40))).await.err();
    assert!(
        matches!(refused, Some(LogError::Removed { .. })),
        "{refused:?}"
    );
    log.close().await;
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "the lock and a segment: {left:?}");
}

/// Not a test of its own: the writer that [`a_kill_leaves_the_old_log_or_the_new_one`] kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer_that_is_killed() {
    let Some(directory) = env::var_os(DIRECTORY) else {
        return;
    };
    let log = open(directory.as_ref()).unwrap();
    let tail = *log.tail().borrow();
    let mut writer = log.open_writer(Epoch(tail.epoch.0 + 1)).await.unwrap();
    let mut from = (tail.resume_lsn.0 / 100 / STRIDE + 1) * STRIDE;
    loop {
        writer.reset(before(from)).await.unwrap();
        append_all(&mut writer, from..from + STRIDE / 2, 3).await;
        if writeln!(std::io::stdout(), "anew {from}").is_err() {
            return;
        }
        from += STRIDE;
    }
}

#[tokio::test]
async fn a_kill_leaves_the_old_log_or_the_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let seed: u64 = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    for round in 1..=ROUNDS {
        let told = run_and_kill(directory.path(), random.random_range(1..40));
        let why = format!("round {round} of seed {seed}, told {told}");
        let log = open(directory.path()).unwrap_or_else(|error| panic!("{why}: {error}"));
        let mut reader = log.open_reader(Start::Earliest).await.unwrap();
        let found = read_durable(&mut reader).await;
        let tail = *log.tail().borrow();
        // One start of the log, from its first transaction on, none of another one.
        let from = tail.resume_lsn.0 / 100 / STRIDE * STRIDE;
        assert!(from >= told, "{why}: {tail:?}");
        let place = |checkpoint: &Checkpoint| checkpoint.lsn.0 / 100 / STRIDE * STRIDE;
        assert!(
            found.iter().all(|entry| place(entry) == from),
            "{why}: {found:?}"
        );
        assert!(found.is_sorted(), "{why}");
        let first = Checkpoint::new(commit_lsn(from), 0);
        assert!(
            found.first().is_none_or(|found| *found == first),
            "{why}: {found:?}"
        );
        assert_eq!(log.extent().earliest, Some(first), "{why}");
        log.close().await;
    }
}

/// Runs a writer until it has told `lines` starts, kills it, and returns the last one told.
fn run_and_kill(directory: &Path, lines: usize) -> u64 {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "writer_that_is_killed", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let told = output.lines().map_while(Result::ok).filter_map(|line| {
        let (_, number) = line.split_once("anew ")?;
        number.parse::<u64>().ok()
    });
    let told = told.take(lines).last().unwrap_or(0);
    child.kill().unwrap();
    child.wait().unwrap();
    told
}
