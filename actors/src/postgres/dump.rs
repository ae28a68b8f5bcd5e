//! Existing rows, read from a replica by ranges of heap pages. All SQL of dumps stands here.
//!
//! The modules stand in the order of use: `options` says what and where, `check` looks whether a
//! replica can be used and how it is, `plan` lists the tables, `range` reads one range in one
//! snapshot whose position is known (`position` for a standby, `slot_snapshot` for the source) and
//! whose columns are those of the stream (`facts`).
//!
//! # Doors
//!
//! ```text
//! Replica::new(ReplicaOptions) -> Replica                     cheap to clone; connects when needed
//! Replica::check(&self) -> Result<ReplicaStatus, ReadError>   before it is added, and after errors
//! Replica::health(&self) -> Result<ReplicaHealth, ReadError>  once a second or so
//! Replica::plan(&self, names: &[String]) -> Result<TablePlan, ReadError>
//! Replica::open(&self, RangeRequest) -> Result<RangeReader, ReadError>   waits, within its limits
//! RangeReader::at(&self) -> Lsn                               position of the snapshot, exclusive
//! RangeReader::place(&self) -> Place                          whether more may be in it
//! RangeReader::next(&mut self) -> Result<Option<RowBatch>, ReadError>   None: all rows were read
//! LocalServer::start_standby(&self, StandbyOptions) -> Result<LocalServer, LocalServerError>
//! LocalServer::{promote, pause_replay, resume_replay}(&self)
//! ```
//!
//! Dropping a reader before its end cancels the reading. The replica's connections are kept and used
//! again; [`ReadError::is_about_replica`] tells whether another replica may do better.

mod check;
mod error;
mod facts;
mod options;
mod plan;
mod position;
mod range;
mod replica;
mod session;
mod slot_snapshot;
mod status;

pub use self::{
    error::ReadError,
    options::{
        BEHIND_MAX, LOCK_MAX, RangeRequest, ReadLimits, ReplicaKind, ReplicaOptions, SILENCE_MAX,
        SNAPSHOT_MAX,
    },
    position::Place,
    range::RangeReader,
    replica::Replica,
    status::{DumpTable, PlanPosition, ReplicaHealth, ReplicaStatus, TablePlan, TableProblem},
};
