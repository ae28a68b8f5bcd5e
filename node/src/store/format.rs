//! The form of the file: its version, and how older ones are brought to it.
//!
//! Version 1 had sources, gaps and epochs in one value. Version 2 has replicas and cool-downs beside
//! them, and dumps in rows of their own. Version 3 has nodes and owners. Version 4 has the common log,
//! the last answers and the number of the newest node. Version 5 has what is said about kept WAL, how far
//! slots were let go, and since when a source has its name. Bringing a file forward is one transaction: it
//! is of the one version or the other, whenever the node is killed.
//!
//! Version 6 has a row for what the second version of the protocol between nodes has added. A file is
//! written in it from the moment on in which the cluster agrees on that: until then the program of the
//! version before can go on with the file.

use std::{collections::BTreeMap, path::Path, time::Duration};

use pgcapture_engine::{
    checkpoint::Epoch,
    cluster::{Agreed, Gap, Homes, Node, PROTOCOL_FIRST, Replica, Source, State},
    confirm::Origin,
    dump::DumpId,
};
use redb::{Database, ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    ANSWERED, CURSORS, STATE, STATE_KEY, StoreError, agreed, decode, dumps, encode, failed, log,
};

/// The newest version of everything in the file; grows when a value changes its form.
pub const FORMAT_VERSION: u32 = 6;

/// The version of a file whose cluster speaks the first version of the protocol between nodes.
pub(crate) const FORMAT_PROTOCOL_FIRST: u32 = 5;

/// The oldest version whose rows a snapshot may hold: there were no snapshots before.
pub(crate) const SNAPSHOT_VERSION_MIN: u32 = 4;

pub(super) const META: TableDefinition<'_, &str, u32> = TableDefinition::new("meta");
pub(super) const FORMAT_KEY: &str = "format";

/// The row of what the second version of the protocol has added, which is not there before version 6.
pub(super) const ADDED_KEY: &str = "cluster.added";

/// The agreed state as version 1 kept it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct StateV1 {
    pub(super) sources: BTreeMap<String, Source>,
    pub(super) gaps: BTreeMap<String, Vec<Gap>>,
    pub(super) epochs: BTreeMap<String, Epoch>,
}

impl From<StateV1> for State {
    fn from(old: StateV1) -> Self {
        Self {
            sources: old.sources,
            gaps: old.gaps,
            epochs: old.epochs,
            ..Self::default()
        }
    }
}

/// The agreed state as version 2 kept it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct StateV2 {
    pub(super) sources: BTreeMap<String, Source>,
    pub(super) gaps: BTreeMap<String, Vec<Gap>>,
    pub(super) epochs: BTreeMap<String, Epoch>,
    pub(super) replicas: BTreeMap<String, Replica>,
    pub(super) cool_downs: BTreeMap<(String, String), Duration>,
    pub(super) last_dump: DumpId,
}

impl From<StateV2> for State {
    fn from(old: StateV2) -> Self {
        Self {
            sources: old.sources,
            gaps: old.gaps,
            epochs: old.epochs,
            replicas: old.replicas,
            cool_downs: old.cool_downs,
            last_dump: old.last_dump,
            ..Self::default()
        }
    }
}

/// The agreed state as version 3 kept it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct StateV3 {
    pub(super) sources: BTreeMap<String, Source>,
    pub(super) gaps: BTreeMap<String, Vec<Gap>>,
    pub(super) epochs: BTreeMap<String, Epoch>,
    pub(super) replicas: BTreeMap<String, Replica>,
    pub(super) cool_downs: BTreeMap<(String, String), Duration>,
    pub(super) last_dump: DumpId,
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) owners: BTreeMap<String, String>,
}

impl From<StateV3> for State {
    fn from(old: StateV3) -> Self {
        let ids = old.nodes.values().map(|node| node.id);
        Self {
            last_node: ids.max().unwrap_or_default(),
            sources: old.sources,
            gaps: old.gaps,
            epochs: old.epochs,
            replicas: old.replicas,
            cool_downs: old.cool_downs,
            last_dump: old.last_dump,
            nodes: old.nodes,
            owners: old.owners,
            ..Self::default()
        }
    }
}

/// The agreed state as version 4 kept it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct StateV4 {
    pub(super) sources: BTreeMap<String, Source>,
    pub(super) gaps: BTreeMap<String, Vec<Gap>>,
    pub(super) epochs: BTreeMap<String, Epoch>,
    pub(super) replicas: BTreeMap<String, Replica>,
    pub(super) cool_downs: BTreeMap<(String, String), Duration>,
    pub(super) last_dump: DumpId,
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) last_node: u64,
    pub(super) owners: BTreeMap<String, String>,
    pub(super) attested: BTreeMap<String, Origin>,
    pub(super) homes: Homes,
}

