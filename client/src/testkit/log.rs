//! The mock gateway's log and what it knows about its consumers.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use pgcapture_proto::pgcapture::{
    Begin, CaptureAck, CaptureInit, CaptureMessage, Change, Checkpoint, Commit, Gap, Relation,
    Truncate, change::Operation,
};
use tonic::Code;

use super::{dumps::MockDump, rows::TestRow};

/// The distance between two transactions.
const LSN_STEP: u64 = 0x100;
/// Microseconds from 1970 to 2000.
const POSTGRES_EPOCH_MICROS: u128 = 946_684_800_000_000;

/// One answer of a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// The uri of its session.
    pub uri: String,
    /// The LSN of the checkpoint.
    pub lsn: u64,
    /// The place inside the transaction; the number of the range on an existing row.
    pub seq: u32,
    /// What else the checkpoint held.
    pub data: Bytes,
    /// Why the change is to be delivered again; empty = acknowledged.
    pub requeue_reason: String,
    /// Whether it stands for everything delivered before, too.
    pub cumulative: bool,
}

/// What is known about the consumer of one uri.
#[derive(Debug, Default)]
pub(super) struct Position {
    next: usize,
    again: VecDeque<usize>,
    acked: HashSet<usize>,
    /// In the order of delivery, with the session that has it.
    in_flight: VecDeque<(u64, usize)>,
}

impl Position {
    /// Delivers these again; of a dump's range that is not wholly acknowledged, all rows, and those
    /// that it delivered are no longer waited for.
    fn give_back(&mut self, entries: &[CaptureMessage], returned: Vec<usize>) {
        let range = |entry: &usize| range_of(entries.get(*entry)?.checkpoint.as_ref()?);
        for entry in returned {
            let Some(range) = range(&entry) else {
                self.again.push_back(entry);
                continue;
            };
            let rows: Vec<usize> = rows_of(entries, range).collect();
            self.in_flight.retain(|(_, entry)| !rows.contains(entry));
            self.acked.retain(|entry| !rows.contains(entry));
            self.again.retain(|entry| !rows.contains(entry));
            self.again.extend(rows);
        }
    }
}

/// Puts the place of a row into its checkpoint, as for sessions that asked for batches: here its
/// number in the log. The last row of a range says that it is the last.
pub(super) fn put_place(message: &mut CaptureMessage, entry: usize) {
    if let Some(checkpoint) = &mut message.checkpoint
        && range_of(checkpoint).is_some()
        && checkpoint.data.is_empty()
    {
        let place = u32::try_from(entry).unwrap_or(u32::MAX);
        checkpoint.data = Bytes::copy_from_slice(&place.to_be_bytes());
    }
}

fn place_in(checkpoint: &Checkpoint) -> Option<usize> {
    range_of(checkpoint)?;
    let place: [u8; 4] = checkpoint.data.as_ref().try_into().ok()?;
    usize::try_from(u32::from_be_bytes(place)).ok()
}

/// The number of the range of an existing row; `None` for a change.
fn range_of(checkpoint: &Checkpoint) -> Option<u32> {
    (checkpoint.lsn == 0).then_some(checkpoint.seq)
}

fn rows_of(entries: &[CaptureMessage], range: u32) -> impl Iterator<Item = usize> + '_ {
    let is_row = move |message: &CaptureMessage| {
        message.checkpoint.as_ref().and_then(range_of) == Some(range)
    };
    let numbered = entries.iter().enumerate();
    numbered.filter_map(move |(entry, message)| is_row(message).then_some(entry))
}

#[derive(Debug, Default)]
pub(super) struct Log {
    entries: Vec<CaptureMessage>,
    open: Vec<CaptureMessage>,
    lsn: u64,
    dumps: u32,
    /// Whose the ranges are that were asked for; others are everybody's.
    owners: HashMap<u32, String>,
    /// Rows that dumps can be asked for.
    pub(super) existing: Vec<TestRow>,
    /// What was asked for.
    pub(super) started: Vec<MockDump>,
    positions: HashMap<String, Position>,
    pub(super) answers: Vec<Answer>,
    pub(super) inits: Vec<CaptureInit>,
    pub(super) authorizations: Vec<Option<String>>,
    pub(super) rejections: VecDeque<(Code, String)>,
    pub(super) sessions: u64,
}

