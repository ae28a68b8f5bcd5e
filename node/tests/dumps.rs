//! The services of dumps with a real controller and a scripted replica: the administration, existing
//! gateways and schedulers, existing callers of agents.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests: a panic is a failure"
)]

#[path = "dumps/harness.rs"]
mod harness;

#[path = "dumps/reader.rs"]
mod reader;

#[path = "dumps/admin.rs"]
mod admin;

#[path = "dumps/agent.rs"]
mod agent;

#[path = "dumps/control.rs"]
mod control;
