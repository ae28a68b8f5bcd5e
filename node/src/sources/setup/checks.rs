//! The facts that decide whether a database can be captured.

use pgcapture_actors::postgres::{Connection, PgError, quote_literal};
use pgcapture_engine::codes::source;

use super::{Definition, SourcePlan};

/// The oldest server that we speak to: `COPY` and binary pgoutput need it.
const VERSION_MIN: u32 = 140_000;

/// Rows as text, NULL as the empty text.
pub(super) async fn rows(
    connection: &mut Connection,
    sql: &str,
) -> Result<Vec<Vec<String>>, PgError> {
    let rows = connection.query(sql).await?.into_iter();
    let cells = |row: Vec<Option<String>>| row.into_iter().map(Option::unwrap_or_default);
    Ok(rows.map(|row| cells(row).collect()).collect())
}

async fn one(connection: &mut Connection, sql: &str) -> Result<String, PgError> {
    let rows = rows(connection, sql).await?;
    let first = rows.into_iter().next().unwrap_or_default();
    Ok(first.into_iter().next().unwrap_or_default())
}

/// Version, role in replication, `wal_level`, rights, free slots.
pub(super) async fn server(
    connection: &mut Connection,
    plan: &mut SourcePlan,
) -> Result<(), PgError> {
    let version = connection.server_version();
    let shown = format!("PostgreSQL {}.{}", version / 10_000, version % 10_000);
    if version < VERSION_MIN {
        plan.failed(&source::VERSION_TOO_OLD, shown, "");
    } else {
        plan.passed(shown);
    }
    if one(connection, "SELECT pg_is_in_recovery()").await? == "t" {
        plan.failed(&source::STANDBY, "the server is a standby", "");
    }
    match one(connection, "SHOW wal_level").await?.as_str() {
        "logical" => plan.passed("wal_level is logical"),
        other => plan.failed(
            &source::WAL_LEVEL,
            format!("wal_level is {other}"),
            "ALTER SYSTEM SET wal_level = 'logical'; then restart PostgreSQL",
        ),
    }
    let right = "SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user";
    if one(connection, right).await? == "t" {
        plan.passed("the role may replicate");
    } else {
        let user = one(connection, "SELECT quote_ident(current_user)").await?;
        plan.failed(
            &source::NO_REPLICATION_RIGHT,
            format!("role {user} has no REPLICATION right"),
            format!("ALTER ROLE {user} REPLICATION;"),
        );
    }
    Ok(())
}

/// Whether the publication is there.
pub(super) async fn publication(
    connection: &mut Connection,
    definition: &Definition,
    plan: &mut SourcePlan,
) -> Result<bool, PgError> {
    let name = quote_literal(&definition.publication);
    let sql = format!("SELECT count(*) FROM pg_publication WHERE pubname = {name}");
    let exists = one(connection, &sql).await? != "0";
    if exists {
        plan.passed(format!(
            "publication {} is there and is used as it is",
            definition.publication
        ));
    }
    Ok(exists)
}

/// Whether the slot is there and fits; else whether one is free.
pub(super) async fn slot(
    connection: &mut Connection,
    definition: &Definition,
    plan: &mut SourcePlan,
) -> Result<bool, PgError> {
    let sql = format!(
        "SELECT coalesce(plugin, ''), coalesce(database, ''), active, coalesce(wal_status, ''), \
         current_database() FROM pg_replication_slots WHERE slot_name = {}",
        quote_literal(&definition.slot)
    );
    let slot = &definition.slot;
    let found = rows(connection, &sql).await?;
    let Some([plugin, database, active, status, current]) = found.first().map(Vec::as_slice) else {
        free_slots(connection, plan).await?;
        return Ok(false);
    };
    if plugin != "pgoutput" {
        plan.failed(
            &source::SLOT_OTHER_PLUGIN,
            format!("slot {slot} uses plugin \"{plugin}\", not pgoutput"),
            "",
        );
    } else if database != current {
        plan.failed(
            &source::SLOT_OTHER_DATABASE,
            format!("slot {slot} belongs to database {database}, not {current}"),
            "",
        );
    } else if status == "lost" {
        plan.failed(
            &source::SLOT_INVALIDATED,
            format!("slot {slot} is invalidated"),
            "",
        );
    } else if active == "t" {
        plan.failed(&source::SLOT_IN_USE, format!("slot {slot} is in use"), "");
    } else {
        plan.passed(format!("slot {slot} is there and is used as it is"));
    }
    Ok(true)
}

async fn free_slots(connection: &mut Connection, plan: &mut SourcePlan) -> Result<(), PgError> {
    let sql = "SELECT current_setting('max_replication_slots')::int - count(*) \
               FROM pg_replication_slots";
    let free: i64 = one(connection, sql).await?.parse().unwrap_or(1);
    if free > 0 {
        plan.passed(format!("{free} replication slot(s) free"));
    } else {
        plan.failed(&source::NO_FREE_SLOT, "no replication slot is free", "");
    }
    Ok(())
}
