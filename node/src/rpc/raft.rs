//! `pgcapture.peer.v1.Raft`: what nodes of one cluster ask each other.
//!
//! Unwraps a message, hands it to the member behind the door, and maps the error. It answers before
//! the member is there: then it tells the cluster of this node's store, or that this node waits.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, stream};
use pgcapture_actors::consensus::ProposeError;
use pgcapture_engine::{
    cluster::{Refusal, RequestId, Spoken},
    codes,
    membership::Told,
};
use pgcapture_proto::peer::v1::{
    AttendRequest, AttendResponse, IdentifyRequest, IdentifyResponse, JoinRequest, JoinResponse,
    Joined, LeaderLostRequest, LeaderLostResponse, NotLeader, ProposeDone, ProposeRequest,
    ProposeResponse, RaftMessage, ReadIndexRequest, ReadIndexResponse, SnapshotPiece,
    TransferRequest, TransferResponse, join_response, propose_response, raft_server::Raft,
    read_index_response, transfer_response,
};
use tonic::{Request, Response, Status, Streaming};

pub(crate) use crate::raft::MESSAGE_BYTES_MAX;
use crate::raft::{Call, Door, LetIn, RaftConsensus, cluster_of, refused};

/// The name of the service, for health.
pub const SERVICE_NAME: &str = "pgcapture.peer.v1.Raft";

/// The service.
#[derive(Clone, Debug)]
pub struct RaftService {
    /// What is behind this node's address.
    pub door: Door,
}

impl RaftService {
    fn member(&self) -> Result<RaftConsensus, Status> {
        self.door
            .member()
            .ok_or_else(|| Status::unavailable("the node belongs to no cluster yet, or stops"))
    }

    async fn call(
        &self,
        call: Call,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        let member = self.member()?;
        let message = request.into_inner();
        member.admit(message.envelope.as_ref())?;
        let body = member.call(call, &message.body).await?;
        Ok(Response::new(RaftMessage {
            envelope: None,
            body: body.into(),
        }))
    }
}

fn not_leader(member: &RaftConsensus) -> NotLeader {
    NotLeader {
        address: member.leader_address(),
    }
}

#[tonic::async_trait]
impl Raft for RaftService {
    async fn append_entries(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        self.call(Call::Append, request).await
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        self.call(Call::Vote, request).await
    }

    async fn pre_vote(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        self.call(Call::PreVote, request).await
    }

