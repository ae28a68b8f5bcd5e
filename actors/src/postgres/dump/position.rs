//! A snapshot on a physical standby, and its position.
//!
//! # The bracket
//!
//! A standby replays commit records one after another, and a transaction is visible there from
//! the moment in which its commit record is applied. So a snapshot on a standby is a prefix of
//! commit order, and its place is between two replay positions: R0, read before it, and R1, read in
//! its first query.
//!
//! - **R0 is always right as a lower bound.** `pg_last_wal_replay_lsn()` is the end of the last
//!   record that was applied *completely*; every commit record that starts before it was made
//!   visible before it was stored. So everything that commits before R0 is in the snapshot. This is
//!   what may never fail: a row older than a change that was delivered before it would overwrite it.
//! - **R0 = R1 means that nothing else is in it**, but for one record: the one that starts at R0 may
//!   be half applied. Replay makes a transaction visible (`ExpireTreeKnownAssignedTransactionIds`)
//!   and advances the position a few instructions later, after it has removed the files of dropped
//!   tables. A third read in the next statement closes that to the case that the replaying process
//!   was off its processor, or removed a file, in between.
//! - **If R0 is also all that was received by then, there is no such record.** Replay reads what the
//!   standby has received and synced (`pg_last_wal_receive_lsn()`), and nothing beyond. A standby that
//!   keeps up stands so between two writes of its source; another one is asked a few times more. One
//!   that is fed from an archive receives nothing, and has no such moment. (When the receiver has died
//!   and an archive is read on from exactly there, this says too much.)
//! - **What is in the snapshot too much does no harm.** Its changes are delivered after the rows:
//!   once more, and in order. A consumer that applies by key ends where the source ended: the rows
//!   hold the outcome of these transactions, and whatever an insert, update or delete of them does
//!   to a row is undone or repeated by the later ones, up to that outcome. A sole caller of this
//!   that counts rows instead of keeping them would see the difference.
//!
//! So `at` is R0 in every case; what several tries buy is exactness. The three reads and the
//! transaction go to the server in one write: between R0 and R1 lie two statements, not two round
//! trips.
//!
//! # Why replay is not paused
//!
//! `pg_wal_replay_pause()` would make it exact beyond doubt. It takes a superuser's grant, holds up
//! every other reader of the standby, waits for the replaying process to notice, and must be undone
//! by somebody when we die; the bracket needs nothing. Measured on two cores with 5,500 pgbench
//! transactions a second from 8 clients (`examples/dump_speed.rs`): of 2,000 snapshots 82 % were probably
//! exact at the first try, 96 % at the second, all but 6 within five; idle, all at the first. A pause and
//! resume around a snapshot took 1.6 ms (p99 5.6 ms), in which nothing is replayed.

use std::time::Duration;

use pgcapture_engine::lsn::Lsn;
use tokio::time::Instant;

use super::{
    RangeRequest, ReadError, Replica,
    facts::{self, Facts, qualified},
    session::Session,
};
use crate::postgres::{
    PgError,
    catalog::{Row, flag, parsed, text},
};

/// Snapshots that are taken until replay stood still around one: under a load that keeps two cores busy
/// three in a thousand had none after five, and one that is not exact does no harm.
const TRIES_MAX: u32 = 8;
/// Snapshots that are taken until one is exact beyond doubt. A standby that does not keep up has none.
const SURE_TRIES_MAX: u32 = 5;
/// First pause while replay is behind, doubled up to [`LOOK_PAUSE_MAX`].
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(1);
/// Longest pause: what a range waits too long at most.
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(50);

/// How well the position of a snapshot is known. Everything before it is in the snapshot always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing else is.
    Exact,
    /// Nothing else is, unless the replaying process was stopped within a few instructions.
    Probable,
    /// More is: replay went on meanwhile.
    LowerBound,
}

/// An open snapshot, and what was found in it.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) at: Lsn,
    pub(super) place: Place,
    /// How many were taken.
    pub(super) tries: u32,
    pub(super) facts: Facts,
}

const PLACE: &str =
    "'at', pg_last_wal_replay_lsn(), pg_is_in_recovery(), pg_last_wal_receive_lsn()";

const REPLAYED: &str = "SELECT pg_last_wal_replay_lsn()";

