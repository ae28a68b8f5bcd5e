//! The rows of one range on their way to one session.
//!
//! Owns the channel from the reader; its drop ends the reading. All rows of a range are of one table, so
//! the session's filter is asked once a batch. Keeps one row back, the newest, until it is known whether
//! another one follows: the last row of a range is marked. Holds one batch of the reader at most, and what was sent no longer.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use pgcapture_engine::{
    batch::MalformedBatch,
    codes::gateway as codes,
    filter::Filter,
    ledger::Room,
    splice::{RangeNumber, RowsSent},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::dump::{DumpError, RangeRemedy, RowBatch, RowEvent};

/// A range that a session is being sent.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) number: RangeNumber,
    rows: mpsc::Receiver<RowEvent>,
    batch: Arc<RowBatch>,
    /// Rows of the batch that were looked at.
    seen: usize,
    held: Option<Bytes>,
    is_ended: bool,
    /// Rows handed out.
    place: u32,
    /// Cancelled when the range has ended.
    stop: CancellationToken,
}

/// Rows that go out together.
#[derive(Debug)]
pub(super) struct DumpRows {
    pub(super) number: RangeNumber,
    /// Rows of the range that went out before.
    pub(super) place_before: u32,
    /// Whether the last one here is the last of the range; there may be none.
    pub(super) is_last: bool,
    head: Option<Bytes>,
    batch: Arc<RowBatch>,
    /// Which rows of the batch follow the head.
    picked: Range<usize>,
    bytes: usize,
}

impl DumpRows {
    /// The encoded messages.
    pub(super) fn payloads(&self) -> impl Iterator<Item = &[u8]> {
        let picked = self.batch.rows.get(self.picked.clone());
        let picked = picked.unwrap_or_default().iter();
        let picked = picked.map(|place| payload(&self.batch, *place).unwrap_or_default());
        self.head.as_deref().into_iter().chain(picked)
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.head.is_some()) + self.picked.len()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn sent(&self) -> RowsSent {
        RowsSent {
            row_count: self.len() as u64,
            bytes: self.bytes as u64,
        }
    }
}

impl Delivery {
    pub(super) fn new(
        number: RangeNumber,
        rows: mpsc::Receiver<RowEvent>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            stop,
            number,
            rows,
            batch: Arc::default(),
            seen: 0,
            held: None,
            is_ended: false,
            place: 0,
        }
    }

    /// Waits until the range has ended.
    pub(super) async fn ended(&self) {
        self.stop.cancelled().await;
    }

    /// Returns the next rows, at most what fits, waiting for the reader. The last answer has
    /// `is_last`; after it there is nothing to call for.
    ///
    /// Cancellation-safe: a dropped call loses nothing.
    ///
    /// # Errors
    ///
    /// [`DumpError`] when the range could not be read to its end.
    pub(super) async fn next(
        &mut self,
        filter: &mut Filter,
        room: Room,
    ) -> Result<DumpRows, DumpError> {
        loop {
            let rows = self.cut(room).map_err(|error| malformed(&error))?;
            if rows.len() > 0 || rows.is_last {
                self.place = self
                    .place
                    .saturating_add(u32::try_from(rows.len()).unwrap_or(u32::MAX));
                return Ok(rows);
            }
            match self.rows.recv().await {
                Some(RowEvent::Rows(batch)) => {
                    let wanted = is_wanted(filter, &batch).map_err(|error| malformed(&error))?;
                    if wanted {
                        self.batch = Arc::new(batch);
                        self.seen = 0;
                    }
                }
                Some(RowEvent::End) => self.is_ended = true,
                Some(RowEvent::Failed(error)) => return Err(error),
                None => return Err(lost()),
            }
        }
    }

    fn cut(&mut self, room: Room) -> Result<DumpRows, MalformedBatch> {
        let batch = Arc::clone(&self.batch);
        let mut rows = DumpRows {
            number: self.number,
            place_before: self.place,
            is_last: false,
            head: None,
            picked: self.seen..self.seen,
            bytes: 0,
            batch: Arc::clone(&batch),
        };
        // The newest row of this batch; what was held before goes out as the head.
        let mut newest: Option<(u32, u32)> = None;
        for place in batch.rows.iter().skip(self.seen) {
            if rows.len() >= room.messages || rows.bytes >= room.bytes {
                break;
            }
            self.seen += 1;
            if payload(&batch, *place).is_none() {
                return Err(MalformedBatch);
            }
            if let Some((_, length)) = newest.replace(*place) {
                rows.bytes += length as usize;
                rows.picked.end += 1;
            } else if let Some(held) = self.held.take() {
                rows.bytes += held.len();
                rows.head = Some(held);
            }
        }
        if let Some((offset, length)) = newest {
            let start = offset as usize;
            self.held = Some(batch.bytes.slice(start..start + length as usize));
        }
        if self.seen >= batch.rows.len() {
            self.batch = Arc::default();
            self.seen = 0;
            if self.is_ended && rows.len() == 0 {
                rows.is_last = true;
                rows.head = self.held.take();
                rows.bytes = rows.head.as_ref().map_or(0, Bytes::len);
            }
        }
        Ok(rows)
    }
}

/// Tells whether the session gets the rows of a batch, by the first one.
fn is_wanted(filter: &mut Filter, batch: &RowBatch) -> Result<bool, MalformedBatch> {
    match batch.rows.first() {
        Some(first) => filter.wants_row(payload(batch, *first).ok_or(MalformedBatch)?),
        None => Ok(false),
    }
}

