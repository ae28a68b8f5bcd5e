//! Logs on the wire between nodes: what a message means, in both directions.
//!
//! Pure. What another node sends is checked here: a message that lacks something is a
//! [`LogError::Away`], never a default.

use pgcapture_actors::log::{LogError, LogExtent, LogHealth, Start, Tail};
use pgcapture_engine::{
    batch::Batch,
    checkpoint::{Checkpoint, Epoch},
    lsn::{Lsn, PgTime},
};
use pgcapture_proto::peer::v1::{
    LogBatch, LogCheckpoint, LogCondition, LogRefusal, LogState, LogTail,
    log_refusal::{self, Closed, Corrupt, Io, NotOwner, Removed},
    open_log,
};

/// Returns a position as it is sent.
#[must_use]
pub fn checkpoint(checkpoint: Checkpoint) -> LogCheckpoint {
    LogCheckpoint {
        lsn: checkpoint.lsn.0,
        seq: checkpoint.seq,
    }
}

fn to_checkpoint(sent: &LogCheckpoint) -> Checkpoint {
    Checkpoint::new(Lsn(sent.lsn), sent.seq)
}

/// Returns a start as it is sent.
#[must_use]
pub fn start(start: Start) -> open_log::Start {
    match start {
        Start::Earliest => open_log::Start::Earliest(open_log::Earliest {}),
        Start::Latest => open_log::Start::Latest(open_log::Latest {}),
        Start::After(after) => open_log::Start::After(checkpoint(after)),
        Start::AtLsn(lsn) => open_log::Start::AtLsn(lsn.0),
        Start::AtTime(time) => open_log::Start::AtTime(time.0),
    }
}

/// Reads a start.
#[must_use]
pub fn to_start(sent: &open_log::Start) -> Start {
    match sent {
        open_log::Start::Earliest(_) => Start::Earliest,
        open_log::Start::Latest(_) => Start::Latest,
        open_log::Start::After(after) => Start::After(to_checkpoint(after)),
        open_log::Start::AtLsn(lsn) => Start::AtLsn(Lsn(*lsn)),
        open_log::Start::AtTime(time) => Start::AtTime(PgTime(*time)),
    }
}

/// Returns a batch as it is sent; its bytes are shared, not copied.
#[must_use]
pub fn batch(batch: Batch) -> LogBatch {
    LogBatch {
        first: batch.span.map(|(first, _)| checkpoint(first)),
        last: batch.span.map(|(_, last)| checkpoint(last)),
        entries: batch.entries,
        entry_count: batch.entry_count,
        change_count: batch.change_count,
        resume_lsn: batch.resume_lsn.0,
        commit_time: batch.commit_time.0,
    }
}

/// Reads a batch; its bytes are shared with the message.
#[must_use]
pub fn to_batch(sent: LogBatch) -> Batch {
    let span = sent.first.as_ref().zip(sent.last.as_ref());
    Batch {
        span: span.map(|(first, last)| (to_checkpoint(first), to_checkpoint(last))),
        entries: sent.entries,
        entry_count: sent.entry_count,
        change_count: sent.change_count,
        resume_lsn: Lsn(sent.resume_lsn),
        commit_time: PgTime(sent.commit_time),
    }
}

/// Returns what a log holds and how it is, as it is sent.
#[must_use]
pub fn state(extent: &LogExtent, health: &LogHealth) -> LogState {
    let (condition, reason) = match health {
        LogHealth::Writable => (LogCondition::Writable, String::new()),
        LogHealth::Blocked { reason } => (LogCondition::Blocked, reason.clone()),
        LogHealth::Failed { reason } => (LogCondition::Failed, reason.clone()),
    };
    let tail = &extent.tail;
    LogState {
        tail: Some(LogTail {
            epoch: tail.epoch.0,
            last: tail.last.map(checkpoint),
            resume_lsn: tail.resume_lsn.0,
            commit_time: tail.commit_time.0,
            offset: tail.offset,
        }),
        earliest: extent.earliest.map(checkpoint),
        earliest_time: extent.earliest_time.0,
        bytes: extent.bytes,
        segments: extent.segments,
        condition: condition.into(),
        reason,
    }
}

