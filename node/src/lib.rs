//! The node: configuration, command line, gRPC and HTTP around the actors.
//!
//! The modules stand in the order of a start: what the user says, what the disk holds, what runs.

pub mod units;

pub mod redact;

pub mod config;

pub mod telemetry;

pub mod store;

pub mod logs;

mod tls;

mod knock;

pub mod peers;

pub mod raft;

pub mod liveness;

pub mod placement;

pub mod peer_log;

pub mod routes;

pub mod peer_ranges;

pub mod homes;

pub mod resolver;

pub mod sources;

pub mod replicas;

pub mod group;

pub mod events;

pub mod rpc;

pub mod http;

mod process;

pub mod app;

pub mod cli;
