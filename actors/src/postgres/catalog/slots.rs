//! Replication slots: what they are, who has them, make, drop, take over.

use std::time::Duration;

use pgcapture_engine::{codes::source, lsn::Lsn};
use tokio::time::Instant;

use super::{Row, flag, only, owned, parsed, text};
use crate::postgres::{
    Connection, PgError, quote_literal,
    slot_copy::{copy_prefix, holder_query, lock_key},
};

/// Time for a terminated walsender to let go of its slot: 30 to 62 ms were measured.
const RELEASE_MAX: Duration = Duration::from_secs(5);
/// How often the slot is looked at meanwhile: PostgreSQL tells nobody, and each look costs it a tenth
/// of a millisecond.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What PostgreSQL keeps for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalStatus {
    /// Within `max_wal_size`.
    Reserved,
    /// Beyond it, kept for the slot.
    Extended,
    /// May be removed at the next checkpoint.
    Unreserved,
    /// Removed: the slot is of no use.
    Lost,
    /// A word that is not known here.
    Unknown,
}

impl WalStatus {
    fn from_word(word: Option<&str>) -> Self {
        match word {
            Some("reserved") => Self::Reserved,
            Some("extended") => Self::Extended,
            Some("unreserved") => Self::Unreserved,
            Some("lost") => Self::Lost,
            _ => Self::Unknown,
        }
    }
}

/// One slot as the server shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// Name.
    pub name: String,
    /// Output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// Database; `None` for a physical slot.
    pub database: Option<String>,
    /// Ends with its session.
    pub temporary: bool,
    /// The process that reads it.
    pub active_pid: Option<i32>,
    /// WAL is kept from here.
    pub restart_lsn: Option<Lsn>,
    /// Everything before was confirmed.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// What is kept.
    pub wal_status: WalStatus,
    /// Bytes of WAL until the slot may be lost; `None` when there is no limit.
    pub safe_wal_size: Option<i64>,
    /// Why it was invalidated (17 and newer; before: `wal_removed` when lost).
    pub invalidation_reason: Option<String>,
    /// Is carried to standbys (17 and newer).
    pub failover: bool,
    /// WAL that is kept for it, in bytes.
    pub retained_bytes: u64,
}

pub(super) fn query(version: u32, condition: &str) -> String {
    let newer = if version >= 170_000 {
        "invalidation_reason, failover"
    } else if version >= 160_000 {
        "CASE WHEN conflicting THEN 'conflicting' END, false"
    } else {
        "NULL, false"
    };
    let end = "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
               ELSE pg_current_wal_lsn() END";
    format!(
        "SELECT slot_name, plugin, database, temporary, active_pid, restart_lsn, \
         confirmed_flush_lsn, wal_status, safe_wal_size, \
         greatest(0, ({end}) - restart_lsn)::int8, {newer} \
         FROM pg_replication_slots WHERE {condition} ORDER BY slot_name"
    )
}

pub(super) fn state(row: &Row) -> SlotState {
    let wal_status = WalStatus::from_word(text(row, 7));
    let reason = text(row, 10).map(str::to_owned);
    SlotState {
        name: owned(row, 0),
        plugin: text(row, 1).map(str::to_owned),
        database: text(row, 2).map(str::to_owned),
        temporary: flag(row, 3),
        active_pid: parsed(row, 4),
        restart_lsn: parsed(row, 5),
        confirmed_flush_lsn: parsed(row, 6),
        wal_status,
        safe_wal_size: parsed(row, 8),
        invalidation_reason: reason
            .or_else(|| (wal_status == WalStatus::Lost).then(|| "wal_removed".to_owned())),
        failover: flag(row, 11),
        retained_bytes: parsed(row, 9).unwrap_or_default(),
    }
}

/// Returns a slot, `None` when there is none of that name.
///
/// # Errors
///
/// A lost connection.
pub async fn slot(connection: &mut Connection, name: &str) -> Result<Option<SlotState>, PgError> {
    let condition = format!("slot_name = {}", quote_literal(name));
    let sql = query(connection.server_version(), &condition);
    Ok(connection.query(&sql).await?.first().map(state))
}

