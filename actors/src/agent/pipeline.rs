//! One life of an agent's pipeline: fence the log, take the slot, read until something ends.
//!
//! The order is the safety argument: open the log's writer under the epoch (older ones are refused
//! from then on), read the log's tail, take the slot from whoever holds it, start reading at the
//! tail. Everything that is built here is torn down when this returns, whatever the reason; nothing
//! survives into the next life but the log.

use std::{sync::Arc, time::Duration};

use actix::ArbiterHandle;
use metrics::histogram;
use pgcapture_engine::{
    decoder::{Decoder as PgoutputDecoder, DecoderOptions},
    lsn::Lsn,
    progress::Progress,
    slot_mode::{SlotModeOptions, SlotModeSwitch},
};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{
    AgentHost, AgentSpec, AgentStatus, GapDecision,
    error::AgentError,
    slot_watch::SlotWatch,
    take_over::{self, TakenSlot},
};
use crate::{
    clock,
    decoder::{Decoder, DecoderHandle, asked::Asked, meter::DecodeMeter, slot_reader::SlotReader},
    log::{ChangeLog, Tail},
    postgres::Config,
    publisher::{Publisher, PublisherHandle},
    supervise::{Alive, TaskKind, spawn},
};

/// What became durable is told at most this often: status updates need no more, and each costs a
/// message between threads.
const DURABLE_INTERVAL: Duration = Duration::from_millis(20);

/// What every life of a pipeline needs.
#[derive(Debug)]
pub(super) struct PipelineParts {
    pub(super) spec: Arc<AgentSpec>,
    pub(super) host: Arc<dyn AgentHost>,
    pub(super) application_name: String,
    pub(super) log: Arc<dyn ChangeLog>,
    pub(super) arbiter: ArbiterHandle,
    pub(super) status: Arc<watch::Sender<AgentStatus>>,
    pub(super) drain: CancellationToken,
    pub(super) decision: Arc<GapDecision>,
}

/// Runs one life. `Ok` means drained: everything decoded is durable and confirmed.
pub(super) async fn run(parts: &PipelineParts) -> Result<(), AgentError> {
    let config = parts.host.connection().await?;
    let config = config.with_application_name(&parts.application_name);
    let writer = parts.log.open_writer(parts.spec.epoch).await?;
    let (alive, publisher_gone) = Alive::pair();
    let publisher = Publisher::start(&parts.arbiter, writer, alive);
    let at = publisher.flush().await?;
    let taken = take_over::take_slot(parts, &config, &publisher, at).await?;
    let at = publisher.flush().await?;
    info!(
        source = %parts.spec.source, slot = %parts.spec.slot, epoch = %parts.spec.epoch,
        resume = %taken.resume_lsn, "reading the slot"
    );
    parts.status.send_modify(|status| status.trouble = None);
    let began = Began { config, at, taken };
    match read(parts, &publisher, publisher_gone, &began).await {
        Ok(Ended::Drained) => Ok(()),
        Ok(Ended::Lost(lost)) => Err(take_over::declare_open(parts, &publisher, lost).await),
        Err(AgentError::Postgres(error)) => Err(match take_over::Lost::of(&parts.spec, &error) {
            Some(lost) => take_over::declare_open(parts, &publisher, lost).await,
            None => error.into(),
        }),
        Err(error) => Err(error),
    }
}

/// How a life has begun.
struct Began {
    config: Config,
    /// The durable end of the log.
    at: Tail,
    taken: TakenSlot,
}

/// How reading ended without an error.
enum Ended {
    Drained,
    Lost(take_over::Lost),
}

