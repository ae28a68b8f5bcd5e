//! Whether a replica can be used, and how it is doing.

use std::time::Duration;

use super::{
    ReadError, Replica, ReplicaHealth, ReplicaKind, ReplicaOptions, ReplicaStatus,
    session::unreachable,
};
use crate::postgres::{
    Connection, PgError, Replication,
    catalog::{Row, flag, parsed},
};

/// First version with TID range scans.
const VERSION_MIN: u32 = 140_000;

/// Asks who the server is. A subscriber is known by its subscriptions, or by the table in which
/// appliers note where they are.
pub(super) const IDENTITY: &str = "SELECT system_identifier, pg_is_in_recovery(), \
     EXISTS (SELECT FROM pg_subscription) OR to_regclass('pgcapture.sources') IS NOT NULL \
     FROM pg_control_system()";

/// Asks how the server is; what the role may not see of others is NULL.
const HEALTH: &str = "WITH others AS (SELECT * FROM pg_stat_activity \
       WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' \
       AND application_name NOT LIKE 'pgcapture/%'), \
     place AS (SELECT pg_is_in_recovery() AS standby, \
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
       ELSE pg_current_wal_flush_lsn() END AS replayed, \
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() END AS received) \
     SELECT replayed, received, \
       CASE WHEN NOT standby OR received <= replayed THEN 0 \
       ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END, \
       CASE WHEN standby THEN pg_is_wal_replay_paused() ELSE false END, \
       (SELECT count(*) FROM others WHERE state = 'active'), \
       (SELECT count(*) FROM others WHERE wait_event_type = 'Lock'), \
       (SELECT extract(epoch FROM max(clock_timestamp() - query_start)) FROM others \
         WHERE state = 'active'), \
       standby FROM place";

/// Sorts out servers that are not what the options say.
pub(super) fn identity(
    row: Option<&Row>,
    version: u32,
    options: &ReplicaOptions,
) -> Result<(), ReadError> {
    let target = options.config.redacted();
    let found = row.and_then(|row| parsed(row, 0)).unwrap_or_default();
    let in_recovery = row.is_some_and(|row| flag(row, 1));
    let is_subscriber = row.is_some_and(|row| flag(row, 2));
    if version < VERSION_MIN {
        let major = version / 10_000;
        return Err(ReadError::TooOld { target, major });
    }
    let expected = options.system_identifier;
    if found != expected {
        return Err(if is_subscriber && !in_recovery {
            ReadError::LogicalReplica { target }
        } else {
            ReadError::OtherSystem {
                target,
                found,
                expected,
            }
        });
    }
    match options.kind {
        ReplicaKind::Standby if !in_recovery => Err(ReadError::NotAStandby { target }),
        ReplicaKind::Source if in_recovery => Err(ReadError::NotTheSource { target }),
        ReplicaKind::Standby | ReplicaKind::Source => Ok(()),
    }
}

impl Replica {
    /// Checks that the replica can be reached and is what its options say.
    ///
    /// # Errors
    ///
    /// [`ReadError`], one of those that are about the replica.
    pub async fn check(&self) -> Result<ReplicaStatus, ReadError> {
        self.ask_control(async |connection, options| {
            let version = connection.server_version();
            let rows = asked(connection, options, IDENTITY).await?;
            identity(rows.first(), version, options)?;
            let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
            let timeline = asked(connection, options, timeline).await?;
            Ok(ReplicaStatus {
                version,
                system_identifier: options.system_identifier,
                timeline: timeline
                    .first()
                    .and_then(|row| parsed(row, 0))
                    .unwrap_or_default(),
                health: health(connection, options).await?,
            })
        })
        .await
    }

    /// Asks how the replica is doing, over a connection of its own that is kept.
    ///
    /// # Errors
    ///
    /// As for [`Self::check`]; a standby that was promoted is found here too.
    pub async fn health(&self) -> Result<ReplicaHealth, ReadError> {
        self.ask_control(health).await
    }

    /// Runs queries over the control connection, which is closed after an error.
    async fn ask_control<T>(
        &self,
        ask: impl AsyncFnOnce(&mut Connection, &ReplicaOptions) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let options = self.options();
        let mut control = self.control().lock().await;
        // Taken out, so that a dropped call leaves no half-read answer behind.
        let mut connection = match control.take() {
            Some(connection) => connection,
            None => connect(options).await?,
        };
        let answer = ask(&mut connection, options).await?;
        *control = Some(connection);
        Ok(answer)
    }
}

/// Connects for questions.
pub(super) async fn connect(options: &ReplicaOptions) -> Result<Connection, ReadError> {
    let config = options.config.clone();
    let config = config.with_application_name("pgcapture/dump");
    let connected = Connection::connect(&config, Replication::Off).await;
    let mut connection = connected.map_err(|source| unreachable(options, source))?;
    // To compile the questions about a publication took a server 0.4 s, to answer them a few milliseconds.
    asked(&mut connection, options, "SET jit = off").await?;
    Ok(connection)
}

async fn asked(
    connection: &mut Connection,
    options: &ReplicaOptions,
    sql: &str,
) -> Result<Vec<Row>, ReadError> {
    let rows = connection.query(sql).await;
    rows.map_err(|source| unreachable(options, source))
}

async fn health(
    connection: &mut Connection,
    options: &ReplicaOptions,
) -> Result<ReplicaHealth, ReadError> {
    let rows = asked(connection, options, HEALTH).await?;
    let nothing = || PgError::Protocol("an answer without row".to_owned());
    let row = rows
        .first()
        .ok_or_else(|| unreachable(options, nothing()))?;
    if flag(row, 7) != (options.kind == ReplicaKind::Standby) {
        let target = options.config.redacted();
        return Err(match options.kind {
            ReplicaKind::Standby => ReadError::NotAStandby { target },
            ReplicaKind::Source => ReadError::NotTheSource { target },
        });
    }
    let seconds = |column| {
        let seconds: Option<f64> = parsed(row, column);
        // Clocks may differ: a negative delay is none.
        seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default())
    };
    Ok(ReplicaHealth {
        replayed: parsed(row, 0).unwrap_or_default(),
        received: parsed(row, 1),
        replay_delay: seconds(2),
        is_replay_paused: flag(row, 3),
        active_count: parsed(row, 4).unwrap_or_default(),
        waiting_count: parsed(row, 5).unwrap_or_default(),
        longest_statement: seconds(6),
    })
}
