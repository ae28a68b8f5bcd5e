//! What pgoutput told of each relation, with the constant bytes of its changes prepared.
//!
//! Column names and types come from here alone, never from today's catalog: the server describes a
//! relation before its first row and again after each DDL, also inside a transaction, and the
//! latest description replaces the one before. Nothing is ever evicted: the server sends a
//! description once per connection, so one thrown away would be missed for good.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use prost::encoding::{WireType, encode_key, encode_varint};

use crate::pgoutput::{RelationColumn, RelationMessage, ReplicaIdentity};

/// Relations that one connection may describe: some 250 MB at 1 KB each. A database with more
/// tables than that needs more than one source; after a long life with many dropped tables a new
/// connection starts from nothing.
pub const RELATIONS_MAX: usize = 262_144;

/// The namespace that pgoutput sends as an empty string.
const CATALOG_SCHEMA: &str = "pg_catalog";

/// One relation as last described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// By this id rows refer to it.
    pub id: u32,
    /// Namespace.
    pub schema: String,
    /// Name.
    pub table: String,
    /// What old rows contain.
    pub identity: ReplicaIdentity,
    /// Columns in order.
    pub columns: Vec<Column>,
    /// `op`, `schema` and `table` of a change, encoded, with a place for the operation.
    update_head: Box<[u8]>,
    /// The same for DELETE.
    delete_head: Box<[u8]>,
}

/// One column of a relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Name.
    pub name: String,
    /// Type OID.
    pub type_oid: u32,
    /// Part of the replica identity.
    pub is_key: bool,
    /// `name` and `oid` of a field, encoded.
    pub(crate) prefix: Box<[u8]>,
    /// The same with places for the tag and the length before it and for those of a value after it;
    /// `None` when the name is too long for a piece.
    pub(crate) piece: Option<[u8; PIECE_BYTES]>,
}

/// Size of a prepared piece: names of 20 bytes fit, and copying it takes an instruction or two.
pub(crate) const PIECE_BYTES: usize = 32;

/// The kinds of row changes; the numbers of `Change.Operation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// INSERT.
    Insert = 0,
    /// UPDATE.
    Update = 1,
    /// DELETE.
    Delete = 2,
}

/// Bytes of `Change.op` in front of a prepared head; left out for INSERT, the default value.
const OPERATION_BYTES: usize = 2;

impl Relation {
    /// Prepares a relation from its description.
    #[must_use]
    pub fn new(message: &RelationMessage<'_>) -> Self {
        let schema = match message.schema {
            "" => CATALOG_SCHEMA,
            schema => schema,
        };
        Self {
            id: message.id,
            schema: schema.to_owned(),
            table: message.table.to_owned(),
            identity: message.identity,
            columns: message.columns().map(Column::new).collect(),
            update_head: change_head(Operation::Update, schema, message.table),
            delete_head: change_head(Operation::Delete, schema, message.table),
        }
    }

    /// Returns the bytes with which every change of that kind starts.
    #[inline]
    pub(crate) fn change_head(&self, operation: Operation) -> &[u8] {
        match operation {
            Operation::Insert => self.update_head.get(OPERATION_BYTES..).unwrap_or_default(),
            Operation::Update => &self.update_head,
            Operation::Delete => &self.delete_head,
        }
    }
}

impl Column {
    fn new(column: RelationColumn<'_>) -> Self {
        let prefix = field_prefix(column.name, column.type_oid);
        Self {
            name: column.name.to_owned(),
            type_oid: column.type_oid,
            is_key: column.is_key,
            piece: piece(&prefix),
            prefix,
        }
    }
}

/// Leaves two bytes free before and after the prefix.
fn piece(prefix: &[u8]) -> Option<[u8; PIECE_BYTES]> {
    let mut piece = [0; PIECE_BYTES];
    let (place, after) = piece.get_mut(2..)?.split_at_mut_checked(prefix.len())?;
    if after.len() < 2 {
        return None;
    }
    place.copy_from_slice(prefix);
    Some(piece)
}

/// Encodes `name` and `oid` of a field.
pub(crate) fn field_prefix(name: &str, type_oid: u32) -> Box<[u8]> {
    let mut prefix = Vec::with_capacity(name.len() + 8);
    put_string(1, name, &mut prefix);
    if type_oid != 0 {
        encode_key(2, WireType::Varint, &mut prefix);
        encode_varint(u64::from(type_oid), &mut prefix);
    }
    prefix.into_boxed_slice()
}

/// Encodes `op`, `schema` and `table` of a change.
pub(crate) fn change_head(operation: Operation, schema: &str, table: &str) -> Box<[u8]> {
    let mut head = Vec::with_capacity(schema.len() + table.len() + 8);
    encode_key(1, WireType::Varint, &mut head);
    encode_varint(operation as u64, &mut head);
    put_string(2, schema, &mut head);
    put_string(3, table, &mut head);
    head.into_boxed_slice()
}