/// Takes a snapshot at or after what is needed; waits for replay when it has not reached that yet.
pub(super) async fn standby_snapshot(
    session: &mut Session,
    replica: &Replica,
    request: &RangeRequest,
) -> Result<Snapshot, ReadError> {
    let options = replica.options();
    let table = &request.heap.name;
    let lost = |source| ReadError::while_reading(table, source);
    let name = session.name_for(request.dump);
    let mut question = format!("{name}{REPLAYED}");
    // The lock comes before the snapshot: whoever rewrote the table has committed before it.
    let snapshot = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
         LOCK TABLE ONLY {} IN ACCESS SHARE MODE; \
         SELECT {PLACE}; SELECT {PLACE}; {}",
        qualified(table),
        facts::questions(request)
    );
    let mut tries = 0;
    loop {
        tries += 1;
        let wire = &mut session.wire;
        let questions = [question.as_str(), &snapshot];
        wire.send_queries(&questions).await.map_err(lost)?;
        let before = wire.answer().await.map_err(lost);
        let inside = wire.answer().await.map_err(lost);
        let at: Lsn = before?
            .first()
            .and_then(|row| parsed(row, 0))
            .unwrap_or_default();
        if at < request.at_least {
            // Whatever is in it is too old; the table may not even be there yet.
            wire.query("ROLLBACK").await.map_err(lost)?;
            wait_for(session, replica, request).await?;
            REPLAYED.clone_into(&mut question);
            tries = 0;
            continue;
        }
        let inside = match inside {
            Err(ReadError::Missing { .. }) => return Err(missing(session, request).await),
            inside => inside?,
        };
        let place = check_places(&inside, at, replica)?;
        let tries_max = match place {
            Place::Exact => 0,
            Place::Probable if receives(&inside) => SURE_TRIES_MAX,
            Place::Probable => 0,
            Place::LowerBound => TRIES_MAX,
        };
        if tries < tries_max {
            question = format!("ROLLBACK; {REPLAYED}");
            continue;
        }
        return Ok(Snapshot {
            at,
            place,
            tries,
            facts: Facts::read(&inside, request, options)?,
        });
    }
}

/// Tells whether replay stood still around the snapshot; an error when it was no standby then.
fn check_places(rows: &[Row], at: Lsn, replica: &Replica) -> Result<Place, ReadError> {
    let mut places = rows
        .iter()
        .filter(|row| text(row, 0) == Some("at"))
        .peekable();
    let is_standby = places.peek().is_some_and(|row| flag(row, 2));
    if !is_standby {
        let target = replica.options().config.redacted();
        return Err(ReadError::NotAStandby { target });
    }
    let (mut stood_still, mut was_all) = (true, false);
    for row in places {
        stood_still &= parsed(row, 1) == Some(at) && flag(row, 2);
        was_all |= parsed(row, 3) == Some(at);
    }
    Ok(match (stood_still, was_all) {
        (true, true) => Place::Exact,
        (true, false) => Place::Probable,
        (false, _) => Place::LowerBound,
    })
}

/// Tells whether the standby receives WAL from its source, and not from an archive.
fn receives(rows: &[Row]) -> bool {
    rows.iter()
        .any(|row| text(row, 0) == Some("at") && text(row, 3).is_some())
}

/// Waits until everything that commits before `at_least` was replayed.
async fn wait_for(
    session: &mut Session,
    replica: &Replica,
    request: &RangeRequest,
) -> Result<(), ReadError> {
    let options = replica.options();
    let behind_max = options.limits.behind_max;
    let started = Instant::now();
    let mut pause = LOOK_PAUSE_MIN;
    loop {
        let question = "SELECT pg_last_wal_replay_lsn(), pg_is_in_recovery()";
        let rows = session.wire.query(question).await;
        let rows = rows.map_err(|source| ReadError::while_reading(&request.heap.name, source))?;
        let row = rows.first();
        if !row.is_some_and(|row| flag(row, 1)) {
            let target = options.config.redacted();
            return Err(ReadError::NotAStandby { target });
        }
        let replayed: Lsn = row.and_then(|row| parsed(row, 0)).unwrap_or_default();
        if replayed >= request.at_least {
            return Ok(());
        }
        if started.elapsed() >= behind_max {
            return Err(ReadError::Behind {
                replayed,
                wanted: request.at_least,
                waited: behind_max,
            });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_PAUSE_MAX);
    }
}

/// Tells a dropped table from one that has another name now.
pub(super) async fn missing(session: &mut Session, request: &RangeRequest) -> ReadError {
    let table = request.heap.name.clone();
    let question = format!(
        "ROLLBACK; SELECT c.oid::regclass FROM pg_class c WHERE c.oid = {}",
        request.heap.oid
    );
    let found: Result<Vec<Row>, PgError> = session.wire.query(&question).await;
    match found
        .ok()
        .and_then(|rows| text(rows.first()?, 0).map(str::to_owned))
    {
        Some(name) => ReadError::Changed {
            table,
            what: format!("it is called {name} now"),
        },
        None => ReadError::Missing { table },
    }
}
