//! Looks at a PostgreSQL and manages slots and publications, by plain SQL with typed results.
//!
//! Every function takes an open [`super::Connection`] (either protocol will do) and asks once; nothing is
//! cached. `server` and `slots` are for every source, `tables` plans what a publication holds,
//! `plan` writes the statements of `source add`, `preflight` says what would not work.

mod look;
mod plan;
mod preflight;
mod publications;
mod server;
mod slots;
mod tables;

pub(in crate::postgres) use self::tables::glob;
pub use self::{
    look::{SourceLook, Watched, look, watched},
    plan::{SourcePlan, SourceRequest, plan_source},
    preflight::{PreflightRequest, preflight},
    publications::{Publication, publication},
    server::{Role, ServerInfo, role, server_info},
    slots::{
        NOTES_FROM, SlotHolder, SlotState, WalStatus, create_slot, drop_slot,
        log_running_transactions, slot, slot_holder, slot_holders, slot_in_use_error, slots,
        terminate_holder, terminate_walsender,
    },
    tables::{Identity, TableChoice, TableInfo, choose_tables, types_without_binary},
};
use super::PgError;

/// A row of a simple query.
pub(super) type Row = Vec<Option<String>>;

/// Returns the text of a column; an absent one is NULL.
pub(super) fn text(row: &Row, column: usize) -> Option<&str> {
    row.get(column)?.as_deref()
}

/// Returns a column that is never NULL.
pub(super) fn owned(row: &Row, column: usize) -> String {
    text(row, column).unwrap_or_default().to_owned()
}

/// Returns a column that parses, `None` for NULL.
pub(super) fn parsed<T: std::str::FromStr>(row: &Row, column: usize) -> Option<T> {
    text(row, column)?.parse().ok()
}

/// Returns a boolean column; NULL is false.
pub(super) fn flag(row: &Row, column: usize) -> bool {
    text(row, column) == Some("t")
}

/// Returns the only row.
fn only(rows: Vec<Row>) -> Result<Row, PgError> {
    let row = rows.into_iter().next();
    row.ok_or_else(|| PgError::Protocol("an answer without row".to_owned()))
}
