//! Takes a slot: checks that it is ours to read and that it fits the log.
//!
//! Compares the slot's confirmed position with the log's durable end. They may differ in one
//! direction only: a slot behind the log is normal after a crash, a slot ahead of it has let go of
//! changes that the log does not hold. That is a gap: declared in the log first, then the agent
//! halts or goes on, as it was told. A walsender of an older pgcapture is terminated; a foreign one
//! is left alone.

use std::{borrow::Cow, sync::atomic::Ordering};

use metrics::counter;
use pgcapture_engine::{
    batch::Batch,
    codes::{Explanation, source as codes},
    lsn::Lsn,
};
use tracing::{error, warn};

use super::{
    AgentSpec,
    error::AgentError,
    gap::{self, Gap},
    pipeline::PipelineParts,
};
use crate::{
    log::Tail,
    postgres::{
        Config, Connection, PgError, Replication,
        catalog::{self, ServerInfo, SlotState},
    },
    publisher::PublisherHandle,
};

/// How every connection of an agent begins to call itself; see `application_name` in
/// [`super::start`].
pub(super) const OUR_APPLICATION: &str = "pgcapture/";

/// A slot that may be read from now on.
#[derive(Clone, Debug)]
pub(super) struct TakenSlot {
    /// Where to start reading.
    pub(super) resume_lsn: Lsn,
    /// End of the server's WAL.
    pub(super) server_end_lsn: Lsn,
    /// Identity of the publication: one that was dropped and made anew has another.
    pub(super) publication_oid: u32,
    /// Whether every captured type can be sent in binary form.
    pub(super) is_binary: bool,
}

/// Checks the source and takes the slot. `tail` is the log's durable end.
pub(super) async fn take_slot(
    parts: &PipelineParts,
    config: &Config,
    publisher: &PublisherHandle,
    tail: Tail,
) -> Result<TakenSlot, AgentError> {
    let spec = &parts.spec;
    let is_new_log = tail.resume_lsn == Lsn::ZERO && tail.last.is_none();
    let declared = gap::find_last(parts.log.as_ref(), &tail).await?;
    if let Some(declared) = &declared {
        // A crash may have come between the entry and its record.
        parts.host.record_gap(declared.to_state()).await?;
    }
    let mut connection = Connection::connect(config, Replication::Off).await?;
    let server = check_server(&mut connection).await?;
    let publication_oid = match catalog::publication(&mut connection, &spec.publication).await? {
        Some(publication) => publication.oid,
        None if is_new_log => {
            let what = format!("publication \"{}\" does not exist", spec.publication);
            return Err(PgError::check(&codes::PUBLICATION_MISSING, what).into());
        }
        None => return Err(declare_open(parts, publisher, Lost::publication(spec)).await),
    };
    let resume_lsn =
        match find_position(spec, &mut connection, config.database(), is_new_log).await? {
            _ if gap::is_open_at(&tail) => {
                pass_gap(parts, config, publisher, tail, Lost::before(declared)).await?
            }
            Ok(confirmed) if is_new_log => {
                // From here on a slot that moves without us is noticed.
                publisher
                    .publish(Batch::progress(confirmed, tail.commit_time))
                    .await?;
                confirmed
            }
            Ok(confirmed) if confirmed <= tail.resume_lsn => tail.resume_lsn,
            Ok(confirmed) => {
                let detail = format!(
                    "slot \"{}\" was moved to {confirmed} by someone else",
                    spec.slot
                );
                let lost = Lost::new(&codes::POSITION_AHEAD, "slot_ahead", detail);
                pass_gap(parts, config, publisher, tail, lost).await?
            }
            Err(lost) => pass_gap(parts, config, publisher, tail, lost).await?,
        };
    let is_binary = spec.is_binary && has_binary_form(spec, &mut connection).await?;
    Ok(TakenSlot {
        is_binary,
        resume_lsn,
        server_end_lsn: server.flush_lsn,
        publication_oid,
    })
}

/// Changes that cannot be had any more.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    explanation: &'static Explanation,
    reason: Cow<'static, str>,
    detail: String,
}

impl Lost {
    fn new(explanation: &'static Explanation, reason: &'static str, detail: String) -> Self {
        Self {
            explanation,
            reason: Cow::Borrowed(reason),
            detail,
        }
    }

