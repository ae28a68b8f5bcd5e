//! The decoder against its rules, an independent reading of the same changes, and real servers.

mod agreement;
mod fixture;
mod model;
mod rules;
mod server;
