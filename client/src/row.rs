//! The trait behind `#[derive(Row)]`.

use crate::{columns::Columns, decode::DecodeError};

/// A table's rows as a Rust type. Write `#[derive(Row)]` rather than implementing it.
///
/// ```
/// use pgcapture::{Field, Row};
///
/// #[derive(Debug, Row)]
/// #[pgcapture(table = "public.orders")]
/// struct Order {
///     #[pgcapture(key)]
///     id: i64,
///     customer: Option<String>, // may be NULL
///     note: Field<String>,      // may be NULL, or unchanged and not sent
/// }
/// assert_eq!((Order::SCHEMA, Order::TABLE, Order::KEY), ("public", "orders", &["id"][..]));
/// ```
///
/// A field whose type PostgreSQL cannot fill does not compile:
///
/// ```compile_fail,E0277
/// struct Money;
///
/// #[derive(pgcapture::Row)]
/// #[pgcapture(table = "public.orders")]
/// struct Order {
///     total: Option<Money>,
/// }
/// ```
pub trait Row: Sized {
    /// The schema of the table.
    const SCHEMA: &'static str;
    /// The name of the table, without its schema.
    const TABLE: &'static str;
    /// The columns that tell rows apart, for order kept per key; empty when not said.
    const KEY: &'static [&'static str];

    /// Decodes a row image.
    ///
    /// # Errors
    /// A column is missing or does not fit.
    fn decode(columns: &mut Columns<'_>) -> Result<Self, DecodeError>;
}
