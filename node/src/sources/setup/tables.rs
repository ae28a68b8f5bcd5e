//! Which tables the patterns mean, and whether PostgreSQL can tell their rows apart.

use pgcapture_actors::postgres::{Connection, PgError, quote_ident};
use pgcapture_engine::{codes::source, filter::TablePattern};

use super::{Definition, SourcePlan, checks::rows};

/// Tables without a replica identity that are named one by one; more are counted.
const NAMED_MAX: usize = 20;

/// Ordinary and partitioned tables of users; partitions belong to their root.
const TABLES_SQL: &str = "
SELECT n.nspname, c.relname,
       c.relreplident = 'f'
       OR (c.relreplident = 'd' AND EXISTS (
           SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))
       OR (c.relreplident = 'i' AND EXISTS (
           SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
ORDER BY 1, 2";

/// Returns the quoted names of the tables that the patterns match.
pub(super) async fn matching(
    connection: &mut Connection,
    definition: &Definition,
    plan: &mut SourcePlan,
) -> Result<Vec<String>, PgError> {
    let parse = |texts: &[String], plan: &mut SourcePlan| {
        let mut patterns = Vec::new();
        for text in texts {
            match TablePattern::parse(text) {
                Ok(pattern) => patterns.push(pattern),
                Err(error) => plan.failed(
                    &pgcapture_engine::codes::node::BAD_REQUEST,
                    format!("table pattern {text}: {error}"),
                    "write patterns like public.orders or public.*",
                ),
            }
        }
        patterns
    };
    let wanted = parse(&definition.tables, plan);
    let excluded = parse(&definition.exclude, plan);
    let mut names = Vec::new();
    let mut without_identity = Vec::new();
    for row in rows(connection, TABLES_SQL).await? {
        let [schema, table, has_identity] = row.as_slice() else {
            continue;
        };
        let is_in = |patterns: &[TablePattern]| {
            let mut patterns = patterns.iter();
            patterns.any(|pattern| pattern.matches(schema, table))
        };
        if !is_in(&wanted) || is_in(&excluded) {
            continue;
        }
        let name = format!("{}.{}", quote_ident(schema), quote_ident(table));
        if has_identity != "t" {
            without_identity.push(name.clone());
        }
        names.push(name);
    }
    if names.is_empty() {
        plan.failed(
            &pgcapture_engine::codes::node::BAD_REQUEST,
            format!("no table matches {}", definition.tables.join(", ")),
            "create the tables first, or write other patterns with --tables",
        );
    } else {
        plan.passed(format!("{} table(s) match", names.len()));
    }
    for name in without_identity.iter().take(NAMED_MAX) {
        plan.failed(
            &source::IDENTITY_MISSING,
            format!("{name} has no replica identity: UPDATE and DELETE on it would fail"),
            format!("ALTER TABLE {name} REPLICA IDENTITY FULL; or leave it out with --exclude"),
        );
    }
    let more = without_identity.len().saturating_sub(NAMED_MAX);
    if more > 0 {
        let text = format!("{more} more tables have no replica identity");
        plan.failed(&source::IDENTITY_MISSING, text, "");
    }
    Ok(names)
}
