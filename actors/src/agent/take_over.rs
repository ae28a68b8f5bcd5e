//! Takes a slot: checks that it is ours to read and that it fits the log.
//!
//! Compares the slot's confirmed position with the log's durable end. Where the log is the truth they
//! may differ in one direction only: a slot behind the log is normal after a crash, a slot ahead of it
//! has let go of changes that the log does not hold. That is a gap: declared in the log first, then
//! the agent halts or goes on, as it was told. Where the slot is the truth, a log that ends before it
//! is that of a node that was not the last leader: it is started anew at the slot, unless a consumer
//! has not got what the slot has let go.

use std::{sync::atomic::Ordering, time::Duration};

use pgcapture_engine::{
    batch::Batch,
    checkpoint::Checkpoint,
    codes::source as codes,
    confirm::{self, Known, LogStart, Origin},
    lsn::Lsn,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{info, warn};

use super::{
    AgentSpec, Behind, Durability,
    error::AgentError,
    free_slot,
    gap::{self, Gap},
    lost::{Lost, declare_let_go, declare_open, pass_gap},
    pipeline::PipelineParts,
};
use crate::{
    log::Tail,
    postgres::{
        Config, Connection, PgError, Replication,
        catalog::{self, SlotState, SourceLook},
    },
    publisher::PublisherHandle,
};

/// A cursor that lies before the slot may only be an old one: time for this node to hear of newer
/// ones before changes are called lost.
const CURSOR_PATIENCE: Duration = Duration::from_secs(2);

/// How often the node is asked meanwhile what was attested.
const ATTESTED_AGAIN: Duration = Duration::from_millis(50);

/// A slot that may be read from now on.
#[derive(Debug)]
pub(super) struct TakenSlot {
    /// Where to start reading.
    pub(super) resume_lsn: Lsn,
    /// Where the slot stands.
    pub(super) confirmed_lsn: Lsn,
    /// What was attested; zero where the log is the truth.
    pub(super) attested_lsn: Lsn,
    /// End of the server's WAL.
    pub(super) server_end_lsn: Lsn,
    /// Identity of the publication: one that was dropped and made anew has another.
    pub(super) publication_oid: u32,
    /// Whether it is agreed on that it is this one.
    pub(super) is_publication_kept: bool,
    /// Whether every captured type can be sent in binary form.
    pub(super) is_binary: bool,
    /// Open already, for the first stream. One that could not be had is asked for again when it is
    /// needed, and then it matters.
    pub(super) walsender: Option<Connection>,
}

/// What a take-over works with.
pub(super) struct TakeOver<'a> {
    pub(super) parts: &'a PipelineParts,
    pub(super) config: &'a Config,
    pub(super) publisher: &'a PublisherHandle,
    /// For SQL; open since the log was fenced.
    pub(super) connection: Connection,
    /// The log's durable end.
    pub(super) tail: Tail,
    /// What was attested last; `None` where the log is the truth.
    pub(super) attested: Option<Origin>,
    /// What lies behind the slot by intent, and what waits for a decision.
    pub(super) behind: Behind,
    /// The publication that the source was captured with last, where that is known.
    pub(super) publication: Option<u32>,
    pub(super) began: Instant,
}

/// What a look at the source and at this node's log has found.
struct Found {
    /// Where the slot stands, unless its changes are lost.
    position: Result<Lsn, Lost>,
    /// The gap that the log ends with.
    declared: Option<Gap>,
    /// A hole that nobody has decided on, wherever the slot stands.
    hole: Option<Lost>,
    /// Whether nothing was ever captured.
    is_new: bool,
}

