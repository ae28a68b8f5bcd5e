//! Random histories of a database, as the server would send them and as a consumer should see
//! them. The two views are made from the same values by code that shares nothing with the decoder.

use pgcapture_engine::checkpoint::Checkpoint;
use pgcapture_engine::lsn::Lsn;
use pgcapture_proto::pgcapture::{
    Begin, Change, Commit, Field, LogicalMessage, Message, Relation, Truncate, change::Operation,
    field, message::Type,
};
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::server::{self, Column, Value};

/// A table as it is at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    schema: String,
    name: String,
    is_full: bool,
    columns: Vec<Column>,
}

/// One step inside a transaction.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// INSERT, with values for the widest table.
    Insert(Index, Vec<Value>),
    /// UPDATE; the flag tells whether the old key or row is sent.
    Update(Index, bool, Vec<Value>, Vec<Value>),
    /// DELETE.
    Delete(Index, Vec<Value>),
    /// TRUNCATE.
    Truncate(Index, u8),
    /// `pg_logical_emit_message`.
    Message(String, Vec<u8>),
    /// ALTER TABLE: the table looks otherwise from here on.
    Alter(Index, Table),
}

/// One or more transactions over a few tables.
#[derive(Clone, Debug)]
pub(crate) struct History {
    tables: Vec<Table>,
    transactions: Vec<Vec<Step>>,
}

/// The most columns a table has here.
const COLUMNS_MAX: usize = 6;

fn value(allow_unchanged: bool) -> impl Strategy<Value = Value> {
    let bytes = || prop_oneof![9 => vec(any::<u8>(), 0..40), 1 => vec(any::<u8>(), 100..400)];
    prop_oneof![
        2 => Just(Value::Null),
        u32::from(allow_unchanged) => Just(Value::Unchanged),
        2 => "\\PC{0,60}".prop_map(|text| Value::Text(text.into_bytes())),
        4 => bytes().prop_map(Value::Binary),
    ]
}

fn new_row() -> impl Strategy<Value = Vec<Value>> {
    vec(value(true), COLUMNS_MAX)
}

fn old_row() -> impl Strategy<Value = Vec<Value>> {
    vec(value(false), COLUMNS_MAX)
}

