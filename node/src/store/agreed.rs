//! Applying entries of the common log, and reading what they made.
//!
//! A batch of entries is one transaction, together with the place in the log that it reaches.

use std::sync::Arc;

use pgcapture_engine::cluster::{
    Agreed, Answer, Answered, Cursor, CursorCommand, CursorTable, Outcome, Request, RequestId,
    State, SubscriptionId, Touched,
};
use redb::{Durability, ReadableTable, WriteTransaction};

use super::{
    ANSWERED, CURSORS, Inner, Mark, STATE, STATE_KEY, Store, StoreError, decode, dumps, encode,
    failed, format, log,
};

/// Entries that are applied together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// The requests in the order of the log.
    pub(crate) requests: Vec<Request>,
    /// Where the log then is, and who belongs to the cluster then.
    pub(crate) marks: Vec<(Mark, Vec<u8>)>,
}

/// What a batch writes.
#[derive(Default)]
struct Changes {
    state: Option<Vec<u8>>,
    added: Option<Vec<u8>>,
    dumps: dumps::Changes,
    cursors: Vec<(SubscriptionId, Option<Vec<u8>>)>,
    answered: Vec<(u64, Vec<u8>)>,
    forgotten: Vec<u64>,
}

impl Store {
    /// Applies a batch and returns how each request ended. Blocking. The published state contains it
    /// when this returns.
    pub(crate) fn apply(&self, batch: Batch) -> Result<Vec<Outcome>, StoreError> {
        self.inner.apply(batch)
    }
}

impl Inner {
    fn apply(&self, batch: Batch) -> Result<Vec<Outcome>, StoreError> {
        let mut outcomes = Vec::with_capacity(batch.requests.len());
        let mut changes = Changes::default();
        let (before, after) = {
            let mut agreed = self.agreed();
            let before = Arc::clone(&agreed.state);
            for request in batch.requests {
                let (outcome, touched) = agreed.apply(request);
                changes.add(touched)?;
                outcomes.push(outcome);
            }
            (before, Arc::clone(&agreed.state))
        };
        let is_new = !Arc::ptr_eq(&before, &after);
        if is_new {
            let state = encode(&*after)?;
            self.note_state(state.len());
            changes.state = Some(state);
            changes.dumps = dumps::changes(&before, &after)?;
            if before.added != after.added {
                changes.added = format::added_row(&after)?;
            }
        }
        // From then on an older program must not use the file, whenever the node is killed.
        let is_raised = before.protocol() != after.protocol();
        let durability = if is_raised {
            Durability::Immediate
        } else {
            Durability::None
        };
        self.write(durability, |transaction| {
            write(transaction, &changes).map_err(failed)?;
            log::write_marks(transaction, &batch.marks).map_err(failed)
        })?;
        if is_new {
            self.state.send_replace(after);
        }
        if !changes.cursors.is_empty() {
            self.cursor_moves.send_modify(|number| *number += 1);
        }
        Ok(outcomes)
    }
}

impl Changes {
    fn add(&mut self, touched: Touched) -> Result<(), StoreError> {
        for (id, cursor) in touched.saved {
            self.cursors.push((id, Some(encode(&*cursor)?)));
        }
        let removed = touched.removed.into_iter();
        self.cursors.extend(removed.map(|id| (id, None)));
        if let Some((place, id, answer)) = touched.answered {
            self.answered.push((place, encode(&(id, answer))?));
        }
        self.forgotten.extend(touched.forgotten);
        Ok(())
    }
}

fn write(transaction: &WriteTransaction, changes: &Changes) -> Result<(), redb::Error> {
    if let Some(state) = &changes.state {
        let mut table = transaction.open_table(STATE)?;
        table.insert(STATE_KEY, state.as_slice())?;
    }
    if let Some(added) = &changes.added {
        format::write_added(transaction, added)?;
    }
    dumps::write(transaction, &changes.dumps)?;
    if !changes.cursors.is_empty() {
        let mut table = transaction.open_table(CURSORS)?;
        for (id, cursor) in &changes.cursors {
            let key = (id.stream.as_str(), id.consumer.as_str());
            match cursor {
                Some(bytes) => table.insert(key, bytes.as_slice())?,
                None => table.remove(key)?,
            };
        }
    }
    if !changes.answered.is_empty() {
        let mut table = transaction.open_table(ANSWERED)?;
        for (place, bytes) in &changes.answered {
            table.insert(place, bytes.as_slice())?;
        }
        for place in &changes.forgotten {
            table.remove(place)?;
        }
    }
    Ok(())
}

/// Reads everything that was agreed on, with the state given by whoever knows its form.
pub(super) fn read(transaction: &WriteTransaction, state: State) -> Result<Agreed, StoreError> {
    let mut saved = Vec::new();
    for (id, bytes) in cursor_rows(transaction).map_err(failed)? {
        saved.push((id, decode::<Cursor>(&bytes)?));
    }
    let mut cursors = CursorTable::default();
    cursors.apply(CursorCommand::Save {
        // Read back, not moved: nobody's home is asked.
        by: String::new(),
        cursors: saved,
    });
    let mut answered = Vec::new();
    for (place, bytes) in answered_rows(transaction).map_err(failed)? {
        let (id, answer): (RequestId, Answer) = decode(&bytes)?;
        answered.push((place, id, answer));
    }
    Ok(Agreed {
        state: Arc::new(state),
        cursors,
        answered: Answered::restore(answered),
    })
}

fn cursor_rows(
    transaction: &WriteTransaction,
) -> Result<Vec<(SubscriptionId, Vec<u8>)>, redb::Error> {
    let mut rows = Vec::new();
    for row in transaction.open_table(CURSORS)?.iter()? {
        let (key, value) = row?;
        let (stream, consumer) = key.value();
        let id = SubscriptionId {
            stream: stream.to_owned(),
            consumer: consumer.to_owned(),
        };
        rows.push((id, value.value().to_vec()));
    }
    Ok(rows)
}

fn answered_rows(transaction: &WriteTransaction) -> Result<Vec<(u64, Vec<u8>)>, redb::Error> {
    let mut rows = Vec::new();
    for row in transaction.open_table(ANSWERED)?.iter()? {
        let (key, value) = row?;
        rows.push((key.value(), value.value().to_vec()));
    }
    Ok(rows)
}
