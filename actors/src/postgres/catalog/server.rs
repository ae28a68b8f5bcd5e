//! What server this is, and what the role may do.

use pgcapture_engine::lsn::Lsn;

use super::{flag, only, owned, parsed};
use crate::postgres::{Connection, PgError};

/// What a server tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    /// As `server_version_num`: 150018.
    pub version: u32,
    /// Identity of the cluster; survives failover, differs after a rebuild.
    pub system_identifier: u64,
    /// Grows with each failover.
    pub timeline: u32,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// `minimal`, `replica`, `logical`.
    pub wal_level: String,
    /// Where WAL is written and safe; on a standby, replayed.
    pub flush_lsn: Lsn,
    /// `max_replication_slots`.
    pub slot_count_max: u32,
    /// Slots in use.
    pub slot_count: u32,
    /// `max_wal_senders`.
    pub walsender_count_max: u32,
    /// Walsenders at work.
    pub walsender_count: u32,
    /// `wal_sender_timeout` in milliseconds; 0 means never.
    pub wal_sender_timeout_ms: u64,
    /// Whether `synchronized failover slots` are known (17 and newer).
    pub has_failover_slots: bool,
}

/// Asks the server about itself.
///
/// # Errors
///
/// A lost connection.
pub async fn server_info(connection: &mut Connection) -> Result<ServerInfo, PgError> {
    let version = connection.server_version();
    let sql = "SELECT s.system_identifier, c.timeline_id, pg_is_in_recovery(), \
               current_setting('wal_level'), \
               CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
               ELSE pg_current_wal_flush_lsn() END, \
               current_setting('max_replication_slots'), \
               (SELECT count(*) FROM pg_replication_slots), \
               current_setting('max_wal_senders'), \
               (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'), \
               (SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout') \
               FROM pg_control_system() s, pg_control_checkpoint() c";
    let row = only(connection.query(sql).await?)?;
    Ok(ServerInfo {
        version,
        system_identifier: parsed(&row, 0).unwrap_or_default(),
        timeline: parsed(&row, 1).unwrap_or_default(),
        in_recovery: flag(&row, 2),
        wal_level: owned(&row, 3),
        flush_lsn: parsed(&row, 4).unwrap_or_default(),
        slot_count_max: parsed(&row, 5).unwrap_or_default(),
        slot_count: parsed(&row, 6).unwrap_or_default(),
        walsender_count_max: parsed(&row, 7).unwrap_or_default(),
        walsender_count: parsed(&row, 8).unwrap_or_default(),
        wal_sender_timeout_ms: parsed(&row, 9).unwrap_or_default(),
        has_failover_slots: version >= 170_000,
    })
}

/// What the connected role may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// May read slots: REPLICATION, superuser, or a managed service's role for it.
    pub may_replicate: bool,
    /// Superuser.
    pub is_superuser: bool,
    /// May create publications in this database.
    pub may_create: bool,
}

/// Roles by which managed services give the right to replicate.
const MANAGED_ROLES: &str = "'rds_replication', 'rds_superuser', 'cloudsqlsuperuser', \
                             'azure_pg_admin', 'alloydbsuperuser'";

/// Asks what the connected role may do.
///
/// # Errors
///
/// A lost connection.
pub async fn role(connection: &mut Connection) -> Result<Role, PgError> {
    let sql = format!(
        "SELECT rolname, rolreplication OR rolsuper OR EXISTS (SELECT FROM pg_roles m \
         WHERE m.rolname IN ({MANAGED_ROLES}) AND pg_has_role(current_user, m.oid, 'MEMBER')), \
         rolsuper, has_database_privilege(current_database(), 'CREATE') \
         FROM pg_roles WHERE rolname = current_user"
    );
    let row = only(connection.query(&sql).await?)?;
    Ok(Role {
        name: owned(&row, 0),
        may_replicate: flag(&row, 1),
        is_superuser: flag(&row, 2),
        may_create: flag(&row, 3),
    })
}