fn table() -> impl Strategy<Value = Table> {
    let column =
        (any::<bool>(), "[a-zäß_]{1,140}", any::<u32>()).prop_map(|(is_key, name, type_oid)| {
            Column {
                is_key,
                name,
                type_oid,
            }
        });
    let columns = vec(column, 0..=COLUMNS_MAX);
    ("[a-z]{0,9}", "[a-z]{1,9}", any::<bool>(), columns).prop_map(
        |(schema, name, is_full, columns)| Table {
            schema,
            name,
            is_full,
            columns,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let place = any::<Index>;
    prop_oneof![
        4 => (place(), new_row()).prop_map(|(table, new)| Step::Insert(table, new)),
        4 => (place(), any::<bool>(), old_row(), new_row())
            .prop_map(|(table, has_old, old, new)| Step::Update(table, has_old, old, new)),
        2 => (place(), old_row()).prop_map(|(table, old)| Step::Delete(table, old)),
        1 => (place(), 0_u8..4).prop_map(|(table, flags)| Step::Truncate(table, flags)),
        1 => ("[a-z]{0,5}", vec(any::<u8>(), 0..300))
            .prop_map(|(prefix, content)| Step::Message(prefix, content)),
        1 => (place(), table()).prop_map(|(place, table)| Step::Alter(place, table)),
    ]
}

/// Any history.
pub(crate) fn history() -> impl Strategy<Value = History> {
    let transactions = vec(vec(step(), 0..12), 1..6);
    (vec(table(), 1..4), transactions).prop_map(|(tables, transactions)| History {
        tables,
        transactions,
    })
}

/// Both views of a history.
#[derive(Debug, Default)]
pub(crate) struct Views {
    /// What the server sends.
    pub(crate) messages: Vec<Vec<u8>>,
    /// What the log should hold.
    pub(crate) entries: Vec<(Checkpoint, Message)>,
}

impl History {
    /// Plays the history.
    pub(crate) fn play(&self) -> Views {
        let mut views = Views::default();
        let mut tables = self.tables.clone();
        let mut described = vec![false; tables.len()];
        for (number, steps) in (1_u64..).zip(&self.transactions) {
            let (lsn, time) = (number << 30, -5);
            views.messages.push(server::begin(lsn, time, 9));
            let mut changes = Vec::new();
            for step in steps {
                if let Step::Alter(place, table) = step {
                    let place = place.index(tables.len());
                    tables[place] = table.clone();
                    described[place] = false;
                    continue;
                }
                for place in step.tables(tables.len()) {
                    if !std::mem::replace(&mut described[place], true) {
                        views.messages.push(tables[place].describe(place));
                    }
                }
                let (message, change) = step.both(&tables, lsn);
                views.messages.push(message);
                changes.push(change);
            }
            let end = lsn + 40;
            views.messages.push(server::commit(lsn, end, time));
            views.entries.extend(transaction(lsn, end, time, changes));
        }
        views
    }
}

/// The entries of one transaction; none when it changed nothing.
fn transaction(lsn: u64, end: u64, time: i64, changes: Vec<Type>) -> Vec<(Checkpoint, Message)> {
    if changes.is_empty() {
        return Vec::new();
    }
    let commit_time = time.cast_unsigned();
    let begin = Type::Begin(Begin {
        final_lsn: lsn,
        commit_time,
        remote_xid: 9,
    });
    let commit = Type::Commit(Commit {
        commit_lsn: lsn,
        end_lsn: end,
        commit_time,
    });
    let all = [vec![begin], changes, vec![commit]].concat();
    let entry = |(seq, each)| {
        let message = Message { r#type: Some(each) };
        (Checkpoint::new(Lsn(lsn), seq), message)
    };
    (0..).zip(all).map(entry).collect()
}

impl Step {
    fn tables(&self, count: usize) -> Vec<usize> {
        match self {
            Self::Insert(place, _)
            | Self::Update(place, ..)
            | Self::Delete(place, _)
            | Self::Alter(place, _) => vec![place.index(count)],
            Self::Truncate(place, _) => (0..=place.index(count)).collect(),
            Self::Message(..) => Vec::new(),
        }
    }

    fn both(&self, tables: &[Table], lsn: u64) -> (Vec<u8>, Type) {
        let places = self.tables(tables.len());
        let table = places.first().map(|place| (id(*place), &tables[*place]));
        match (self, table) {
            (Self::Insert(_, new), Some((id, table))) => {
                let new = table.cut(new);
                let change = table.change(Operation::Insert, None, new);
                (server::insert(id, new), change)
            }
            (Self::Update(_, has_old, old, new), Some((id, table))) => {
                let (old, new) = (table.cut(old), table.cut(new));
                let old = has_old.then_some(old);
                let change = table.change(Operation::Update, old, new);
                let sent = old.map(|old| (table.old_kind(), old));
                (server::update(id, sent, new), change)
            }
            (Self::Delete(_, old), Some((id, table))) => {
                let old = table.cut(old);
                let change = table.change(Operation::Delete, Some(old), &[]);
                (server::delete(id, table.old_kind(), old), change)
            }
            (Self::Truncate(_, flags), _) => {
                let relations = places.iter().map(|place| tables[*place].relation());
                let truncate = Truncate {
                    relations: relations.collect(),
                    cascade: flags & 1 == 1,
                    restart_identity: flags & 2 == 2,
                };
                let ids: Vec<_> = places.into_iter().map(id).collect();
                (server::truncate(&ids, *flags), Type::Truncate(truncate))
            }
            (Self::Message(prefix, content), _) => {
                let message = LogicalMessage {
                    transactional: true,
                    lsn: lsn - 1,
                    prefix: prefix.clone(),
                    content: content.clone().into(),
                };
                let sent = server::logical(true, lsn - 1, prefix, content);
                (sent, Type::Logical(message))
            }
            (step, _) => panic!("{step:?} sends nothing"),
        }
    }
}

fn id(place: usize) -> u32 {
    16_384 + u32::try_from(place).unwrap()
}

impl Table {
    fn describe(&self, place: usize) -> Vec<u8> {
        let identity = if self.is_full { b'f' } else { b'd' };
        server::relation(id(place), &self.schema, &self.name, identity, &self.columns)
    }

    fn old_kind(&self) -> u8 {
        if self.is_full { b'O' } else { b'K' }
    }

    fn cut<'a>(&self, row: &'a [Value]) -> &'a [Value] {
        &row[..self.columns.len()]
    }

    fn relation(&self) -> Relation {
        let schema = if self.schema.is_empty() {
            "pg_catalog"
        } else {
            &self.schema
        };
        Relation {
            schema: schema.to_owned(),
            table: self.name.clone(),
        }
    }

    fn change(&self, operation: Operation, old: Option<&[Value]>, new: &[Value]) -> Type {
        let mut new_fields = Vec::new();
        for (place, value) in new.iter().enumerate() {
            let from_old = old.filter(|_| self.is_full).map(|old| &old[place]);
            let value = match value {
                Value::Unchanged => from_old,
                Value::Null | Value::Text(_) | Value::Binary(_) => Some(value),
            };
            new_fields.extend(value.map(|value| self.field(place, value)));
        }
        let old = old.unwrap_or_default().iter().enumerate();
        let old_fields = old.filter(|(_, value)| **value != Value::Null);
        let Relation { schema, table } = self.relation();
        Type::Change(Change {
            op: operation as i32,
            schema,
            table,
            new: new_fields,
            old: old_fields
                .map(|(place, value)| self.field(place, value))
                .collect(),
        })
    }

    fn field(&self, place: usize, value: &Value) -> Field {
        let value = match value {
            Value::Null | Value::Unchanged => None,
            Value::Text(text) => Some(field::Value::Text(String::from_utf8(text.clone()).unwrap())),
            Value::Binary(bytes) => Some(field::Value::Binary(bytes.clone().into())),
        };
        Field {
            name: self.columns[place].name.clone(),
            oid: self.columns[place].type_oid,
            value,
        }
    }
}
