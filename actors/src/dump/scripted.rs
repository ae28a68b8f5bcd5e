//! A source of ranges whose every answer a test gives, for tests of whoever pulls.
//!
//! Owns no rows: the test schedules ranges, is told when one is opened, answers with a position, sends
//! rows as it likes and hears how the range ended.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use pgcapture_engine::{
    cluster::DumpOptions,
    codes::gateway::ROWS_LOST,
    dump::{DumpId, Extent, Heap, PageRange, TableName},
    lsn::Lsn,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Delivered, DumpError, GivenUp, OpenedRange, ROW_BATCHES_WAITING_MAX, RangeReader, RangeRemedy,
    RangeSource, RangeTicket, ReadOrder, RowEvent,
};
use crate::{
    cursors::SubscriptionId,
    supervise::{Task, TaskKind, spawn},
};

/// Events that a test may leave unread.
const EVENTS_WAITING_MAX: usize = 64;

/// The source.
#[derive(Debug)]
pub struct ScriptedRanges {
    changes: watch::Sender<u64>,
    due: Mutex<VecDeque<(SubscriptionId, RangeTicket)>>,
    opens: mpsc::Sender<Opening>,
    ends: mpsc::Sender<Ended>,
    /// What passes rows on; ends with the rows.
    passing: Mutex<Vec<Task<()>>>,
}

/// What the test holds.
#[derive(Debug)]
pub struct Script {
    /// The source.
    pub ranges: Arc<ScriptedRanges>,
    opens: mpsc::Receiver<Opening>,
    ends: mpsc::Receiver<Ended>,
    last: u64,
    /// Ranges that the dump of those that are scheduled wants to be read at once.
    pub parallel: u32,
}

/// A range that is to be opened.
#[derive(Debug)]
pub struct Opening {
    /// Its ticket.
    pub ticket: RangeTicket,
    /// What its snapshot must contain.
    pub at_least: Lsn,
    answer: oneshot::Sender<Result<OpenedRange, DumpError>>,
}

/// How a range ended.
#[derive(Debug)]
pub enum Ended {
    /// Finished, under this ticket.
    Finished(u64, Delivered),
    /// Given up, under this ticket.
    GivenUp(u64, GivenUp),
    /// Read to its end, under this ticket; told only by whoever reads elsewhere.
    Read(u64),
}

/// Makes a source and what a test needs to drive it.
#[must_use]
pub fn script() -> Script {
    let (opens_tx, opens) = mpsc::channel(EVENTS_WAITING_MAX);
    let (ends_tx, ends) = mpsc::channel(EVENTS_WAITING_MAX);
    let ranges = Arc::new(ScriptedRanges {
        changes: watch::Sender::new(0),
        due: Mutex::default(),
        opens: opens_tx,
        ends: ends_tx,
        passing: Mutex::default(),
    });
    Script {
        ranges,
        opens,
        ends,
        last: 0,
        parallel: DumpOptions::DEFAULT_PARALLEL,
    }
}

impl Script {
    /// Makes a range due for a subscription and returns the number of its ticket.
    pub fn schedule(&mut self, id: &SubscriptionId) -> u64 {
        self.schedule_on(id, "", "")
    }

    /// The same for a range that shall be read on a node at an address.
    pub fn schedule_on(&mut self, id: &SubscriptionId, node: &str, address: &str) -> u64 {
        self.last += 1;
        let name = TableName {
            schema: "public".to_owned(),
            table: "t".to_owned(),
        };
        let ticket = RangeTicket {
            number: self.last,
            dump: DumpId(1),
            source: id.stream.clone(),
            heap: Heap {
                name: name.clone(),
                label: name,
                oid: 1,
                filenode: 1,
            },
            extent: Extent::Pages(PageRange::ALL),
            replica: "scripted".to_owned(),
            node: node.to_owned(),
            address: address.to_owned(),
            at_least: Lsn::ZERO,
            rate_bytes_per_second: None,
            parallel: self.parallel,
        };
        self.ranges.due().push_back((id.clone(), ticket));
        self.ranges.changes.send_modify(|number| *number += 1);
        self.last
    }

