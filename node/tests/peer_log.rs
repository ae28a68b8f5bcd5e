//! Logs of sources read from another node: over real connections, through every change of owner.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

#[path = "../../actors/tests/log_support/apart.rs"]
mod apart;
#[path = "../../actors/tests/log_support/checks.rs"]
mod checks;
#[path = "../../actors/tests/log_support/rows.rs"]
mod rows;

#[path = "peer_log/cluster.rs"]
mod cluster;
#[path = "peer_log/contract.rs"]
mod contract;
#[path = "peer_log/failover.rs"]
mod failover;
#[path = "peer_log/refusals.rs"]
mod refusals;
