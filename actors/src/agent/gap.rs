//! Declares a hole in a log: an entry that every consumer can see, written before anyone goes on.
//!
//! A gap is written once: its checkpoint lies right after everything that the log holds and before
//! everything that can come, and a log that ends with it is not told again.

use std::borrow::Cow;

use bytes::Bytes;
use pgcapture_engine::{
    batch::{Batch, BatchBuilder, EntryKind},
    checkpoint::Checkpoint,
    cluster,
    lsn::Lsn,
};
use pgcapture_proto::pgcapture::{self as wire, message};
use prost::Message as _;

use super::error::AgentError;
use crate::{
    clock,
    log::{ChangeLog, LogError, Start, Tail},
};

/// Where a gap lies behind everything of its LSN; no transaction has so many changes.
const GAP_SEQ: u32 = u32::MAX;

/// A hole: changes after `from` and before `to` may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    /// End of what the log holds.
    pub(super) from: Lsn,
    /// Where reading goes on; `None` while that is not known.
    pub(super) to: Option<Lsn>,
    /// Stable word: `slot_dropped`, `slot_invalidated`, `slot_ahead`, `publication_dropped`.
    pub(super) reason: Cow<'static, str>,
    /// A sentence for operators.
    pub(super) detail: String,
}

/// Tells whether a log ends with a gap whose end is not known: someone must decide how to go on.
pub(super) fn is_open_at(tail: &Tail) -> bool {
    tail.last == Some(Checkpoint::new(tail.resume_lsn, GAP_SEQ))
}

/// Returns the gap that a log ends with, open or not; `None` when it ends with something else, or
/// when retention has removed it.
pub(super) async fn find_last(log: &dyn ChangeLog, tail: &Tail) -> Result<Option<Gap>, AgentError> {
    let Some(last) = tail.last.filter(|last| last.seq == GAP_SEQ) else {
        return Ok(None);
    };
    let before = Checkpoint::new(last.lsn, GAP_SEQ - 1);
    let mut reader = match log.open_reader(Start::After(before)).await {
        Err(LogError::Removed { .. }) => return Ok(None),
        opened => opened?,
    };
    while let Some(batch) = reader.try_next().await? {
        for entry in &batch {
            let Ok(entry) = entry else { continue };
            let bytes = entry.inner().ok();
            let found = bytes.and_then(|bytes| wire::Gap::decode(bytes).ok());
            if entry.kind == EntryKind::Gap && entry.checkpoint == last {
                return Ok(found.map(Gap::of_wire));
            }
        }
    }
    Ok(None)
}

impl Gap {
    /// Returns the batch that declares the gap, or `None` when the log ends with it already.
    /// `resume_lsn` stays where the log ends until the end of the gap is known, so that the gap is
    /// found again after a restart.
    pub(super) fn batch(&self, tail: &Tail) -> Option<Batch> {
        let checkpoint = self.checkpoint();
        if tail.last.is_some_and(|last| last >= checkpoint) {
            return None;
        }
        let message = wire::Message {
            r#type: Some(message::Type::Gap(self.to_wire())),
        };
        let mut builder = BatchBuilder::default();
        builder.push(
            checkpoint,
            EntryKind::Gap,
            &Bytes::from(message.encode_to_vec()),
        );
        Some(builder.finish(self.to.unwrap_or(tail.resume_lsn), tail.commit_time))
    }

    /// Returns where the gap lies in the log. No transaction commits between the end of the last one
    /// and the gap's end: the byte before that end is free for us, whatever comes at (end, 0).
    pub(super) fn checkpoint(&self) -> Checkpoint {
        let lsn = self
            .to
            .map_or(self.from, |to| Lsn(to.0.saturating_sub(1)).max(self.from));
        Checkpoint::new(lsn, GAP_SEQ)
    }

    fn of_wire(gap: wire::Gap) -> Self {
        Self {
            from: Lsn(gap.from_lsn),
            to: (gap.to_lsn != 0).then_some(Lsn(gap.to_lsn)),
            reason: gap.reason.into(),
            detail: gap.detail,
        }
    }

    /// Returns what the agreed state keeps of it.
    pub(super) fn to_state(&self) -> cluster::Gap {
        cluster::Gap {
            from: self.from,
            to: self.to,
            reason: self.reason.clone().into_owned(),
            declared_at: clock::now(),
        }
    }

    fn to_wire(&self) -> wire::Gap {
        wire::Gap {
            from_lsn: self.from.0,
            to_lsn: self.to.map_or(0, |lsn| lsn.0),
            reason: self.reason.clone().into_owned(),
            detail: self.detail.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(lsn: u64, seq: u32, resume_lsn: u64) -> Tail {
        Tail {
            last: Some(Checkpoint::new(Lsn(lsn), seq)),
            resume_lsn: Lsn(resume_lsn),
            ..Tail::default()
        }
    }

    fn gap(to: Option<u64>) -> Gap {
        let (reason, detail) = ("slot_dropped", String::new());
        Gap {
            from: Lsn(200),
            to: to.map(Lsn),
            reason: reason.into(),
            detail,
        }
    }

    #[test]
    fn an_open_gap_is_declared_once_and_found_again() {
        let before = tail(180, 3, 200);
        let batch = gap(None).batch(&before).unwrap();
        assert_eq!(batch.resume_lsn, Lsn(200), "resuming still finds the hole");
        let (_, last) = batch.span.unwrap();
        let after = Tail {
            last: Some(last),
            ..before
        };
        assert_eq!(gap(None).batch(&after), None);
        assert!(is_open_at(&after) && !is_open_at(&before));
    }

    #[test]
    fn a_closed_gap_lies_between_what_was_and_what_comes() {
        let open = gap(None).batch(&tail(180, 3, 200)).unwrap();
        let (_, last) = open.span.unwrap();
        let closed = gap(Some(900))
            .batch(&Tail {
                last: Some(last),
                ..tail(180, 3, 200)
            })
            .unwrap();
        let (declared, _) = closed.span.unwrap();
        assert!(last < declared && declared < Checkpoint::new(Lsn(900), 0));
        assert_eq!(closed.resume_lsn, Lsn(900));
        assert!(!is_open_at(&tail(899, u32::MAX, 900)));
    }
}
