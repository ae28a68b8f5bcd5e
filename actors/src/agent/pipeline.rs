//! One life of an agent's pipeline: fence the log, take the slot, read until something ends.
//!
//! The order is the safety argument: open the log's writer under the epoch (older ones are refused
//! from then on), read the log's tail, take the slot from whoever holds it, start reading at the
//! tail. Everything that is built here is torn down when this returns, whatever the reason; nothing
//! survives into the next life but the log.

use std::{sync::Arc, time::Duration};

use actix::ArbiterHandle;
use pgcapture_engine::{
    decoder::{Decoder as PgoutputDecoder, DecoderOptions},
    fence::AgentName,
    lsn::Lsn,
    progress::Progress,
    slot_mode::{SlotMode, SlotModeOptions, SlotModeSwitch},
    wal_guard::WalOutlook,
};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{
    AgentHost, AgentSpec, AgentStatus, Behind, Durability, GapDecision,
    confirmer::{Confirmer, confirmation},
    error::AgentError,
    lost::{self, Lost},
    slot_watch::{Seen, SlotWatch},
    take_over::{TakeOver, TakenSlot},
};
use crate::{
    decoder::{
        Decoder,
        asked::Asked,
        meter::DecodeMeter,
        slot_reader::{Probe, SlotReader},
    },
    log::{ChangeLog, Tail},
    postgres::{Config, Connection, Replication},
    publisher::{Publisher, PublisherHandle},
    supervise::{Alive, TaskKind, spawn},
};

/// What every life of a pipeline needs.
#[derive(Debug)]
pub(super) struct PipelineParts {
    pub(super) spec: Arc<AgentSpec>,
    pub(super) host: Arc<dyn AgentHost>,
    /// Who we are to PostgreSQL.
    pub(super) name: Arc<AgentName>,
    pub(super) log: Arc<dyn ChangeLog>,
    pub(super) arbiter: ArbiterHandle,
    pub(super) status: Arc<watch::Sender<AgentStatus>>,
    pub(super) drain: CancellationToken,
    pub(super) decision: Arc<GapDecision>,
}

/// Runs one life. `Ok` means drained: everything decoded is durable and confirmed.
pub(super) async fn run(parts: &PipelineParts) -> Result<(), AgentError> {
    let spec = &parts.spec;
    let (publisher, publisher_gone, mut began) = tokio::select! {
        biased;
        () = spec.lease.lost() => return Err(AgentError::LeaseLost(spec.epoch)),
        () = parts.drain.cancelled() => return Ok(()),
        begun = begin(parts) => begun?,
    };
    info!(
        source = %spec.source, slot = %spec.slot, epoch = %spec.epoch,
        resume = %began.taken.resume_lsn, took = ?began.since.elapsed(), "reading the slot"
    );
    parts.status.send_modify(|status| status.trouble = None);
    match read(parts, &publisher, publisher_gone, &mut began).await {
        Ok(Ended::Drained) => Ok(()),
        Ok(Ended::Lost(lost)) => Err(lost::declare_open(parts, &publisher, lost).await),
        Ok(Ended::GuardReached(outlook)) => {
            Err(lost::protect_source(parts, &began.config, &publisher, outlook).await)
        }
        Err(AgentError::Postgres(error)) => Err(match Lost::of(spec, &error) {
            Some(lost) => lost::declare_open(parts, &publisher, lost).await,
            None => error.into(),
        }),
        // What the publisher refused without the lease is no trouble of its own.
        Err(error) if spec.lease.is_held() => Err(error),
        Err(_) => Err(AgentError::LeaseLost(spec.epoch)),
    }
}

/// Fences the log, reads its end and takes the slot. PostgreSQL lets us in meanwhile: that proves and
/// changes nothing, and a take-over is short.
async fn begin(
    parts: &PipelineParts,
) -> Result<(PublisherHandle, oneshot::Receiver<()>, Began), AgentError> {
    let since = Instant::now();
    let config = parts.host.connection().await?;
    let config = config.with_application_name(parts.name.to_string());
    let fence = async {
        let writer = parts.log.open_writer(parts.spec.epoch).await?;
        let (alive, gone) = Alive::pair();
        let lease = parts.spec.lease.clone();
        let publisher = Publisher::start(&parts.arbiter, writer, lease, alive);
        let tail = publisher.flush().await?;
        let agreed = match parts.spec.durability {
            Durability::Log => (None, Behind::default()),
            Durability::Slot { .. } => (parts.host.attested().await?, parts.host.behind().await?),
        };
        let publication = parts.host.publication().await?;
        Ok::<_, AgentError>((publisher, gone, tail, agreed, publication))
    };
    let connect = Connection::connect(&config, Replication::Off);
    let (fenced, connection) = tokio::join!(fence, connect);
    let (publisher, publisher_gone, tail, (attested, behind), publication) = fenced?;
    let connection = connection?;
    parts
        .status
        .send_modify(|status| status.take_over.prepared = since.elapsed());
    let take_over = TakeOver {
        parts,
        config: &config,
        publisher: &publisher,
        connection,
        tail,
        attested,
        behind,
        publication,
        began: since,
    };
    let taken = take_over.take_slot().await?;
    let at = publisher.flush().await?;
    let began = Began {
        config,
        at,
        taken,
        since,
    };
    Ok((publisher, publisher_gone, began))
}