/// Returns all slots of the server.
///
/// # Errors
///
/// A lost connection.
pub async fn slots(connection: &mut Connection) -> Result<Vec<SlotState>, PgError> {
    let sql = query(connection.server_version(), "true");
    Ok(connection.query(&sql).await?.iter().map(state).collect())
}

impl SlotState {
    /// Checks that the slot can be read by us, from this database.
    ///
    /// # Errors
    ///
    /// [`PgError::Check`] for another plugin or database, or an invalidated slot.
    pub fn check(&self, database: &str) -> Result<(), PgError> {
        let name = &self.name;
        match self.plugin.as_deref() {
            Some("pgoutput") => {}
            Some(plugin) => {
                let what = format!("slot \"{name}\" belongs to plugin {plugin}, not pgoutput");
                return Err(PgError::check(&source::SLOT_OTHER_PLUGIN, what));
            }
            None => {
                let what = format!("slot \"{name}\" is physical, not logical");
                return Err(PgError::check(&source::SLOT_OTHER_PLUGIN, what));
            }
        }
        if let Some(other) = self.database.as_deref().filter(|other| *other != database) {
            let what =
                format!("slot \"{name}\" belongs to database \"{other}\", not \"{database}\"");
            return Err(PgError::check(&source::SLOT_OTHER_DATABASE, what));
        }
        match &self.invalidation_reason {
            Some(reason) => {
                let what = format!("slot \"{name}\" was invalidated ({reason})");
                Err(PgError::check(&source::SLOT_INVALIDATED, what))
            }
            None => Ok(()),
        }
    }
}

/// From this version on running transactions can be noted on request.
pub const NOTES_FROM: u32 = 160_000;

/// Has the server note which transactions run (16 and newer, when the role may): a slot's restart
/// position moves only to such notes, and by itself the server writes one every fifteen seconds.
///
/// # Errors
///
/// A lost connection.
pub async fn log_running_transactions(connection: &mut Connection) -> Result<(), PgError> {
    if connection.server_version() < NOTES_FROM {
        return Ok(());
    }
    let sql = "SELECT pg_log_standby_snapshot() \
               WHERE has_function_privilege('pg_log_standby_snapshot()', 'EXECUTE') \
               AND NOT pg_is_in_recovery()";
    connection.query(sql).await.map(|_| ())
}

/// Makes a slot and returns where it starts. On 17 and newer it is made to survive a failover
/// (`FAILOVER`).
///
/// # Errors
///
/// [`PgError::Server`]: no free slot, no right, `wal_level`, the name is taken.
pub async fn create_slot(connection: &mut Connection, name: &str) -> Result<Lsn, PgError> {
    let sql = create_slot_sql(connection.server_version(), name);
    let row = only(connection.query(&sql).await?)?;
    Ok(parsed(&row, 0).unwrap_or_default())
}

/// Returns the statement that makes a slot.
pub(super) fn create_slot_sql(version: u32, name: &str) -> String {
    let name = quote_literal(name);
    let failover = if version >= 170_000 {
        ", failover => true"
    } else {
        ""
    };
    format!("SELECT lsn FROM pg_create_logical_replication_slot({name}, 'pgoutput'{failover})")
}

/// Drops a slot; a missing one is no error. With `terminate` its walsender is ended first.
///
/// # Errors
///
/// [`PgError::Server`], for one when the slot is in use and `terminate` is false.
pub async fn drop_slot(
    connection: &mut Connection,
    name: &str,
    terminate: bool,
) -> Result<(), PgError> {
    if terminate {
        terminate_walsender(connection, name).await?;
    }
    let sql = format!("SELECT pg_drop_replication_slot({})", quote_literal(name));
    match connection.query(&sql).await {
        Err(error) if error.explanation() == &source::SLOT_MISSING => Ok(()),
        Err(error) if error.has_sqlstate("55006") => Err(in_use(connection, name, error).await),
        result => result.map(|_| ()),
    }
}

async fn in_use(connection: &mut Connection, name: &str, error: PgError) -> PgError {
    match slot_holder(connection, name).await {
        Ok(Some(holder)) => slot_in_use_error(name, &holder),
        Ok(None) | Err(_) => error,
    }
}

