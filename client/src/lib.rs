//! Consume changes of PostgreSQL tables from a pgcapture cluster, as typed values.

extern crate self as pgcapture;

mod backoff;
mod change;
mod checkpoint;
mod client;
mod codec;
mod columns;
mod debounce;
pub mod decode;
mod dedup;
mod error;
mod event;
mod events;
mod field;
mod handlers;
mod link;
mod lsn;
mod options;
mod raw;
mod raw_events;
mod row;
mod session;
mod subscribe;
#[cfg(feature = "testkit")]
pub mod testkit;
mod wire;

pub use crate::{
    change::{Change, Changed},
    checkpoint::Checkpoint,
    client::{Client, ClientBuilder, Consumer},
    columns::Columns,
    debounce::Debounced,
    decode::DecodeError,
    error::{Error, Gap},
    event::{Event, Unanswered},
    events::{Events, OnGap},
    field::Field,
    handlers::{Ack, Handlers, IntoAnswer},
    lsn::{Lsn, ParseLsnError},
    options::Start,
    raw::{Operation, RawChange, RawRow, Value},
    raw_events::{RawEvent, RawEvents, RawMessage},
    row::Row,
    subscribe::Subscribe,
};
pub use pgcapture_derive::Row;
pub use tonic::Code;

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
