//! Looks whether a database can be captured, and makes or drops publication and slot.
//!
//! The publication is made before the slot: a slot that has to decode WAL from before its
//! publication existed fails for good up to PostgreSQL 17. Every statement is in the plan, so that
//! it can be shown before it runs.

use pgcapture_actors::postgres::{
    Config, Connection, PgError, Replication,
    catalog::{
        Identity, PreflightRequest, SourceRequest, TableChoice, drop_slot, plan_source, preflight,
        server_info,
    },
    quote_ident,
};
use pgcapture_engine::codes::{Explanation, node, source};

use super::{Definition, SourceError, chain};

/// Tables without a replica identity that are named one by one; more are counted.
const NAMED_MAX: usize = 20;

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

    pub(crate) fn passed(&mut self, text: impl Into<String>) {
        self.checks.push(Check {
            problem: None,
            text: text.into(),
            next: String::new(),
            is_warning: false,
        });
    }

    pub(crate) fn found(&mut self, problem: &'static Explanation, text: String, is_warning: bool) {
        self.checks.push(Check {
            problem: Some(problem),
            text,
            next: problem.next.to_owned(),
            is_warning,
        });
    }
}

/// Looks and plans; changes nothing.
pub(super) async fn plan(definition: &Definition, config: &Config) -> Result<SourcePlan, PgError> {
    let mut connection = Connection::connect(config, Replication::Off).await?;
    let mut plan = SourcePlan::default();
    let info = server_info(&mut connection).await?;
    plan.passed(format!(
        "PostgreSQL {}.{}, wal_level {}, {} of {} slots used",
        info.version / 10_000,
        info.version % 10_000,
        info.wal_level,
        info.slot_count,
        info.slot_count_max
    ));
    let request = PreflightRequest {
        slot: definition.slot.clone(),
        publication: definition.publication.clone(),
        database: config.database().to_owned(),
        must_exist: false,
        system_identifier: None,
    };
    for problem in preflight(&mut connection, &request).await? {
        plan.found(problem.explanation(), chain(&problem), false);
    }
    let request = SourceRequest {
        slot: definition.slot.clone(),
        publication: definition.publication.clone(),
        tables: definition.tables.clone(),
        excludes: definition.exclude.clone(),
    };
    let found = plan_source(&mut connection, &request).await?;
    plan.makes_publication = found.publication.is_none();
    plan.makes_slot = found.slot.is_none();
    plan.sql = found.statements;
    if plan.makes_publication && !plan.makes_slot {
        let slot = &definition.slot;
        plan.checks.push(Check {
            problem: Some(&source::PUBLICATION_MISSING),
            text: format!(
                "slot \"{slot}\" exists and publication \"{}\" does not: what was written since \
                 the slot was made cannot be decoded",
                definition.publication
            ),
            next: format!("SELECT pg_drop_replication_slot('{slot}'); then add the source"),
            is_warning: false,
        });
    }
    plan.judge_tables(&found.choice);
    Ok(plan)
}

impl SourcePlan {
    fn judge_tables(&mut self, choice: &TableChoice) {
        let name =
            |schema: &str, table: &str| format!("{}.{}", quote_ident(schema), quote_ident(table));
        let chosen = choice.chosen.iter();
        self.tables = chosen
            .map(|table| name(&table.schema, &table.name))
            .collect();
        if self.tables.is_empty() {
            let text = "no table matches the patterns".to_owned();
            self.found(&node::BAD_REQUEST, text, false);
        } else {
            self.passed(format!("{} table(s) match", self.tables.len()));
        }
        for pattern in &choice.unmatched {
            let text = format!("pattern \"{pattern}\" matches no table");
            self.found(&node::BAD_REQUEST, text, true);
        }
        for table in choice.without_identity.iter().take(NAMED_MAX) {
            let name = name(&table.schema, &table.name);
            let (why, identity) = match table.identity {
                Identity::HidesGenerated => (
                    "its replica identity holds generated columns, which are not published",
                    "DEFAULT",
                ),
                Identity::Usable | Identity::Missing => ("it has no replica identity", "FULL"),
            };
            self.checks.push(Check {
                problem: Some(&source::IDENTITY_MISSING),
                text: format!("{name} is left out: {why}"),
                next: format!(
                    "ALTER TABLE {name} REPLICA IDENTITY {identity}; then add the source"
                ),
                is_warning: true,
            });
        }
        let more = choice.without_identity.len().saturating_sub(NAMED_MAX);
        if more > 0 {
            let text = format!("{more} more tables are left out for the same reason");
            self.found(&source::IDENTITY_MISSING, text, true);
        }
    }
}

/// Refuses a plan that something stands against.
pub(super) fn refuse_errors(plan: &SourcePlan) -> Result<(), SourceError> {
    let errors = plan.checks.iter().filter(|check| !check.is_warning);
    let errors: Vec<_> = errors
        .filter_map(|check| Some((check.problem?, check)))
        .collect();
    let Some((explanation, first)) = errors.first() else {
        return Ok(());
    };
    let texts: Vec<_> = errors
        .iter()
        .map(|(_, check)| check.text.as_str())
        .collect();
    Err(SourceError::Checks {
        explanation,
        text: texts.join("; "),
        next: first.next.clone(),
    })
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
    if let Some(slot) = made.slot {
        // Our own agent has ended; whoever else holds the slot is not ours to end.
        drop_slot(&mut connection, slot, false).await?;
    }
    if let Some(publication) = made.publication {
        let sql = format!("DROP PUBLICATION IF EXISTS {}", quote_ident(publication));
        connection.query(&sql).await?;
    }
    Ok(())
}

/// The same as [`drop_objects`] while another error is on its way: a second one is only logged.
pub(super) async fn drop_made(config: &Config, made: &Made<'_>) {
    if let Err(error) = drop_objects(config, made).await {
        tracing::warn!(%error, "cannot drop what a failed set-up had made");
    }
}
