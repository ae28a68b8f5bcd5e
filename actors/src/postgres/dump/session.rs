//! Sessions on a replica: made ready once, kept between ranges.
//!
//! A session belongs to one range at a time and goes back to the pool only after a range that
//! ended well; after any error it is closed. So whatever an error left behind, a transaction or a
//! temporary slot, ends with it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pgcapture_engine::dump::DumpId;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{ReadError, ReplicaKind, ReplicaOptions, options::ReadLimits};
use crate::postgres::{Connection, PgError, Replication, connection::wire::Wire, quote_literal};

/// A session that was not used for this long is closed: dumps are rare.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// The server ends a transaction in which we say nothing for this long: a snapshot is held between
/// two statements for less than a millisecond unless we hang.
const IDLE_TRANSACTION_MAX: &str = "60s";

/// The sessions of one replica.
#[derive(Debug)]
pub(super) struct Pool {
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    session: Session,
    since: Instant,
}

/// A session that is ready for a range.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) wire: Wire,
    pub(super) backend_pid: i32,
    application_name: String,
}

/// The right to use a session, and the session.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) session: Session,
    /// It was used before: a first failure may only mean that it is stale.
    pub(super) is_reused: bool,
    permit: OwnedSemaphorePermit,
}

/// A lease whose wire is elsewhere.
#[derive(Debug)]
pub(super) struct LeaseRest {
    backend_pid: i32,
    application_name: String,
    permit: OwnedSemaphorePermit,
}

impl Lease {
    /// Takes the wire out.
    pub(super) fn split(self) -> (Wire, LeaseRest) {
        let Self {
            session, permit, ..
        } = self;
        let rest = LeaseRest {
            backend_pid: session.backend_pid,
            application_name: session.application_name,
            permit,
        };
        (session.wire, rest)
    }
}

impl LeaseRest {
    /// Puts the wire back.
    pub(super) fn join(self, wire: Wire) -> Lease {
        Lease {
            session: Session {
                wire,
                backend_pid: self.backend_pid,
                application_name: self.application_name,
            },
            is_reused: true,
            permit: self.permit,
        }
    }
}

impl Pool {
    pub(super) fn new(sessions_max: u32) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(sessions_max.max(1) as usize)),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Waits until a session may be used, and takes an idle one or connects.
    pub(super) async fn lease(&self, options: &ReplicaOptions) -> Result<Lease, ReadError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|_closed| unreachable(options, PgError::Closed))?;
        if let Some(session) = self.take_idle() {
            return Ok(Lease {
                session,
                is_reused: true,
                permit,
            });
        }
        self.connect(options, permit).await
    }

    /// Replaces a stale session, and forgets the others, which are as old.
    pub(super) async fn renew(
        &self,
        options: &ReplicaOptions,
        stale: Lease,
    ) -> Result<Lease, ReadError> {
        self.close_idle();
        self.connect(options, stale.permit).await
    }

    async fn connect(
        &self,
        options: &ReplicaOptions,
        permit: OwnedSemaphorePermit,
    ) -> Result<Lease, ReadError> {
        Ok(Lease {
            session: Session::connect(options).await?,
            is_reused: false,
            permit,
        })
    }

    /// Takes back a session whose range ended well.
    pub(super) fn give_back(&self, lease: Lease) {
        let since = Instant::now();
        let Lease {
            session, permit, ..
        } = lease;
        self.lock().push(Idle { session, since });
        drop(permit);
    }

    /// Closes the sessions that nobody uses.
    pub(super) fn close_idle(&self) {
        self.lock().clear();
    }

    fn take_idle(&self) -> Option<Session> {
        let mut idle = self.lock();
        idle.retain(|idle| idle.since.elapsed() < IDLE_MAX);
        idle.pop().map(|idle| idle.session)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        // A panic while pushing leaves a vector all the same.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Connects, checks what the server is, and sets what every range needs.
    pub(super) async fn connect(options: &ReplicaOptions) -> Result<Self, ReadError> {
        let application_name = "pgcapture/dump".to_owned();
        let config = options.config.clone();
        let config = config.with_application_name(application_name.as_str());
        let connected = Connection::connect(&config, protocol(options.kind)).await;
        let mut connection = connected.map_err(|source| unreachable(options, source))?;
        let version = connection.server_version();
        let settings = settings(version, options);
        let rows = connection.query(&settings).await;
        let rows = rows.map_err(|source| unreachable(options, source))?;
        super::check::identity(rows.first(), version, options)?;
        let told = connection.end_with_us().await;
        told.map_err(|source| unreachable(options, source))?;
        let backend_pid = connection.backend_pid();
        let (wire, _session) = connection.into_parts();
        Ok(Self {
            wire,
            backend_pid,
            application_name,
        })
    }

    /// Returns the statement that names the dump in `pg_stat_activity`; empty when it is named so.
    pub(super) fn name_for(&mut self, dump: DumpId) -> String {
        let name = format!("pgcapture/dump/{dump}");
        if name == self.application_name {
            return String::new();
        }
        let statement = format!("SET application_name = {}; ", quote_literal(&name));
        self.application_name = name;
        statement
    }
}

/// A snapshot with a known position takes a walsender on the source.
const fn protocol(kind: ReplicaKind) -> Replication {
    match kind {
        ReplicaKind::Standby => Replication::Off,
        ReplicaKind::Source => Replication::Database,
    }
}

fn settings(version: u32, options: &ReplicaOptions) -> String {
    let ReadLimits {
        lock_max,
        snapshot_max,
        ..
    } = options.limits;
    // A snapshot on the source waits for transactions by their locks.
    let lock_timeout = match options.kind {
        ReplicaKind::Standby => lock_max,
        ReplicaKind::Source => snapshot_max,
    };
    let mut settings = format!(
        "SET statement_timeout = 0; SET lock_timeout = {}; SET idle_session_timeout = 0; \
         SET idle_in_transaction_session_timeout = '{IDLE_TRANSACTION_MAX}'; \
         SET row_security = off; SET enable_tidscan = on; SET jit = off; \
         SET max_parallel_workers_per_gather = 0; ",
        lock_timeout.as_millis().max(1)
    );
    if version >= 170_000 {
        settings.push_str("SET transaction_timeout = 0; ");
    }
    if options.binary {
        // In text form it decides how names of tables and types are printed: as in the stream.
        settings.push_str("SET search_path = ''; ");
    }
    settings.push_str(&super::facts::preparation(version, &options.publication));
    settings.push_str(super::check::IDENTITY);
    settings
}

pub(super) fn unreachable(options: &ReplicaOptions, source: PgError) -> ReadError {
    let target = options.config.redacted();
    ReadError::Unreachable { target, source }
}
