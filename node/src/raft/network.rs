//! Calling other members: what openraft sends, and what this node asks for itself.
//!
//! All calls to a node share its one connection (`crate::peers`) and have a deadline. A node of
//! another cluster or protocol refuses them; that is told, and counts as out of reach.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use openraft::{
    RaftNetworkFactory,
    errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{RPCOption, RPCTypes, v2::RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use pgcapture_engine::{
    cluster::{Outcome, Spoken},
    codes,
};
use pgcapture_proto::peer::v1::{
    Envelope, NotLeader, ProposeRequest, RaftMessage, ReadIndexRequest, SnapshotPiece,
    propose_response, raft_client::RaftClient, read_index_response,
};
use serde::{Serialize, de::DeserializeOwned};
use tonic::{Request, Response, Status};

use super::{
    propose::PROPOSE_MAX,
    protocol::Speech,
    snapshot::SnapshotFile,
    types::{LogId, Peer, Snapshot, SnapshotMeta, Types, Vote, from_bytes, to_bytes},
};
use crate::{
    peers::{PeerChannel, Peers},
    store::Identity,
    tls,
};

/// A message between nodes is at most this long: entries of one append, at most one of which may
/// be as long as an entry may.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Length of a piece of a snapshot.
const PIECE_BYTES: usize = 512 << 10;

/// Pieces of a snapshot that wait for the network.
const PIECES_MAX: usize = 2;

/// Entries must be on a follower's disk within this time, or they are sent again.
const APPEND_MAX: Duration = Duration::from_secs(1);

/// Connections of openraft.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    identity: Identity,
    peers: Peers,
    speech: Speech,
}

impl Network {
    pub(super) const fn new(identity: Identity, peers: Peers, speech: Speech) -> Self {
        Self {
            identity,
            peers,
            speech,
        }
    }

    /// The way to one member.
    pub(super) fn client(&self, target: u64, node: &Peer) -> Client {
        Client {
            to: target,
            address: node.address.clone(),
            network: self.clone(),
            is_told: Arc::default(),
        }
    }

    /// All versions of the protocol that this node takes.
    pub(super) const fn spoken(&self) -> Spoken {
        self.speech.spoken()
    }

    /// The version in which it speaks now.
    pub(super) fn said(&self) -> u32 {
        self.speech.said()
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &Peer) -> Client {
        self.client(target, node)
    }
}

/// The way to one member. Makes no connection before the first call.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    to: u64,
    address: String,
    network: Network,
    /// Whether a refusal was told.
    is_told: Arc<AtomicBool>,
}

/// How a forwarded proposal ended.
pub(crate) enum Forwarded {
    /// It was agreed on, or refused.
    Done {
        /// How it ended.
        outcome: Outcome,
        /// Its place in the log.
        index: u64,
    },
    /// Somebody else leads.
    NotLeader,
    /// It could not be kept.
    Failed(String),
}

