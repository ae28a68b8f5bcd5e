//! What a reader still leaves out before its first entry.
//!
//! A reader begins at a block at or before the place that was asked for, and [`Skip`] trims what
//! lies before that place. Pure; shared by the backends, so that they agree on every edge.

use pgcapture_engine::{
    batch::{Batch, EntryKind, MalformedBatch},
    checkpoint::Checkpoint,
    lsn::{Lsn, PgTime},
};
use pgcapture_proto::pgcapture::Begin;
use prost::Message as _;

/// What lies before the first entry that the reader delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Skip {
    /// Nothing: deliver everything.
    Nothing,
    /// Every entry at or before this one.
    Through(Checkpoint),
    /// Every transaction that committed before this moment.
    Before(PgTime),
}

impl Skip {
    /// Leaves out every transaction whose commit lies before `lsn`.
    pub(super) const fn before_lsn(lsn: Lsn) -> Self {
        match lsn.0.checked_sub(1) {
            Some(before) => Self::Through(Checkpoint::new(Lsn(before), u32::MAX)),
            None => Self::Nothing,
        }
    }

    /// Trims the next batch in log order; `None` when nothing of it is left.
    ///
    /// # Errors
    ///
    /// [`MalformedBatch`] when the entries cannot be walked.
    pub(super) fn apply(&mut self, batch: Batch) -> Result<Option<Batch>, MalformedBatch> {
        let Some((_, last)) = batch.span else {
            return Ok(None);
        };
        let batch = match *self {
            Self::Nothing => batch,
            Self::Through(checkpoint) => {
                if last > checkpoint {
                    *self = Self::Nothing;
                }
                batch.after(checkpoint)?
            }
            Self::Before(time) => {
                if batch.commit_time < time {
                    return Ok(None);
                }
                *self = Self::Nothing;
                match last_entry_before(&batch, time)? {
                    Some(checkpoint) => batch.after(checkpoint)?,
                    None => batch,
                }
            }
        };
        Ok((batch.entry_count > 0).then_some(batch))
    }
}

/// Finds the entry before the first transaction that begins in `batch` and committed at or after
/// `time`. `None`: nothing can be left out, as no such transaction begins here (then the batch
/// lies inside one that began earlier) or as it is the first entry.
fn last_entry_before(batch: &Batch, time: PgTime) -> Result<Option<Checkpoint>, MalformedBatch> {
    let mut previous = None;
    for entry in batch {
        let entry = entry?;
        if entry.kind == EntryKind::Begin {
            let begin = Begin::decode(entry.inner()?).map_err(|_| MalformedBatch)?;
            if i64::try_from(begin.commit_time).is_ok_and(|commit| PgTime(commit) >= time) {
                return Ok(previous);
            }
        }
        previous = Some(entry.checkpoint);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use pgcapture_engine::batch::BatchBuilder;
    use pgcapture_proto::pgcapture::{Message, message};

    use super::*;

    fn two_transactions() -> Batch {
        let mut builder = BatchBuilder::default();
        for (lsn, commit_time) in [(10, 100), (20, 200)] {
            let begin = Begin {
                commit_time,
                ..Begin::default()
            };
            let begin = Message {
                r#type: Some(message::Type::Begin(begin)),
            };
            let first = Checkpoint::new(Lsn(lsn), 0);
            builder.push(first, EntryKind::Begin, &begin.encode_to_vec());
            builder.push(Checkpoint::new(Lsn(lsn), 1), EntryKind::Commit, &[0x12, 0]);
        }
        builder.finish(Lsn(21), PgTime(200))
    }

    fn first_kept(mut skip: Skip) -> Option<Checkpoint> {
        let kept = skip.apply(two_transactions()).unwrap()?;
        Some(kept.span.unwrap().0)
    }

    #[test]
    fn a_moment_selects_the_first_transaction_at_or_after_it() {
        let starts = |time| first_kept(Skip::Before(PgTime(time)));
        assert_eq!(starts(100), Some(Checkpoint::new(Lsn(10), 0)));
        assert_eq!(starts(101), Some(Checkpoint::new(Lsn(20), 0)));
        assert_eq!(starts(200), Some(Checkpoint::new(Lsn(20), 0)));
        assert_eq!(starts(201), None);
    }

    #[test]
    fn an_lsn_selects_the_first_transaction_at_or_after_it() {
        let starts = |lsn| first_kept(Skip::before_lsn(Lsn(lsn)));
        assert_eq!(starts(0), Some(Checkpoint::new(Lsn(10), 0)));
        assert_eq!(starts(10), Some(Checkpoint::new(Lsn(10), 0)));
        assert_eq!(starts(11), Some(Checkpoint::new(Lsn(20), 0)));
        assert_eq!(starts(21), None);
    }
}
