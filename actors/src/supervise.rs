//! Owned tasks and supervised actors: who runs, who waits for the end, what happens after a panic.
//!
//! Every task of the product is spawned here, has a kind and a name, and is aborted when its
//! [`Task`] is dropped, so that no task outlives its owner. `actix::Supervisor` is not used: it
//! does not survive a panic and restarts the old value (measured); [`supervise`] builds a new one.

use std::{any::Any, time::Duration};

use actix::{Actor, Addr, Context};
use tokio::{
    sync::{oneshot, watch},
    task::{JoinError, JoinHandle},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug_span};

/// What a task is for; label of metrics and spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskKind {
    /// Builds and rebuilds the pipeline of one source.
    Agent,
    /// Reads a slot and decodes.
    SlotReader,
    /// Reports positions to PostgreSQL.
    StatusUpdates,
    /// Watches slot and publication by SQL.
    SlotWatch,
    /// Tells the decoder what became durable.
    DurableTail,
    /// Serves one consumer.
    Session,
    /// Brings ranges of dumps to one subscription.
    RangeIntake,
    /// Makes cursors durable.
    CursorSaver,
    /// Tells the dump controller what was agreed on.
    DumpController,
    /// Reads one range of a dump.
    Dumper,
    /// Looks at one replica again and again.
    ReplicaWatch,
    /// Starts and stops agents as the state wants.
    Sources,
    /// Serves gRPC or HTTP.
    Server,
    /// Agrees with the other nodes.
    Raft,
    /// Work of a command line tool.
    Tool,
}

impl TaskKind {
    /// Returns the stable lower-case word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::SlotReader => "slot_reader",
            Self::StatusUpdates => "status_updates",
            Self::SlotWatch => "slot_watch",
            Self::DurableTail => "durable_tail",
            Self::Session => "session",
            Self::RangeIntake => "range_intake",
            Self::CursorSaver => "cursor_saver",
            Self::DumpController => "dump_controller",
            Self::Dumper => "dumper",
            Self::ReplicaWatch => "replica_watch",
            Self::Sources => "sources",
            Self::Server => "server",
            Self::Raft => "raft",
            Self::Tool => "tool",
        }
    }
}

/// A running task. Dropping it aborts the task; awaiting [`Task::join`] takes its result.
#[derive(Debug)]
pub struct Task<T> {
    handle: JoinHandle<T>,
}

impl<T> Task<T> {
    /// Waits for the end. Cancellation-safe: a later call goes on waiting; a call after the end was
    /// returned panics, as `JoinHandle` does.
    ///
    /// # Errors
    ///
    /// [`TaskEnd`] when the task panicked or was aborted.
    pub async fn join(&mut self) -> Result<T, TaskEnd> {
        (&mut self.handle).await.map_err(TaskEnd::from)
    }

    /// Asks the runtime to drop the task at its next await.
    pub fn abort(&self) {
        self.handle.abort();
    }

    /// Tells whether the task has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// How a task ended without a result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskEnd {
    /// It panicked.
    #[error("panicked: {0}")]
    Panicked(String),
    /// It was aborted.
    #[error("was aborted")]
    Aborted,
}

impl From<JoinError> for TaskEnd {
    fn from(error: JoinError) -> Self {
        match error.try_into_panic() {
            Ok(panic) => Self::Panicked(panic_text(panic.as_ref())),
            Err(_) => Self::Aborted,
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
        .to_owned()
}

/// Spawns a task on the current runtime.
///
/// # Panics
///
/// Outside a tokio runtime.
pub fn spawn<T: Send + 'static>(
    kind: TaskKind,
    name: &str,
    future: impl Future<Output = T> + Send + 'static,
) -> Task<T> {
    let span = debug_span!("task", kind = kind.as_str(), name);
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where tasks are spawned"
    )]
    let handle = tokio::spawn(future.instrument(span));
    Task { handle }
}

/// Held by a supervised actor; its drop tells the supervisor that the actor is gone.
#[derive(Debug)]
pub struct Alive {
    _gone: oneshot::Sender<()>,
}

