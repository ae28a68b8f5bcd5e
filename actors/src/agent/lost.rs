//! Changes that cannot be had any more: what that means, and how it is declared.
//!
//! A gap is an entry of the log before anything else happens; then the agent halts or goes on, as it
//! was told. Letting a slot go to protect the source is a gap that we make ourselves.

use std::{borrow::Cow, sync::atomic::Ordering, time::Duration};

use metrics::counter;
use pgcapture_engine::{
    cluster::{self, LetGo},
    codes::{Explanation, source as codes},
    lsn::Lsn,
    wal_guard::WalOutlook,
};
use tokio::time::timeout;
use tracing::{error, warn};

use super::{
    AgentSpec, Durability, error::AgentError, free_slot::free_slot, gap::Gap,
    pipeline::PipelineParts,
};
use crate::{
    log::Tail,
    postgres::{Config, Connection, PgError, Replication, catalog},
    publisher::PublisherHandle,
};

/// The word of a gap that protects the source.
pub(super) const GUARD_REASON: &str = "wal_guard";

/// Time for the log to take a gap before the source is protected without it: a log that takes
/// nothing may be why the WAL is kept. The agreed state has the gap then.
const DECLARE_MAX: Duration = Duration::from_secs(5);

/// Changes that cannot be had any more.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    explanation: &'static Explanation,
    reason: Cow<'static, str>,
    detail: String,
}

impl Lost {
    pub(super) fn new(
        explanation: &'static Explanation,
        reason: &'static str,
        detail: String,
    ) -> Self {
        Self {
            explanation,
            reason: Cow::Borrowed(reason),
            detail,
        }
    }

    /// The publication went away while the slot was in use; another one may have its name.
    pub(super) fn publication(spec: &AgentSpec) -> Self {
        let (publication, slot) = (&spec.publication, &spec.slot);
        let detail =
            format!("publication \"{publication}\" was dropped while slot \"{slot}\" was in use");
        Self::new(&codes::PUBLICATION_DROPPED, "publication_dropped", detail)
    }

    /// The slot has let go of what the log does not hold.
    pub(super) fn moved(spec: &AgentSpec, confirmed: Lsn) -> Self {
        let slot = &spec.slot;
        let detail = format!("slot \"{slot}\" was moved to {confirmed} by someone else");
        Self::new(&codes::POSITION_AHEAD, "slot_ahead", detail)
    }

