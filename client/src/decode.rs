//! From a value on the wire to a Rust value, by `postgres_types::FromSql`.
//!
//! A value of a type that `T` does not know by OID (an enum, a domain, a type of an extension)
//! is tried as the built-in type that `T` stands for: an enum is sent as its label and a domain
//! as its base type. A value in text form is turned into the binary form of that type first.
//! Errors name the table, the column and the types, never the value.

use std::{
    any::type_name,
    error::Error as StdError,
    fmt::{self, Write as _},
    str::FromStr,
};

use bytes::BytesMut;
use postgres_types::{FromSql, IsNull, ToSql, Type};
use serde::de::DeserializeOwned;

use crate::raw::{RawRow, Value};

/// A way to decode a value that is not NULL.
pub type DecodeFn<T> = fn(Value<'_>) -> Result<T, ValueError>;

type BoxError = Box<dyn StdError + Send + Sync>;

/// Types that stand in for an unknown one, tried in this order.
const STAND_INS: [Type; 16] = [
    Type::TEXT,
    Type::INT4,
    Type::INT8,
    Type::INT2,
    Type::FLOAT8,
    Type::FLOAT4,
    Type::BOOL,
    Type::NUMERIC,
    Type::UUID,
    Type::TIMESTAMPTZ,
    Type::TIMESTAMP,
    Type::DATE,
    Type::TIME,
    Type::JSONB,
    Type::JSON,
    Type::BYTEA,
];

/// Why a value could not be decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// The value is NULL and the field is no `Option` and no `Field`.
    #[error("it is NULL; make the field an Option or a Field")]
    Null,
    /// The Rust type does not take this PostgreSQL type.
    #[error("the Rust type does not take this PostgreSQL type")]
    Mismatch,
    /// The bytes are no value of the type.
    #[error("its bytes are no value of the type")]
    Invalid(#[source] BoxError),
}

/// What is wrong with a column.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeErrorKind {
    /// The change does not have the column.
    #[error("it is not part of the change; a column that PostgreSQL may leave out needs Field")]
    Missing,
    /// The value does not fit the field.
    #[error(transparent)]
    Value(ValueError),
}

/// A change that does not fit the type it was to become.
#[derive(Debug, thiserror::Error)]
#[error("cannot decode {place}")]
pub struct DecodeError {
    place: Box<Place>,
    #[source]
    kind: DecodeErrorKind,
}

/// Which column was to become what.
#[derive(Debug)]
struct Place {
    schema: String,
    table: String,
    column: String,
    pg_type: String,
    rust_type: &'static str,
}

impl Place {
    fn new(row: &RawRow, column: &str, pg_type: String, rust_type: &'static str) -> Self {
        Self {
            schema: row.schema().to_owned(),
            table: row.table().to_owned(),
            column: column.to_owned(),
            pg_type,
            rust_type,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            schema,
            table,
            column,
            pg_type,
            rust_type,
        } = self;
        write!(
            f,
            "column {column} ({pg_type}) of {schema}.{table} as {rust_type}"
        )
    }
}

impl DecodeError {
    pub(crate) fn missing(row: &RawRow, column: &str) -> Self {
        let place = Place::new(row, column, "not sent".to_owned(), "a required field");
        Self {
            place: Box::new(place),
            kind: DecodeErrorKind::Missing,
        }
    }

    pub(crate) fn new<T>(row: &RawRow, column: &str, value: Value<'_>, error: ValueError) -> Self {
        let mut pg_type = String::new();
        let named = match value {
            Value::Null => write!(pg_type, "null"),
            Value::Binary { oid, .. } | Value::Text { oid, .. } => match Type::from_oid(oid) {
                Some(known) => write!(pg_type, "{known}"),
                None => write!(pg_type, "type with OID {oid}"),
            },
        };
        named.expect("writing to a string succeeds");
        let place = Place::new(row, column, pg_type, type_name::<T>());
        Self {
            place: Box::new(place),
            kind: DecodeErrorKind::Value(error),
        }
    }

    /// The schema of the table.
    #[must_use]
    pub fn schema(&self) -> &str {
        &self.place.schema
    }

    /// The table, without its schema.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.place.table
    }

    /// The column.
    #[must_use]
    pub fn column(&self) -> &str {
        &self.place.column
    }

    /// PostgreSQL's name of the column's type, as far as it is known.
    #[must_use]
    pub fn pg_type(&self) -> &str {
        &self.place.pg_type
    }

    /// The Rust type that it was to become.
    #[must_use]
    pub fn rust_type(&self) -> &str {
        self.place.rust_type
    }

    /// What is wrong.
    #[must_use]
    pub fn kind(&self) -> &DecodeErrorKind {
        &self.kind
    }
}