impl TakeOver<'_> {
    /// Checks the source and takes the slot.
    pub(super) async fn take_slot(mut self) -> Result<TakenSlot, AgentError> {
        let (parts, tail) = (self.parts, self.tail);
        let spec = &parts.spec;
        let declared = gap::find_last(parts.log.as_ref(), &tail).await?;
        if let Some(declared) = &declared {
            // A crash may have come between the entry and its record.
            parts.host.record_gap(declared.to_state()).await?;
        }
        let look = self.look().await?;
        if look.wal_level != "logical" {
            let what = format!("wal_level is {}, not logical", look.wal_level);
            return Err(PgError::check(&codes::WAL_LEVEL, what).into());
        }
        let is_new = tail.origin() == Origin::default() && self.attested.is_none();
        let publication_oid = match look.publication_oid {
            Some(oid) => oid,
            None if is_new => {
                let what = format!("publication \"{}\" does not exist", spec.publication);
                return Err(PgError::check(&codes::PUBLICATION_MISSING, what).into());
            }
            None => {
                return Err(declare_open(parts, self.publisher, Lost::publication(spec)).await);
            }
        };
        let found = Found {
            position: find_position(spec, &look, self.config.database(), is_new)?,
            declared,
            hole: self.find_hole(publication_oid),
            is_new,
        };
        // Not before: of two agents only one has a walsender, and a stranger keeps his in peace.
        let walsender = Connection::connect(self.config, Replication::Database);
        let (begun, walsender) = tokio::join!(self.begin(found), walsender);
        let (resume_lsn, confirmed_lsn) = begun?;
        // Not before the gap of another one was passed: after a crash it would be passed in silence.
        let is_publication_kept = self.keep_publication(publication_oid).await?;
        // The next gap is another one.
        let is_accepted = &self.parts.decision.is_accepted;
        is_accepted.store(false, Ordering::SeqCst);
        self.note(|times, took| times.ready = took);
        Ok(TakenSlot {
            is_binary: spec.is_binary && has_binary_form(spec, &look.text_columns),
            resume_lsn,
            confirmed_lsn,
            attested_lsn: self.attested.unwrap_or_default().resume_lsn,
            server_end_lsn: look.flush_lsn,
            publication_oid,
            is_publication_kept,
            walsender: walsender.ok(),
        })
    }

    /// Looks at everything at once, and again when somebody had to let go of the slot: until then
    /// it may have moved.
    async fn look(&mut self) -> Result<SourceLook, AgentError> {
        let spec = &self.parts.spec;
        let connection = &mut self.connection;
        let (slot, publication) = (&spec.slot, &spec.publication);
        let mut look = catalog::look(connection, slot, publication, spec.is_binary).await?;
        let holders = std::mem::take(&mut look.holders);
        self.note(|times, took| times.looked = took);
        let name = &self.parts.name;
        let connection = &mut self.connection;
        if free_slot::free_from(connection, name, slot, holders).await? {
            look.slot = catalog::slot(connection, slot).await?;
        }
        self.note(|times, took| times.freed = took);
        Ok(look)
    }

    /// Returns the hole that is there wherever the slot stands: the publication is another one than the
    /// source was captured with, or an owner has declared a gap that nobody has accepted.
    fn find_hole(&self, publication_oid: u32) -> Option<Lost> {
        let is_remade = self
            .publication
            .is_some_and(|known| known != publication_oid);
        let open = self.behind.open_gap.as_ref();
        is_remade
            .then(|| Lost::publication(&self.parts.spec))
            .or_else(|| open.map(Lost::declared_by_another))
    }

    /// Has it agreed on with which publication the source is captured from now on; tells whether it is.
    async fn keep_publication(&self, oid: u32) -> Result<bool, AgentError> {
        if self.publication == Some(oid) {
            return Ok(true);
        }
        let PipelineParts { host, spec, .. } = self.parts;
        Ok(host.keep_publication(spec.epoch, oid).await?)
    }

    /// Returns where reading begins and where the slot stands.
    async fn begin(&mut self, found: Found) -> Result<(Lsn, Lsn), AgentError> {
        let tail = self.tail;
        let parts = self.parts;
        if let Durability::Slot { floor } = &parts.spec.durability {
            return self.begin_at_slot(found, floor).await;
        }
        let Found {
            position,
            declared,
            hole,
            is_new,
        } = found;
        match (position, hole) {
            _ if gap::is_open_at(&tail) => self.pass_gap(Lost::before(declared)).await,
            (Ok(_), Some(hole)) => self.pass_gap(hole).await,
            (Ok(confirmed), None) if is_new => {
                // From here on a slot that moves without us is noticed.
                self.publisher
                    .publish(Batch::progress(confirmed, tail.commit_time))
                    .await?;
                Ok((confirmed, confirmed))
            }
            (Ok(confirmed), None) if confirmed <= tail.resume_lsn => {
                Ok((tail.resume_lsn, confirmed))
            }
            (Ok(confirmed), None) => self.pass_gap(Lost::moved(&parts.spec, confirmed)).await,
            (Err(lost), _) => self.pass_gap(lost).await,
        }
    }

    async fn pass_gap(&self, lost: Lost) -> Result<(Lsn, Lsn), AgentError> {
        let created = pass_gap(self.parts, self.config, self.publisher, self.tail, lost).await?;
        Ok((created, created))
    }

    /// As [`Self::begin`] where the slot is the truth.
    async fn begin_at_slot(
        &mut self,
        found: Found,
        floor: &watch::Receiver<Option<Checkpoint>>,
    ) -> Result<(Lsn, Lsn), AgentError> {
        let (parts, tail) = (self.parts, self.tail);
        let (start, confirmed, lost) = match found.position {
            Ok(slot) => {
                let start = self.decide_start(slot, floor.clone()).await?;
                match found.hole {
                    Some(hole) => {
                        let start = confirm::at_hole(start, tail.origin(), *floor.borrow());
                        (start, slot, hole)
                    }
                    None => (start, slot, Lost::moved(&self.parts.spec, slot)),
                }
            }
            Err(lost) => {
                let anew = confirm::before_gap(tail.origin(), *floor.borrow());
                (LogStart::Gap(anew), Lsn::ZERO, lost)
            }
        };
        match start {
            LogStart::GoOn if gap::is_open_at(&tail) => {
                self.pass_gap(Lost::before(found.declared)).await
            }
            LogStart::GoOn => {
                self.attest_first(Origin::CAPTURED).await?;
                Ok((tail.resume_lsn, confirmed))
            }
            LogStart::Anew(origin) => {
                let is_beginning = origin.previous.is_none();
                let first = if is_beginning {
                    origin
                } else {
                    Origin::CAPTURED
                };
                self.attest_first(first).await?;
                info!(source = %self.parts.spec.source, at = %origin.resume_lsn, "starting this node's log anew");
                self.publisher.start_anew(origin).await?;
                Ok((origin.resume_lsn, confirmed))
            }
            LogStart::Gap(anew) => {
                self.attest_first(Origin::CAPTURED).await?;
                if let Some(origin) = anew {
                    self.tail = self.publisher.start_anew(origin).await?;
                }
                self.pass_gap(lost).await
            }
            LogStart::LetGo(anew) => {
                self.attest_first(Origin::CAPTURED).await?;
                if let Some(origin) = anew {
                    self.tail = self.publisher.start_anew(origin).await?;
                }
                let let_go = self.behind.let_go.clone().unwrap_or_default();
                declare_let_go(parts, self.publisher, self.tail, confirmed, let_go).await?;
                Ok((confirmed, confirmed))
            }
        }
    }

    /// From the first look on the source counts as captured: no later leader takes the place where it
    /// finds the slot for the beginning.
    async fn attest_first(&mut self, origin: Origin) -> Result<(), AgentError> {
        if self.attested.is_none() {
            self.parts
                .host
                .attest(self.parts.spec.epoch, origin)
                .await?;
            self.attested = Some(origin);
        }
        Ok(())
    }

    /// Decides how this node's log goes on; gives news some time before changes are called lost.
    async fn decide_start(
        &mut self,
        slot: Lsn,
        mut floor: watch::Receiver<Option<Checkpoint>>,
    ) -> Result<LogStart, AgentError> {
        let deadline = Instant::now() + CURSOR_PATIENCE;
        loop {
            let known = Known {
                floor: *floor.borrow_and_update(),
                attested: self.attested,
                reached: self.behind.reached,
                let_go: self.behind.let_go.as_ref().map(|let_go| let_go.to),
            };
            let start = confirm::log_start(self.tail.origin(), slot, &known);
            let is_lossy = matches!(start, LogStart::Gap(_) | LogStart::LetGo(_));
            if !is_lossy || Instant::now() > deadline {
                return Ok(start);
            }
            sleep(ATTESTED_AGAIN).await;
            self.attested = self.parts.host.attested().await?;
            self.behind = self.parts.host.behind().await?;
        }
    }

    fn note(&self, set: impl FnOnce(&mut super::TakeOverTimes, Duration)) {
        let took = self.began.elapsed();
        self.parts
            .status
            .send_modify(|status| set(&mut status.take_over, took));
    }
}

