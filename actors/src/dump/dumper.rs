//! The actor `Dumper`: reads one range, from opening its snapshot to its last row.
//!
//! It owns the task that reads, and ends with it. Rows go into a bounded channel, so that a slow
//! consumer slows the reading and nothing piles up. Whoever drops the other end of the channel, or
//! stops waiting for the range to open, ends the reading.

use std::sync::Arc;

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, WrapFuture};
use pgcapture_engine::dump::pace::RowPace;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    DumpError, OpenedRange, OpenedRows, ROW_BATCHES_WAITING_MAX, RangeOrder, ReadTarget, RowEvent,
    RowReader, RowSource, controller, hub::away, worker::Seat,
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
    pub(super) ticket: u64,
    pub(super) pace: RowPace,
    pub(super) answer: Answer,
    /// Is told when the range was read.
    pub(super) controller: controller::Door,
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
            ticket,
            pace,
            mut answer,
            controller,
            stopping,
        } = self;
        let opened = tokio::select! {
            biased;
            () = answer.closed() => return,
            () = stopping.cancelled() => Err(away()),
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
            () = pass_on(source, pace, &rows_tx, read(&controller, ticket)) => {}
        }
    }
}

/// Tells the controller that the server is done with a range: it may read the next one while the rows
/// are still on their way.
async fn read(controller: &controller::Door, ticket: u64) {
    if let Err(error) = controller.send(controller::Read(ticket)).await {
        tracing::debug!(ticket, %error, "a range was read for a controller that is gone");
    }
}

/// Passes rows on until the server has said that there are no more; then `read` is run as well.
async fn pass_on(
    mut source: Box<dyn RowSource>,
    mut pace: RowPace,
    rows: &mpsc::Sender<RowEvent>,
    read: impl Future<Output = ()>,
) {
    let began = Instant::now();
    loop {
        let batch = match source.next().await {
            Ok(Some(batch)) => batch,
            Ok(None) => {
                // Neither waits for the other: the consumer may be slow, the controller away.
                let (told, ()) = tokio::join!(rows.send(RowEvent::End), read);
                return drop(told);
            }
            Err(error) => return drop(rows.send(RowEvent::Failed(error)).await),
        };
        let bytes = batch.bytes.len() as u64;
        if rows.send(RowEvent::Rows(batch)).await.is_err() {
            return;
        }
        if let Some(pause) = pace.after(bytes, began.elapsed()) {
            sleep(pause).await;
        }
    }
}