/// Reads until drained or until a part ends; no part is left when this returns.
async fn read(
    parts: &PipelineParts,
    publisher: &PublisherHandle,
    publisher_gone: oneshot::Receiver<()>,
    began: &Began,
) -> Result<Ended, AgentError> {
    let source = parts.spec.source.as_str();
    let (confirmable_tx, confirmable) = watch::channel(began.at.resume_lsn);
    let reader = build_reader(parts, began, publisher, confirmable);
    let reader = spawn(TaskKind::SlotReader, source, reader.run());
    let (decoder, ended) = Decoder::start(&parts.arbiter, reader, confirmable_tx);
    let tell = tell_durable(parts.log.tail(), decoder.clone(), Arc::clone(&parts.status));
    let mut teller = spawn(TaskKind::DurableTail, source, tell);
    let watch = SlotWatch {
        spec: Arc::clone(&parts.spec),
        config: began.config.clone(),
        status: Arc::clone(&parts.status),
        publication_oid: began.taken.publication_oid,
    };
    let mut watcher = spawn(TaskKind::SlotWatch, source, watch.run());
    // The reader's own word comes first: it ends its actor, which the others then miss.
    let ended = tokio::select! {
        biased;
        ended = ended => match ended {
            Ok(result) => result.map(|()| Ended::Drained),
            Err(_) => Err(AgentError::ActorGone("decoder")),
        },
        _ = publisher_gone => Err(AgentError::ActorGone("publisher")),
        told = teller.join() => Err(match told {
            Ok(error) => error,
            Err(end) => AgentError::TaskEnded("durable tail", end),
        }),
        watched = watcher.join() => match watched {
            Ok(lost) => Ok(Ended::Lost(lost)),
            Err(end) => Err(AgentError::TaskEnded("slot watch", end)),
        },
    };
    decoder.stop().await;
    ended
}

fn build_reader(
    parts: &PipelineParts,
    began: &Began,
    publisher: &PublisherHandle,
    confirmable: watch::Receiver<Lsn>,
) -> SlotReader {
    let Began { config, at, taken } = began;
    let limits = &parts.spec.limits;
    let options = DecoderOptions {
        row_bytes_max: limits.row_bytes_max,
    };
    let decoder = PgoutputDecoder::new(options, at.last, taken.resume_lsn);
    let mut mode = SlotModeSwitch::new(SlotModeOptions {
        catch_up_above: limits.catch_up_above,
        follow_below: limits.follow_below,
        chunk_bytes: limits.catch_up_chunk,
        ..SlotModeOptions::default()
    });
    let spec = AgentSpec {
        is_binary: taken.is_binary,
        ..AgentSpec::clone(&parts.spec)
    };
    let backlog = taken.server_end_lsn.bytes_since(taken.resume_lsn);
    mode.decide(backlog, true, Duration::ZERO);
    SlotReader {
        asked: Asked::new(parts.log.asked_progress()),
        meter: DecodeMeter::new(&parts.spec.source, *decoder.counters()),
        decoder,
        progress: Progress::new(at.last, at.resume_lsn, at.commit_time),
        mode,
        publisher: publisher.clone(),
        tail: parts.log.tail(),
        confirmable,
        status: Arc::clone(&parts.status),
        drain: parts.drain.clone(),
        started: Instant::now(),
        server_end: taken.server_end_lsn,
        spec: Arc::new(spec),
        config: config.clone(),
    }
}

/// Tells the decoder, and whoever watches, what the log has made durable, until either is gone.
async fn tell_durable(
    mut tail: watch::Receiver<Tail>,
    decoder: DecoderHandle,
    status: Arc<watch::Sender<AgentStatus>>,
) -> AgentError {
    let latency = histogram!("pgcapture_event_latency_seconds", "stage" => "log");
    let mut newest = tail.borrow().commit_time;
    loop {
        let durable = *tail.borrow_and_update();
        if durable.commit_time > newest {
            newest = durable.commit_time;
            latency.record(clock::seconds_since(newest));
        }
        if let Err(error) = decoder.durable(durable).await {
            return error;
        }
        status.send_modify(|status| {
            status.durable_lsn = durable.resume_lsn;
            status.confirmed_lsn = durable.resume_lsn.max(status.confirmed_lsn);
            status.commit_time = durable.commit_time;
        });
        if tail.changed().await.is_err() {
            return AgentError::ActorGone("log");
        }
        sleep(DURABLE_INTERVAL).await;
    }
}