    /// The publication went away while the slot was in use.
    pub(super) fn publication(spec: &AgentSpec) -> Self {
        let (publication, slot) = (&spec.publication, &spec.slot);
        let detail =
            format!("publication \"{publication}\" was dropped while slot \"{slot}\" was in use");
        Self::new(&codes::PUBLICATION_DROPPED, "publication_dropped", detail)
    }

    /// What an error of reading says of objects that were there when it began; `None` when it says
    /// nothing of them. A slot may go between the look at it and the start; a publication that
    /// was missing is complained of for ever (14 to 17), since the slot stands where it was not.
    pub(super) fn of(spec: &AgentSpec, error: &PgError) -> Option<Self> {
        let slot = &spec.slot;
        let (code, text) = (error.code(), error.to_string());
        // The copy of the slot that a catch-up reads may go without any loss.
        let is_ours = text.contains(&format!("\"{slot}\"")) || text.contains("WAL segment");
        if code == codes::PUBLICATION_MISSING.code {
            Some(Self::publication(spec))
        } else if code == codes::SLOT_MISSING.code && is_ours {
            Some(Self::dropped(slot))
        } else if code == codes::SLOT_INVALIDATED.code && is_ours {
            let detail = format!("slot \"{slot}\" was invalidated by the server: {text}");
            let (explanation, reason) = (&codes::SLOT_INVALIDATED, "slot_invalidated");
            Some(Self::new(explanation, reason, detail))
        } else {
            None
        }
    }

    fn dropped(slot: &str) -> Self {
        let detail = format!("slot \"{slot}\" was dropped");
        Self::new(&codes::SLOT_MISSING, "slot_dropped", detail)
    }

    /// A gap that the log ends with already; its end gets the same reason.
    fn before(declared: Option<Gap>) -> Self {
        let detail = "the log ends with a gap that nobody has accepted yet".to_owned();
        let unknown = Self::new(&codes::POSITION_AHEAD, "declared_before", detail);
        match declared {
            Some(Gap { reason, .. }) => Self { reason, ..unknown },
            None => unknown,
        }
    }
}

/// Tells whether every captured type has a binary form: a single value of one that has none would
/// fail the whole stream.
async fn has_binary_form(
    spec: &AgentSpec,
    connection: &mut Connection,
) -> Result<bool, AgentError> {
    let columns = catalog::types_without_binary(connection, &spec.publication).await?;
    if let Some(first) = columns.first() {
        warn!(
            source = spec.source,
            code = codes::BINARY_MISSING.code,
            column = first,
            column_count = columns.len(),
            "reading the source as text: {}",
            codes::BINARY_MISSING.title
        );
    }
    Ok(columns.is_empty())
}

/// Returns the slot's confirmed position, or that its changes are lost.
async fn find_position(
    spec: &AgentSpec,
    connection: &mut Connection,
    database: &str,
    is_new_log: bool,
) -> Result<Result<Lsn, Lost>, AgentError> {
    match catalog::slot(connection, &spec.slot).await? {
        Some(slot) => check_slot(connection, &spec.slot, &slot, database).await,
        None if is_new_log => {
            let what = format!("slot \"{}\" does not exist", spec.slot);
            Err(PgError::check(&codes::SLOT_MISSING, what).into())
        }
        None => Ok(Err(Lost::dropped(&spec.slot))),
    }
}

/// Returns the slot's position, or that its changes are lost; frees it from an older agent of ours.
async fn check_slot(
    connection: &mut Connection,
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
    if let Some(holder) = catalog::slot_holder(connection, name).await? {
        if !holder.application_name.starts_with(OUR_APPLICATION) {
            return Err(catalog::slot_in_use_error(name, &holder).into());
        }
        let (pid, holder) = (holder.pid, holder.application_name);
        warn!(
            slot = name,
            pid, holder, "taking the slot from an older agent"
        );
        catalog::terminate_walsender(connection, name).await?;
    }
    Ok(Ok(slot.confirmed_flush_lsn.unwrap_or_default()))
}

/// Checks what a slot needs of its server.
async fn check_server(connection: &mut Connection) -> Result<ServerInfo, AgentError> {
    let server = catalog::server_info(connection).await?;
    if server.wal_level != "logical" {
        let what = format!("wal_level is {}, not logical", server.wal_level);
        return Err(PgError::check(&codes::WAL_LEVEL, what).into());
    }
    Ok(server)
}