impl Log {
    pub(super) fn push(&mut self, message: CaptureMessage) {
        self.open.push(message);
    }

    pub(super) fn commit(&mut self, time: SystemTime) {
        self.lsn += LSN_STEP;
        let since = time
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_micros();
        let micros = u64::try_from(since.saturating_sub(POSTGRES_EPOCH_MICROS)).unwrap_or(0);
        let begin = Begin {
            final_lsn: self.lsn,
            commit_time: micros,
            remote_xid: 7,
        };
        let end_lsn = self.lsn + LSN_STEP / 2;
        let commit = Commit {
            commit_lsn: self.lsn,
            end_lsn,
            commit_time: micros,
        };
        let mut messages = vec![CaptureMessage {
            begin: Some(begin),
            ..Default::default()
        }];
        messages.append(&mut self.open);
        messages.push(CaptureMessage {
            commit: Some(commit),
            ..Default::default()
        });
        for (seq, mut message) in (0..).zip(messages) {
            message.checkpoint = Some(Checkpoint {
                lsn: self.lsn,
                seq,
                data: Bytes::new(),
            });
            message.commit_time = micros;
            self.entries.push(message);
        }
    }

    /// Appends a range, for one uri or for all; returns its number.
    pub(super) fn dump(&mut self, rows: Vec<TestRow>, owner: Option<String>) -> u32 {
        self.dumps += 1;
        self.owners.extend(owner.map(|uri| (self.dumps, uri)));
        let last = rows.len();
        for (number, row) in (1..).zip(rows) {
            let data = if number == last {
                Bytes::from_static(&[1])
            } else {
                Bytes::new()
            };
            let mut message = change(Operation::Update, Some(row), None);
            message.checkpoint = Some(Checkpoint {
                lsn: 0,
                seq: self.dumps,
                data,
            });
            self.entries.push(message);
        }
        self.dumps
    }

    pub(super) fn gap(&mut self, reason: &str) {
        let from_lsn = self.lsn;
        self.lsn += LSN_STEP;
        let gap = Gap {
            from_lsn,
            to_lsn: self.lsn,
            reason: reason.to_owned(),
            detail: String::new(),
        };
        let checkpoint = Some(Checkpoint {
            lsn: self.lsn,
            seq: 0,
            data: Bytes::new(),
        });
        self.entries.push(CaptureMessage {
            checkpoint,
            gap: Some(gap),
            ..Default::default()
        });
    }

    pub(super) fn acked(&self) -> usize {
        self.positions
            .values()
            .map(|position| position.acked.len())
            .sum()
    }

    /// Everything in flight is delivered again.
    pub(super) fn expire(&mut self) {
        for position in self.positions.values_mut() {
            let in_flight = std::mem::take(&mut position.in_flight);
            let returned: Vec<usize> = in_flight.into_iter().map(|(_, entry)| entry).collect();
            position.give_back(&self.entries, returned);
        }
    }

    pub(super) fn forget_acks(&mut self) {
        for position in self.positions.values_mut() {
            *position = Position::default();
        }
    }

    /// How many ranges of a dump are wholly acknowledged, over all uris.
    pub(super) fn finished_ranges(&self) -> usize {
        let finished = |uri: &String| {
            let ranges = 1..=self.dumps;
            ranges.filter(|range| self.is_finished(uri, *range)).count()
        };
        self.positions.keys().map(finished).sum()
    }

    /// Whether a uri has acknowledged all rows of a range.
    pub(super) fn is_finished(&self, uri: &str, range: u32) -> bool {
        self.positions.get(uri).is_some_and(|position| {
            let mut rows = rows_of(&self.entries, range).peekable();
            rows.peek().is_some() && rows.all(|row| position.acked.contains(&row))
        })
    }