    /// The source keeps too much WAL, and is to be protected.
    pub(super) fn guard(spec: &AgentSpec, outlook: WalOutlook) -> Self {
        let (slot, limit) = (&spec.slot, outlook.limit_bytes);
        let detail = format!("slot \"{slot}\" keeps {limit} bytes of WAL or more and was let go");
        Self::new(&codes::WAL_GUARD, GUARD_REASON, detail)
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

    pub(super) fn dropped(slot: &str) -> Self {
        let detail = format!("slot \"{slot}\" was dropped");
        Self::new(&codes::SLOT_MISSING, "slot_dropped", detail)
    }

    /// A gap that the log ends with already; its end gets the same reason.
    pub(super) fn before(declared: Option<Gap>) -> Self {
        let detail = "the log ends with a gap that nobody has accepted yet".to_owned();
        let unknown = Self::new(&codes::POSITION_AHEAD, "declared_before", detail);
        match declared {
            Some(Gap { reason, .. }) => Self { reason, ..unknown },
            None => unknown,
        }
    }

    /// A gap that another owner has declared; this node's log gets it for the same reason.
    pub(super) fn declared_by_another(gap: &cluster::Gap) -> Self {
        let from = gap.from;
        Self {
            explanation: &codes::POSITION_AHEAD,
            reason: Cow::Owned(gap.reason.clone()),
            detail: format!("a gap was declared at {from} that nobody has accepted yet"),
        }
    }
}

/// Drops the slot if it is still there; whoever reads it is judged first.
async fn drop_slot(parts: &PipelineParts, config: &Config) -> Result<Connection, AgentError> {
    let slot = parts.spec.slot.as_str();
    let mut connection = Connection::connect(config, Replication::Off).await?;
    free_slot(&mut connection, &parts.name, slot).await?;
    catalog::drop_slot(&mut connection, slot, false).await?;
    Ok(connection)
}

/// Lets the slot go so that the source can remove WAL, the gap declared before. Returns the error
/// that ends the pipeline.
pub(super) async fn protect_source(
    parts: &PipelineParts,
    config: &Config,
    publisher: &PublisherHandle,
    outlook: WalOutlook,
) -> AgentError {
    let lost = Lost::guard(&parts.spec, outlook);
    let declared = timeout(DECLARE_MAX, declare_open(parts, publisher, lost.clone())).await;
    let error = match declared {
        Ok(error @ AgentError::Gap { .. }) => error,
        Ok(error) => return error,
        Err(_elapsed) => match record_only(parts, lost).await {
            Ok(error) => error,
            Err(error) => return error,
        },
    };
    match drop_slot(parts, config).await {
        Ok(_) => {
            warn!(source = %parts.spec.source, slot = %parts.spec.slot, "the slot was let go");
            error
        }
        Err(error) => error,
    }
}

/// Records a gap that the log does not take; the missing slot makes the log declare it later.
async fn record_only(parts: &PipelineParts, lost: Lost) -> Result<AgentError, AgentError> {
    let from = parts.log.tail().borrow().resume_lsn;
    let gap = Gap {
        from,
        to: None,
        reason: lost.reason,
        detail: lost.detail.clone(),
    };
    parts.host.record_gap(gap.to_state()).await?;
    Ok(AgentError::Gap {
        explanation: lost.explanation,
        from,
        detail: lost.detail,
    })
}

/// Goes on after a gap when that was allowed: makes the slot anew, so that it holds a position that
/// is known and whole, and writes where the gap ends. Halts otherwise, with the gap written.
pub(super) async fn pass_gap(
    parts: &PipelineParts,
    config: &Config,
    publisher: &PublisherHandle,
    tail: Tail,
    lost: Lost,
) -> Result<Lsn, AgentError> {
    // It counts until the source was taken: what fails on the way is tried again.
    let is_accepted = parts.decision.is_accepted.load(Ordering::SeqCst);
    if !parts.spec.accepts_gap && !is_accepted {
        if lost.reason == GUARD_REASON {
            // A crash may have come between the entry and the slot.
            drop_slot(parts, config).await?;
        }
        return Err(declare_open(parts, publisher, lost).await);
    }
    let mut connection = drop_slot(parts, config).await?;
    let created = catalog::create_slot(&mut connection, &parts.spec.slot).await?;
    if matches!(parts.spec.durability, Durability::Slot { .. }) {
        // The next owner must not halt again at what was accepted here.
        let reason = lost.reason.clone().into_owned();
        let let_go = LetGo {
            to: created,
            reason,
        };
        parts.host.let_go(parts.spec.epoch, let_go).await?;
    }
    close_gap(parts, publisher, tail, created, lost).await?;
    Ok(created)
}

/// Declares to consumers what a decision has let go before this node took the slot over: from the end
/// of its log to where the slot stands. The slot is whole.
pub(super) async fn declare_let_go(
    parts: &PipelineParts,
    publisher: &PublisherHandle,
    tail: Tail,
    slot: Lsn,
    let_go: LetGo,
) -> Result<(), AgentError> {
    let LetGo { to, reason } = let_go;
    let lost = Lost {
        explanation: &codes::POSITION_AHEAD,
        reason: Cow::Owned(reason),
        detail: format!(
            "the slot was let go up to {to} by a decision; the changes were on another node only"
        ),
    };
    close_gap(parts, publisher, tail, slot, lost).await
}

async fn close_gap(
    parts: &PipelineParts,
    publisher: &PublisherHandle,
    tail: Tail,
    to: Lsn,
    lost: Lost,
) -> Result<(), AgentError> {
    let gap = Gap {
        from: tail.resume_lsn,
        to: Some(to),
        reason: lost.reason,
        detail: lost.detail,
    };
    write(parts, publisher, &gap).await
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
    use pgcapture_engine::{checkpoint::Epoch, fence::ClusterId};

    use super::*;
    use crate::agent::{AgentLimits, Durability, Lease};

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
            cluster: ClusterId::default(),
            durability: Durability::Log,
            lease: Lease::permanent(),
            wal_guard: None,
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