/// Drops the slot if it is still there and makes it anew; returns where it starts.
async fn recreate_slot(config: &Config, name: &str) -> Result<Lsn, AgentError> {
    let mut connection = Connection::connect(config, Replication::Off).await?;
    catalog::drop_slot(&mut connection, name, true).await?;
    Ok(catalog::create_slot(&mut connection, name).await?)
}

/// Goes on after a gap when that was allowed: makes the slot anew, so that it holds a position that
/// is known and whole, and writes where the gap ends. Halts otherwise, with the gap written.
async fn pass_gap(
    parts: &PipelineParts,
    config: &Config,
    publisher: &PublisherHandle,
    tail: Tail,
    lost: Lost,
) -> Result<Lsn, AgentError> {
    let is_accepted = parts.decision.is_accepted.swap(false, Ordering::SeqCst);
    if !parts.spec.accepts_gap && !is_accepted {
        return Err(declare_open(parts, publisher, lost).await);
    }
    let created = recreate_slot(config, &parts.spec.slot).await?;
    let gap = Gap {
        from: tail.resume_lsn,
        to: Some(created),
        reason: lost.reason,
        detail: lost.detail,
    };
    write(parts, publisher, &gap).await?;
    Ok(created)
}

/// Writes a gap whose end is not known and returns the error that halts the agent.
pub(super) async fn declare_open(
    parts: &PipelineParts,
    publisher: &PublisherHandle,
    lost: Lost,
) -> AgentError {
    let from = match publisher.flush().await {
        Ok(tail) => tail.resume_lsn,
        Err(error) => return error.into(),
    };
    let Lost {
        explanation,
        reason,
        detail,
    } = lost;
    let gap = Gap {
        from,
        to: None,
        reason,
        detail: detail.clone(),
    };
    match write(parts, publisher, &gap).await {
        Ok(()) => AgentError::Gap {
            explanation,
            from,
            detail,
        },
        Err(error) => error,
    }
}

async fn write(
    parts: &PipelineParts,
    publisher: &PublisherHandle,
    gap: &Gap,
) -> Result<(), AgentError> {
    let tail = publisher.flush().await?;
    if let Some(batch) = gap.batch(&tail) {
        let source = parts.spec.source.as_str();
        let label = gap.reason.clone().into_owned();
        counter!("pgcapture_gaps_total", "source" => source.to_owned(), "reason" => label)
            .increment(1);
        let Gap {
            from,
            to,
            reason,
            detail,
        } = gap;
        error!(source, %from, ?to, %reason, detail, "changes are lost: declaring a gap");
        publisher.publish(batch).await?;
        publisher.flush().await?;
        parts.host.record_gap(gap.to_state()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pgcapture_engine::checkpoint::Epoch;

    use super::*;
    use crate::agent::AgentLimits;

    #[test]
    fn an_error_of_reading_that_means_lost_changes_is_one() {
        let spec = AgentSpec {
            source: "shop".to_owned(),
            node: "n1".to_owned(),
            epoch: Epoch(1),
            slot: "s".to_owned(),
            publication: "p".to_owned(),
            is_binary: true,
            accepts_gap: false,
            limits: AgentLimits::default(),
        };
        let reason = |explanation, text: &str| {
            let error = PgError::check(explanation, text.to_owned());
            Lost::of(&spec, &error).map(|lost| lost.reason.into_owned())
        };
        let missing = |slot: &str| {
            let text = format!("replication slot \"{slot}\" does not exist");
            reason(&codes::SLOT_MISSING, &text)
        };
        assert_eq!(missing("s"), Some("slot_dropped".to_owned()));
        assert_eq!(missing("s_copy"), None);
        let removed = "requested WAL segment 1 has already been removed";
        let invalidated = reason(&codes::SLOT_INVALIDATED, removed);
        assert_eq!(invalidated, Some("slot_invalidated".to_owned()));
        let publication = reason(&codes::PUBLICATION_MISSING, "");
        assert_eq!(publication, Some("publication_dropped".to_owned()));
        assert_eq!(reason(&codes::SLOT_IN_USE, "slot \"s\""), None);
    }
}
