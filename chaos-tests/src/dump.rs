//! The scenario `dump`: existing rows are asked for while writers rewrite the table and processes are
//! killed; a consumer's copy, built from its stream alone, must equal the table in the end.
//!
//! [`table`] is what is copied, [`writers`] rewrite it, [`consumer`] reads the stream into a [`copy`],
//! [`world`] has the processes and kills them, [`scenario`] runs it all and [`verdict`] says how it went.
//! What a column's bytes hash to, on the stream and in the table, stands in [`digest`].

pub mod consumer;
pub mod copy;
pub mod digest;
pub mod scenario;
pub mod table;
pub mod verdict;
pub mod world;
pub mod writers;
