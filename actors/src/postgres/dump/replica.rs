//! One replica: its options, its sessions, and the opening of ranges.

use std::sync::Arc;

use super::{
    RangeReader, RangeRequest, ReadError, ReplicaKind, ReplicaOptions,
    position::{Snapshot, standby_snapshot},
    session::{Lease, Pool},
    slot_snapshot::source_snapshot,
};
use crate::postgres::Connection;

/// A PostgreSQL that rows are read from. Cheap to clone; clones share the sessions. Connects when
/// it is needed, not before.
#[derive(Clone, Debug)]
pub struct Replica {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: ReplicaOptions,
    pool: Pool,
    control: tokio::sync::Mutex<Option<Connection>>,
}

impl Replica {
    /// Makes a replica; connects to nothing.
    #[must_use]
    pub fn new(options: ReplicaOptions) -> Self {
        let pool = Pool::new(options.connections_max);
        let control = tokio::sync::Mutex::new(None);
        Self {
            shared: Arc::new(Shared {
                options,
                pool,
                control,
            }),
        }
    }

    /// Returns what it was made with.
    #[must_use]
    pub fn options(&self) -> &ReplicaOptions {
        &self.shared.options
    }

    /// Opens a range: waits for a free session, for replay to reach `at_least`, for the lock on the
    /// table and for the first answer, each within its limit. Dropping the call gives up.
    ///
    /// # Errors
    ///
    /// [`ReadError`]; nothing stays open on the replica then.
    pub async fn open(&self, request: RangeRequest) -> Result<RangeReader, ReadError> {
        let mut lease = self.pool().lease(self.options()).await?;
        let mut opened = self.snapshot(&mut lease, &request).await;
        if lease.is_reused && matches!(opened, Err(ReadError::Lost { .. })) {
            // The server was restarted since, or has closed what was idle.
            lease = self.pool().renew(self.options(), lease).await?;
            opened = self.snapshot(&mut lease, &request).await;
        }
        RangeReader::start(self.clone(), lease, opened?, request).await
    }

    /// Closes the connections that no range uses.
    pub fn close_idle(&self) {
        self.pool().close_idle();
    }

    async fn snapshot(
        &self,
        lease: &mut Lease,
        request: &RangeRequest,
    ) -> Result<Snapshot, ReadError> {
        let session = &mut lease.session;
        match self.options().kind {
            ReplicaKind::Standby => standby_snapshot(session, self, request).await,
            ReplicaKind::Source => source_snapshot(session, self, request).await,
        }
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    pub(super) fn control(&self) -> &tokio::sync::Mutex<Option<Connection>> {
        &self.shared.control
    }
}
