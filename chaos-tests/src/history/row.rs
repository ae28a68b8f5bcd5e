//! Rows of the harness's own tables as a reader sees them.
//!
//! Knows three tables only: `ledger`, `accounts` and `marker`. A long text is kept as a hash: the
//! writers' texts are a function of the row's numbers, so the hash is enough to judge them.

use pgcapture_proto::pgcapture::{Change, Field, change, field::Value};
use serde::{Deserialize, Serialize};

/// Type OIDs of PostgreSQL for the integers that our tables use.
const INT8: u32 = 20;
const INT4: u32 = 23;

/// What was done to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// INSERT.
    Insert,
    /// UPDATE.
    Update,
    /// DELETE.
    Delete,
}

/// One of our tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// Numbered writes.
    #[default]
    Ledger,
    /// Balances with a constant sum.
    Accounts,
    /// Rows that say "everything before me has been written".
    Marker,
}

/// The columns of all our tables; absent where the table or the message has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The table.
    pub table: Table,
    /// Who wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<i64>,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<i64>,
    /// Number of the write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<i64>,
    /// Number of the writer's transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx: Option<i64>,
    /// Balance of an account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<i64>,
    /// Hash of the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad: Option<u64>,
}

/// Reads a change; `None` when it is of no table of ours, or a column cannot be read.
#[must_use]
pub fn read_change(change: &Change) -> Option<(Operation, Row)> {
    let table = match change.table.as_str() {
        "ledger" => Table::Ledger,
        "accounts" => Table::Accounts,
        "marker" => Table::Marker,
        _ => return None,
    };
    let op = match change.op() {
        change::Operation::Insert => Operation::Insert,
        change::Operation::Update => Operation::Update,
        change::Operation::Delete => Operation::Delete,
    };
    let fields = if op == Operation::Delete {
        &change.old
    } else {
        &change.new
    };
    let mut row = Row {
        table,
        ..Row::default()
    };
    for field in fields {
        match field.name.as_str() {
            "writer" => row.writer = Some(integer(field)?),
            "id" => row.id = Some(integer(field)?),
            "n" => row.n = integer_or_null(field)?,
            "tx" => row.tx = integer_or_null(field)?,
            "balance" => row.balance = integer_or_null(field)?,
            "pad" => row.pad = bytes(field).map(hash_text),
            _ => return None,
        }
    }
    Some((op, row))
}

/// Hashes a text (FNV-1a, 64 bits); the same on every machine and in every version.
#[must_use]
pub fn hash_text(text: &[u8]) -> u64 {
    text.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn bytes(field: &Field) -> Option<&[u8]> {
    match field.value.as_ref()? {
        Value::Binary(binary) => Some(binary),
        Value::Text(text) => Some(text.as_bytes()),
    }
}

fn integer_or_null(field: &Field) -> Option<Option<i64>> {
    if field.value.is_none() {
        return Some(None);
    }
    integer(field).map(Some)
}

fn integer(field: &Field) -> Option<i64> {
    match (field.value.as_ref()?, field.oid) {
        (Value::Text(text), _) => text.parse().ok(),
        (Value::Binary(binary), INT8) => Some(i64::from_be_bytes(binary.as_ref().try_into().ok()?)),
        (Value::Binary(binary), INT4) => {
            Some(i32::from_be_bytes(binary.as_ref().try_into().ok()?).into())
        }
        (Value::Binary(_), _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, oid: u32, value: Option<Value>) -> Field {
        Field {
            name: name.to_owned(),
            oid,
            value,
        }
    }

    #[test]
    fn reads_binary_and_text_values_and_nulls() {
        let change = Change {
            op: change::Operation::Update.into(),
            schema: "public".to_owned(),
            table: "ledger".to_owned(),
            new: vec![
                field(
                    "writer",
                    INT4,
                    Some(Value::Binary(3_i32.to_be_bytes().to_vec().into())),
                ),
                field("id", INT8, Some(Value::Text("77".to_owned()))),
                field("n", INT8, None),
                field("pad", 25, Some(Value::Binary(b"abc".to_vec().into()))),
            ],
            old: Vec::new(),
        };
        let (op, row) = read_change(&change).unwrap();
        assert_eq!(op, Operation::Update);
        assert_eq!((row.writer, row.id, row.n), (Some(3), Some(77), None));
        assert_eq!(row.pad, Some(hash_text(b"abc")));
    }

    #[test]
    fn a_value_of_the_wrong_width_is_not_read() {
        let change = Change {
            table: "marker".to_owned(),
            new: vec![field("id", INT8, Some(Value::Binary(vec![0, 0, 1].into())))],
            ..Change::default()
        };
        assert_eq!(read_change(&change), None);
    }
}
