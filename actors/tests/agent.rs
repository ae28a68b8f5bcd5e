//! The agent against a real PostgreSQL: what is committed is in the log, once, whatever ends a
//! pipeline on the way; what cannot be had any more is declared.

#[path = "agent/world.rs"]
mod world;

#[path = "agent/exactly_once.rs"]
mod exactly_once;

#[path = "agent/lost_changes.rs"]
mod lost_changes;

#[path = "agent/failing_disk.rs"]
mod failing_disk;

#[path = "agent/cluster.rs"]
mod cluster;

#[path = "agent/take_over.rs"]
mod take_over;

#[path = "agent/slot_truth.rs"]
mod slot_truth;

#[path = "agent/publication.rs"]
mod publication;

#[path = "agent/rights.rs"]
mod rights;
