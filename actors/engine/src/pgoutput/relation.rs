//! The message that describes a relation, borrowed.

use super::{ParseError, reader::Reader};

/// Describes a relation: the only source of column names and types for the rows that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationMessage<'a> {
    /// By this id rows refer to the relation.
    pub id: u32,
    /// Namespace; empty means `pg_catalog`.
    pub schema: &'a str,
    /// Name.
    pub table: &'a str,
    /// What old rows contain.
    pub identity: ReplicaIdentity,
    column_count: u16,
    columns: &'a [u8],
}

/// The replica identity of a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// Nothing; such a table takes no UPDATE or DELETE in a publication that has these.
    Nothing,
    /// The whole row.
    Full,
    /// The columns of a chosen unique index.
    Index,
}

/// One column of a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Part of the replica identity.
    pub is_key: bool,
    /// Name.
    pub name: &'a str,
    /// Type OID.
    pub type_oid: u32,
    /// Type modifier, -1 for none.
    pub type_modifier: i32,
}

impl<'a> RelationMessage<'a> {
    /// Returns the number of columns.
    #[must_use]
    pub const fn column_count(&self) -> u16 {
        self.column_count
    }

    /// Walks the columns.
    #[must_use]
    pub const fn columns(&self) -> RelationColumns<'a> {
        RelationColumns {
            reader: Reader::new(b'R', self.columns),
        }
    }
}

/// Iterator over the columns of a relation message.
pub struct RelationColumns<'a> {
    reader: Reader<'a>,
}

impl<'a> Iterator for RelationColumns<'a> {
    type Item = RelationColumn<'a>;

    fn next(&mut self) -> Option<RelationColumn<'a>> {
        self.reader.relation_column().ok()
    }
}

impl<'a> Reader<'a> {
    pub(super) fn relation(&mut self) -> Result<RelationMessage<'a>, ParseError> {
        let id = self.u32("the relation id")?;
        let schema = self.name("schema name")?;
        let table = self.name("table name")?;
        let identity = match self.u8("the replica identity")? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            other => return Err(self.unexpected("the replica identity", other)),
        };
        let column_count = self.u16("the number of columns")?;
        let start = self.rest();
        for _ in 0..column_count {
            self.relation_column()?;
        }
        let length = start.len() - self.rest().len();
        Ok(RelationMessage {
            id,
            schema,
            table,
            identity,
            column_count,
            columns: start.get(..length).unwrap_or_default(),
        })
    }

    fn relation_column(&mut self) -> Result<RelationColumn<'a>, ParseError> {
        Ok(RelationColumn {
            is_key: self.u8("the flags of a column")? & 1 != 0,
            name: self.name("column name")?,
            type_oid: self.u32("the type of a column")?,
            type_modifier: self.array("the type modifier").map(i32::from_be_bytes)?,
        })
    }
}