/// How a life has begun.
struct Began {
    config: Config,
    /// The durable end of the log.
    at: Tail,
    taken: TakenSlot,
    since: Instant,
}

/// How reading ended without an error.
enum Ended {
    Drained,
    Lost(Lost),
    /// The source keeps too much WAL.
    GuardReached(WalOutlook),
}

/// Reads until drained or until a part ends; no part is left when this returns.
async fn read(
    parts: &PipelineParts,
    publisher: &PublisherHandle,
    publisher_gone: oneshot::Receiver<()>,
    began: &mut Began,
) -> Result<Ended, AgentError> {
    let source = parts.spec.source.as_str();
    let (let_go_tx, let_go) = watch::channel(Lsn::ZERO);
    let mut confirmation = confirmation(&parts.spec, &began.taken);
    let first = match &parts.spec.durability {
        Durability::Log => confirmation.advance(began.at.origin(), None),
        Durability::Slot { floor } => confirmation.advance(began.at.origin(), *floor.borrow()),
    };
    let (confirmable_tx, confirmable) = watch::channel(first);
    let reader = build_reader(parts, began, publisher, confirmable);
    // The actor would keep the reader alive after an agent that was dropped.
    let cut = CancellationToken::new();
    let _cut = cut.clone().drop_guard();
    let reader = spawn(TaskKind::SlotReader, source, async move {
        tokio::select! {
            biased;
            () = cut.cancelled() => Err(AgentError::ActorGone("agent")),
            ended = reader.run() => ended,
        }
    });
    let (decoder, ended) = Decoder::start(&parts.arbiter, reader, confirmable_tx);
    let confirmer = Confirmer {
        spec: Arc::clone(&parts.spec),
        host: Arc::clone(&parts.host),
        tail: parts.log.tail(),
        decoder: decoder.clone(),
        status: Arc::clone(&parts.status),
        confirmation,
        let_go,
    };
    let mut confirmer = spawn(TaskKind::DurableTail, source, confirmer.run());
    let watch = SlotWatch {
        spec: Arc::clone(&parts.spec),
        host: Arc::clone(&parts.host),
        tail: parts.log.tail(),
        let_go: let_go_tx,
        config: began.config.clone(),
        looks: parts.host.looks().of(&began.config),
        status: Arc::clone(&parts.status),
        publication_oid: began.taken.publication_oid,
        is_publication_kept: began.taken.is_publication_kept,
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
        () = parts.spec.lease.lost() => Err(AgentError::LeaseLost(parts.spec.epoch)),
        told = confirmer.join() => Err(match told {
            Ok(error) => error,
            Err(end) => AgentError::TaskEnded("durable tail", end),
        }),
        watched = watcher.join() => match watched {
            Ok(Seen::Lost(lost)) => Ok(Ended::Lost(lost)),
            Ok(Seen::GuardReached(outlook)) => Ok(Ended::GuardReached(outlook)),
            Err(end) => Err(AgentError::TaskEnded("slot watch", end)),
        },
    };
    decoder.stop().await;
    ended
}

fn build_reader(
    parts: &PipelineParts,
    began: &mut Began,
    publisher: &PublisherHandle,
    confirmable: watch::Receiver<Lsn>,
) -> SlotReader {
    let walsender = began.taken.walsender.take();
    let Began {
        config, at, taken, ..
    } = began;
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
    let is_followed = mode.decide(backlog, true, Duration::ZERO) == SlotMode::Follow;
    SlotReader {
        name: Arc::clone(&parts.name),
        walsender: walsender.filter(|_| is_followed),
        began: began.since,
        probe: Probe::default(),
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
