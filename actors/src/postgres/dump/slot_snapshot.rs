//! A snapshot on the source itself, and its position.
//!
//! On a primary a transaction becomes visible some time after its commit record was written, and
//! not in the order of the records: no snapshot that SQL takes is a prefix of the stream. The
//! snapshot with which a logical slot begins is: it holds exactly what commits before the slot's
//! consistent point. So each range makes a temporary slot, takes its snapshot over
//! (`USE_SNAPSHOT`), and drops the slot at once, before the first row is read: it holds neither WAL
//! nor catalog rows while the range is read.
//!
//! # What it costs
//!
//! PostgreSQL waits for the transactions that are writing when the slot is made. A whole
//! small range took 2 ms on an idle source and, with 8 clients of pgbench on two cores, 4 ms in the
//! median, 18 ms in one of ten and 31 ms in one of a hundred (`examples/dump_speed.rs`). A
//! transaction that stays open holds the range up; that is bounded, and the error names it.
//!
//! # Why not marks
//!
//! Marks in the WAL before and after the reading (`pg_logical_emit_message`) wait for nobody, but
//! whoever splices must then hold the rows back until the second mark comes by, know the keys of
//! the table, and drop the rows whose keys changed in between: memory, a right to write, and
//! nothing for tables without a key. A range has one position here, wherever it was read.

use pgcapture_engine::lsn::Lsn;

use super::{
    RangeRequest, ReadError, Replica, check,
    facts::{self, Facts, qualified},
    position::{Place, Snapshot, missing},
    session::Session,
};
use crate::postgres::{
    PgError,
    catalog::{parsed, text},
    quote_ident,
};

/// Finds the oldest transaction that is writing, other than ours. Locks are shown to everybody;
/// the time is NULL without `pg_monitor`.
const BLOCKER: &str = "SELECT l.pid, l.transactionid, \
       date_trunc('second', clock_timestamp() - a.xact_start)::text, p.gid \
     FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
     LEFT JOIN pg_prepared_xacts p ON p.transaction = l.transactionid \
     WHERE l.locktype = 'transactionid' AND l.granted AND l.mode = 'ExclusiveLock' \
     ORDER BY age(l.transactionid) DESC LIMIT 1";

/// Makes a temporary slot and opens a transaction with its snapshot.
pub(super) async fn source_snapshot(
    session: &mut Session,
    replica: &Replica,
    request: &RangeRequest,
) -> Result<Snapshot, ReadError> {
    let waited = replica.options().limits.snapshot_max;
    let taken = tokio::time::timeout(waited, take(session, replica, request)).await;
    match taken {
        Ok(Err(ReadError::SnapshotWaits { .. })) | Err(_) => {
            let blocker = blocker(replica).await;
            Err(ReadError::SnapshotWaits { waited, blocker })
        }
        Ok(taken) => taken,
    }
}

async fn take(
    session: &mut Session,
    replica: &Replica,
    request: &RangeRequest,
) -> Result<Snapshot, ReadError> {
    let options = replica.options();
    let table = &request.heap.name;
    let lost = |source| ReadError::while_reading(table, source);
    // The name of a temporary slot only has to be unique on this server, now.
    let slot = quote_ident(&format!("pgcapture_dump_{}", session.backend_pid));
    let begin = format!(
        "{}BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        session.name_for(request.dump)
    );
    let create = format!("CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput USE_SNAPSHOT");
    let drop_slot = format!("DROP_REPLICATION_SLOT {slot}");
    // The lock comes after the snapshot, as the slot must be first: what happened to the table in
    // between shows in its file now, beside the one at the snapshot.
    let inside = format!(
        "LOCK TABLE ONLY {} IN ACCESS SHARE MODE; {}",
        qualified(table),
        facts::questions(request)
    );
    let wire = &mut session.wire;
    // A walsender that waits for WAL takes any further query for a broken protocol.
    wire.send_queries(&[&begin, &create]).await.map_err(lost)?;
    wire.answer().await.map_err(lost)?;
    let created = wire.answer().await;
    let created = created.map_err(|error| no_slot(table, error))?;
    wire.send_queries(&[&drop_slot, &inside])
        .await
        .map_err(lost)?;
    wire.answer().await.map_err(lost)?;
    let inside = wire.answer().await.map_err(lost);
    let inside = match inside {
        Err(ReadError::Missing { .. }) => return Err(missing(session, request).await),
        inside => inside?,
    };
    let at: Lsn = created
        .first()
        .and_then(|row| parsed(row, 1))
        .unwrap_or_default();
    if at < request.at_least {
        // The source cannot be behind its own stream, unless it is not the one it was.
        return Err(ReadError::Behind {
            replayed: at,
            wanted: request.at_least,
            waited: std::time::Duration::ZERO,
        });
    }
    Ok(Snapshot {
        at,
        place: Place::Exact,
        tries: 1,
        facts: Facts::read(&inside, request, options)?,
    })
}

/// Sorts the refusals to make a slot.
fn no_slot(table: &pgcapture_engine::dump::TableName, source: PgError) -> ReadError {
    let sqlstate = source.server_error().map(|server| server.sqlstate.as_str());
    match sqlstate {
        Some("55P03") => ReadError::SnapshotWaits {
            waited: std::time::Duration::ZERO,
            blocker: String::new(),
        },
        // No free slot, no right, no logical WAL.
        Some("53400" | "42501" | "55000") => ReadError::NoSlot { source },
        _ => ReadError::while_reading(table, source),
    }
}

/// Says which transaction holds the snapshot up, as far as it can be known.
async fn blocker(replica: &Replica) -> String {
    let unknown = "it is not known which transaction is open".to_owned();
    let Ok(mut connection) = check::connect(replica.options()).await else {
        return unknown;
    };
    let Ok(rows) = connection.query(BLOCKER).await else {
        return unknown;
    };
    let Some(row) = rows.first() else {
        return unknown;
    };
    let xid = text(row, 1).unwrap_or("?");
    match (text(row, 3), text(row, 0), text(row, 2)) {
        (Some(gid), ..) => format!("prepared transaction \"{gid}\" ({xid}) is open"),
        (None, Some(pid), Some(age)) => {
            format!("transaction {xid} of process {pid} has been open for {age}")
        }
        (None, pid, None) => {
            format!(
                "transaction {xid} of process {} is open",
                pid.unwrap_or("?")
            )
        }
        (None, None, Some(_)) => unknown,
    }
}
