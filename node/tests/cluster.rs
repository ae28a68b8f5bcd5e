//! Several nodes in one process agree with each other: they find each other, survive the death of any
//! of them, and never do a thing twice.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests: a panic is a failure"
)]

#[path = "cluster/harness.rs"]
mod harness;

#[path = "cluster/agreement.rs"]
mod agreement;

#[path = "cluster/damage.rs"]
mod damage;

#[path = "cluster/full_disk.rs"]
mod full_disk;

#[path = "cluster/membership.rs"]
mod membership;

#[path = "cluster/network.rs"]
mod network;

#[path = "cluster/protocol.rs"]
mod protocol;
