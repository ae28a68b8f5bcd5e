//! The actor `Dumper`: reads one range, from opening its snapshot to its last row.
//!
//! It owns the task that reads, and ends with it. Rows go into a bounded channel, so that a slow
//! consumer slows the reading and nothing piles up. Whoever drops the other end of the channel, or
//! stops waiting for the range to open, ends the reading.

use std::sync::Arc;

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, WrapFuture};
use futures_util::future::BoxFuture;
use metrics::{counter, gauge};
use pgcapture_engine::dump::pace::RowPace;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    DumpError, OpenedRange, OpenedRows, ROW_BATCHES_WAITING_MAX, RangeOrder, ReadTarget, RowEvent,
    RowReader, RowSource, hub::away, worker::Seat,
};
use crate::supervise::{TaskKind, spawn};

/// Where the range goes once it is open.
pub(super) type Answer = oneshot::Sender<Result<OpenedRange, DumpError>>;

/// Reads one range.
pub(super) struct Dumper {
    /// Taken when the actor starts.
    setup: Option<(Reading, Seat)>,
}

/// What the task does.
pub(super) struct Reading {
    pub(super) reader: Arc<dyn RowReader>,
    pub(super) target: ReadTarget,
    pub(super) order: RangeOrder,
    pub(super) pace: RowPace,
    pub(super) answer: Answer,
    /// Is run when the range was read.
    pub(super) on_read: BoxFuture<'static, ()>,
    /// Nobody may have the rows any more.
    pub(super) stop: CancellationToken,
    /// The node stops.
    pub(super) stopping: CancellationToken,
}

impl Dumper {
    pub(super) fn new(reading: Reading, seat: Seat) -> Self {
        Self {
            setup: Some((reading, seat)),
        }
    }
}

impl Actor for Dumper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some((reading, seat)) = self.setup.take() else {
            return ctx.stop();
        };
        let name = format!("{} {}", reading.order.heap.name, reading.order.extent);
        let mut task = spawn(TaskKind::Dumper, &name, reading.run());
        // The future owns the task and the seat: whichever way the actor ends, both go.
        let ended = async move {
            let _seat = seat;
            task.join().await
        };
        ctx.spawn(ended.into_actor(self).map(|end, _, ctx| {
            if let Err(error) = end {
                tracing::error!(%error, "the reader of a dump range failed; the range is read again");
                metrics::counter!("pgcapture_actor_restarts_total", "actor" => "dumper").increment(1);
            }
            ctx.stop();
        }));
    }
}

impl Reading {
    async fn run(self) {
        let Self {
            reader,
            target,
            order,
            pace,
            mut answer,
            on_read,
            stop,
            stopping,
        } = self;
        let _counted = Counted::new(&target.replica.name);
        let opened = tokio::select! {
            biased;
            () = answer.closed() => return,
            () = stopping.cancelled() => Err(away()),
            () = stop.cancelled() => Err(away()),
            opened = reader.open(&target, &order) => opened,
        };
        let (rows_tx, rows) = mpsc::channel(ROW_BATCHES_WAITING_MAX);
        let source = match opened {
            Ok(OpenedRows { at, rows: source }) => {
                if answer.send(Ok(OpenedRange { at, rows })).is_err() {
                    return;
                }
                source
            }
            Err(error) => {
                // Nobody waits any more: nothing is lost with the error.
                drop(answer.send(Err(error)));
                return;
            }
        };
        tokio::select! {
            biased;
            () = rows_tx.closed() => {}
            () = stopping.cancelled() => {
                // The session ends too, or finds the channel closed.
                drop(rows_tx.try_send(RowEvent::Failed(away())));
            }
            () = stop.cancelled() => {}
            () = pass_on(source, pace, &rows_tx, (&target.replica.name, on_read)) => {}
        }
    }
}

/// A range that this node is reading, for the metrics.
struct Counted(metrics::Gauge);

impl Counted {
    fn new(replica: &str) -> Self {
        let reading = gauge!("pgcapture_dump_reading_ranges", "replica" => replica.to_owned());
        reading.increment(1.0);
        Self(reading)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Passes rows on until the server has said that there are no more; then `on_read` is run as well.
async fn pass_on(
    mut source: Box<dyn RowSource>,
    mut pace: RowPace,
    rows: &mpsc::Sender<RowEvent>,
    (replica, on_read): (&str, BoxFuture<'static, ()>),
) {
    let began = Instant::now();
    let counter = |name: &'static str| counter!(name, "replica" => replica.to_owned());
    let rows_read = counter("pgcapture_dump_rows_read_total");
    let bytes_read = counter("pgcapture_dump_bytes_read_total");
    loop {
        let batch = match source.next().await {
            Ok(Some(batch)) => batch,
            Ok(None) => {
                // Neither waits for the other: the consumer may be slow, the controller away.
                let (told, ()) = tokio::join!(rows.send(RowEvent::End), on_read);
                return drop(told);
            }
            Err(error) => return drop(rows.send(RowEvent::Failed(error)).await),
        };
        let bytes = batch.bytes.len() as u64;
        rows_read.increment(batch.rows.len() as u64);
        bytes_read.increment(bytes);
        if rows.send(RowEvent::Rows(batch)).await.is_err() {
            return;
        }
        if let Some(pause) = pace.after(bytes, began.elapsed()) {
            sleep(pause).await;
        }
    }
}