impl Client {
    pub(super) fn rpc(&self) -> Result<RaftClient<PeerChannel>, Status> {
        let channel = self.network.peers.channel(&self.address);
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(RaftClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// What stands before a message that is sent now.
    pub(super) fn envelope(&self) -> Envelope {
        let identity = &self.network.identity;
        Envelope {
            protocol: self.network.said(),
            cluster: identity.cluster.0.to_be_bytes().to_vec().into(),
            from: identity.id,
            to: self.to,
        }
    }

    /// Asks the leader to have a change agreed on.
    pub(super) async fn propose(&self, request: &[u8]) -> Result<Forwarded, Status> {
        let request = ProposeRequest {
            envelope: Some(self.envelope()),
            request: request.to_vec().into(),
        };
        let mut rpc = self.rpc()?;
        let answer = within(PROPOSE_MAX, rpc.propose(request)).await?;
        match answer.end {
            Some(propose_response::End::Done(done)) => Ok(Forwarded::Done {
                outcome: from_bytes(&done.outcome).map_err(unreadable)?,
                index: done.index,
            }),
            Some(propose_response::End::Failed(reason)) => Ok(Forwarded::Failed(reason)),
            Some(propose_response::End::NotLeader(NotLeader { .. })) | None => {
                Ok(Forwarded::NotLeader)
            }
        }
    }

    /// Asks the leader up to where everything is agreed on; `None` when it does not lead.
    pub(super) async fn read_index(&self) -> Result<Option<u64>, Status> {
        let request = ReadIndexRequest {
            envelope: Some(self.envelope()),
        };
        let mut rpc = self.rpc()?;
        let answer = within(PROPOSE_MAX, rpc.read_index(request)).await?;
        Ok(match answer.end {
            Some(read_index_response::End::Index(index)) => Some(index),
            Some(read_index_response::End::NotLeader(_)) | None => None,
        })
    }

    fn message<T: Serialize>(&self, body: &T) -> Result<RaftMessage, Status> {
        Ok(RaftMessage {
            envelope: Some(self.envelope()),
            body: to_bytes(body).map_err(unreadable)?.into(),
        })
    }

    /// Calls one of the methods whose bodies are openraft's.
    async fn call<T, R, F>(
        &self,
        body: &T,
        limit: Duration,
        method: impl FnOnce(RaftClient<PeerChannel>, RaftMessage) -> F,
    ) -> Result<R, Status>
    where
        T: Serialize,
        R: DeserializeOwned,
        F: Future<Output = Result<Response<RaftMessage>, Status>>,
    {
        let message = self.message(body)?;
        let answer = within(limit, method(self.rpc()?, message)).await?;
        from_bytes(&answer.body).map_err(unreadable)
    }

    /// The same as openraft wants its errors.
    async fn ask<T, R, F>(
        &self,
        body: &T,
        (action, limit): (RPCTypes, Duration),
        method: impl FnOnce(RaftClient<PeerChannel>, RaftMessage) -> F,
    ) -> Result<R, RPCError<Types>>
    where
        T: Serialize,
        R: DeserializeOwned,
        F: Future<Output = Result<Response<RaftMessage>, Status>>,
    {
        let called = self.call(body, limit, method).await;
        called.map_err(|error| self.rpc_failed(&error, action, limit))
    }

    async fn send_snapshot(
        &self,
        vote: &Vote,
        meta: &SnapshotMeta,
        file: SnapshotFile,
    ) -> Result<SnapshotResponse<Types>, Status> {
        let head = to_bytes(&(vote, meta)).map_err(unreadable)?;
        let (pieces, queue) = tokio::sync::mpsc::channel(PIECES_MAX);
        let envelope = self.envelope();
        let read = async move {
            let first = SnapshotPiece {
                envelope: Some(envelope),
                head: head.into(),
                ..SnapshotPiece::default()
            };
            if pieces.send(first).await.is_err() {
                return Ok(());
            }
            let mut offset = 0;
            loop {
                let file = file.clone();
                let piece = move || file.piece(offset, PIECE_BYTES);
                let bytes = tokio::task::spawn_blocking(piece).await;
                let bytes = bytes.map_err(io::Error::other)??;
                offset += bytes.len() as u64;
                let piece = SnapshotPiece {
                    bytes: bytes.into(),
                    ..SnapshotPiece::default()
                };
                if piece.bytes.is_empty() || pieces.send(piece).await.is_err() {
                    return Ok::<_, io::Error>(());
                }
            }
        };
        let mut rpc = self.rpc()?;
        let stream = tokio_stream::wrappers::ReceiverStream::new(queue);
        let (sent, answer) = tokio::join!(read, rpc.install_snapshot(Request::new(stream)));
        sent.map_err(unreadable)?;
        from_bytes(&answer?.into_inner().body).map_err(unreadable)
    }

    fn failed(&self, error: &Status) -> Unreachable<Types> {
        let refused = matches!(
            error.code(),
            tonic::Code::FailedPrecondition | tonic::Code::Unauthenticated
        );
        let distrust = tls::distrust(error);
        // Once is enough: it is tried again and again.
        if let Some(reason) = &distrust
            && !self.is_told.swap(true, Ordering::Relaxed)
        {
            let (address, untrusted) = (&self.address, &codes::config::UNTRUSTED);
            tracing::error!(%address, code = untrusted.code, next = untrusted.next, reason, "a peer and this node do not trust each other");
        }
        if refused && !self.is_told.swap(true, Ordering::Relaxed) {
            let (address, text) = (&self.address, error.message());
            tracing::error!(%address, "a peer refuses this node: {text}");
        }
        Unreachable::from_string(format!("{}: {}", self.address, error.message()))
    }

    fn rpc_failed(&self, error: &Status, action: RPCTypes, limit: Duration) -> RPCError<Types> {
        if error.code() == tonic::Code::DeadlineExceeded {
            return RPCError::Timeout(Timeout {
                action,
                id: self.network.identity.id,
                target: self.to,
                timeout: limit,
            });
        }
        RPCError::Unreachable(self.failed(error))
    }
}

impl RaftNetworkV2<Types> for Client {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        // A heartbeat that is late is as good as none; entries wait for a disk.
        let limit = if rpc.entries.is_empty() {
            option.soft_ttl()
        } else {
            option.soft_ttl().max(APPEND_MAX)
        };
        let asked = (RPCTypes::AppendEntries, limit);
        self.ask(&rpc, asked, |mut client, message| async move {
            client.append_entries(message).await
        })
        .await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let asked = (RPCTypes::Vote, option.soft_ttl());
        self.ask(&rpc, asked, |mut client, message| async move {
            client.vote(message).await
        })
        .await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let asked = (RPCTypes::Vote, option.soft_ttl());
        self.ask(&rpc, asked, |mut client, message| async move {
            client.pre_vote(message).await
        })
        .await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + openraft::OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let sent = self.send_snapshot(&vote, &snapshot.meta, snapshot.snapshot);
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = tokio::time::timeout(option.soft_ttl(), sent) => {
                let sent = sent.unwrap_or_else(|_| Err(late()));
                sent.map_err(|error| StreamingError::Unreachable(self.failed(&error)))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let asked = (RPCTypes::TransferLeader, option.soft_ttl());
        self.ask(&request, asked, |mut client, message| async move {
            client.transfer_leader(message).await
        })
        .await
    }
}

/// Waits for an answer as long as it may take.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    let answer = tokio::time::timeout(limit, call).await;
    answer
        .unwrap_or_else(|_| Err(late()))
        .map(Response::into_inner)
}

fn late() -> Status {
    Status::deadline_exceeded("no answer in time")
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err wants"
)]
fn unreadable(error: io::Error) -> Status {
    Status::internal(error.to_string())
}

/// The last entry of a log as bytes; empty when there is none.
pub(crate) fn log_id_bytes(id: Option<LogId>) -> Vec<u8> {
    id.and_then(|id| to_bytes(&id).ok()).unwrap_or_default()
}
