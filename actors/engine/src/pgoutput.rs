//! The messages of PostgreSQL's output plugin pgoutput, protocol version 1, borrowed from the bytes
//! that carried them.
//!
//! [`Message::parse`] checks every length before it hands anything out, so that walking a parsed
//! [`Tuple`] cannot fail. It copies nothing, keeps no state, knows no relation and never panics,
//! whatever the bytes are. The layout is that of "Logical Replication Message Formats" in
//! PostgreSQL's manual.

mod reader;
mod relation;
mod tuple;

use reader::Reader;

pub use relation::{RelationColumn, RelationColumns, RelationMessage, ReplicaIdentity};
pub use tuple::{ColumnValue, ColumnValues, OldTuple, Tuple};

use crate::lsn::{Lsn, PgTime};

/// One message of pgoutput.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction starts.
    Begin(Begin),
    /// The transaction ends.
    Commit(Commit),
    /// The transaction was first committed elsewhere.
    Origin(Origin<'a>),
    /// Describes a relation before its first row, and again after each change of it.
    Relation(RelationMessage<'a>),
    /// Names a type that is not built in.
    Type(TypeName<'a>),
    /// A row was inserted.
    Insert(Insert<'a>),
    /// A row was updated.
    Update(Update<'a>),
    /// A row was deleted.
    Delete(Delete<'a>),
    /// Relations were emptied.
    Truncate(Truncate<'a>),
    /// What `pg_logical_emit_message` wrote.
    Logical(Logical<'a>),
}

/// Start of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Commit LSN of the transaction, known before its rows.
    pub final_lsn: Lsn,
    /// Commit time.
    pub commit_time: PgTime,
    /// Transaction id.
    pub xid: u32,
}

/// End of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Start of the commit record.
    pub commit_lsn: Lsn,
    /// End of the commit record.
    pub end_lsn: Lsn,
    /// Commit time.
    pub commit_time: PgTime,
}

/// Where a replicated transaction came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Commit LSN on the origin.
    pub commit_lsn: Lsn,
    /// Name of the origin.
    pub name: &'a str,
}

/// The name of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeName<'a> {
    /// Type OID.
    pub oid: u32,
    /// Namespace; empty means `pg_catalog`.
    pub schema: &'a str,
    /// Name.
    pub name: &'a str,
}

/// A row was inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insert<'a> {
    /// Relation id of a [`RelationMessage`] that came before.
    pub relation_id: u32,
    /// The row.
    pub new: Tuple<'a>,
}

/// A row was updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update<'a> {
    /// Relation id of a [`RelationMessage`] that came before.
    pub relation_id: u32,
    /// The old key, if it changed, or the old row under REPLICA IDENTITY FULL.
    pub old: Option<OldTuple<'a>>,
    /// The new row.
    pub new: Tuple<'a>,
}

/// A row was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delete<'a> {
    /// Relation id of a [`RelationMessage`] that came before.
    pub relation_id: u32,
    /// The key, or the row under REPLICA IDENTITY FULL.
    pub old: OldTuple<'a>,
}

/// Relations were emptied by one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncate<'a> {
    /// `TRUNCATE … CASCADE`.
    pub is_cascade: bool,
    /// `TRUNCATE … RESTART IDENTITY`.
    pub restarts_identity: bool,
    ids: &'a [[u8; 4]],
}

impl<'a> Truncate<'a> {
    /// Returns the ids of the relations.
    pub fn relation_ids(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.ids.iter().map(|id| u32::from_be_bytes(*id))
    }
}

/// What `pg_logical_emit_message` wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logical<'a> {
    /// Whether it belongs to the transaction around it.
    pub is_transactional: bool,
    /// Its own place in the WAL.
    pub lsn: Lsn,
    /// Its prefix.
    pub prefix: &'a str,
    /// Its content, any bytes.
    pub content: &'a [u8],
}