/// Leaves an empty string out, as proto3 does.
fn put_string(tag: u32, text: &str, bytes: &mut Vec<u8>) {
    if text.is_empty() {
        return;
    }
    encode_key(tag, WireType::LengthDelimited, bytes);
    encode_varint(text.len() as u64, bytes);
    bytes.extend_from_slice(text.as_bytes());
}

/// All relations of one connection.
#[derive(Debug, Default)]
pub struct Relations {
    places: HashMap<u32, usize, BuildHasherDefault<IdHasher>>,
    relations: Vec<Relation>,
    /// Place of the relation that was asked for last: rows of one table come in runs.
    last_place: usize,
}

/// One connection described more than [`RELATIONS_MAX`] relations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server described more than {RELATIONS_MAX} relations on one connection")]
pub struct TooManyRelations;

impl Relations {
    /// Keeps a description; replaces the one before of the same id.
    ///
    /// # Errors
    ///
    /// [`TooManyRelations`]; a new connection starts from nothing.
    pub fn insert(&mut self, relation: Relation) -> Result<(), TooManyRelations> {
        let place = *self
            .places
            .entry(relation.id)
            .or_insert(self.relations.len());
        match self.relations.get_mut(place) {
            Some(known) => *known = relation,
            None if place < RELATIONS_MAX => self.relations.push(relation),
            None => {
                self.places.remove(&relation.id);
                return Err(TooManyRelations);
            }
        }
        Ok(())
    }

    /// Returns the latest description of a relation.
    #[inline]
    pub fn get(&mut self, id: u32) -> Option<&Relation> {
        let is_same = self
            .relations
            .get(self.last_place)
            .is_some_and(|relation| relation.id == id);
        if !is_same {
            self.last_place = *self.places.get(&id)?;
        }
        self.relations.get(self.last_place)
    }

    /// Returns how many relations are known.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.relations.len()
    }

    /// Tells whether none is known.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.relations.is_empty()
    }

    /// Forgets everything, for a new connection.
    pub fn clear(&mut self) {
        self.places.clear();
        self.relations.clear();
    }
}

/// Spreads OIDs over the table with one multiplication (by 2^64 divided by the golden ratio). They
/// come from the server's own counter, so nobody can choose them to collide.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        self.0.rotate_left(32)
    }
}

#[cfg(test)]
mod tests {
    use pgcapture_proto::pgcapture::{Change, Field};
    use prost::Message as _;

    use super::*;
    use crate::pgoutput::Message;

    fn described(bytes: &[u8]) -> Relation {
        let Message::Relation(message) = Message::parse(bytes).unwrap() else {
            panic!("{bytes:?} is no relation");
        };
        Relation::new(&message)
    }

    fn orders(id: u8) -> Relation {
        let bytes = [
            &b"R\0\0\0"[..],
            &[id],
            b"shop\0orders\0d\0\x01\x01id\0\0\0\0\x17\xff\xff\xff\xff",
        ]
        .concat();
        described(&bytes)
    }

    #[test]
    fn prepared_bytes_decode_to_the_names() {
        let relation = orders(7);
        for operation in [Operation::Insert, Operation::Update, Operation::Delete] {
            let change = Change::decode(relation.change_head(operation)).unwrap();
            assert_eq!(change.op, operation as i32);
            assert_eq!((&*change.schema, &*change.table), ("shop", "orders"));
        }
        let field = Field::decode(&*relation.columns[0].prefix).unwrap();
        assert_eq!((&*field.name, field.oid), ("id", 23));
        assert!(relation.columns[0].is_key);
    }

    #[test]
    fn an_empty_namespace_means_pg_catalog() {
        assert_eq!(described(b"R\0\0\0\x01\0t\0f\0\0").schema, "pg_catalog");
    }

    #[test]
    fn the_latest_description_wins() {
        let mut relations = Relations::default();
        relations.insert(orders(7)).unwrap();
        relations.insert(orders(8)).unwrap();
        let mut renamed = orders(7);
        renamed.table = "orders_old".to_owned();
        relations.insert(renamed).unwrap();
        assert_eq!(relations.len(), 2);
        assert_eq!(relations.get(7).unwrap().table, "orders_old");
        assert_eq!(relations.get(8).unwrap().table, "orders");
        assert_eq!(relations.get(9), None);
        relations.clear();
        assert_eq!(relations.get(7), None);
    }

    #[test]
    fn more_relations_than_the_limit_are_refused_and_none_is_lost() {
        let mut relations = Relations::default();
        let mut relation = orders(0);
        for id in 0..u32::try_from(RELATIONS_MAX).unwrap() {
            relation.id = id;
            relations.insert(relation.clone()).unwrap();
        }
        relation.id = u32::MAX;
        assert_eq!(relations.insert(relation.clone()), Err(TooManyRelations));
        assert_eq!(relations.get(u32::MAX), None);
        relation.id = 5;
        relations.insert(relation).unwrap();
        assert_eq!(relations.get(0).unwrap().id, 0);
    }
}