    async fn transfer_leader(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        self.call(Call::Transfer, request).await
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotPiece>>,
    ) -> Result<Response<RaftMessage>, Status> {
        let member = self.member()?;
        let mut pieces = request.into_inner();
        let first = pieces.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("a snapshot without a head"))?;
        member.admit(first.envelope.as_ref())?;
        let mut incoming = member.receive(&first.head)?;
        while let Some(piece) = pieces.message().await? {
            incoming.add(&piece.bytes)?;
        }
        let body = member.install(incoming).await?;
        Ok(Response::new(RaftMessage {
            envelope: None,
            body: body.into(),
        }))
    }

    async fn propose(
        &self,
        request: Request<ProposeRequest>,
    ) -> Result<Response<ProposeResponse>, Status> {
        let member = self.member()?;
        let request = request.into_inner();
        member.admit_member(request.envelope.as_ref())?;
        let end = match member.propose_bytes(&request.request).await? {
            Ok(Some((outcome, index))) => propose_response::End::Done(ProposeDone {
                outcome: outcome.into(),
                index,
            }),
            Ok(None) => propose_response::End::NotLeader(not_leader(&member)),
            Err(reason) => propose_response::End::Failed(reason),
        };
        Ok(Response::new(ProposeResponse { end: Some(end) }))
    }

    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexResponse>, Status> {
        let member = self.member()?;
        member.admit_member(request.into_inner().envelope.as_ref())?;
        let index = member.read_index_here().await;
        let index = index.map_err(|error| Status::unavailable(error.to_string()))?;
        let end = match index {
            Some(index) => read_index_response::End::Index(index),
            None => read_index_response::End::NotLeader(not_leader(&member)),
        };
        Ok(Response::new(ReadIndexResponse { end: Some(end) }))
    }

    async fn identify(
        &self,
        request: Request<IdentifyRequest>,
    ) -> Result<Response<IdentifyResponse>, Status> {
        let Told { address, peers } = self.door.told().clone();
        let mut answer = IdentifyResponse {
            protocol: self.door.spoken().oldest,
            newest: self.door.spoken().newest,
            name: self.door.name().to_owned(),
            address,
            peers,
            ..IdentifyResponse::default()
        };
        // A node that starts is a member before it can act as one.
        if let Some(cluster) = self.door.cluster() {
            answer.cluster = cluster.0.to_be_bytes().to_vec().into();
        }
        if let Some(member) = self.door.member() {
            member.refuse_former(cluster_of(&request.into_inner().cluster))?;
            answer.leader = member.leader_address();
        }
        Ok(Response::new(answer))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let member = self.member()?;
        let request = request.into_inner();
        let spoken = Spoken::told(request.protocol, request.newest);
        let id = request.request.as_ref().try_into();
        let id = id.map_err(|_| Status::invalid_argument("a request without an id"))?;
        let id = RequestId(u128::from_be_bytes(id));
        let end = match member
            .let_in(&request.name, &request.address, id, spoken)
            .await
        {
            Ok(LetIn::Joined(id)) => join_response::End::Joined(Joined {
                cluster: member.identity().cluster.0.to_be_bytes().to_vec().into(),
                id,
            }),
            Ok(LetIn::Removed) => {
                let what = format!("node \"{}\" was let in and then removed", request.name);
                return Err(refused(&codes::cluster::REMOVED, &what));
            }
            Ok(LetIn::OtherProtocol(agreed)) => {
                let name = &request.name;
                let what = format!(
                    "the cluster has agreed on version {agreed}, node \"{name}\" speaks {spoken}"
                );
                return Err(refused(&codes::cluster::OTHER_PROTOCOL, &what));
            }
            Ok(LetIn::NotLeader) => join_response::End::NotLeader(not_leader(&member)),
            Err(ProposeError::Refused(refusal)) => return Err(join_refused(&refusal)),
            Err(error) => return Err(Status::unavailable(error.to_string())),
        };
        Ok(Response::new(JoinResponse { end: Some(end) }))
    }

    async fn transfer(
        &self,
        request: Request<TransferRequest>,
    ) -> Result<Response<TransferResponse>, Status> {
        let member = self.member()?;
        let request = request.into_inner();
        member.admit_member(request.envelope.as_ref())?;
        let end = if member.transfer_here(&request.name).await {
            transfer_response::End::Begun(true)
        } else {
            transfer_response::End::NotLeader(not_leader(&member))
        };
        Ok(Response::new(TransferResponse { end: Some(end) }))
    }

    type AttendStream = Pin<Box<dyn Stream<Item = Result<AttendResponse, Status>> + Send>>;

    async fn attend(
        &self,
        request: Request<AttendRequest>,
    ) -> Result<Response<Self::AttendStream>, Status> {
        let member = self.member()?;
        member.admit_member(request.into_inner().envelope.as_ref())?;
        let closed = self.door.clone().closed();
        let never = stream::once(closed).filter_map(|()| std::future::ready(None));
        Ok(Response::new(Box::pin(never)))
    }

    async fn leader_lost(
        &self,
        request: Request<LeaderLostRequest>,
    ) -> Result<Response<LeaderLostResponse>, Status> {
        let member = self.member()?;
        let request = request.into_inner();
        member.admit(request.envelope.as_ref())?;
        Ok(Response::new(LeaderLostResponse {
            lost: member.has_lost(request.leader, request.term),
            last_log_id: member.last_log_id().into(),
        }))
    }
}

fn join_refused(refusal: &Refusal) -> Status {
    if let Refusal::NodeExists { name } = refusal {
        let what = format!("{refusal}; if its data is lost: pgcapture cluster remove {name}");
        return refused(&codes::cluster::NAME_TAKEN, &what);
    }
    refused(&codes::cluster::BAD_CHANGE, &refusal.to_string())
}
