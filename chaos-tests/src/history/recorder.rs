//! Writes and reads the history file.
//!
//! Several tasks record; the order of lines is the order of their calls. A line is complete before
//! the next begins. [`Recorder::finish`] must be called to have all of it on disk.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context, Result};

use super::event::{Entry, Event};

/// The open history of a run.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    file: Mutex<BufWriter<File>>,
}

impl Recorder {
    /// Creates the file and starts the run's clock.
    ///
    /// # Errors
    ///
    /// When the file cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self {
            began: Instant::now(),
            file: Mutex::new(BufWriter::with_capacity(1 << 20, file)),
        })
    }

    /// Appends one line.
    ///
    /// # Errors
    ///
    /// When the disk refuses it; the run is then void.
    pub fn record(&self, event: Event) -> Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = self.began.elapsed().as_micros();
        let at_us = u64::try_from(elapsed).unwrap_or(u64::MAX);
        serde_json::to_writer(&mut *file, &Entry { at_us, event }).context("write the history")?;
        file.write_all(b"\n").context("write the history")
    }

    /// Brings every line to the file.
    ///
    /// # Errors
    ///
    /// When the disk refuses it.
    pub fn finish(&self) -> Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.flush().context("write the history")
    }
}

/// Reads a history file.
///
/// # Errors
///
/// When it cannot be read, or a line is not one of ours; says which.
pub fn read_history(path: &Path) -> Result<Vec<Entry>> {
    read_lines(path)
}

/// Reads a file of JSON lines.
///
/// # Errors
///
/// When it cannot be read, or a line does not parse; says which.
pub fn read_lines<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut lines = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("read {}", path.display()))?;
        let parsed = serde_json::from_str(&line)
            .with_context(|| format!("{} line {}", path.display(), index + 1))?;
        lines.push(parsed);
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::event::{Item, Place, Reader};
    use crate::history::row::{Operation, Row};

    #[test]
    fn a_history_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.jsonl");
        let recorder = Recorder::create(&path).unwrap();
        let place = Place {
            reader: Reader::Log,
            session: 1,
            lsn: u64::MAX,
            seq: 2,
        };
        let row = Row {
            n: Some(-1),
            pad: Some(u64::MAX),
            ..Row::default()
        };
        let op = Operation::Insert;
        let events = [
            Event::Delivered {
                place,
                item: Item::Change { op, row },
            },
            Event::Delivered {
                place,
                item: Item::Begin,
            },
            Event::Acked(place),
        ];
        for event in &events {
            recorder.record(event.clone()).unwrap();
        }
        recorder.finish().unwrap();
        let read = read_history(&path).unwrap();
        assert_eq!(
            read.into_iter()
                .map(|entry| entry.event)
                .collect::<Vec<_>>(),
            events
        );
    }

    #[test]
    fn a_broken_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.jsonl");
        std::fs::write(&path, "{\"at_us\":1,\"event\":\"nonsense\"}\n").unwrap();
        let error = read_history(&path).unwrap_err();
        assert!(format!("{error:#}").contains("line 1"), "{error:#}");
    }
}
