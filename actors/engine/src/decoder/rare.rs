//! The messages that come seldom: TRUNCATE and logical messages. They are encoded by prost; only rows
//! and transactions are worth code of their own.

use pgcapture_proto::pgcapture as wire;

use super::{DecodeError, Decoder};
use crate::{
    batch::EntryKind,
    checkpoint::Checkpoint,
    lsn::Lsn,
    pgoutput::{Logical, Truncate},
};

impl Decoder {
    pub(super) fn truncate(&mut self, truncate: Truncate<'_>) -> Result<(), DecodeError> {
        let checkpoint = self.next_change("a Truncate")?;
        if self.drops(checkpoint) {
            return Ok(());
        }
        let mut relations = Vec::with_capacity(truncate.relation_ids().len());
        for id in truncate.relation_ids() {
            let relation = self.relations.get(id).ok_or(DecodeError::UnknownRelation {
                lsn: checkpoint.lsn,
                id,
            })?;
            relations.push(wire::Relation {
                schema: relation.schema.clone(),
                table: relation.table.clone(),
            });
        }
        let message = wire::message::Type::Truncate(wire::Truncate {
            relations,
            cascade: truncate.is_cascade,
            restart_identity: truncate.restarts_identity,
        });
        self.write(checkpoint, EntryKind::Truncate, message);
        self.counters.truncate_count += 1;
        Ok(())
    }

    pub(super) fn transactional_message(
        &mut self,
        logical: Logical<'_>,
    ) -> Result<(), DecodeError> {
        let checkpoint = self.next_change("a transactional message")?;
        self.logical(checkpoint, logical)
    }

    /// A message outside transactions has its own place in the order: the server sends it when it
    /// reads it, between the commits around it.
    ///
    /// PostgreSQL gives the *end* of the message's WAL record as its LSN, and the commit record of
    /// a transaction often starts right there: `(lsn, 1)` would hide that transaction's first
    /// entries. The byte before lies inside the message's own record, where nothing can start.
    pub(super) fn standalone_message(&mut self, logical: Logical<'_>) -> Result<(), DecodeError> {
        if let Some(open) = self.transaction {
            return Err(DecodeError::InsideTransaction {
                lsn: open.begin.final_lsn,
                what: "a non-transactional message",
            });
        }
        let own_place = Lsn(logical.lsn.0.saturating_sub(1));
        self.logical(Checkpoint::new(own_place, 1), logical)?;
        self.resume_lsn = self.resume_lsn.max(logical.lsn);
        Ok(())
    }

    fn logical(&mut self, checkpoint: Checkpoint, logical: Logical<'_>) -> Result<(), DecodeError> {
        if self.drops(checkpoint) {
            return Ok(());
        }
        if logical.content.len() > self.options.row_bytes_max {
            return Err(DecodeError::MessageTooLarge {
                lsn: logical.lsn,
                prefix: logical.prefix.to_owned(),
                bytes: logical.content.len(),
                limit: self.options.row_bytes_max,
            });
        }
        let message = wire::message::Type::Logical(wire::LogicalMessage {
            transactional: logical.is_transactional,
            lsn: logical.lsn.0,
            prefix: logical.prefix.to_owned(),
            content: bytes::Bytes::copy_from_slice(logical.content),
        });
        self.write(checkpoint, EntryKind::Logical, message);
        self.counters.logical_count += 1;
        Ok(())
    }
}