    /// What a session had is delivered again to another.
    pub(super) fn leave(&mut self, uri: &str, session: u64) {
        let Some(position) = self.positions.get_mut(uri) else {
            return;
        };
        let mut returned: Vec<usize> = Vec::new();
        position.in_flight.retain(|(owner, entry)| {
            let stays = *owner != session;
            if !stays {
                returned.push(*entry);
            }
            stays
        });
        returned.extend(position.again.drain(..));
        returned.sort_unstable();
        position.give_back(&self.entries, returned);
    }

    /// Takes the next message that is wanted and allowed.
    pub(super) fn next(
        &mut self,
        uri: &str,
        session: u64,
        max_unacked: usize,
        wanted: impl Fn(&CaptureMessage) -> bool,
    ) -> Option<(usize, CaptureMessage)> {
        let position = self.positions.entry(uri.to_owned()).or_default();
        let held = position
            .in_flight
            .iter()
            .filter(|(owner, _)| *owner == session)
            .count();
        if held >= max_unacked {
            return None;
        }
        loop {
            let entry = match position.again.pop_front() {
                Some(entry) => entry,
                None => {
                    position.next += 1;
                    position.next - 1
                }
            };
            let Some(message) = self.entries.get(entry) else {
                position.next = self.entries.len();
                return None;
            };
            let range = message.checkpoint.as_ref().and_then(range_of);
            let owner = range.and_then(|range| self.owners.get(&range));
            let is_ours = owner.is_none_or(|owner| owner == uri);
            if is_ours && wanted(message) && !position.acked.contains(&entry) {
                position.in_flight.push_back((session, entry));
                return Some((entry, message.clone()));
            }
        }
    }

    pub(super) fn answer(&mut self, uri: &str, session: u64, ack: CaptureAck) {
        let checkpoint = ack.checkpoint.unwrap_or_default();
        let position = self.positions.entry(uri.to_owned()).or_default();
        let place = place_in(&checkpoint);
        let found = position.in_flight.iter().position(|(owner, entry)| {
            let at = self.entries.get(*entry).and_then(|m| m.checkpoint.as_ref());
            let is_at = match place {
                Some(place) => *entry == place,
                None => at == Some(&checkpoint),
            };
            *owner == session && is_at
        });
        if let Some(at) = found {
            let first = if ack.cumulative { 0 } else { at };
            let mut index = 0;
            let mut answered = Vec::new();
            position.in_flight.retain(|(owner, entry)| {
                let is_covered = *owner == session && (first..=at).contains(&index);
                index += 1;
                if is_covered {
                    answered.push(*entry);
                }
                !is_covered
            });
            if ack.requeue_reason.is_empty() {
                position.acked.extend(answered);
            } else {
                position.give_back(&self.entries, answered);
            }
        }
        self.answers.push(Answer {
            uri: uri.to_owned(),
            lsn: checkpoint.lsn,
            seq: checkpoint.seq,
            data: checkpoint.data,
            requeue_reason: ack.requeue_reason,
            cumulative: ack.cumulative,
        });
    }
}

pub(super) fn change(op: Operation, new: Option<TestRow>, old: Option<TestRow>) -> CaptureMessage {
    let named = new.as_ref().or(old.as_ref());
    let (schema, table) = named
        .map(|row| (row.schema.clone(), row.table.clone()))
        .unwrap_or_default();
    let fields = |row: Option<TestRow>| row.map(|row| row.fields).unwrap_or_default();
    let change = Change {
        op: op.into(),
        schema,
        table,
        new: fields(new),
        old: fields(old),
    };
    CaptureMessage {
        change: Some(change),
        ..Default::default()
    }
}

pub(super) fn truncation(tables: &[&str]) -> CaptureMessage {
    let relation = |name: &&str| {
        let (schema, table) = name.split_once('.').unwrap_or(("public", name));
        Relation {
            schema: schema.to_owned(),
            table: table.to_owned(),
        }
    };
    let relations = tables.iter().map(relation).collect();
    let truncate = Truncate {
        relations,
        cascade: false,
        restart_identity: false,
    };
    CaptureMessage {
        truncate: Some(truncate),
        ..Default::default()
    }
}
