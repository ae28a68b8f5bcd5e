//! Everything that would keep a source from working, found before it is started.

use pgcapture_engine::codes::source;

use super::{
    Identity, ServerInfo, flag, publication, role, server_info, slot, slot_holder,
    slot_in_use_error,
};
use crate::postgres::{Connection, PgError, quote_literal};

/// First version that is read: binary decoding came with it.
const VERSION_MIN: u32 = 140_000;
/// First version that decodes on a standby.
const STANDBY_VERSION_MIN: u32 = 160_000;

/// What is to be checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreflightRequest {
    /// Name of the slot.
    pub slot: String,
    /// Name of the publication.
    pub publication: String,
    /// Database of the source.
    pub database: String,
    /// Slot and publication are there already (before a start), or will be made (before `add`).
    pub must_exist: bool,
    /// The identity that the source was added with, if known.
    pub system_identifier: Option<u64>,
}

/// Checks a source and returns every problem, the worst first; none means that it can start. A
/// slot in use is reported too: whether to take it over is the caller's decision.
///
/// # Errors
///
/// A lost connection.
pub async fn preflight(
    connection: &mut Connection,
    request: &PreflightRequest,
) -> Result<Vec<PgError>, PgError> {
    let info = server_info(connection).await?;
    let mut problems = server_problems(&info, request);
    let role = role(connection).await?;
    if !role.may_replicate {
        let what = format!("role \"{}\" has no right to replicate", role.name);
        problems.push(PgError::check(&source::NO_REPLICATION_RIGHT, what));
    }
    slot_problems(connection, &info, request, &mut problems).await?;
    publication_problems(connection, request, &mut problems).await?;
    Ok(problems)
}

fn server_problems(info: &ServerInfo, request: &PreflightRequest) -> Vec<PgError> {
    let mut problems = Vec::new();
    let mut add = |explanation, what| problems.push(PgError::check(explanation, what));
    if info.version < VERSION_MIN {
        let major = info.version / 10_000;
        add(
            &source::VERSION_TOO_OLD,
            format!("the server is PostgreSQL {major}"),
        );
    }
    if let Some(known) = request
        .system_identifier
        .filter(|id| *id != info.system_identifier)
    {
        let found = info.system_identifier;
        add(
            &source::OTHER_SERVER,
            format!("system identifier {found} instead of {known}"),
        );
    }
    if info.in_recovery && (info.version < STANDBY_VERSION_MIN || !request.must_exist) {
        add(&source::STANDBY, "the server is a standby".to_owned());
    }
    if info.wal_level != "logical" {
        add(
            &source::WAL_LEVEL,
            format!("wal_level is {}, not logical", info.wal_level),
        );
    }
    if info.walsender_count >= info.walsender_count_max {
        let (used, max) = (info.walsender_count, info.walsender_count_max);
        add(
            &source::NO_FREE_WALSENDER,
            format!("{used} of {max} walsenders are taken"),
        );
    }
    problems
}

async fn slot_problems(
    connection: &mut Connection,
    info: &ServerInfo,
    request: &PreflightRequest,
    problems: &mut Vec<PgError>,
) -> Result<(), PgError> {
    let name = &request.slot;
    let Some(state) = slot(connection, name).await? else {
        if request.must_exist {
            let what = format!("slot \"{name}\" does not exist");
            problems.push(PgError::check(&source::SLOT_MISSING, what));
        } else if info.slot_count >= info.slot_count_max {
            let (used, max) = (info.slot_count, info.slot_count_max);
            let what = format!("{used} of {max} replication slots are taken");
            problems.push(PgError::check(&source::NO_FREE_SLOT, what));
        }
        return Ok(());
    };
    problems.extend(state.check(&request.database).err());
    if let Some(holder) = slot_holder(connection, name).await? {
        problems.push(slot_in_use_error(name, &holder));
    }
    Ok(())
}

async fn publication_problems(
    connection: &mut Connection,
    request: &PreflightRequest,
    problems: &mut Vec<PgError>,
) -> Result<(), PgError> {
    let name = &request.publication;
    let found = publication(connection, name).await?;
    if found.is_none() && request.must_exist {
        let what = format!("publication \"{name}\" does not exist");
        problems.push(PgError::check(&source::PUBLICATION_MISSING, what));
    }
    let Some(found) = found.filter(|found| found.updates || found.deletes) else {
        return Ok(());
    };
    let everything = ["*.*".to_owned()];
    let choice = super::choose_tables(connection, &everything, &[]).await?;
    for table in choice.without_identity {
        let (schema, name) = (table.schema, table.name);
        if !found.tables.contains(&(schema.clone(), name.clone())) {
            continue;
        }
        let why = match table.identity {
            Identity::Usable => continue,
            Identity::Missing => "has no replica identity",
            Identity::HidesGenerated if updates_fail(connection, &schema, &name).await? => {
                "has a replica identity with generated columns that are not published"
            }
            Identity::HidesGenerated => continue,
        };
        let what = format!("table {schema}.{name} {why}");
        problems.push(PgError::check(&source::IDENTITY_MISSING, what));
    }
    Ok(())
}

/// Tells whether some publication leaves out a generated column of a table (18 and later): a virtual
/// one is always left out, a stored one unless the publication was made with it.
async fn updates_fail(
    connection: &mut Connection,
    schema: &str,
    name: &str,
) -> Result<bool, PgError> {
    let (schema, name) = (quote_literal(schema), quote_literal(name));
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_publication_tables p \
         JOIN pg_namespace n ON n.nspname = p.schemaname \
         JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename \
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         WHERE p.schemaname = {schema} AND p.tablename = {name} AND a.attgenerated <> '' \
         AND a.attname <> ALL (p.attnames))"
    );
    let rows = connection.query(&sql).await?;
    Ok(rows.first().is_some_and(|row| flag(row, 0)))
}
