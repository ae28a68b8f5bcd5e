//! Damaged files of the embedded log: what a crash left is cut, what had been durable is never.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

#[path = "log_support/rows.rs"]
mod rows;

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use pgcapture_actors::log::{
    ChangeLog as _, LogError, Start,
    embedded::{EmbeddedLog, EmbeddedLogOptions},
};
use pgcapture_engine::{
    checkpoint::{Checkpoint, Epoch},
    segment::{BLOCK_HEADER_BYTES, BlockHeader, HEADER_PAGE_BYTES, MARK_AT, MARK_BYTES},
};
use rows::{append_all, checkpoints, collect, read_durable, transaction};
use tempfile::TempDir;

/// Transactions of [`crashed`]; each is one block and one sync of its own.
const WRITTEN: u64 = 5;

fn options() -> EmbeddedLogOptions {
    EmbeddedLogOptions {
        segment_bytes: 64 << 10,
        ..EmbeddedLogOptions::default()
    }
}

fn open(directory: &Path) -> Result<Arc<EmbeddedLog>, LogError> {
    EmbeddedLog::open(directory, options())
}

/// A log with [`WRITTEN`] transactions that was closed properly.
async fn closed() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    for number in 1..=WRITTEN {
        append_all(&mut writer, [number], 2).await;
    }
    log.close().await;
    directory
}

/// The same, ended by a crash right after the last sync: without the mark of a log at rest.
async fn crashed() -> TempDir {
    let directory = closed().await;
    erase_mark(&last_segment(directory.path()));
    directory
}

fn erase_mark(segment: &Path) {
    let file = fs::File::options().write(true).open(segment).unwrap();
    file.write_all_at(&[0; MARK_BYTES], MARK_AT).unwrap();
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(directory).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "segment"));
    files.sort();
    files
}

fn last_segment(directory: &Path) -> PathBuf {
    segments(directory).pop().unwrap()
}

/// Where the blocks of a segment begin and where the last one ends, as places in the file.
fn boundaries(segment: &Path) -> Vec<u64> {
    let bytes = fs::read(segment).unwrap();
    let mut places = vec![HEADER_PAGE_BYTES];
    let base = pgcapture_engine::segment::SegmentHeader::decode(&bytes)
        .unwrap()
        .base_offset;
    loop {
        let place = *places.last().unwrap();
        let rest = &bytes[place as usize..];
        match BlockHeader::decode(rest, base + place - HEADER_PAGE_BYTES) {
            Ok(block) => places.push(place + block.block_length()),
            Err(_) => return places,
        }
    }
}

fn flip(file: &Path, place: u64) {
    let mut byte = [0];
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], place).unwrap();
}

async fn content(log: &EmbeddedLog) -> Vec<Checkpoint> {
    let mut reader = log.open_reader(Start::Earliest).await.unwrap();
    read_durable(&mut reader).await
}

/// The log opens with the first `kept` transactions, takes more, and opens with those again.
async fn is_whole_up_to(directory: &Path, kept: u64, what: &str) {
    let log = open(directory).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(content(&log).await, checkpoints(1..=kept, 2), "{what}");
    let mut writer = log.open_writer(Epoch(2)).await.unwrap();
    append_all(&mut writer, kept + 1..=kept + 3, 2).await;
    assert_eq!(content(&log).await, checkpoints(1..=kept + 3, 2), "{what}");
    log.close().await;
    let log = open(directory).unwrap();
    assert_eq!(content(&log).await, checkpoints(1..=kept + 3, 2), "{what}");
    assert_eq!(log.tail().borrow().epoch, Epoch(2));
}

fn is_corrupt_at(directory: &Path, place: u64, what: &str) {
    match open(directory) {
        Err(LogError::Corrupt { offset, .. }) => assert_eq!(offset, place, "{what}"),
        Err(other) => panic!("{what}: {other}"),
        Ok(_) => panic!("{what}: it was opened"),
    }
}

#[tokio::test]
async fn a_write_cut_at_any_byte_leaves_the_blocks_before_it() {
    let original = crashed().await;
    let places = boundaries(&last_segment(original.path()));
    let [.., start, end] = places[..] else {
        panic!("blocks")
    };
    let header = start..=start + BLOCK_HEADER_BYTES as u64;
    for cut in header.chain((start..end).step_by(97)).chain([end - 1]) {
        let copy = copy_of(original.path());
        let file = fs::File::options()
            .write(true)
            .open(last_segment(copy.path()));
        file.unwrap().set_len(cut).unwrap();
        is_whole_up_to(copy.path(), WRITTEN - 1, &format!("cut at {cut}")).await;
    }
    is_whole_up_to(original.path(), WRITTEN, "cut nowhere").await;
}

#[tokio::test]
async fn any_damage_in_the_last_unattested_block_cuts_it() {
    let original = crashed().await;
    let places = boundaries(&last_segment(original.path()));
    let [.., start, end] = places[..] else {
        panic!("blocks")
    };
    // Magic, checksums, length, counts, epoch, offsets, span, and the payload's first and last.
    for place in (start..start + 96).step_by(4).chain([start + 96, end - 1]) {
        let copy = copy_of(original.path());
        flip(&last_segment(copy.path()), place);
        is_whole_up_to(copy.path(), WRITTEN - 1, &format!("flip at {place}")).await;
    }
}

#[tokio::test]
async fn damage_below_a_later_block_is_corruption() {
    let original = crashed().await;
    let places = boundaries(&last_segment(original.path()));
    for block in 0..places.len() - 2 {
        for place in (places[block]..places[block] + 96)
            .step_by(4)
            .chain([places[block + 1] - 1])
        {
            let copy = copy_of(original.path());
            flip(&last_segment(copy.path()), place);
            is_corrupt_at(copy.path(), places[block], &format!("flip at {place}"));
        }
    }
}

