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
