//! The scenario `cluster`: three nodes, two of which are killed, restarted and frozen in turn while
//! writers write; what a consumer of the third is given on one stream, which it never leaves, must be
//! what the writers committed.
//!
//! [`world`] has the processes, [`fault`] says what strikes them, [`stream`] is the consumer, [`scenario`]
//! runs it all and [`verdict`] judges the files of the run. The stream stands in the place of the log: in
//! a cluster a node's log may start anew, so that no log need hold everything; the stream must.

pub mod fault;
pub mod scenario;
pub mod stream;
pub mod verdict;
pub mod world;
