//! Answering other members: what `crate::rpc::raft` calls.
//!
//! Nothing is done for a node of another cluster or protocol, nor for one that means another node:
//! addresses are given to other machines, and data directories are copied.

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

use openraft::{
    async_runtime::watch::WatchReceiver as _,
    raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest},
};
use pgcapture_engine::{
    cluster::{Outcome, Request},
    codes::{self, Explanation},
};
use pgcapture_proto::{peer::v1::Envelope, status::status};
use serde::{Serialize, de::DeserializeOwned};
use tonic::Status;

use super::{
    RaftConsensus,
    network::log_id_bytes,
    snapshot::{SnapshotFile, Snapshots},
    types::{SnapshotMeta, Types, Vote, from_bytes, to_bytes},
};
use crate::store::ClusterId;

/// A call whose body is openraft's.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    Append,
    Vote,
    PreVote,
    Transfer,
}

/// A snapshot that arrives.
pub(crate) struct Incoming {
    vote: Vote,
    meta: SnapshotMeta,
    file: fs::File,
    path: PathBuf,
    snapshots: Snapshots,
    bytes: u64,
}

/// A snapshot may have at most this many bytes: the largest state that nodes agree on, and more.
const SNAPSHOT_BYTES_MAX: u64 = 4 << 30;

impl RaftConsensus {
    /// Refuses what is not meant for this node.
    pub(crate) fn admit(&self, envelope: Option<&Envelope>) -> Result<(), Status> {
        let envelope = envelope.ok_or_else(|| Status::invalid_argument("no envelope"))?;
        let identity = &self.inner.identity;
        let spoken = self.inner.network.spoken();
        if !spoken.has(envelope.protocol) {
            let what = format!(
                "node {} speaks version {spoken}, the other one {}",
                identity.name, envelope.protocol
            );
            return Err(refused(&codes::cluster::OTHER_PROTOCOL, &what));
        }
        let cluster = cluster_of(&envelope.cluster);
        self.refuse_former(cluster)?;
        if cluster != Some(identity.cluster) {
            let what = format!(
                "node {} belongs to cluster {}",
                identity.name, identity.cluster
            );
            return Err(refused(&codes::cluster::OTHER_CLUSTER, &what));
        }
        if envelope.to != identity.id {
            let what = format!("node {} was taken for another one", identity.name);
            return Err(Status::unavailable(what));
        }
        Ok(())
    }

    /// Refuses who has the data of the cluster from before it was recovered.
    pub(crate) fn refuse_former(&self, cluster: Option<ClusterId>) -> Result<(), Status> {
        if !cluster.is_some_and(|cluster| self.inner.former.contains(&cluster)) {
            return Ok(());
        }
        let name = &self.inner.identity.name;
        let what = format!("node {name} and its cluster were recovered without this node");
        Err(refused(&codes::cluster::RECOVERED, &what))
    }

    /// As [`Self::admit`], and refuses who was removed.
    pub(crate) fn admit_member(&self, envelope: Option<&Envelope>) -> Result<(), Status> {
        self.admit(envelope)?;
        let from = envelope.map_or(0, |envelope| envelope.from);
        let state = self.inner.store.state();
        let is_known = state.borrow().nodes.values().any(|node| node.id == from);
        if is_known {
            return Ok(());
        }
        Err(refused(
            &codes::cluster::REMOVED,
            &format!("node number {from} is no member"),
        ))
    }

    /// Hands a call to openraft.
    pub(crate) async fn call(&self, call: Call, body: &[u8]) -> Result<Vec<u8>, Status> {
        let raft = &self.inner.raft;
        match call {
            Call::Append => {
                let rpc: AppendEntriesRequest<Types> = read(body)?;
                answer(raft.append_entries(rpc).await)
            }
            Call::Vote => {
                let mut rpc: VoteRequest<Types> = read(body)?;
                // Who knows that the leader died need not wait until its lease is over.
                rpc.leadership_transfer |= self.has_lost_leader();
                answer(raft.vote(rpc).await)
            }
            Call::PreVote => answer(raft.pre_vote(read(body)?).await),
            Call::Transfer => {
                let rpc: TransferLeaderRequest<Types> = read(body)?;
                answer(raft.handle_transfer_leader(rpc).await)
            }
        }
    }

