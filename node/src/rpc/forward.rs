//! Requests on any node: what another node must answer is sent there, and its answer given back.
//!
//! A request goes at most one step: it carries a mark, and a node answers a marked one by itself. The
//! other node is asked with the token of the cluster, and for no longer than the caller waits. Who
//! has to answer is read from the agreed state, which may be old: then the other node's own refusal
//! tells. A subscription's books are with one node; when that is gone, this one takes them over.

pub mod admin;
mod at_home;
mod deadline;
pub mod dumps;
mod merge;

use std::{sync::Arc, time::Duration};

use pgcapture_actors::consensus::Consensus;
use pgcapture_engine::{
    cluster::{State, SubscriptionId},
    codes,
};
use pgcapture_proto::{
    admin::v1::{
        admin_client::AdminClient, cluster_client::ClusterClient, dumps_client::DumpsClient,
    },
    status::{CODE_KEY, status},
};
use tonic::{Code, Request, Response, Status, metadata::MetadataValue};

use crate::peers::{PeerChannel, Peers};

/// Marks a request that another node has sent on.
const MARK: &str = "pgcapture-forwarded";

/// A request without a deadline of its own is given up after this time.
const FORWARD_MAX: Duration = Duration::from_secs(30);

/// A part of a list that another node has: a list must not wait for a node that is away.
const PART_MAX: Duration = Duration::from_secs(2);

/// The way to the node that has to answer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Forward {
    /// This node.
    pub node: String,
    /// The way to others.
    pub peers: Peers,
    /// Who they are and what they own.
    pub consensus: Arc<dyn Consensus>,
}

/// Another node that has to answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Its name.
    pub name: String,
    address: String,
}

impl Forward {
    pub(super) fn state(&self) -> Arc<State> {
        Arc::clone(&self.consensus.state().borrow())
    }

    /// Returns who answers for a source; `None`: this node.
    #[must_use]
    pub fn owner<T>(&self, request: &Request<T>, source: &str) -> Option<Target> {
        if is_marked(request) {
            return None;
        }
        self.owner_in(&self.state(), source)
    }

    /// The same for the source of a stream.
    #[must_use]
    pub fn owner_of_stream<T>(&self, request: &Request<T>, stream: &str) -> Option<Target> {
        if is_marked(request) {
            return None;
        }
        let state = self.state();
        let source = state.source_of_stream(stream)?;
        self.owner_in(&state, &source.name)
    }

    /// Returns who keeps the books of a subscription; `None`: this node, or nobody while it has no
    /// session.
    #[must_use]
    pub fn home<T>(&self, request: &Request<T>, id: &SubscriptionId) -> Option<Target> {
        if is_marked(request) {
            return None;
        }
        let state = self.state();
        self.target_in(&state, state.homes.get(id)?)
    }

    /// Returns who leads, and so knows who reads what; `None`: this node, or nobody now.
    #[must_use]
    pub fn leader<T>(&self, request: &Request<T>) -> Option<Target> {
        if is_marked(request) {
            return None;
        }
        let leader = self.consensus.leadership().borrow().leader.clone();
        self.target_in(&self.state(), &leader?)
    }

    pub(super) fn owner_in(&self, state: &State, source: &str) -> Option<Target> {
        self.target_in(state, state.owner(source)?)
    }

    /// Returns a node by name; `None`: this one, or one that is not known.
    pub(super) fn target_in(&self, state: &State, node: &str) -> Option<Target> {
        let known = state.nodes.get(node).filter(|_| node != self.node)?;
        Some(Target {
            name: known.name.clone(),
            address: known.address.clone(),
        })
    }

    /// All nodes but this one.
    pub(super) fn others(&self) -> Vec<Target> {
        let state = self.state();
        let names = state.nodes.keys();
        names
            .filter_map(|name| self.target_in(&state, name))
            .collect()
    }

    /// Has a node answer a request of the administration.
    ///
    /// # Errors
    ///
    /// What it answers; `PGC-N18` when it does not.
    pub(super) async fn admin<T, R, F>(
        &self,
        target: &Target,
        request: Request<T>,
        call: impl FnOnce(AdminClient<PeerChannel>, Request<T>) -> F,
    ) -> Result<Response<R>, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let client = AdminClient::new(self.channel(target)?);
        let answer = call(client, passed_on(request, &self.node)).await;
        answer.map_err(|status| target.away(status))
    }

    /// The same of the administration of the cluster.
    pub(super) async fn cluster<T, R, F>(
        &self,
        target: &Target,
        request: Request<T>,
        call: impl FnOnce(ClusterClient<PeerChannel>, Request<T>) -> F,
    ) -> Result<Response<R>, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let client = ClusterClient::new(self.channel(target)?);
        let answer = call(client, passed_on(request, &self.node)).await;
        answer.map_err(|status| target.away(status))
    }

    /// The same of the administration of dumps.
    pub(super) async fn dumps<T, R, F>(
        &self,
        target: &Target,
        request: Request<T>,
        call: impl FnOnce(DumpsClient<PeerChannel>, Request<T>) -> F,
    ) -> Result<Response<R>, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let client = DumpsClient::new(self.channel(target)?);
        let answer = call(client, passed_on(request, &self.node)).await;
        answer.map_err(|status| target.away(status))
    }

    fn channel(&self, target: &Target) -> Result<PeerChannel, Status> {
        let channel = self.peers.channel(&target.address);
        channel.map_err(|error| target.away(Status::unavailable(error.to_string())))
    }
}

impl Target {
    /// Tells a node that did not answer from one that answered with a refusal: our own refusals
    /// carry their code.
    fn away(&self, answer: Status) -> Status {
        let is_lost = matches!(
            answer.code(),
            Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::Unknown
                | Code::Unimplemented
        );
        if !is_lost || answer.metadata().get(CODE_KEY).is_some() {
            return answer;
        }
        let away = &codes::node::OWNER_AWAY;
        let why = match answer.message() {
            "" => answer.code().description(),
            message => message,
        };
        let what = format!(
            "node {} at {} does not answer: {why}",
            self.name, self.address
        );
        let mut told = status(away.code, what, away.next);
        // Whether the node is proven to be gone stands in the causes.
        told.set_source(Arc::new(answer));
        told
    }
}

/// Tells whether a node that had to answer did not.
pub(super) fn is_away(status: &Status) -> bool {
    let code = status.metadata().get(CODE_KEY);
    code.is_some_and(|code| code.as_bytes() == codes::node::OWNER_AWAY.code.as_bytes())
}

/// Makes a request for a part of a list.
pub(super) fn part<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PART_MAX);
    request
}

/// Tells whether another node has sent the request on.
pub(super) fn is_marked<T>(request: &Request<T>) -> bool {
    request.metadata().get(MARK).is_some()
}

/// Makes the request that goes to the other node. Nothing of the caller's metadata goes with it but
/// the deadline: the token is the cluster's.
fn passed_on<T>(request: Request<T>, node: &str) -> Request<T> {
    let left = deadline::of(request.metadata()).unwrap_or(FORWARD_MAX);
    let mut passed = Request::new(request.into_inner());
    passed.set_timeout(left.min(FORWARD_MAX));
    let mark = MetadataValue::try_from(node);
    let mark = mark.unwrap_or_else(|_| MetadataValue::from_static("a node"));
    passed.metadata_mut().insert(MARK, mark);
    passed
}

#[cfg(test)]
mod tests;
