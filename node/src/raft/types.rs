//! What openraft is told about us, and how its values become bytes.
//!
//! Everything that is written to disk or sent to a node of another version begins with a byte that
//! tells its form.

use std::io;

use openraft::TokioRuntime;
use pgcapture_engine::cluster::{Outcome, Request};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::store::VALUE_BYTES_MAX;

/// An entry is at most this long. A large dump plan has some hundred KiB; a message between nodes
/// must hold at least one entry.
pub const ENTRY_BYTES_MAX: usize = 1 << 20;

/// The form of encoded values.
const FORM: u8 = 1;

/// A value that is read is at most this long: a batch of entries on its way to a follower.
const READ_BYTES_MAX: usize = 8 << 20;

/// A row of a snapshot is at most this long: the longest value of the store, and what names it.
pub(crate) const ROW_BYTES_MAX: usize = VALUE_BYTES_MAX + (1 << 20);

openraft::declare_raft_types!(
    /// The types of our Raft.
    pub(crate) Types:
        D = Request,
        R = Reply,
        NodeId = u64,
        Node = Peer,
        AsyncRuntime = TokioRuntime,
);

/// How an entry ended; `None` for those that are Raft's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reply(pub(crate) Option<Outcome>);

/// A member of the group, as Raft knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// Its name.
    pub(crate) name: String,
    /// Where it is reached: `host:port`.
    pub(crate) address: String,
}

pub(crate) type Raft = openraft::Raft<Types, super::machine::StateMachine>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<Types>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<Types>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;
pub(crate) type Snapshot =
    openraft::type_config::alias::SnapshotOf<Types, super::snapshot::SnapshotFile>;

/// Encodes a value behind the byte of its form.
pub(crate) fn to_bytes<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![FORM];
    bincode::serde::encode_into_std_write(value, &mut bytes, bincode::config::standard())
        .map_err(io::Error::other)?;
    Ok(bytes)
}

/// Decodes what [`to_bytes`] made.
pub(crate) fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    decode::<T, READ_BYTES_MAX>(bytes)
}

/// Decodes a row of a snapshot: it may be longer than any message.
pub(crate) fn row_from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    decode::<T, ROW_BYTES_MAX>(bytes)
}

fn decode<T: DeserializeOwned, const MAX: usize>(bytes: &[u8]) -> io::Result<T> {
    let damaged = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let body = match bytes.split_first() {
        Some((&FORM, body)) => body,
        Some((form, _)) => return Err(damaged(format!("a value of the unknown form {form}"))),
        None => return Err(damaged("an empty value".to_owned())),
    };
    let config = bincode::config::standard().with_limit::<MAX>();
    let (value, length) = bincode::serde::decode_from_slice(body, config)
        .map_err(|error| damaged(error.to_string()))?;
    if length == body.len() {
        Ok(value)
    } else {
        Err(damaged("a value is longer than its contents".to_owned()))
    }
}
