//! The actor `Dumper`: reads one range, from opening its snapshot to its last row.
//!
//! It owns the task that reads, and ends with it. Rows go into a bounded channel, so that a slow
//! consumer slows the reading and nothing piles up. Whoever drops the other end of the channel, or
//! stops waiting for the range to open, ends the reading.

use std::sync::Arc;

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, WrapFuture};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    DumpError, OpenedRange, OpenedRows, ROW_BATCHES_WAITING_MAX, RangeOrder, ReadTarget, RowEvent,
    RowReader, RowSource, hub::away, worker::Seat,
};
use crate::supervise::{TaskKind, spawn};

/// Where the range goes once it is open.
type Answer = oneshot::Sender<Result<OpenedRange, DumpError>>;

/// Reads one range.
pub(super) struct Dumper {
    /// Taken when the actor starts.
    setup: Option<(Reading, Seat)>,
}

/// What the task does.
struct Reading {
    reader: Arc<dyn RowReader>,
    target: ReadTarget,
    order: RangeOrder,
    answer: Answer,
    stopping: CancellationToken,
}

impl Dumper {
    pub(super) fn new(
        reader: Arc<dyn RowReader>,
        target: ReadTarget,
        order: RangeOrder,
        answer: Answer,
        (seat, stopping): (Seat, CancellationToken),
    ) -> Self {
        let reading = Reading {
            reader,
            target,
            order,
            answer,
            stopping,
        };
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
            mut answer,
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
            () = pass_on(source, &rows_tx) => {}
        }
    }
}

/// Passes rows on until the server has said that there are no more.
async fn pass_on(mut source: Box<dyn RowSource>, rows: &mpsc::Sender<RowEvent>) {
    loop {
        let (event, is_last) = match source.next().await {
            Ok(Some(batch)) => (RowEvent::Rows(batch), false),
            Ok(None) => (RowEvent::End, true),
            Err(error) => (RowEvent::Failed(error), true),
        };
        if rows.send(event).await.is_err() || is_last {
            return;
        }
    }
}
