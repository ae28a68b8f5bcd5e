//! Checks the promises of pgcapture from outside.
//!
//! An experiment has five parts, each its own module: a *world* of real processes ([`harness`]), known
//! writes with a journal of their outcomes ([`workload`]), a record of what readers were given
//! ([`history`]), faults ([`nemesis`]) and one judge per property ([`checkers`]). [`scenario`] runs
//! them, [`report`] says the verdict in one line. [`dump`] is an experiment of its own, on tables too
//! large for a history: its judge watches the stream as it comes. [`cluster`] is one with three nodes.
//!
//! Nothing here links the product: it sees SQL, gRPC, HTTP and processes only. Judging reads files,
//! so that a changed checker can judge an old run again.

pub mod checkers;
pub mod cluster;
pub mod dump;
pub mod harness;
pub mod history;
pub mod nemesis;
pub mod report;
pub mod scenario;
pub mod workload;
