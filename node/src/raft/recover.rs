//! Going on without a majority: what `pgcapture cluster recover` does to the store of a survivor.
//!
//! A cluster that lost the disks of a majority can agree on nothing any more, its own members included.
//! So the store of one survivor, which no node runs on, is made the first node of a cluster again: what
//! its log holds is applied to the end, agreed on or not, the log is removed, and the node becomes the
//! only member. What only the others had is lost; nobody can say what it was.
//!
//! The cluster gets another identity: the others, should their disks turn up, would go on with the old
//! one, and two would agree on different things. The part of it that PostgreSQL sees stays, and every
//! epoch jumps, so that this cluster's agents may end what is left of theirs.

use std::{collections::BTreeMap, fs, io};

use openraft::{EntryPayload, entry::RaftEntry as _};
use pgcapture_engine::cluster::{Node, State};
use pgcapture_engine::codes;

use super::{
    RaftError,
    machine::place,
    types::{Entry, LogId, Peer, StoredMembership, from_bytes, to_bytes},
};
use crate::store::{Batch, ClusterId, Identity, Mark, Store};

/// Entries that are applied in one transaction: as many as a running node takes at most.
const APPLY_CHUNK: u64 = 256;

/// Bytes that are read at once: some of the largest entries.
const READ_BYTES_MAX: usize = 8 << 20;

/// Identities that are remembered: a cluster that was recovered more often has forgotten by whom.
const FORMER_MAX: usize = 16;

/// The bits of an identity that connections to PostgreSQL name.
const SHORT_BITS: u128 = 0xffff_ffff << 96;

/// What a recovery would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The node that goes on.
    pub node: String,
    /// The last entry of the common log that it has.
    pub last_index: u64,
    /// The term of that entry.
    pub last_term: u64,
    /// Who does not belong to the cluster any more.
    pub dropped: Vec<Node>,
    /// Sources that it knows.
    pub source_count: usize,
    /// Subscriptions whose position it knows.
    pub cursor_count: usize,
}

/// Says what [`recover`] would do; changes nothing.
///
/// # Errors
///
/// [`RaftError`]: when the store belongs to no cluster, or to one of which it is the only member.
pub fn plan(store: &Store) -> Result<Recovery, RaftError> {
    let identity = store.identity()?;
    let identity = identity.ok_or_else(|| nothing("the data directory belongs to no cluster"))?;
    let state = store.state();
    let state = state.borrow();
    let others = state.nodes.values().filter(|node| node.id != identity.id);
    let dropped: Vec<Node> = others.cloned().collect();
    let (_, members) = place(|mark| store.mark(mark).map_err(io::Error::other))?;
    let is_alone = members.voter_ids().all(|id| id == identity.id);
    if dropped.is_empty() && is_alone {
        let name = &identity.name;
        return Err(nothing(&format!("node \"{name}\" is its only member")));
    }
    let last = last(store)?;
    Ok(Recovery {
        node: identity.name,
        last_index: last.map_or(0, |id| id.index()),
        last_term: last.map_or(0, |id| id.committed_leader_id().term),
        dropped,
        source_count: state.sources.len(),
        cursor_count: store.with_cursors(|cursors| cursors.iter().count()),
    })
}

/// Makes the store the first and only node of the cluster, and returns what it did. The second call
/// finds nothing to do.
///
/// # Errors
///
/// As for [`plan`], or when the disk fails; the store is then what it was, or recovered.
pub fn recover(store: &Store) -> Result<Recovery, RaftError> {
    plan(store)?;
    apply_rest(store)?;
    let done = plan(store)?;
    let identity = store.identity()?;
    let before = identity.ok_or_else(|| RaftError::broken("the identity is gone"))?;
    let last = last(store)?.ok_or_else(|| RaftError::broken("the log never had an entry"))?;
    let mut state = State::clone(&store.state().borrow());
    state.recover(before.id);
    let address = state.nodes.values().map(|node| node.address.clone()).next();
    let peer = Peer {
        name: before.name.clone(),
        address: address.unwrap_or_default(),
    };
    let members = openraft::Membership::new(
        vec![[before.id].into()],
        BTreeMap::from([(before.id, peer)]),
    );
    let members = members.map_err(RaftError::broken)?;
    let mut former = former(store)?;
    former.push(before.cluster);
    let forgotten = former.len().saturating_sub(FORMER_MAX);
    former.drain(..forgotten);
    // As the first node of a new cluster: everything is applied, and nothing is in the log.
    let marks = [
        (Mark::Purged, to_bytes(&last)?),
        (Mark::Applied, to_bytes(&Some(last))?),
        (
            Mark::Membership,
            to_bytes(&StoredMembership::new(Some(last), members))?,
        ),
        (Mark::Former, to_bytes(&former)?),
    ];
    let identity = Identity {
        cluster: successor(before.cluster),
        ..before
    };
    store.begin_anew(&identity, state, last.index(), &marks)?;
    // They name the old identity and are of no use any more.
    match fs::remove_dir_all(store.directory().join("snapshots")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(done),
    }
}

/// Returns the identities that the cluster of a store had before it was recovered.
pub(super) fn former(store: &Store) -> Result<Vec<ClusterId>, RaftError> {
    let bytes = store.mark(Mark::Former)?;
    let former = bytes.map(|bytes| from_bytes(&bytes)).transpose()?;
    Ok(former.unwrap_or_default())
}

/// Another identity that PostgreSQL takes for the same.
fn successor(before: ClusterId) -> ClusterId {
    let fresh = rand::random::<u128>() & !SHORT_BITS;
    ClusterId(before.0 & SHORT_BITS | fresh)
}

/// The last place in the log that the store knows.
fn last(store: &Store) -> Result<Option<LogId>, RaftError> {
    let (applied, _) = place(|mark| store.mark(mark).map_err(io::Error::other))?;
    let entry = store.last_entry()?;
    let entry = entry.map(|(_, bytes)| Ok::<_, io::Error>(from_bytes::<Entry>(&bytes)?.log_id()));
    let entry = entry.transpose()?;
    Ok(applied.max(entry))
}

/// Applies what the log holds behind what was applied.
fn apply_rest(store: &Store) -> Result<(), RaftError> {
    loop {
        let (applied, _) = place(|mark| store.mark(mark).map_err(io::Error::other))?;
        let first = applied.map_or(0, |id| id.index() + 1);
        let rows = store.entries((first, first + APPLY_CHUNK), READ_BYTES_MAX)?;
        let mut batch = Batch::default();
        let mut reached = None;
        for (_, bytes) in rows {
            let entry: Entry = from_bytes(&bytes)?;
            reached = Some(entry.log_id());
            // Members that were never agreed on, and those that were, end here alike.
            if let EntryPayload::Normal(request) = entry.payload {
                batch.requests.push(request);
            }
        }
        if reached.is_none() {
            return Ok(());
        }
        batch.marks.push((Mark::Applied, to_bytes(&reached)?));
        store.apply(batch)?;
    }
}

fn nothing(why: &str) -> RaftError {
    RaftError::Coded {
        explanation: &codes::cluster::NOTHING_TO_RECOVER,
        text: format!("there is nothing to recover: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_successor_is_another_cluster_with_the_same_name_on_postgresql() {
        let before = ClusterId(rand::random());
        let after = successor(before);
        assert_ne!(before, after);
        assert_eq!(before.short(), after.short());
    }
}