    /// Proposes a forwarded request; `None` when this node does not lead.
    pub(crate) async fn propose_bytes(
        &self,
        request: &[u8],
    ) -> Result<Result<Option<(Vec<u8>, u64)>, String>, Status> {
        let request: Request = read(request)?;
        match self.propose_here(request).await {
            Ok(None) => Ok(Ok(None)),
            Ok(Some((outcome, index))) => {
                let outcome = to_bytes::<Outcome>(&outcome).map_err(broken)?;
                Ok(Ok(Some((outcome, index))))
            }
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    /// Returns the leader's address as this node knows it; empty when it does not.
    pub(crate) fn leader_address(&self) -> String {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let members = metrics.membership_config.membership();
        let leader = metrics.current_leader.and_then(|id| members.get_node(&id));
        leader.map(|peer| peer.address.clone()).unwrap_or_default()
    }

    /// Returns the last entry of the log as bytes.
    pub(crate) fn last_log_id(&self) -> Vec<u8> {
        log_id_bytes(self.inner.log.last_log_id().ok().flatten())
    }

    /// Begins to receive a snapshot.
    pub(crate) fn receive(&self, head: &[u8]) -> Result<Incoming, Status> {
        let (vote, meta) = read(head)?;
        let (file, path) = self.inner.snapshots.receive().map_err(broken)?;
        Ok(Incoming {
            vote,
            meta,
            file,
            path,
            snapshots: self.inner.snapshots.clone(),
            bytes: 0,
        })
    }

    /// Installs a snapshot that has arrived.
    pub(crate) async fn install(&self, incoming: Incoming) -> Result<Vec<u8>, Status> {
        let checked = tokio::task::spawn_blocking(move || incoming.finish()).await;
        let (vote, snapshot) = checked.map_err(|error| Status::internal(error.to_string()))??;
        answer(self.inner.raft.install_full_snapshot(vote, snapshot).await)
    }
}

impl Incoming {
    /// Adds a piece. Blocking, but only as long as a write to memory.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<(), Status> {
        self.bytes += bytes.len() as u64;
        if self.bytes > SNAPSHOT_BYTES_MAX {
            return Err(Status::resource_exhausted("the snapshot is too large"));
        }
        self.file.write_all(bytes).map_err(broken)
    }

    /// Checks that it is whole, of this cluster, and what it says it is.
    fn finish(self) -> Result<(Vote, super::types::Snapshot), Status> {
        let file = self.file.try_clone().map_err(broken)?;
        let snapshot = SnapshotFile::of(file);
        let meta = self.snapshots.check(&snapshot).map_err(|error| {
            refused(
                &codes::cluster::OTHER_CLUSTER,
                &format!("the snapshot is refused: {error}"),
            )
        })?;
        if meta.signature() != self.meta.signature() {
            return Err(Status::invalid_argument(
                "the snapshot is not what its head says",
            ));
        }
        let meta = self.meta.clone();
        Ok((self.vote, super::types::Snapshot { meta, snapshot }))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // The open file lives on as long as somebody reads it; a start removes what is left.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, file = %self.path.display(), "a received snapshot is left over");
        }
    }
}

/// Returns the cluster that an envelope names.
pub(crate) fn cluster_of(bytes: &[u8]) -> Option<ClusterId> {
    let bytes = bytes.try_into().ok()?;
    Some(ClusterId(u128::from_be_bytes(bytes)))
}

/// Makes the refusal of a peer. It must not be tried again unchanged.
pub(crate) fn refused(explanation: &'static Explanation, what: &str) -> Status {
    let coded = status(explanation.code, what, explanation.next);
    let mut refused = Status::failed_precondition(coded.message());
    *refused.metadata_mut() = coded.metadata().clone();
    refused
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Status> {
    from_bytes(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn answer<T: Serialize, E: std::fmt::Display>(answer: Result<T, E>) -> Result<Vec<u8>, Status> {
    let answer = answer.map_err(|error| Status::unavailable(error.to_string()))?;
    to_bytes(&answer).map_err(broken)
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err wants"
)]
fn broken(error: io::Error) -> Status {
    Status::internal(error.to_string())
}
