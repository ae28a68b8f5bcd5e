//! The statements of `source add`, in the order that does not poison the slot.

use super::{Publication, SlotState, TableChoice, slots::create_slot_sql};
use crate::postgres::{Connection, PgError, quote_ident};

/// What a source should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRequest {
    /// Name of the slot.
    pub slot: String,
    /// Name of the publication.
    pub publication: String,
    /// Patterns of tables to capture.
    pub tables: Vec<String>,
    /// Patterns of tables to leave out.
    pub excludes: Vec<String>,
}

/// What has to be done for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourcePlan {
    /// Statements to run, in this order, each for itself: a slot cannot be made in a transaction
    /// that has written.
    pub statements: Vec<String>,
    /// The tables and what was left out.
    pub choice: TableChoice,
    /// The publication that is there already.
    pub publication: Option<Publication>,
    /// The slot that is there already.
    pub slot: Option<SlotState>,
}

/// Plans a source: looks, changes nothing. The publication comes **before** the slot, else a
/// change in between would be decoded from a moment without publication, and 14 to 17 would fail
/// there for ever. `pgcapture.ddl_logs` is included if it exists. What is there already is left
/// alone.
///
/// # Errors
///
/// A lost connection.
pub async fn plan_source(
    connection: &mut Connection,
    request: &SourceRequest,
) -> Result<SourcePlan, PgError> {
    let choice = super::choose_tables(connection, &request.tables, &request.excludes).await?;
    let publication = super::publication(connection, &request.publication).await?;
    let slot = super::slot(connection, &request.slot).await?;
    let ddl = connection
        .query("SELECT to_regclass('pgcapture.ddl_logs') IS NOT NULL")
        .await?;
    let has_ddl = ddl.first().is_some_and(|row| super::flag(row, 0));
    let mut statements = Vec::new();
    match &publication {
        None => statements.extend(create_publication(request, &choice, has_ddl)),
        Some(publication) if !publication.all_tables => {
            let missing = missing_tables(publication, &choice, has_ddl);
            if !missing.is_empty() {
                let name = quote_ident(&publication.name);
                let tables = missing.join(", ");
                statements.push(format!("ALTER PUBLICATION {name} ADD TABLE {tables}"));
            }
        }
        Some(_) => {}
    }
    if slot.is_none() {
        statements.push(create_slot_sql(connection.server_version(), &request.slot));
    }
    Ok(SourcePlan {
        statements,
        choice,
        publication,
        slot,
    })
}

fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(name))
}

fn wanted_tables(choice: &TableChoice, has_ddl: bool) -> Vec<(String, String)> {
    let chosen = choice.chosen.iter();
    let mut tables: Vec<_> = chosen
        .map(|table| (table.schema.clone(), table.name.clone()))
        .collect();
    if has_ddl {
        tables.push(("pgcapture".to_owned(), "ddl_logs".to_owned()));
    }
    tables
}

fn create_publication(
    request: &SourceRequest,
    choice: &TableChoice,
    has_ddl: bool,
) -> Option<String> {
    let tables = wanted_tables(choice, has_ddl);
    let tables: Vec<_> = tables
        .iter()
        .map(|(schema, name)| qualified(schema, name))
        .collect();
    let name = quote_ident(&request.publication);
    // A publication without tables is valid, and tables may be added to it later.
    Some(match tables.as_slice() {
        [] => format!("CREATE PUBLICATION {name}"),
        tables => format!("CREATE PUBLICATION {name} FOR TABLE {}", tables.join(", ")),
    })
}

fn missing_tables(publication: &Publication, choice: &TableChoice, has_ddl: bool) -> Vec<String> {
    let wanted = wanted_tables(choice, has_ddl).into_iter();
    let missing = wanted.filter(|table| !publication.tables.contains(table));
    missing
        .map(|(schema, name)| qualified(&schema, &name))
        .collect()
}