impl Alive {
    /// Makes the pair: the actor keeps the first, its owner awaits the second.
    #[must_use]
    pub fn pair() -> (Self, oneshot::Receiver<()>) {
        let (gone_tx, gone) = oneshot::channel();
        (Self { _gone: gone_tx }, gone)
    }
}

/// Starts an actor on the current arbiter and builds a new one after `pause` whenever it is gone,
/// a panic included, until `shutdown`.
///
/// The receiver holds the current address, or `None` between two lives.
///
/// # Panics
///
/// Outside an actix `System` or a `LocalSet`.
pub fn supervise<A>(
    name: &'static str,
    mut build: impl FnMut(Alive) -> A + 'static,
    pause: Duration,
    shutdown: CancellationToken,
) -> watch::Receiver<Option<Addr<A>>>
where
    A: Actor<Context = Context<A>>,
{
    let (addr_tx, addr) = watch::channel(None);
    actix::spawn(async move {
        while !shutdown.is_cancelled() {
            let (alive, gone) = Alive::pair();
            addr_tx.send_replace(Some(build(alive).start()));
            tokio::select! {
                _ = gone => {
                    tracing::error!(actor = name, "actor ended unexpectedly; starting a new one");
                    metrics::counter!("pgcapture_actor_restarts_total", "actor" => name).increment(1);
                }
                () = shutdown.cancelled() => break,
            }
            addr_tx.send_replace(None);
            tokio::select! {
                () = tokio::time::sleep(pause) => (),
                () = shutdown.cancelled() => break,
            }
        }
    });
    addr
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use actix::{Handler, Message};
    use tokio::task::LocalSet;

    use super::*;

    struct Fragile {
        life: u32,
        _alive: Alive,
    }

    impl Actor for Fragile {
        type Context = Context<Self>;
    }

    #[derive(Message)]
    #[rtype(result = "u32")]
    struct Life;

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Panic;

    impl Handler<Life> for Fragile {
        type Result = u32;
        fn handle(&mut self, _: Life, _: &mut Self::Context) -> u32 {
            self.life
        }
    }

    impl Handler<Panic> for Fragile {
        type Result = ();
        fn handle(&mut self, _: Panic, _: &mut Self::Context) {
            panic!("on purpose");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_panicking_actor_is_built_anew() {
        let lives = Rc::new(Cell::new(0));
        let counted = Rc::clone(&lives);
        let build = move |alive| {
            counted.set(counted.get() + 1);
            Fragile {
                life: counted.get(),
                _alive: alive,
            }
        };
        LocalSet::new()
            .run_until(async {
                let pause = Duration::from_secs(60);
                let mut addr = supervise("fragile", build, pause, CancellationToken::new());
                let first = addr
                    .wait_for(Option::is_some)
                    .await
                    .unwrap()
                    .clone()
                    .unwrap();
                assert_eq!(first.send(Life).await, Ok(1));
                assert!(first.send(Panic).await.is_err());
                addr.wait_for(Option::is_none).await.unwrap();
                let second = addr
                    .wait_for(Option::is_some)
                    .await
                    .unwrap()
                    .clone()
                    .unwrap();
                assert_eq!(second.send(Life).await, Ok(2));
            })
            .await;
    }

    #[tokio::test]
    async fn a_dropped_task_is_aborted() {
        let (done_tx, done) = oneshot::channel::<()>();
        let task = spawn(TaskKind::Tool, "waits for ever", async move {
            let _done_tx = done_tx;
            std::future::pending::<()>().await;
        });
        drop(task);
        assert!(done.await.is_err(), "the sender is dropped with its task");
    }

    #[tokio::test]
    async fn a_panic_is_told_with_its_message() {
        let mut task = spawn(TaskKind::Tool, "panics", async { panic!("on purpose") });
        assert_eq!(
            task.join().await,
            Err::<(), _>(TaskEnd::Panicked("on purpose".to_owned()))
        );
    }
}