    /// Waits until a range is to be opened.
    pub async fn opening(&mut self) -> Option<Opening> {
        self.opens.recv().await
    }

    /// Waits until a range has ended.
    pub async fn ended(&mut self) -> Option<Ended> {
        self.ends.recv().await
    }
}

impl Opening {
    /// Opens the range; rows go into the answer.
    #[must_use]
    pub fn at(self, at: Lsn) -> mpsc::Sender<RowEvent> {
        let (sender, rows) = mpsc::channel(ROW_BATCHES_WAITING_MAX);
        // Whoever asked may have gone; the sender then says so.
        drop(self.answer.send(Ok(OpenedRange { at, rows })));
        sender
    }

    /// Refuses to open the range.
    pub fn fail(self, what: &str) {
        drop(self.answer.send(Err(failure(what))));
    }

    /// Waits until nobody waits for the answer any more.
    pub async fn cancelled(&mut self) {
        self.answer.closed().await;
    }
}

/// A failure that is worth another try.
#[must_use]
pub fn failure(what: &str) -> DumpError {
    DumpError {
        explanation: &ROWS_LOST,
        what: what.to_owned(),
        remedy: RangeRemedy::Retry,
    }
}

impl ScriptedRanges {
    fn due(&self) -> MutexGuard<'_, VecDeque<(SubscriptionId, RangeTicket)>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl RangeSource for ScriptedRanges {
    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    async fn pull(&self, id: &SubscriptionId) -> Result<Option<RangeTicket>, DumpError> {
        let mut due = self.due();
        let found = due.iter().position(|(owner, _)| owner == id);
        let found = found.and_then(|place| due.remove(place));
        Ok(found.map(|(_, ticket)| ticket))
    }

    async fn open(&self, ticket: &RangeTicket, at_least: Lsn) -> Result<OpenedRange, DumpError> {
        let (answer, opened) = oneshot::channel();
        let opening = Opening {
            ticket: ticket.clone(),
            at_least,
            answer,
        };
        let gone = |_| failure("the test has gone");
        self.opens.send(opening).await.map_err(|_| gone(()))?;
        opened.await.map_err(|_| gone(()))?
    }

    async fn finish(&self, ticket: RangeTicket, delivered: Delivered) -> Result<(), DumpError> {
        let told = self.ends.send(Ended::Finished(ticket.number, delivered));
        told.await.map_err(|_| failure("the test has gone"))
    }

    async fn was_read(&self, ticket: &RangeTicket) {
        // A test that has ended does not care.
        drop(self.ends.send(Ended::Read(ticket.number)).await);
    }

    async fn give_up(&self, ticket: RangeTicket, reason: GivenUp) {
        // A test that has ended does not care.
        drop(self.ends.send(Ended::GivenUp(ticket.number, reason)).await);
    }
}

#[async_trait]
impl RangeReader for ScriptedRanges {
    async fn read(&self, order: ReadOrder) -> Result<OpenedRange, DumpError> {
        let ReadOrder {
            ticket,
            at_least,
            stop,
            on_read,
        } = order;
        let mut opened = self.open(&ticket, at_least).await?;
        let at = opened.at;
        let (passed_on, rows) = mpsc::channel(ROW_BATCHES_WAITING_MAX);
        let task = spawn(TaskKind::Dumper, "scripted", async move {
            let passing = async {
                while let Some(event) = opened.rows.recv().await {
                    let is_end = matches!(event, RowEvent::End);
                    if passed_on.send(event).await.is_err() {
                        return;
                    }
                    if is_end {
                        return on_read.await;
                    }
                }
            };
            tokio::select! {
                () = passing => {}
                () = passed_on.closed() => {}
                () = stop.cancelled() => {}
            }
        });
        let mut passing = self.passing.lock().unwrap_or_else(PoisonError::into_inner);
        passing.push(task);
        drop(passing);
        Ok(OpenedRange { at, rows })
    }
}