fn payload(batch: &RowBatch, (offset, length): (u32, u32)) -> Option<&[u8]> {
    let start = offset as usize;
    batch.bytes.get(start..start.checked_add(length as usize)?)
}

fn malformed(error: &MalformedBatch) -> DumpError {
    DumpError {
        explanation: &codes::ROWS_LOST,
        what: format!("the reader of a range sent what is no row: {error}"),
        remedy: RangeRemedy::Fail,
    }
}

fn lost() -> DumpError {
    DumpError {
        explanation: &codes::ROWS_LOST,
        what: "the reader of a range ended without a word".to_owned(),
        remedy: RangeRemedy::Retry,
    }
}

#[cfg(test)]
mod tests {
    use pgcapture_engine::capture_options::CaptureOptions;
    use pgcapture_proto::pgcapture::{Change, Message, message};
    use prost::Message as _;

    use super::*;

    const ALL: Room = Room {
        messages: 100,
        bytes: 1 << 20,
    };

    fn batch(tables: &[&str]) -> RowEvent {
        let (mut bytes, mut rows) = (Vec::new(), Vec::new());
        for table in tables {
            let change = Change {
                op: 1,
                schema: "public".to_owned(),
                table: (*table).to_owned(),
                ..Change::default()
            };
            let row = Message {
                r#type: Some(message::Type::Change(change)),
            }
            .encode_to_vec();
            let offset = u32::try_from(bytes.len()).unwrap();
            rows.push((offset, u32::try_from(row.len()).unwrap()));
            bytes.extend(row);
        }
        RowEvent::Rows(RowBatch {
            bytes: bytes.into(),
            rows,
        })
    }

    /// Counts of rows and marks of the last one, until the end.
    async fn deliver(
        events: Vec<RowEvent>,
        room: Room,
        regex: &str,
    ) -> Result<Vec<(usize, bool)>, DumpError> {
        let (sender, rows) = mpsc::channel(events.len().max(1));
        for event in events {
            sender.send(event).await.unwrap();
        }
        drop(sender);
        let options = CaptureOptions {
            table_regex: Some(pgcapture_engine::filter::go_regex::compile(regex).unwrap()),
            ..CaptureOptions::default()
        };
        let mut filter = Filter::new(options);
        let mut delivery = Delivery::new(RangeNumber(7), rows, CancellationToken::new());
        let (mut counts, mut place) = (Vec::new(), 0);
        loop {
            let rows = delivery.next(&mut filter, room).await?;
            assert_eq!(rows.place_before, place);
            place += u32::try_from(rows.len()).unwrap();
            let bytes: usize = rows.payloads().map(<[u8]>::len).sum();
            assert_eq!(bytes, rows.bytes());
            counts.push((rows.len(), rows.is_last));
            if rows.is_last {
                return Ok(counts);
            }
        }
    }

    #[tokio::test]
    async fn the_last_row_is_marked_wherever_it_lies() {
        let end = || RowEvent::End;
        let one = || batch(&["a"]);
        let cases = [
            (vec![end()], vec![(0, true)]),
            (vec![batch(&[]), end()], vec![(0, true)]),
            (vec![one(), end()], vec![(1, true)]),
            (vec![batch(&["a"; 3]), end()], vec![(2, false), (1, true)]),
            (vec![one(), one(), end()], vec![(1, false), (1, true)]),
            (vec![one(), batch(&["x", "x"]), end()], vec![(1, true)]),
            (vec![batch(&["x", "x"]), end()], vec![(0, true)]),
            (
                vec![batch(&["a", "a"]), batch(&["x"]), batch(&["a"; 3]), end()],
                vec![(1, false), (3, false), (1, true)],
            ),
        ];
        for (events, expected) in cases {
            let told = format!("{events:?}");
            assert_eq!(deliver(events, ALL, "a").await.unwrap(), expected, "{told}");
        }
    }

    #[tokio::test]
    async fn no_more_goes_out_than_fits() {
        let events = vec![batch(&["a"; 5]), batch(&["a"; 4]), RowEvent::End];
        let two = Room { messages: 2, ..ALL };
        let counts = deliver(events, two, "a").await.unwrap();
        assert_eq!(counts.iter().map(|(count, _)| count).sum::<usize>(), 9);
        assert!(counts.iter().all(|(count, _)| *count <= 2), "{counts:?}");
        let events = vec![batch(&["a"; 5]), RowEvent::End];
        let narrow = Room { bytes: 1, ..ALL };
        let counts = deliver(events, narrow, "a").await.unwrap();
        assert_eq!(counts.len(), 5, "one at a time");
    }

    #[tokio::test]
    async fn a_reader_that_dies_or_sends_rubbish_is_an_error() {
        let error = deliver(vec![batch(&["a"; 3])], ALL, "a").await.unwrap_err();
        assert_eq!(error.remedy, RangeRemedy::Retry);
        let beyond = RowBatch {
            bytes: Bytes::from_static(b"x"),
            rows: vec![(0, 2)],
        };
        let no_row = RowBatch {
            bytes: Bytes::from_static(b"xyz"),
            rows: vec![(0, 3)],
        };
        for rubbish in [beyond, no_row] {
            let error = deliver(vec![RowEvent::Rows(rubbish)], ALL, "a").await;
            assert_eq!(error.unwrap_err().remedy, RangeRemedy::Fail);
        }
    }
}
