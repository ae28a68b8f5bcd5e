//! The node: configuration, command line, gRPC and HTTP around the actors.
<<<<<<< HEAD
//!
//! The modules stand in the order of a start: what the user says, what the disk holds, what runs.

pub mod store;

pub mod units;

pub mod redact;

pub mod config;

pub mod cli;

pub mod logs;

pub mod resolver;

pub mod sources;

pub mod http;

mod process;

pub mod telemetry;
=======

pub mod rpc;
>>>>>>> main