/// Tells whether every captured type has a binary form: a single value of one that has none would
/// fail the whole stream.
fn has_binary_form(spec: &AgentSpec, text_columns: &[String]) -> bool {
    if let Some(first) = text_columns.first() {
        warn!(
            source = spec.source,
            code = codes::BINARY_MISSING.code,
            column = first,
            column_count = text_columns.len(),
            "reading the source as text: {}",
            codes::BINARY_MISSING.title
        );
    }
    text_columns.is_empty()
}

/// Returns the slot's confirmed position, or that its changes are lost.
fn find_position(
    spec: &AgentSpec,
    look: &SourceLook,
    database: &str,
    is_new: bool,
) -> Result<Result<Lsn, Lost>, AgentError> {
    match &look.slot {
        Some(slot) => check_slot(&spec.slot, slot, database),
        None if is_new => {
            let what = format!("slot \"{}\" does not exist", spec.slot);
            Err(PgError::check(&codes::SLOT_MISSING, what).into())
        }
        None => Ok(Err(Lost::dropped(&spec.slot))),
    }
}

/// Returns the slot's position, or that its changes are lost.
fn check_slot(
    name: &str,
    slot: &SlotState,
    database: &str,
) -> Result<Result<Lsn, Lost>, AgentError> {
    if let Some(reason) = &slot.invalidation_reason {
        let detail = format!("slot \"{name}\" was invalidated by the server ({reason})");
        return Ok(Err(Lost::new(
            &codes::SLOT_INVALIDATED,
            "slot_invalidated",
            detail,
        )));
    }
    slot.check(database)?;
    Ok(Ok(slot.confirmed_flush_lsn.unwrap_or_default()))
}
