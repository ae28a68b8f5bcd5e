//! Tells the decoder, and whoever watches, what may be confirmed to PostgreSQL.
//!
//! Follows the durable end of the log and, where the slot is the truth, the least cursor of the
//! consumers; the engine decides. What the cursors alone do not prove is attested by the node first.
//! Never talks to PostgreSQL: the decoder's streams do.

use std::{pin::Pin, sync::Arc, time::Duration};

use metrics::histogram;
use pgcapture_engine::{
    checkpoint::Checkpoint,
    confirm::{Confirmation, Origin},
    lsn::Lsn,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::warn;

use super::{
    AgentHost, AgentSpec, AgentStatus, Durability, HostError, error::AgentError,
    take_over::TakenSlot,
};
use crate::{clock, decoder::DecoderHandle, log::Tail};

/// What became durable is told at most this often: status updates need no more, and each costs a
/// message between threads.
const TELL_INTERVAL: Duration = Duration::from_millis(20);

/// How often an idle source looks whether there is something to attest that was not due before.
const ATTEST_LOOK: Duration = Duration::from_secs(1);

/// An attestation under way.
type Attesting = Pin<Box<dyn Future<Output = (Origin, Result<(), HostError>)> + Send>>;

/// See the module.
pub(super) struct Confirmer {
    pub(super) spec: Arc<AgentSpec>,
    pub(super) host: Arc<dyn AgentHost>,
    pub(super) tail: watch::Receiver<Tail>,
    pub(super) decoder: DecoderHandle,
    pub(super) status: Arc<watch::Sender<AgentStatus>>,
    pub(super) confirmation: Confirmation,
    /// What a decision has let go, as agreed on.
    pub(super) let_go: watch::Receiver<Lsn>,
}

/// Where confirming begins with a slot that was just taken.
pub(super) const fn confirmation(spec: &AgentSpec, taken: &TakenSlot) -> Confirmation {
    match spec.durability {
        Durability::Log => Confirmation::by_log(taken.resume_lsn),
        Durability::Slot { .. } => Confirmation::by_slot(taken.confirmed_lsn, taken.attested_lsn),
    }
}

impl Confirmer {
    /// Tells until the log or the decoder is gone.
    pub(super) async fn run(mut self) -> AgentError {
        let latency = histogram!("pgcapture_event_latency_seconds", "stage" => "log");
        let started = Instant::now();
        let mut newest = self.tail.borrow().commit_time;
        let mut floor = match &self.spec.durability {
            Durability::Log => None,
            Durability::Slot { floor } => Some(floor.clone()),
        };
        let mut attesting: Option<Attesting> = None;
        loop {
            let durable = *self.tail.borrow_and_update();
            let least = least_cursor(&mut floor);
            self.confirmation.let_go(*self.let_go.borrow_and_update());
            if durable.commit_time > newest {
                newest = durable.commit_time;
                latency.record(clock::seconds_since(newest));
            }
            if let Err(error) = self.tell(durable, least).await {
                return error;
            }
            if attesting.is_none() {
                attesting = self.attest(durable, least, started.elapsed());
            }
            tokio::select! {
                changed = self.tail.changed() => {
                    if changed.is_err() {
                        return AgentError::ActorGone("log");
                    }
                }
                () = cursor_moved(&mut floor) => {}
                () = moved(&mut self.let_go) => {}
                (origin, result) = finished(&mut attesting) => {
                    attesting = None;
                    self.take_answer(origin, result);
                    continue;
                }
                () = sleep(ATTEST_LOOK), if floor.is_some() => {}
            }
            sleep(TELL_INTERVAL).await;
        }
    }

    async fn tell(&mut self, durable: Tail, least: Option<Checkpoint>) -> Result<(), AgentError> {
        let confirmed = self.confirmation.advance(durable.origin(), least);
        self.decoder.confirmable(confirmed).await?;
        self.status.send_modify(|status| {
            status.durable_lsn = durable.resume_lsn;
            status.confirmed_lsn = confirmed.max(status.confirmed_lsn);
            status.commit_time = durable.commit_time;
        });
        Ok(())
    }

    fn attest(
        &mut self,
        durable: Tail,
        least: Option<Checkpoint>,
        now: Duration,
    ) -> Option<Attesting> {
        let origin = self.confirmation.attest(durable.origin(), least, now)?;
        let (host, epoch) = (Arc::clone(&self.host), self.spec.epoch);
        Some(Box::pin(async move {
            (origin, host.attest(epoch, origin).await)
        }))
    }

    /// What could not be attested is only confirmed later.
    fn take_answer(&mut self, origin: Origin, result: Result<(), HostError>) {
        match result {
            Ok(()) => self.confirmation.attested(origin),
            Err(error) => {
                let (source, code) = (&self.spec.source, error.explanation.code);
                warn!(source, code, %error, "the slot stays where the consumers are");
            }
        }
    }
}

fn least_cursor(floor: &mut Option<watch::Receiver<Option<Checkpoint>>>) -> Option<Checkpoint> {
    *floor.as_mut()?.borrow_and_update()
}

async fn cursor_moved(floor: &mut Option<watch::Receiver<Option<Checkpoint>>>) {
    match floor {
        Some(floor) => moved(floor).await,
        None => std::future::pending().await,
    }
}

async fn moved<T>(watched: &mut watch::Receiver<T>) {
    if watched.changed().await.is_err() {
        // Nobody tells any more: the last word stays.
        std::future::pending::<()>().await;
    }
}

async fn finished(attesting: &mut Option<Attesting>) -> (Origin, Result<(), HostError>) {
    match attesting {
        Some(attesting) => attesting.await,
        None => std::future::pending().await,
    }
}
