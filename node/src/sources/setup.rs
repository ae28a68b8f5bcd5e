//! Looks whether a database can be captured, and makes or drops publication and slot.
//!
//! The publication is made before the slot: a slot that has to decode WAL from before its
//! publication existed fails for good up to PostgreSQL 17. Every statement is in the plan, so that
//! it can be shown before it runs.

mod checks;
mod tables;

use pgcapture_actors::postgres::{
    Config, Connection, PgError, Replication, quote_ident, quote_literal,
};
use pgcapture_engine::codes::Explanation;

use super::Definition;

/// What was found and what would be done.
#[derive(Clone, Debug, Default)]
pub struct SourcePlan {
    /// Every fact that was looked at.
    pub checks: Vec<Check>,
    /// Statements in the order in which they run.
    pub sql: Vec<String>,
    /// The tables that the patterns match now.
    pub tables: Vec<String>,
    /// Whether the publication is ours to make.
    pub makes_publication: bool,
    /// Whether the slot is ours to make.
    pub makes_slot: bool,
}

/// One fact.
#[derive(Clone, Debug)]
pub struct Check {
    /// The code of what is wrong; `None` when all is well.
    pub problem: Option<&'static Explanation>,
    /// What was found.
    pub text: String,
    /// What to do; empty when nothing.
    pub next: String,
    /// Whether capturing works in spite of it.
    pub is_warning: bool,
}

impl SourcePlan {
    /// Tells whether something stands against it.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        let mut checks = self.checks.iter();
        checks.any(|check| check.problem.is_some() && !check.is_warning)
    }

    pub(super) fn passed(&mut self, text: impl Into<String>) {
        self.checks.push(Check {
            problem: None,
            text: text.into(),
            next: String::new(),
            is_warning: false,
        });
    }

    pub(super) fn failed(
        &mut self,
        problem: &'static Explanation,
        text: impl Into<String>,
        next: impl Into<String>,
    ) {
        let next = next.into();
        self.checks.push(Check {
            problem: Some(problem),
            text: text.into(),
            next: if next.is_empty() {
                problem.next.to_owned()
            } else {
                next
            },
            is_warning: false,
        });
    }
}

/// Looks and plans; changes nothing.
pub(super) async fn plan(definition: &Definition, config: &Config) -> Result<SourcePlan, PgError> {
    let mut connection = Connection::connect(config, Replication::Off).await?;
    let mut plan = SourcePlan::default();
    checks::server(&mut connection, &mut plan).await?;
    let has_publication = checks::publication(&mut connection, definition, &mut plan).await?;
    let tables = tables::matching(&mut connection, definition, &mut plan).await?;
    let has_slot = checks::slot(&mut connection, definition, &mut plan).await?;
    plan.makes_publication = !has_publication;
    plan.makes_slot = !has_slot;
    if !has_publication {
        plan.sql.push(format!(
            "CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true);",
            quote_ident(&definition.publication),
            tables.join(", ")
        ));
    }
    if !has_slot {
        plan.sql.push(format!(
            "SELECT pg_create_logical_replication_slot({}, 'pgoutput');",
            quote_literal(&definition.slot)
        ));
    }
    plan.tables = tables;
    Ok(plan)
}

/// Runs the plan. When a later statement fails, what the earlier ones made is dropped again.
pub(super) async fn create(
    definition: &Definition,
    config: &Config,
    plan: &SourcePlan,
) -> Result<(), PgError> {
    let mut connection = Connection::connect(config, Replication::Off).await?;
    for statement in &plan.sql {
        tracing::info!(
            source = definition.name,
            sql = statement,
            "setting up a source"
        );
        if let Err(error) = connection.query(statement).await {
            let made = Made {
                slot: None,
                publication: plan.makes_publication.then_some(&definition.publication),
            };
            drop_made(config, &made).await;
            return Err(error);
        }
    }
    Ok(())
}

/// What is to be dropped.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Made<'a> {
    pub(super) slot: Option<&'a String>,
    pub(super) publication: Option<&'a String>,
}

/// Drops slot and publication, the slot first so that it never lacks its publication. What is
/// gone already is no error.
pub(super) async fn drop_objects(config: &Config, made: &Made<'_>) -> Result<(), PgError> {
    let mut connection = Connection::connect(config, Replication::Off).await?;
    for statement in drop_sql(made) {
        connection.query(&statement).await?;
    }
    Ok(())
}

/// The same as [`drop_objects`] while another error is on its way: a second one is only logged.
pub(super) async fn drop_made(config: &Config, made: &Made<'_>) {
    if let Err(error) = drop_objects(config, made).await {
        tracing::warn!(%error, "cannot drop what a failed set-up had made");
    }
}

/// Returns the statements of [`drop_objects`].
pub(super) fn drop_sql(made: &Made<'_>) -> Vec<String> {
    let slot = made.slot.map(|slot| {
        format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name = {};",
            quote_literal(slot)
        )
    });
    let publication = made
        .publication
        .map(|name| format!("DROP PUBLICATION IF EXISTS {};", quote_ident(name)));
    slot.into_iter().chain(publication).collect()
}
