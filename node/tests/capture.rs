//! Capture streams over real gRPC on a free port: what old clients rely on, what new ones may ask
//! for, and what goes wrong.
//!
//! The log lies in memory; everything from the session to the socket is the product's own.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests: a panic is a failure"
)]

#[path = "capture/harness.rs"]
mod harness;

#[path = "capture/members.rs"]
mod members;

#[path = "capture/homes.rs"]
mod homes;

#[path = "capture/contract.rs"]
mod contract;

#[path = "capture/options.rs"]
mod options;

#[path = "capture/sharing.rs"]
mod sharing;

#[path = "capture/dumps.rs"]
mod dumps;

#[path = "capture/dump_faults.rs"]
mod dump_faults;

#[path = "capture/faults.rs"]
mod faults;

#[path = "capture/orders.rs"]
mod orders;
