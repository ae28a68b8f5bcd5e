//! `kill -9` in the middle of writes: what was told durable is there, whole, once and in order.
//!
//! The test starts its own binary as the writer; the writer prints what became durable, and dies
//! at a random moment, many times over the same log.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

#[path = "log_support/rows.rs"]
mod rows;

use std::{
    env,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

use pgcapture_actors::{
    log::{
        ChangeLog as _, LogError, Start,
        embedded::{EmbeddedLog, EmbeddedLogOptions},
    },
    supervise::{TaskKind, spawn},
};
use pgcapture_engine::{checkpoint::Checkpoint, checkpoint::Epoch};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rows::{commit_lsn, read_durable, transaction};

const DIRECTORY: &str = "PGCAPTURE_TEST_LOG_DIRECTORY";
const ROUNDS: u32 = 25;

fn open(directory: &Path) -> Result<Arc<EmbeddedLog>, LogError> {
    let options = EmbeddedLogOptions {
        segment_bytes: 256 << 10,
        queue_bytes_max: 256 << 10,
        ..EmbeddedLogOptions::default()
    };
    EmbeddedLog::open(directory, options)
}

/// Rows of a transaction: small ones, and some that fill a good part of a segment.
const fn rows_of(number: u64) -> u32 {
    if number.is_multiple_of(97) {
        400
    } else {
        (number % 7) as u32
    }
}

fn number_of(last: Option<Checkpoint>) -> u64 {
    last.map_or(0, |last| last.lsn.0 / 100)
}

/// Not a test of its own: the writer that [`what_was_durable_survives_kill_nine`] kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer_that_is_killed() {
    let Some(directory) = env::var_os(DIRECTORY) else {
        return;
    };
    let log = open(directory.as_ref()).unwrap();
    let tail = *log.tail().borrow();
    let mut writer = log.open_writer(Epoch(tail.epoch.0 + 1)).await.unwrap();
    let mut tails = log.tail();
    let printing = spawn(TaskKind::Tool, "printing", async move {
        while tails.changed().await.is_ok() {
            let number = number_of(tails.borrow_and_update().last);
            writeln!(std::io::stdout(), "durable {number}").unwrap();
        }
    });
    for number in number_of(tail.last) + 1.. {
        writer
            .append(transaction(number, rows_of(number)))
            .await
            .unwrap();
        if printing.is_finished() {
            return;
        }
    }
}

#[tokio::test]
async fn what_was_durable_survives_kill_nine() {
    let directory = tempfile::tempdir().unwrap();
    let seed: u64 = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let mut verified = 0;
    for round in 1..=ROUNDS {
        let told = run_and_kill(directory.path(), random.random_range(0..60));
        let why = format!("round {round} of seed {seed}, told {told}");

        let began = Instant::now();
        let log = open(directory.path()).unwrap_or_else(|error| panic!("{why}: {error}"));
        assert!(
            began.elapsed().as_secs() < 5,
            "{why}: recovery took {:?}",
            began.elapsed()
        );
        let tail = *log.tail().borrow();
        let newest = number_of(tail.last);
        assert!(newest >= told, "{why}: only {newest} is there");
        assert_eq!(tail.epoch, Epoch(u64::from(round)), "{why}");
        // All of what is new, with a few of the transactions verified before.
        let from = verified.max(1_u64).saturating_sub(20).max(1);
        let mut reader = log
            .open_reader(Start::AtLsn(commit_lsn(from)))
            .await
            .unwrap();
        assert_eq!(
            read_durable(&mut reader).await,
            expected(from, newest),
            "{why}"
        );
        verified = newest;
        log.close().await;
    }
    assert!(
        verified > u64::from(ROUNDS),
        "the writers wrote: {verified}"
    );
    let log = open(directory.path()).unwrap();
    let mut reader = log.open_reader(Start::Earliest).await.unwrap();
    assert_eq!(read_durable(&mut reader).await, expected(1, verified));
}

fn expected(from: u64, to: u64) -> Vec<Checkpoint> {
    (from..=to)
        .flat_map(|number| {
            (0..=rows_of(number) + 1).map(move |seq| Checkpoint::new(commit_lsn(number), seq))
        })
        .collect()
}

/// Runs a writer until it has told `lines` times what is durable, kills it, and returns the last
/// transaction that it told.
fn run_and_kill(directory: &Path, lines: usize) -> u64 {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "writer_that_is_killed", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut told = 0;
    let mut seen = 0;
    let mut line = String::new();
    // The harness prints lines of its own before the first one.
    while seen <= lines && output.read_line(&mut line).unwrap() > 0 {
        if let Some(number) = durable(&line) {
            told = number;
            seen += 1;
            if seen == 1 {
                let error = open(directory).unwrap_err();
                assert!(matches!(error, LogError::InUse { .. }), "{error}");
            }
        }
        line.clear();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    // The last line may be cut.
    let whole = rest.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter_map(durable).fold(told, u64::max)
}

/// Reads `durable 7`, which may stand after what the harness has printed on the same line.
fn durable(line: &str) -> Option<u64> {
    let (_, number) = line.split_once("durable ")?;
    number.trim_end().parse().ok()
}
