//! The decisions of pgcapture as pure values: values in, values out.
//!
//! Nothing here owns a clock, a socket, a task, a thread or a random source; the manifest and a
//! tidy test enforce it. The modules stand in the order of the data: from PostgreSQL's positions
//! through the decoder to the session.

pub mod lsn;

pub mod checkpoint;

pub mod batch;

pub mod codes;

pub mod cluster;