/// Decodes by `FromSql`.
///
/// # Errors
/// The type does not fit or the bytes are not of the type.
pub fn sql<T: for<'a> FromSql<'a>>(value: Value<'_>) -> Result<T, ValueError> {
    match value {
        Value::Null => null::<T>(),
        Value::Binary { oid, bytes } => match Type::from_oid(oid) {
            Some(known) if T::accepts(&known) => read(&known, bytes),
            Some(_) => Err(ValueError::Mismatch),
            None => read(&stand_in::<T>(bytes)?, bytes),
        },
        Value::Text { oid, text } => {
            let known = Type::from_oid(oid).filter(|known| T::accepts(known));
            let target = known.map_or_else(|| stand_in::<T>(text.as_bytes()), Ok)?;
            let mut binary = BytesMut::new();
            text_to_binary(&target, text, &mut binary)?;
            read(&target, &binary)
        }
    }
}

/// Decodes json and jsonb by serde.
///
/// # Errors
/// The value is no JSON of the wanted shape.
pub fn json<T: DeserializeOwned>(value: Value<'_>) -> Result<T, ValueError> {
    let bytes = match value {
        Value::Null => return Err(ValueError::Null),
        Value::Text { text, .. } => text.as_bytes(),
        // jsonb begins with its version, which no JSON text can begin with.
        Value::Binary { bytes, .. } => bytes.strip_prefix(&[1]).unwrap_or(bytes),
    };
    serde_json::from_slice(bytes).map_err(|error| ValueError::Invalid(error.into()))
}

/// Decodes the text of a value (a text type, an enum) by `FromStr`.
///
/// # Errors
/// The value is no text or does not parse.
pub fn parse<T>(value: Value<'_>) -> Result<T, ValueError>
where
    T: FromStr,
    T::Err: Into<BoxError>,
{
    let text: String = sql(value)?;
    text.parse()
        .map_err(|error: T::Err| ValueError::Invalid(error.into()))
}

pub(crate) fn null<T: for<'a> FromSql<'a>>() -> Result<T, ValueError> {
    T::from_sql_null(&Type::UNKNOWN).map_err(|_| ValueError::Null)
}

fn read<T: for<'a> FromSql<'a>>(known: &Type, bytes: &[u8]) -> Result<T, ValueError> {
    T::from_sql(known, bytes).map_err(ValueError::Invalid)
}

/// The built-in type that `T` stands for.
fn stand_in<T: for<'a> FromSql<'a>>(bytes: &[u8]) -> Result<Type, ValueError> {
    let accepted = STAND_INS.iter().find(|candidate| T::accepts(candidate));
    match accepted {
        // A type that takes both kinds of JSON: only jsonb begins with its version.
        Some(&Type::JSONB) if bytes.first() != Some(&1) => Ok(Type::JSON),
        Some(accepted) => Ok(accepted.clone()),
        None => Err(ValueError::Mismatch),
    }
}

fn text_to_binary(target: &Type, text: &str, out: &mut BytesMut) -> Result<(), ValueError> {
    fn number<T>(target: &Type, text: &str, out: &mut BytesMut) -> Result<IsNull, BoxError>
    where
        T: FromStr + ToSql,
        T::Err: StdError + Send + Sync + 'static,
    {
        text.trim().parse::<T>()?.to_sql(target, out)
    }
    let written = match *target {
        Type::BOOL => match text {
            "t" | "true" => true.to_sql(target, out),
            "f" | "false" => false.to_sql(target, out),
            _ => Err("neither t nor f".into()),
        },
        Type::INT2 => number::<i16>(target, text, out),
        Type::INT4 => number::<i32>(target, text, out),
        Type::INT8 => number::<i64>(target, text, out),
        Type::OID => number::<u32>(target, text, out),
        Type::FLOAT4 => number::<f32>(target, text, out),
        Type::FLOAT8 => number::<f64>(target, text, out),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN | Type::JSON => {
            out.extend_from_slice(text.as_bytes());
            Ok(IsNull::No)
        }
        Type::JSONB => {
            out.extend_from_slice(&[1]);
            out.extend_from_slice(text.as_bytes());
            Ok(IsNull::No)
        }
        _ => return Err(ValueError::Mismatch),
    };
    written.map(drop).map_err(ValueError::Invalid)
}
