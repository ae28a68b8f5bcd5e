//! Rows for the mock gateway, encoded as PostgreSQL would.

use bytes::BytesMut;
use pgcapture_proto::pgcapture::{Field, field::Value};
use postgres_types::{IsNull, ToSql, Type};

/// The types that a Rust value is tried as.
const TYPES: [Type; 16] = [
    Type::TEXT,
    Type::INT8,
    Type::INT4,
    Type::INT2,
    Type::FLOAT8,
    Type::FLOAT4,
    Type::BOOL,
    Type::NUMERIC,
    Type::UUID,
    Type::TIMESTAMPTZ,
    Type::TIMESTAMP,
    Type::DATE,
    Type::JSONB,
    Type::BYTEA,
    Type::TEXT_ARRAY,
    Type::INT8_ARRAY,
];

/// A row image. Columns that are not set are left out, like unchanged TOAST.
#[derive(Clone, Debug)]
#[must_use = "give it to the gateway"]
pub struct TestRow {
    pub(crate) schema: String,
    pub(crate) table: String,
    pub(crate) fields: Vec<Field>,
}

/// A row of a table, written `schema.table`; the schema is `public` when left out.
pub fn row(table: &str) -> TestRow {
    let (schema, table) = table.split_once('.').unwrap_or(("public", table));
    TestRow {
        schema: schema.to_owned(),
        table: table.to_owned(),
        fields: Vec::new(),
    }
}

impl TestRow {
    /// A value, as the PostgreSQL type that its Rust type stands for.
    ///
    /// # Panics
    /// The Rust type stands for none of the usual ones; use [`typed`](Self::typed).
    pub fn set<T: ToSql>(self, column: &str, value: T) -> Self {
        let found = TYPES.iter().find(|candidate| T::accepts(candidate));
        let known = found.expect("a Rust type with a usual PostgreSQL type; else use typed");
        self.typed(column, known, &value)
    }

    /// A value of a type.
    ///
    /// # Panics
    /// The value cannot be encoded.
    pub fn typed(mut self, column: &str, known: &Type, value: &dyn ToSql) -> Self {
        let mut bytes = BytesMut::new();
        let encoded = value
            .to_sql_checked(known, &mut bytes)
            .expect("the value has this type");
        let value = match encoded {
            IsNull::Yes => None,
            IsNull::No => Some(Value::Binary(bytes.freeze())),
        };
        self.fields.push(Field {
            name: column.to_owned(),
            oid: known.oid(),
            value,
        });
        self
    }

    /// The bytes of a value of any type, such as an enum's label.
    pub fn binary(mut self, column: &str, oid: u32, bytes: &[u8]) -> Self {
        let value = Some(Value::Binary(bytes.to_vec().into()));
        self.fields.push(Field {
            name: column.to_owned(),
            oid,
            value,
        });
        self
    }

    /// A value in text form.
    pub fn text(mut self, column: &str, oid: u32, text: &str) -> Self {
        let value = Some(Value::Text(text.to_owned()));
        self.fields.push(Field {
            name: column.to_owned(),
            oid,
            value,
        });
        self
    }

    /// NULL.
    pub fn null(mut self, column: &str) -> Self {
        self.fields.push(Field {
            name: column.to_owned(),
            oid: Type::TEXT.oid(),
            value: None,
        });
        self
    }
}
