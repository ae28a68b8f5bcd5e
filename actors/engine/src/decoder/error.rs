//! Why a stream of pgoutput messages could not be decoded.

use crate::{
    codes::{Explanation, source},
    encode::RowError,
    lsn::Lsn,
    pgoutput::ParseError,
    relations::{Relation, TooManyRelations},
};

/// A message could not be decoded. `lsn` is the transaction (its commit LSN), or where the stream
/// stood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are no pgoutput message.
    #[error("{}: the stream is damaged at {lsn}", source::PGOUTPUT_VIOLATION.code)]
    Malformed {
        /// Where.
        lsn: Lsn,
        /// What is wrong with them.
        source: ParseError,
    },
    /// Something that belongs into a transaction came outside of one.
    #[error("{}: {what} came outside a transaction at {lsn}", source::PGOUTPUT_VIOLATION.code)]
    OutsideTransaction {
        /// Where.
        lsn: Lsn,
        /// What came.
        what: &'static str,
    },
    /// Something that never belongs into a transaction came inside one.
    #[error("{}: {what} came inside transaction {lsn}", source::PGOUTPUT_VIOLATION.code)]
    InsideTransaction {
        /// Where.
        lsn: Lsn,
        /// What came.
        what: &'static str,
    },
    /// A transaction started before the last one ended.
    #[error("{}: transaction {lsn} begins inside {open}", source::PGOUTPUT_VIOLATION.code)]
    BeginInsideTransaction {
        /// The new transaction.
        lsn: Lsn,
        /// The open one.
        open: Lsn,
    },
    /// A Commit names another transaction than its Begin.
    #[error("{}: transaction {lsn} ends with the commit of {found}", source::PGOUTPUT_VIOLATION.code)]
    CommitMismatch {
        /// The open transaction.
        lsn: Lsn,
        /// What the Commit says.
        found: Lsn,
    },
    /// Transactions came out of commit order on one connection.
    #[error("{}: transaction {lsn} came after {previous}", source::PGOUTPUT_VIOLATION.code)]
    CommitOrder {
        /// The transaction.
        lsn: Lsn,
        /// The one before it.
        previous: Lsn,
    },
    /// A row refers to a relation that was never described.
    #[error("{}: relation {id} in transaction {lsn} was not described", source::PGOUTPUT_VIOLATION.code)]
    UnknownRelation {
        /// The transaction.
        lsn: Lsn,
        /// The relation id.
        id: u32,
    },
    /// The server described too many relations.
    #[error("{}: too many relations at {lsn}", source::TOO_MANY_RELATIONS.code)]
    TooManyRelations {
        /// Where.
        lsn: Lsn,
        /// The limit.
        source: TooManyRelations,
    },
    /// A row does not fit its relation or the wire contract.
    #[error("{}: a row of {schema}.{table} in transaction {lsn} cannot be encoded", row_code(source).code)]
    Row {
        /// The transaction.
        lsn: Lsn,
        /// Namespace of the table.
        schema: String,
        /// The table.
        table: String,
        /// What is wrong with it.
        source: RowError,
    },
    /// A row is larger than the limit.
    #[error(
        "{}: a row of {schema}.{table} in transaction {lsn} takes {bytes} bytes, more than \
         the limit of {limit}",
        source::ROW_TOO_LARGE.code
    )]
    RowTooLarge {
        /// The transaction.
        lsn: Lsn,
        /// Namespace of the table.
        schema: String,
        /// The table.
        table: String,
        /// Size of its entry.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A logical message is larger than the limit.
    #[error(
        "{}: a logical message \"{prefix}\" at {lsn} takes {bytes} bytes, more than the limit \
         of {limit}",
        source::ROW_TOO_LARGE.code
    )]
    MessageTooLarge {
        /// Where.
        lsn: Lsn,
        /// Its prefix.
        prefix: String,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A transaction has more changes than a checkpoint can count.
    #[error("{}: transaction {lsn} has more than 4294967294 changes", source::TOO_MANY_CHANGES.code)]
    TooManyChanges {
        /// The transaction.
        lsn: Lsn,
    },
}

impl DecodeError {
    pub(super) fn row(lsn: Lsn, relation: &Relation, source: RowError) -> Self {
        Self::Row {
            lsn,
            schema: relation.schema.clone(),
            table: relation.table.clone(),
            source,
        }
    }

    #[cold]
    pub(super) fn row_too_large(lsn: Lsn, relation: &Relation, bytes: usize, limit: usize) -> Self {
        Self::RowTooLarge {
            lsn,
            schema: relation.schema.clone(),
            table: relation.table.clone(),
            bytes,
            limit,
        }
    }

    /// Returns the explanation of the error's code.
    #[must_use]
    pub const fn explanation(&self) -> &'static Explanation {
        match self {
            Self::Malformed { .. }
            | Self::OutsideTransaction { .. }
            | Self::InsideTransaction { .. }
            | Self::BeginInsideTransaction { .. }
            | Self::CommitMismatch { .. }
            | Self::CommitOrder { .. }
            | Self::UnknownRelation { .. } => &source::PGOUTPUT_VIOLATION,
            Self::TooManyRelations { .. } => &source::TOO_MANY_RELATIONS,
            Self::Row { source, .. } => row_code(source),
            Self::RowTooLarge { .. } | Self::MessageTooLarge { .. } => &source::ROW_TOO_LARGE,
            Self::TooManyChanges { .. } => &source::TOO_MANY_CHANGES,
        }
    }

    /// Tells whether reading the same WAL again ends the same way, so that a human must act; the
    /// other errors may come from a damaged connection and are worth another one.
    #[must_use]
    pub const fn is_definite(&self) -> bool {
        match self {
            Self::Row { source, .. } => matches!(source, RowError::NotUtf8 { .. }),
            Self::RowTooLarge { .. }
            | Self::MessageTooLarge { .. }
            | Self::TooManyChanges { .. } => true,
            Self::Malformed { .. }
            | Self::OutsideTransaction { .. }
            | Self::InsideTransaction { .. }
            | Self::BeginInsideTransaction { .. }
            | Self::CommitMismatch { .. }
            | Self::CommitOrder { .. }
            | Self::UnknownRelation { .. }
            | Self::TooManyRelations { .. } => false,
        }
    }
}

const fn row_code(error: &RowError) -> &'static Explanation {
    match error {
        RowError::ColumnCount { .. } => &source::PGOUTPUT_VIOLATION,
        RowError::NotUtf8 { .. } => &source::TEXT_NOT_UTF8,
    }
}
