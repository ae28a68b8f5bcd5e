//! Looks whether a PostgreSQL can serve as a replica of a source; changes nothing.

use pgcapture_actors::postgres::{
    Config, Connection, PgError, Replication,
    catalog::{ServerInfo, server_info},
    quote_literal,
};
use pgcapture_engine::{
    cluster::{ReplicaKind, Source},
    codes::existing_rows as codes,
};

use super::ReplicaDefinition;
use crate::sources::{Check, SourcePlan, chain};

/// Tables that the role may not read are named one by one up to this many; more are counted.
const NAMED_MAX: usize = 10;

/// TID range scans exist since then; without them every range would read the whole table.
const VERSION_MIN: u32 = 140_000;

/// Looks at both servers and judges. A server that cannot be asked is a failed check.
pub(super) async fn run(
    definition: &ReplicaDefinition,
    config: &Config,
    source: &Source,
    source_config: &Config,
) -> Found {
    let mut found = Found::default();
    found.system_identifier =
        look(&mut found.plan, definition, (config, source_config), source).await;
    found
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The checks.
    pub(super) plan: SourcePlan,
    /// Identity of the source's server, when both could be asked.
    pub(super) system_identifier: Option<u64>,
}

async fn look(
    plan: &mut SourcePlan,
    definition: &ReplicaDefinition,
    (config, source_config): (&Config, &Config),
    source: &Source,
) -> Option<u64> {
    let mut connection = match Connection::connect(config, Replication::Off).await {
        Ok(connection) => connection,
        Err(error) => {
            plan.found(error.explanation(), chain(&error), false);
            return None;
        }
    };
    if connection.server_version() < VERSION_MIN {
        let major = connection.server_version() / 10_000;
        let text =
            format!("PostgreSQL {major} reads no ranges of pages; 14 is the oldest that does");
        plan.found(&codes::REPLICA_TOO_OLD, text, false);
        return None;
    }
    let looked = async {
        let replica = server_info(&mut connection).await?;
        let mut on_source = Connection::connect(source_config, Replication::Off).await?;
        Ok::<_, PgError>((replica, server_info(&mut on_source).await?))
    };
    let (replica, on_source) = match looked.await {
        Ok(infos) => infos,
        Err(error) => {
            let text = format!("cannot compare it with its source: {}", chain(&error));
            plan.found(error.explanation(), text, false);
            return None;
        }
    };
    judge(
        plan,
        definition,
        (&replica, &on_source),
        (config, source_config),
    );
    if plan.has_errors() {
        return None;
    }
    if let Err(error) = judge_rights(plan, &mut connection, source).await {
        plan.found(error.explanation(), chain(&error), false);
    }
    Some(on_source.system_identifier)
}

/// Whether it has the rows of the source at all.
fn judge(
    plan: &mut SourcePlan,
    definition: &ReplicaDefinition,
    (replica, source): (&ServerInfo, &ServerInfo),
    (config, source_config): (&Config, &Config),
) {
    if replica.system_identifier != source.system_identifier {
        let text = format!(
            "its system identifier is {}, that of source {} is {}",
            replica.system_identifier, definition.source, source.system_identifier
        );
        plan.found(&codes::OTHER_SYSTEM, text, false);
        return;
    }
    if config.database() != source_config.database() {
        let text = format!(
            "it names database {}, the source captures {}",
            config.database(),
            source_config.database()
        );
        plan.checks.push(Check {
            problem: Some(&codes::OTHER_SYSTEM),
            text,
            next: format!("end the url with /{}", source_config.database()),
            is_warning: false,
        });
        return;
    }
    let wrong_kind = match (definition.kind, replica.in_recovery) {
        (ReplicaKind::Standby, false) => Some((
            "it is not in recovery: it is the source itself, or was promoted",
            "pass --kind source to read from the source itself; else name a standby",
        )),
        (ReplicaKind::Source, true) => Some((
            "it is in recovery: a standby, not the source",
            "leave --kind source out",
        )),
        (ReplicaKind::Standby, true) | (ReplicaKind::Source, false) => None,
    };
    if let Some((text, next)) = wrong_kind {
        plan.checks.push(Check {
            problem: Some(&codes::NOT_A_STANDBY),
            text: text.to_owned(),
            next: next.to_owned(),
            is_warning: false,
        });
        return;
    }
    let version = replica.version;
    plan.passed(format!(
        "PostgreSQL {}.{}, a {} of source {}, at {}",
        version / 10_000,
        version % 10_000,
        definition.kind.as_str(),
        definition.source,
        replica.flush_lsn
    ));
}

/// Whether the role may read what is captured.
async fn judge_rights(
    plan: &mut SourcePlan,
    connection: &mut Connection,
    source: &Source,
) -> Result<(), PgError> {
    let sql = format!(
        "SELECT format('%I.%I', schemaname, tablename), \
         has_schema_privilege(schemaname, 'USAGE') AND \
         has_table_privilege(format('%I.%I', schemaname, tablename), 'SELECT') \
         FROM pg_publication_tables WHERE pubname = {} ORDER BY 1",
        quote_literal(&source.publication)
    );
    let rows = connection.query(&sql).await?;
    let is_readable =
        |row: &Vec<Option<String>>| row.get(1).is_some_and(|it| it.as_deref() == Some("t"));
    let denied: Vec<String> = rows
        .iter()
        .filter(|row| !is_readable(row))
        .filter_map(|row| row.first()?.clone())
        .collect();
    if rows.is_empty() {
        let publication = &source.publication;
        let text = format!("publication {publication} has no tables here, or has not arrived yet");
        plan.found(&codes::NOT_PUBLISHED, text, true);
    } else if denied.is_empty() {
        plan.passed(format!("{} captured table(s) can be read", rows.len()));
    }
    for table in denied.iter().take(NAMED_MAX) {
        plan.checks.push(Check {
            problem: Some(&codes::NO_SELECT),
            text: format!("its role may not read {table}"),
            next: format!("on the source: GRANT SELECT ON {table} TO the role of the url"),
            is_warning: true,
        });
    }
    let more = denied.len().saturating_sub(NAMED_MAX);
    if more > 0 {
        let text = format!("{more} more tables cannot be read");
        plan.found(&codes::NO_SELECT, text, true);
    }
    Ok(())
}