#[tokio::test]
async fn damage_below_the_mark_of_a_log_at_rest_is_corruption() {
    let original = closed().await;
    let places = boundaries(&last_segment(original.path()));
    let [.., start, end] = places[..] else {
        panic!("blocks")
    };
    for place in [start, start + 12, start + 96, end - 1] {
        let copy = copy_of(original.path());
        flip(&last_segment(copy.path()), place);
        is_corrupt_at(copy.path(), start, &format!("flip at {place}"));
    }
    for cut in [HEADER_PAGE_BYTES, start, start + 50, end - 1] {
        let copy = copy_of(original.path());
        let file = fs::File::options()
            .write(true)
            .open(last_segment(copy.path()));
        file.unwrap().set_len(cut).unwrap();
        let place = places.iter().rfind(|place| **place <= cut).unwrap();
        is_corrupt_at(copy.path(), *place, &format!("cut at {cut}"));
    }
}

#[tokio::test]
async fn what_was_cut_never_comes_back() {
    let original = crashed().await;
    let segment = last_segment(original.path());
    let places = boundaries(&segment);
    // Two blocks of one group that was never synced, the first of them lost: the second is good
    // and carries the durable offset of before the group.
    let log = open(original.path()).unwrap();
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    writer.append(transaction(WRITTEN + 1, 2)).await.unwrap();
    writer.append(transaction(WRITTEN + 2, 2)).await.unwrap();
    writer.flush().await.unwrap();
    log.close().await;
    erase_mark(&segment);
    let lost = *places.last().unwrap();
    let places = boundaries(&segment);
    let [.., second, end] = places[..] else {
        panic!("blocks")
    };
    let bytes = fs::read(&segment).unwrap();
    let mut block = BlockHeader::decode(&bytes[second as usize..], second - 4096).unwrap();
    block.durable = lost - 4096;
    let file = fs::File::options().write(true).open(&segment).unwrap();
    file.write_all_at(&block.encode(), second).unwrap();
    file.write_all_at(&vec![0; (second - lost) as usize], lost)
        .unwrap();
    assert!(end > second);
    // The place of the lost block is taken by one of exactly its length.
    let log = open(original.path()).unwrap();
    assert_eq!(content(&log).await, checkpoints(1..=WRITTEN, 2));
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, [WRITTEN + 1], 2).await;
    log.close().await;
    let log = open(original.path()).unwrap();
    assert_eq!(content(&log).await, checkpoints(1..=WRITTEN + 1, 2));
}

#[tokio::test]
async fn damage_in_a_closed_segment_is_met_by_the_reader_and_never_delivered() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, 1..=300, 5).await;
    log.close().await;
    let files = segments(directory.path());
    assert!(files.len() > 3, "{files:?}");
    let places = boundaries(&files[1]);
    flip(&files[1], places[2] + 200);

    let log = open(directory.path()).unwrap();
    let mut reader = log.open_reader(Start::Earliest).await.unwrap();
    let mut seen = Vec::new();
    let error = loop {
        match reader.next().await {
            Ok(batch) => collect(&batch, &mut seen),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(&error, LogError::Corrupt { file, offset, .. } if *file == files[1] && *offset == places[2]),
        "{error}"
    );
    let all = checkpoints(1..=300, 5);
    assert!(!seen.is_empty() && all.starts_with(&seen));
    assert_eq!(
        seen.last().unwrap().seq,
        6,
        "whole blocks before the damage"
    );
}

#[tokio::test]
async fn a_bad_segment_header_names_the_file() {
    for (place, bytes) in [(0, &b"SQLite f"[..]), (20, b"\xff"), (50, b"\xff")] {
        let directory = closed().await;
        let segment = last_segment(directory.path());
        let file = fs::File::options().write(true).open(&segment).unwrap();
        file.write_all_at(bytes, place).unwrap();
        let error = open(directory.path()).unwrap_err();
        assert!(
            matches!(&error, LogError::Corrupt { file, .. } if *file == segment),
            "{error}"
        );
    }
    for length in [0, 7, 50, 95] {
        let directory = closed().await;
        let segment = last_segment(directory.path());
        fs::File::options()
            .write(true)
            .open(&segment)
            .unwrap()
            .set_len(length)
            .unwrap();
        let error = open(directory.path()).unwrap_err();
        assert!(matches!(&error, LogError::Corrupt { .. }), "{error}");
    }
    let directory = closed().await;
    let file = fs::File::options()
        .write(true)
        .open(last_segment(directory.path()))
        .unwrap();
    file.write_all_at(&9_u32.to_le_bytes(), 8).unwrap();
    let error = open(directory.path()).unwrap_err();
    assert!(
        matches!(
            error,
            LogError::NewerVersion {
                found: 9,
                supported: 1,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_missing_or_shortened_segment_is_seen_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    let mut writer = log.open_writer(Epoch(1)).await.unwrap();
    append_all(&mut writer, 1..=300, 5).await;
    log.close().await;
    let copy = copy_of(directory.path());
    fs::remove_file(&segments(copy.path())[1]).unwrap();
    let error = open(copy.path()).unwrap_err();
    assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
    let short = &segments(directory.path())[1];
    let length = short.metadata().unwrap().len();
    fs::File::options()
        .write(true)
        .open(short)
        .unwrap()
        .set_len(length - 1)
        .unwrap();
    is_corrupt_at(directory.path(), length - 1, "one byte short");
}

fn copy_of(directory: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in fs::read_dir(directory).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}
