//! What the readers of a run were given, in the order they were given it.
//!
//! The record is one JSON object a line, so that a changed checker can judge an old run again.

pub mod event;
pub mod reader;
pub mod recorder;
pub mod row;
pub mod sampler;