/// Reads what a log holds and how it is.
#[must_use]
pub fn to_state(sent: &LogState) -> (LogExtent, LogHealth) {
    let tail = sent.tail.unwrap_or_default();
    let extent = LogExtent {
        earliest: sent.earliest.as_ref().map(to_checkpoint),
        earliest_time: PgTime(sent.earliest_time),
        tail: Tail {
            epoch: Epoch(tail.epoch),
            last: tail.last.as_ref().map(to_checkpoint),
            resume_lsn: Lsn(tail.resume_lsn),
            commit_time: PgTime(tail.commit_time),
            offset: tail.offset,
        },
        bytes: sent.bytes,
        segments: sent.segments,
    };
    let reason = sent.reason.clone();
    let health = match sent.condition() {
        LogCondition::Writable => LogHealth::Writable,
        LogCondition::Blocked => LogHealth::Blocked { reason },
        LogCondition::Failed => LogHealth::Failed { reason },
    };
    (extent, health)
}

/// Returns an error of a log as it is sent.
#[must_use]
pub fn refusal(error: &LogError) -> LogRefusal {
    let kind = match error {
        LogError::Removed { asked, earliest } => log_refusal::Kind::Removed(Removed {
            asked: asked.clone(),
            earliest: Some(checkpoint(*earliest)),
        }),
        LogError::Corrupt { file, offset, what } => log_refusal::Kind::Corrupt(Corrupt {
            file: file.display().to_string(),
            offset: *offset,
            what: what.clone(),
        }),
        LogError::Closed { reason } => log_refusal::Kind::Closed(Closed {
            reason: reason.clone(),
        }),
        LogError::Io { source, .. } => log_refusal::Kind::Io(Io {
            reason: format!("{error}: {source}"),
        }),
        LogError::Fenced { .. }
        | LogError::OutOfOrder { .. }
        | LogError::NewerVersion { .. }
        | LogError::InUse { .. }
        | LogError::Away { .. } => log_refusal::Kind::Io(Io {
            reason: error.to_string(),
        }),
    };
    LogRefusal { kind: Some(kind) }
}

/// Returns the answer of a node that does not run the source under that epoch.
#[must_use]
pub fn not_owner(epoch: Epoch, owner: &str) -> LogRefusal {
    LogRefusal {
        kind: Some(log_refusal::Kind::NotOwner(NotOwner {
            epoch: epoch.0,
            owner: owner.to_owned(),
        })),
    }
}

