//! The shells of pgcapture: actors, sockets, files. Every decision they take lies in
//! `pgcapture-engine`.
//!
//! The modules stand in the order of the data: PostgreSQL, the agent that reads a slot, the log,
//! the gateway that serves consumers.

pub mod supervise;

pub(crate) mod clock;

pub mod postgres;

pub mod agent;

pub(crate) mod decoder;

pub(crate) mod publisher;

pub mod log;

pub mod dump;

pub mod gateway;

pub mod cursors;

pub mod consensus;
