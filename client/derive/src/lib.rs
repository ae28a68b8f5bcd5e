//! `#[derive(Row)]` of the `pgcapture` client.
//!
//! Turns a struct with named fields into the decoding of a row, one column a field. Owns the
//! attributes `#[pgcapture(…)]`; what a column may be (NULL, unchanged) follows from the type
//! of the field as it is written: `Option<T>`, `Field<T>` or anything else. Never looks at a
//! database.

mod attributes;
mod expand;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Derives `pgcapture::Row`.
///
/// On the struct: `table = "schema.table"` (needed; the schema is `public` when left out) and
/// `rename_all = "lowercase" | "UPPERCASE" | "snake_case" | "camelCase" | "PascalCase" |
/// "SCREAMING_SNAKE_CASE" | "kebab-case"`.
///
/// On a field: `rename = "column"`, `key` (part of the key that tells rows apart), `json` (by
/// serde), `parse` (by `FromStr`, for enums), `default` (when missing or NULL), `skip` (not a
/// column, `Default`).
#[proc_macro_derive(Row, attributes(pgcapture))]
pub fn derive_row(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::row(&input)
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}
