//! Known writes: what the writers do to the source, and a journal of what became of it.

pub mod bank;
pub mod journal;
pub mod ledger;
pub mod load;
pub mod plan;
pub mod schema;
