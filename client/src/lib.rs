//! Consume changes of PostgreSQL tables from a pgcapture cluster, as typed values.

extern crate self as pgcapture;

mod checkpoint;
mod columns;
pub mod decode;
mod error;
mod field;
mod lsn;
mod raw;
mod row;
mod wire;

pub use crate::{
    checkpoint::Checkpoint,
    columns::Columns,
    decode::DecodeError,
    error::{Error, Gap},
    field::Field,
    lsn::{Lsn, ParseLsnError},
    raw::{Operation, RawChange, RawRow, Value},
    row::Row,
};
pub use pgcapture_derive::Row;
pub use tonic::Code;

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