/// Who reads a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotHolder {
    /// Its process.
    pub pid: i32,
    /// What it calls itself.
    pub application_name: String,
    /// Where it comes from; `None` for a unix socket, or when the role may not see it.
    pub client: Option<String>,
    /// Catches up by COPY instead of following by walsender.
    pub is_catching_up: bool,
}

/// Returns who reads the slot: a walsender, or a session that catches it up.
///
/// # Errors
///
/// A lost connection.
pub async fn slot_holder(
    connection: &mut Connection,
    name: &str,
) -> Result<Option<SlotHolder>, PgError> {
    Ok(slot_holders(connection, name).await?.into_iter().next())
}

/// Returns everyone who reads the slot: its walsender, the session that holds the lock of a catch-up,
/// and the sessions of its temporary copies.
///
/// # Errors
///
/// A lost connection.
pub async fn slot_holders(
    connection: &mut Connection,
    name: &str,
) -> Result<Vec<SlotHolder>, PgError> {
    let rows = connection.query(&holders_query(name)).await?;
    Ok(rows.iter().map(holder).collect())
}

pub(super) fn holders_query(name: &str) -> String {
    // The columns are of type name, whose text may be cut: the prefix is short enough.
    format!(
        "SELECT h.pid, a.application_name, a.client_addr, h.copies FROM (\
         SELECT active_pid AS pid, false AS copies FROM pg_replication_slots \
         WHERE slot_name = {} AND active_pid IS NOT NULL \
         UNION SELECT pid, true FROM ({}) l \
         UNION SELECT active_pid, true FROM pg_replication_slots \
         WHERE temporary AND starts_with(slot_name::text, {}) AND active_pid IS NOT NULL\
         ) h LEFT JOIN pg_stat_activity a USING (pid) ORDER BY h.copies",
        quote_literal(name),
        holder_query(name),
        quote_literal(&copy_prefix(name))
    )
}

pub(super) fn holder(row: &Row) -> SlotHolder {
    SlotHolder {
        pid: parsed(row, 0).unwrap_or_default(),
        application_name: owned(row, 1),
        client: text(row, 2).map(str::to_owned),
        is_catching_up: flag(row, 3),
    }
}

/// Ends one holder of a slot, unless it is no longer the client that it was.
///
/// # Errors
///
/// [`PgError::Server`] when the role may not end it.
pub async fn terminate_holder(
    connection: &mut Connection,
    holder: &SlotHolder,
) -> Result<(), PgError> {
    let sql = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE pid = {} AND application_name = {}",
        holder.pid,
        quote_literal(&holder.application_name)
    );
    connection.query(&sql).await.map(|_| ())
}

/// Makes the error that names who has the slot.
#[must_use]
pub fn slot_in_use_error(name: &str, holder: &SlotHolder) -> PgError {
    let SlotHolder {
        pid,
        application_name,
        ..
    } = holder;
    let what = format!("slot \"{name}\" is read by process {pid} (\"{application_name}\")");
    PgError::check(&source::SLOT_IN_USE, what)
}

/// Ends whoever reads the slot (walsender or catch-up session) and waits until it is free. Returns
/// who that was; `None` when the slot was free.
///
/// # Errors
///
/// [`PgError::Server`] when the role may not end it, [`PgError::Check`] when it does not let go.
pub async fn terminate_walsender(
    connection: &mut Connection,
    name: &str,
) -> Result<Option<SlotHolder>, PgError> {
    let deadline = Instant::now() + RELEASE_MAX;
    let mut first = None;
    while let Some(holder) = slot_holder(connection, name).await? {
        if Instant::now() > deadline {
            return Err(slot_in_use_error(name, &holder));
        }
        // Again each time: a client that connects anew is ended as well.
        connection
            .query(&format!("SELECT pg_terminate_backend({})", holder.pid))
            .await?;
        first.get_or_insert(holder);
        tokio::time::sleep(LOOK_EVERY).await;
    }
    tracing::debug!(slot = name, lock = lock_key(name), "the slot is free");
    Ok(first)
}
