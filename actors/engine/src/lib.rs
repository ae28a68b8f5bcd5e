//! The decisions of pgcapture as pure values: values in, values out.
//!
//! Nothing here owns a clock, a socket, a task, a thread or a random source; the manifest and a
//! tidy test enforce it. The modules stand in the order of the data: from PostgreSQL's positions
//! through the decoder to the session.

pub mod lsn;

pub mod checkpoint;

pub mod batch;

pub mod pgoutput;

pub mod relations;

pub mod encode;

pub mod decoder;

pub mod read_pace;

pub mod slot_mode;

pub mod progress;

pub mod segment;

pub mod retention;

pub mod dump;

pub mod copy_row;

pub mod capture_options;

pub mod filter;

pub mod ledger;

pub mod splice;

pub mod capture_frame;

pub mod backoff;

pub mod codes;

pub mod cluster;

pub mod membership;
