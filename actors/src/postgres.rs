//! PostgreSQL as a source: connect, look, read a slot in two ways.
//!
//! The modules stand in the order of use. [`Config`] says where; [`Connection`] speaks the
//! protocol; [`ReplicationStream`] follows a slot by walsender, [`SlotCopy`] drains a backlog by
//! COPY; [`catalog`] looks and manages by SQL; [`dump`] reads existing rows; [`LocalServer`] is a throw-away server for trying,
//! measuring and testing. Decides nothing about positions: what is confirmed is the caller's word.

pub mod catalog;
mod config;
mod connection;
pub mod dump;
mod error;
mod replication;

mod secret;
mod server;
mod slot_copy;

pub use self::{
    config::{Config, ConfigError, Host, SslMode},
    connection::{Connection, CopyOut, Replication, quote_ident, quote_literal},
    error::{PgError, Remedy, ServerError},
    replication::{
        Received, ReplicationEvent, ReplicationOptions, ReplicationStream, StatusHandle,
    },
    secret::Secret,
    server::{
        Caretaker, LocalServer, LocalServerError, LocalServerOptions, StandbyOptions, StopMode,
    },
    slot_copy::{
        ChunkReader, NextChunk, Rows, SlotCopies, SlotCopy, SlotCopyError, SlotCopyOptions,
        SlotRow, advance_slot,
    },
};