/// The bytes are no message of protocol version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// There are no bytes at all.
    #[error("a pgoutput message is empty")]
    Empty,
    /// The first byte names no message of protocol version 1.
    #[error("pgoutput sent a message of the unknown kind {0:#04x}")]
    UnknownKind(u8),
    /// The message ends too early.
    #[error("a pgoutput message of kind '{}' ends inside {what}", char::from(*kind))]
    CutShort {
        /// Kind of the message.
        kind: u8,
        /// What could not be read.
        what: &'static str,
    },
    /// Bytes are left over.
    #[error("a pgoutput message of kind '{}' has {count} bytes too many", char::from(*kind))]
    Trailing {
        /// Kind of the message.
        kind: u8,
        /// How many.
        count: usize,
    },
    /// A byte that must be one of a few is another one.
    #[error("a pgoutput message of kind '{}' has {found:#04x} as {what}", char::from(*kind))]
    UnexpectedByte {
        /// Kind of the message.
        kind: u8,
        /// What the byte stands for.
        what: &'static str,
        /// The byte.
        found: u8,
    },
    /// A name is not UTF-8 although the connection asks for it.
    #[error("a pgoutput message of kind '{}' has a {what} that is not UTF-8", char::from(*kind))]
    NotUtf8 {
        /// Kind of the message.
        kind: u8,
        /// What is not UTF-8.
        what: &'static str,
    },
}

impl<'a> Message<'a> {
    /// Parses one whole message.
    ///
    /// # Errors
    ///
    /// [`ParseError`] when a byte is missing, left over or unknown.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (&kind, rest) = bytes.split_first().ok_or(ParseError::Empty)?;
        let mut reader = Reader::new(kind, rest);
        let message = match kind {
            b'I' => Self::Insert(Insert {
                relation_id: reader.u32("the relation id")?,
                new: reader.new_tuple()?,
            }),
            b'U' => Self::Update(reader.update()?),
            b'D' => Self::Delete(Delete {
                relation_id: reader.u32("the relation id")?,
                old: reader.old_tuple()?,
            }),
            b'B' => Self::Begin(Begin {
                final_lsn: reader.lsn()?,
                commit_time: reader.time()?,
                xid: reader.u32("the transaction id")?,
            }),
            b'C' => Self::Commit(reader.commit()?),
            b'R' => Self::Relation(reader.relation()?),
            b'Y' => Self::Type(TypeName {
                oid: reader.u32("the type OID")?,
                schema: reader.name("type schema")?,
                name: reader.name("type name")?,
            }),
            b'O' => Self::Origin(Origin {
                commit_lsn: reader.lsn()?,
                name: reader.name("origin name")?,
            }),
            b'T' => Self::Truncate(reader.truncate()?),
            b'M' => Self::Logical(reader.logical()?),
            other => return Err(ParseError::UnknownKind(other)),
        };
        reader.finish()?;
        Ok(message)
    }
}

impl<'a> Reader<'a> {
    fn update(&mut self) -> Result<Update<'a>, ParseError> {
        let relation_id = self.u32("the relation id")?;
        let old = match self.peek() {
            Some(b'K' | b'O') => Some(self.old_tuple()?),
            _ => None,
        };
        Ok(Update {
            relation_id,
            old,
            new: self.new_tuple()?,
        })
    }

    fn commit(&mut self) -> Result<Commit, ParseError> {
        // The flags are unused in every version so far.
        self.u8("the flags")?;
        Ok(Commit {
            commit_lsn: self.lsn()?,
            end_lsn: self.lsn()?,
            commit_time: self.time()?,
        })
    }

    fn truncate(&mut self) -> Result<Truncate<'a>, ParseError> {
        let count = self.u32("the number of relations")?;
        let flags = self.u8("the flags")?;
        let bytes = self.bytes(u64::from(count) * 4, "the relation ids")?;
        Ok(Truncate {
            is_cascade: flags & 1 != 0,
            restarts_identity: flags & 2 != 0,
            ids: bytes.as_chunks().0,
        })
    }

    fn logical(&mut self) -> Result<Logical<'a>, ParseError> {
        let flags = self.u8("the flags")?;
        let lsn = self.lsn()?;
        let prefix = self.name("message prefix")?;
        let length = self.u32("the content length")?;
        Ok(Logical {
            is_transactional: flags & 1 != 0,
            lsn,
            prefix,
            content: self.bytes(u64::from(length), "the content")?,
        })
    }
}

#[cfg(test)]
mod tests;
