//! The built binary against real PostgreSQL: what a user sees, and what happens when things break.
//!
//! Every test starts its own server and its own node in its own folder, on free ports, and talks to
//! them only as a user or an old client can: the command line, gRPC, HTTP, SQL, signals.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests: a panic is a failure, a measured figure is printed"
)]

#[path = "end_to_end/process.rs"]
mod process;

#[path = "end_to_end/world.rs"]
mod world;

#[path = "end_to_end/consumer.rs"]
mod consumer;

#[path = "end_to_end/story.rs"]
mod story;

#[path = "end_to_end/bad_sources.rs"]
mod bad_sources;

#[path = "end_to_end/lost_changes.rs"]
mod lost_changes;

#[path = "end_to_end/outages.rs"]
mod outages;

#[path = "end_to_end/rows.rs"]
mod rows;

#[path = "end_to_end/consumers.rs"]
mod consumers;

#[path = "end_to_end/sessions.rs"]
mod sessions;

#[path = "end_to_end/disk.rs"]
mod disk;

#[path = "end_to_end/shim.rs"]
mod shim;

#[path = "end_to_end/refused_sync.rs"]
mod refused_sync;

#[path = "end_to_end/dumps.rs"]
mod dumps;

#[path = "end_to_end/bad_dumps.rs"]
mod bad_dumps;

#[path = "end_to_end/dump_limits.rs"]
mod dump_limits;

#[path = "end_to_end/dump_words.rs"]
mod dump_words;

#[path = "end_to_end/wal_budget.rs"]
mod wal_budget;