/// Reads why `node` does not deliver.
#[must_use]
pub fn to_error(node: &str, sent: LogRefusal) -> LogError {
    let away = |reason: String| LogError::Away {
        node: node.to_owned(),
        reason,
    };
    match sent.kind {
        Some(log_refusal::Kind::NotOwner(NotOwner { epoch, owner })) => away(if owner.is_empty() {
            format!("it is not the owner; epoch {epoch} has none")
        } else {
            format!("it is not the owner; that is {owner} under epoch {epoch}")
        }),
        Some(log_refusal::Kind::Removed(Removed { asked, earliest })) => match earliest {
            Some(earliest) => LogError::Removed {
                asked,
                earliest: to_checkpoint(&earliest),
            },
            None => away("it removed a position without saying up to where".to_owned()),
        },
        Some(log_refusal::Kind::Corrupt(Corrupt { file, offset, what })) => LogError::Corrupt {
            file: format!("{node}:{file}").into(),
            offset,
            what,
        },
        Some(log_refusal::Kind::Closed(Closed { reason })) => LogError::Closed { reason },
        // Its disk may be mended, or another node may take over.
        Some(log_refusal::Kind::Io(Io { reason })) => away(reason),
        Some(log_refusal::Kind::Malformed(what)) => {
            away(format!("it does not understand the request: {what}"))
        }
        Some(log_refusal::Kind::OtherCluster(cluster)) => {
            away(format!("it belongs to another cluster, \"{cluster}\""))
        }
        None => away("it gave no reason that this version knows".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(lsn: u64, seq: u32) -> Checkpoint {
        Checkpoint::new(Lsn(lsn), seq)
    }

    #[test]
    fn every_start_arrives_as_it_was_sent() {
        for sent in [
            Start::Earliest,
            Start::Latest,
            Start::After(at(0, 0)),
            Start::After(at(7, u32::MAX)),
            Start::AtLsn(Lsn(u64::MAX)),
            Start::AtTime(PgTime(-5)),
        ] {
            assert_eq!(to_start(&start(sent)), sent);
        }
    }

    #[test]
    fn a_batch_arrives_whole_with_the_same_memory() {
        let sent = Batch {
            entries: bytes::Bytes::from(vec![7; 1_000]),
            span: Some((at(1, 0), at(1, 9))),
            entry_count: 10,
            change_count: 8,
            resume_lsn: Lsn(9),
            commit_time: PgTime(-3),
        };
        let memory = sent.entries.as_ptr();
        let arrived = to_batch(batch(sent.clone()));
        assert_eq!(arrived, sent);
        assert_eq!(arrived.entries.as_ptr(), memory);
        let progress = Batch::progress(Lsn(5), PgTime(1));
        assert_eq!(to_batch(batch(progress.clone())), progress);
    }

    #[test]
    fn what_a_log_holds_and_how_it_is_arrive_whole() {
        let extent = LogExtent {
            earliest: Some(at(3, 0)),
            earliest_time: PgTime(33),
            tail: Tail {
                epoch: Epoch(4),
                last: Some(at(9, 2)),
                resume_lsn: Lsn(10),
                commit_time: PgTime(44),
                offset: 5,
            },
            bytes: 6,
            segments: 7,
        };
        let reason = || "why".to_owned();
        for (extent, health) in [
            (extent, LogHealth::Writable),
            (extent, LogHealth::Blocked { reason: reason() }),
            (LogExtent::default(), LogHealth::Failed { reason: reason() }),
        ] {
            assert_eq!(to_state(&state(&extent, &health)), (extent, health));
        }
    }

    #[test]
    fn errors_travel_whole() {
        let removed = LogError::Removed {
            asked: "1/1|0".to_owned(),
            earliest: at(5, 0),
        };
        let arrived = to_error("b", refusal(&removed));
        assert_eq!(arrived.to_string(), removed.to_string());
        assert!(matches!(arrived, LogError::Removed { earliest, .. } if earliest == at(5, 0)));
        let corrupt = LogError::Corrupt {
            file: "seg".into(),
            offset: 5,
            what: "checksum".to_owned(),
        };
        let arrived = to_error("b", refusal(&corrupt));
        assert!(matches!(arrived, LogError::Corrupt { offset: 5, .. }));
        assert!(arrived.to_string().contains("b:seg"), "{arrived}");
        let closed = LogError::Closed {
            reason: "bye".to_owned(),
        };
        let arrived = to_error("b", refusal(&closed));
        assert_eq!(arrived.to_string(), closed.to_string());
        let io = LogError::Io {
            action: "read",
            path: "seg".into(),
            source: std::io::Error::other("disk"),
        };
        let told = to_error("b", refusal(&io)).to_string();
        assert!(told.contains("cannot read seg: disk"), "{told}");
    }

    #[test]
    fn refusals_say_who_and_what() {
        let told = |refusal| to_error("b", refusal).to_string();
        let refused = told(not_owner(Epoch(7), "c"));
        assert!(refused.contains("that is c under epoch 7"), "{refused}");
        assert!(told(not_owner(Epoch(7), "")).contains("epoch 7 has none"));
        for (kind, expected) in [
            (
                Some(log_refusal::Kind::Malformed("x".to_owned())),
                "request: x",
            ),
            (
                Some(log_refusal::Kind::OtherCluster("y".to_owned())),
                "cluster, \"y\"",
            ),
            (
                Some(log_refusal::Kind::Removed(Removed::default())),
                "without saying",
            ),
            (None, "no reason"),
        ] {
            let told = told(LogRefusal { kind });
            assert!(told.contains(expected), "{told}");
        }
    }
}