impl From<StateV4> for State {
    fn from(old: StateV4) -> Self {
        Self {
            sources: old.sources,
            gaps: old.gaps,
            epochs: old.epochs,
            replicas: old.replicas,
            cool_downs: old.cool_downs,
            last_dump: old.last_dump,
            nodes: old.nodes,
            last_node: old.last_node,
            owners: old.owners,
            attested: old.attested,
            homes: old.homes,
            ..Self::default()
        }
    }
}

/// Reads what was agreed on, makes the file when it is new, and brings an older one forward.
pub(super) fn read_or_create(database: &Database, path: &Path) -> Result<Agreed, StoreError> {
    let transaction = database
        .begin_write()
        .map_err(|error| failed(error.into()))?;
    let found = version(&transaction).map_err(failed)?;
    let state = match found {
        None => State::default(),
        Some(0) => {
            let what = "its format version is 0, which never was".to_owned();
            return Err(StoreError::Damaged { what });
        }
        Some(found) if found > FORMAT_VERSION => {
            let path = path.to_owned();
            transaction.abort().map_err(|error| failed(error.into()))?;
            return Err(StoreError::NewerVersion { path, found });
        }
        Some(found) => read_state(&transaction, found)?,
    };
    let wanted = version_of(&state);
    if found != Some(wanted) {
        let bytes = encode(&state)?;
        bring_forward(&transaction, &bytes, wanted).map_err(failed)?;
    }
    let agreed = agreed::read(&transaction, state)?;
    transaction.commit().map_err(|error| failed(error.into()))?;
    Ok(agreed)
}

/// Returns the version in which a state is kept.
pub(super) fn version_of(state: &State) -> u32 {
    if state.protocol() == PROTOCOL_FIRST {
        FORMAT_PROTOCOL_FIRST
    } else {
        FORMAT_VERSION
    }
}

/// Returns the row of what was added; `None` while there is none.
pub(super) fn added_row(state: &State) -> Result<Option<Vec<u8>>, StoreError> {
    let is_there = version_of(state) != FORMAT_PROTOCOL_FIRST;
    is_there.then(|| encode(&state.added)).transpose()
}

/// Writes the row of what was added, and with it the version from which on there is one.
pub(super) fn write_added(transaction: &WriteTransaction, row: &[u8]) -> Result<(), redb::Error> {
    transaction.open_table(STATE)?.insert(ADDED_KEY, row)?;
    write_version(transaction, FORMAT_VERSION)
}

pub(super) fn write_version(
    transaction: &WriteTransaction,
    version: u32,
) -> Result<(), redb::Error> {
    transaction.open_table(META)?.insert(FORMAT_KEY, version)?;
    Ok(())
}

/// Reads the version that a file has at a look.
pub(super) fn version_at(transaction: &ReadTransaction) -> Result<u32, redb::Error> {
    let meta = transaction.open_table(META)?;
    let version = meta.get(FORMAT_KEY)?;
    Ok(version.map_or(FORMAT_PROTOCOL_FIRST, |version| version.value()))
}

fn version(transaction: &WriteTransaction) -> Result<Option<u32>, redb::Error> {
    let meta = transaction.open_table(META)?;
    let version = meta.get(FORMAT_KEY)?;
    Ok(version.map(|version| version.value()))
}

/// Reads the state as a version keeps it that is not newer than this one.
pub(super) fn read_state(
    transaction: &WriteTransaction,
    version: u32,
) -> Result<State, StoreError> {
    match version {
        1 => read_as::<StateV1>(transaction),
        2 => read_as::<StateV2>(transaction),
        3 => read_as::<StateV3>(transaction),
        4 => read_as::<StateV4>(transaction),
        _ => read_as::<State>(transaction),
    }
}

/// Reads the state in one of its forms. A file that knew no dumps has no rows of them.
fn read_as<T: Default + DeserializeOwned + Into<State>>(
    transaction: &WriteTransaction,
) -> Result<State, StoreError> {
    let value = |key| state_value(transaction, key).map_err(failed);
    let kept: T = value(STATE_KEY)?.map_or_else(|| Ok(T::default()), |bytes| decode(&bytes))?;
    let mut state = kept.into();
    state.dumps = dumps::read(transaction)?;
    if let Some(added) = value(ADDED_KEY)? {
        state.added = decode(&added)?;
    }
    Ok(state)
}

fn state_value(transaction: &WriteTransaction, key: &str) -> Result<Option<Vec<u8>>, redb::Error> {
    let table = transaction.open_table(STATE)?;
    let value = table.get(key)?;
    Ok(value.map(|value| value.value().to_vec()))
}

/// Writes what a file of this version has; what it had stays.
fn bring_forward(
    transaction: &WriteTransaction,
    state: &[u8],
    version: u32,
) -> Result<(), redb::Error> {
    write_version(transaction, version)?;
    transaction.open_table(STATE)?.insert(STATE_KEY, state)?;
    transaction.open_table(CURSORS)?;
    transaction.open_table(ANSWERED)?;
    log::create_tables(transaction)?;
    dumps::create_tables(transaction)
}
