//! What a server sends: pgoutput messages of protocol version 1, put together byte by byte.

/// One column of a row as the server sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// SQL NULL.
    Null,
    /// Unchanged TOAST.
    Unchanged,
    /// Text form.
    Text(Vec<u8>),
    /// Binary form.
    Binary(Vec<u8>),
}

/// One column of a relation.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    /// Part of the replica identity.
    pub(crate) is_key: bool,
    /// Name.
    pub(crate) name: String,
    /// Type OID.
    pub(crate) type_oid: u32,
}

/// Begin.
pub(crate) fn begin(final_lsn: u64, commit_time: i64, xid: u32) -> Vec<u8> {
    let mut bytes = vec![b'B'];
    bytes.extend(final_lsn.to_be_bytes());
    bytes.extend(commit_time.to_be_bytes());
    bytes.extend(xid.to_be_bytes());
    bytes
}

/// Commit.
pub(crate) fn commit(commit_lsn: u64, end_lsn: u64, commit_time: i64) -> Vec<u8> {
    let mut bytes = vec![b'C', 0];
    bytes.extend(commit_lsn.to_be_bytes());
    bytes.extend(end_lsn.to_be_bytes());
    bytes.extend(commit_time.to_be_bytes());
    bytes
}

/// Relation.
pub(crate) fn relation(
    id: u32,
    schema: &str,
    table: &str,
    identity: u8,
    columns: &[Column],
) -> Vec<u8> {
    let mut bytes = vec![b'R'];
    bytes.extend(id.to_be_bytes());
    put_name(schema, &mut bytes);
    put_name(table, &mut bytes);
    bytes.push(identity);
    bytes.extend(u16::try_from(columns.len()).unwrap().to_be_bytes());
    for column in columns {
        bytes.push(u8::from(column.is_key));
        put_name(&column.name, &mut bytes);
        bytes.extend(column.type_oid.to_be_bytes());
        bytes.extend((-1_i32).to_be_bytes());
    }
    bytes
}

/// Insert.
pub(crate) fn insert(relation_id: u32, new: &[Value]) -> Vec<u8> {
    let mut bytes = vec![b'I'];
    bytes.extend(relation_id.to_be_bytes());
    put_tuple(b'N', new, &mut bytes);
    bytes
}

/// Update; `old` has its kind, `K` or `O`.
pub(crate) fn update(relation_id: u32, old: Option<(u8, &[Value])>, new: &[Value]) -> Vec<u8> {
    let mut bytes = vec![b'U'];
    bytes.extend(relation_id.to_be_bytes());
    if let Some((kind, old)) = old {
        put_tuple(kind, old, &mut bytes);
    }
    put_tuple(b'N', new, &mut bytes);
    bytes
}

/// Delete; `kind` is `K` or `O`.
pub(crate) fn delete(relation_id: u32, kind: u8, old: &[Value]) -> Vec<u8> {
    let mut bytes = vec![b'D'];
    bytes.extend(relation_id.to_be_bytes());
    put_tuple(kind, old, &mut bytes);
    bytes
}

/// Truncate; flag 1 is CASCADE, 2 RESTART IDENTITY.
pub(crate) fn truncate(relation_ids: &[u32], flags: u8) -> Vec<u8> {
    let mut bytes = vec![b'T'];
    bytes.extend(u32::try_from(relation_ids.len()).unwrap().to_be_bytes());
    bytes.push(flags);
    for id in relation_ids {
        bytes.extend(id.to_be_bytes());
    }
    bytes
}

/// Message.
pub(crate) fn logical(is_transactional: bool, lsn: u64, prefix: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![b'M', u8::from(is_transactional)];
    bytes.extend(lsn.to_be_bytes());
    put_name(prefix, &mut bytes);
    bytes.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
    bytes.extend(content);
    bytes
}

fn put_name(name: &str, bytes: &mut Vec<u8>) {
    bytes.extend(name.as_bytes());
    bytes.push(0);
}

fn put_tuple(kind: u8, values: &[Value], bytes: &mut Vec<u8>) {
    bytes.push(kind);
    bytes.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
    for value in values {
        let (kind, value) = match value {
            Value::Null => (b'n', None),
            Value::Unchanged => (b'u', None),
            Value::Text(value) => (b't', Some(value)),
            Value::Binary(value) => (b'b', Some(value)),
        };
        bytes.push(kind);
        if let Some(value) = value {
            bytes.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
            bytes.extend(value);
        }
    }
}
