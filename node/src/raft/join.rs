//! How a node comes to its cluster.
//!
//! A node with data, or without peers, is a member or begins a cluster of its own. A node with an empty
//! data directory and a list of peers asks them who they are. When one belongs to a cluster, it asks
//! that cluster's leader to be let in. When none does, the first of the list begins the cluster, but
//! only once every other one has answered that it waits too: one that is silent may belong to a
//! cluster, of which there must not be two. Nodes that were told different lists wait as well.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::join_all;
use pgcapture_actors::consensus::Consensus as _;
use pgcapture_engine::{
    cluster::{Command, Node, Spoken},
    codes,
    lsn::PgTime,
    membership::{Difference, Told},
};
use pgcapture_proto::peer::v1::{
    IdentifyRequest, IdentifyResponse, JoinRequest, join_response, raft_client::RaftClient,
};
use tonic::{Code, Status};

use super::{
    Door, RaftConsensus, RaftError, bootstrap, compare,
    network::within,
    propose::PROPOSE_MAX,
    serve::cluster_of,
    types::{from_bytes, to_bytes},
};
use crate::{
    peers::Peers,
    store::{Identity, LogWrite, Mark, Store, StoreError},
    tls,
};

/// A peer that does not answer within this time is silent for now.
const IDENTIFY_MAX: Duration = Duration::from_millis(500);

/// A node that comes back waits this long for one that may refuse it; where nobody listens, not at all.
const RECOVERED_MAX: Duration = Duration::from_secs(1);

/// Pause between two rounds of asking.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// What waits for peers is told this often: after this many rounds.
const ROUNDS_TOLD: u32 = 50;

/// What a node knows of its cluster before it belongs to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Its name.
    pub name: String,
    /// Where others reach it: `host:port`.
    pub address: String,
    /// The nodes that begin the cluster, or any of a cluster; `host:port`.
    pub peers: Vec<String>,
}

impl Wish {
    /// What others are shown of it.
    pub(crate) fn told(&self) -> Told {
        Told {
            address: self.address.clone(),
            peers: self.peers.clone(),
        }
    }
}

/// What a round of asking found.
enum Found {
    /// Leaders, and members that may know them, of a cluster.
    Cluster(Vec<String>),
    /// All others wait.
    AllWait,
    /// Nobody belongs to a cluster, and none may be begun.
    NotYet {
        /// Who does not answer.
        silent: Vec<String>,
        /// Why one of them does not, when it is for a certificate.
        distrust: Option<String>,
        /// How others were told something else than this node.
        differ: Vec<Difference>,
    },
}

/// Brings a store to its cluster, and tells it to whoever asks at the door. Returns at once when it
/// belongs to one; waits for the peers otherwise, for as long as it takes.
///
/// # Errors
///
/// [`RaftError`]: when the cluster refuses this node, or the store is another node's.
pub async fn enter(
    store: &Store,
    wish: &Wish,
    peers: &Peers,
    door: &Door,
) -> Result<(), RaftError> {
    if let Some(identity) = store.identity()? {
        let identity = named(store, identity, wish)?;
        return check_recovered(store, &identity, wish, peers).await;
    }
    find(store, wish, peers, door).await?;
    if let Some(identity) = store.identity()? {
        door.belongs_to(identity.cluster);
    }
    Ok(())
}

/// Makes a store that belongs to no cluster a member of one.
async fn find(store: &Store, wish: &Wish, peers: &Peers, door: &Door) -> Result<(), RaftError> {
    let others: Vec<String> = wish
        .peers
        .iter()
        .filter(|it| **it != wish.address)
        .cloned()
        .collect();
    if others.is_empty() || !store.is_empty() {
        return bootstrap(store, &wish.name, &wish.address);
    }
    let is_first = wish.peers.first() == Some(&wish.address);
    let mut round = 0;
    loop {
        match ask_all(&others, wish, peers).await? {
            Found::Cluster(members) => {
                if join(store, wish, peers, &members, door.spoken()).await? {
                    return Ok(());
                }
            }
            Found::AllWait if is_first => {
                tracing::info!("all peers wait; this node begins the cluster");
                return bootstrap(store, &wish.name, &wish.address);
            }
            Found::AllWait => {}
            Found::NotYet {
                silent,
                distrust,
                differ,
            } => {
                if round % ROUNDS_TOLD == 0 {
                    compare::tell(&differ);
                    tell_silent(&silent, distrust.as_deref());
                }
            }
        }
        round += 1;
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn tell_silent(silent: &[String], distrust: Option<&str>) {
    if silent.is_empty() {
        return;
    }
    let silent = silent.join(", ");
    if let Some(reason) = distrust {
        let untrusted = &codes::config::UNTRUSTED;
        tracing::error!(code = untrusted.code, next = untrusted.next, %silent, reason, "peers and this node do not trust each other");
    } else {
        let missing = &codes::cluster::NOT_JOINED;
        tracing::warn!(code = missing.code, next = missing.next, %silent, "waiting for peers");
    }
}

/// A node keeps its name; only one that was always alone may be called something else. Its store is told
/// the new name, also when the agreed state has it already, since companions may have come in between.
fn named(store: &Store, identity: Identity, wish: &Wish) -> Result<Identity, RaftError> {
    let state = Arc::clone(&store.state().borrow());
    let me = state.nodes.values().find(|node| node.id == identity.id);
    // What the cluster calls it: the name in the store may be an older one.
    let found = me.map_or_else(|| identity.name.clone(), |me| me.name.clone());
    let is_alone = state.last_node <= 1;
    if found != wish.name && !is_alone {
        return Err(RaftError::Store(StoreError::OtherNode {
            found,
            wanted: wish.name.clone(),
        }));
    }
    if identity.name == wish.name {
        return Ok(identity);
    }
    let renamed = Identity {
        name: wish.name.clone(),
        ..identity
    };
    store.become_member(&renamed, None, &[])?;
    Ok(renamed)
}

/// A node that comes back asks the others once whether the cluster has gone on without it: with two of
/// its kind it would find a majority of the cluster that was. Who is silent says nothing.
async fn check_recovered(
    store: &Store,
    identity: &Identity,
    wish: &Wish,
    peers: &Peers,
) -> Result<(), RaftError> {
    let state = Arc::clone(&store.state().borrow());
    let known = state.nodes.values().filter(|node| node.id != identity.id);
    let mut others: BTreeSet<&str> = known.map(|node| node.address.as_str()).collect();
    others.extend(wish.peers.iter().map(String::as_str));
    others.remove(wish.address.as_str());
    let asked = others
        .into_iter()
        .map(|address| identify(address, wish, Some(identity), peers));
    let answers = join_all(asked).await;
    let mut refusals = answers.iter().filter_map(|answer| answer.as_ref().err());
    let is_recovered =
        |error: &&Status| error.message().starts_with(codes::cluster::RECOVERED.code);
    refusals
        .find(is_recovered)
        .map_or(Ok(()), |error| Err(refusal(error)))
}

impl RaftConsensus {
    /// Tells the others this node's name and address when they changed. A node whose address the others
    /// do not know yet is told so in the log, and goes on.
    ///
    /// # Errors
    ///
    /// When the node was removed.
    pub async fn introduce(&self, wish: &Wish) -> Result<(), RaftError> {
        let identity = self.identity();
        let state = self.state();
        let known = state
            .borrow()
            .nodes
            .values()
            .find(|node| node.id == identity.id)
            .cloned();
        if known.is_none() && !self.is_alone() {
            return Err(RaftError::Coded {
                explanation: &codes::cluster::REMOVED,
                text: format!("node \"{}\" was removed from its cluster", identity.name),
            });
        }
        let is_new = |node: &Node| node.name != wish.name || node.address != wish.address;
        if known.as_ref().is_some_and(|node| !is_new(node)) {
            return Ok(());
        }
        let mut commands = Vec::new();
        if let Some(old) = known.as_ref().filter(|node| node.name != wish.name) {
            let name = old.name.clone();
            commands.push(Command::RemoveNode { name });
        }
        let joined_at = known.map_or(PgTime(0), |node| node.joined_at);
        commands.push(Command::AddNode(Node {
            name: wish.name.clone(),
            id: identity.id,
            address: wish.address.clone(),
            joined_at,
        }));
        for command in commands {
            if let Err(error) = self.propose(command).await {
                tracing::warn!(%error, "the others do not know this node's address yet");
            }
        }
        Ok(())
    }
}

async fn ask_all(others: &[String], wish: &Wish, peers: &Peers) -> Result<Found, RaftError> {
    let asked = others
        .iter()
        .map(|address| identify(address, wish, None, peers));
    let answers = join_all(asked).await;
    judge(wish, others.iter().zip(answers))
}

/// Says what the answers of all other nodes of the list mean.
fn judge<'a>(
    wish: &Wish,
    answers: impl Iterator<Item = (&'a String, Result<IdentifyResponse, Status>)>,
) -> Result<Found, RaftError> {
    let (mut members, mut silent, mut differ) = (Vec::new(), Vec::new(), Vec::new());
    let mut distrust = None;
    for (address, answer) in answers {
        match answer {
            Ok(answer) if !answer.cluster.is_empty() => {
                if !answer.leader.is_empty() {
                    members.insert(0, answer.leader);
                }
                members.push(address.clone());
            }
            Ok(answer) => differ.extend(compare::with(wish, address, answer)),
            Err(error) if error.code() == Code::FailedPrecondition => return Err(refusal(&error)),
            Err(error) => {
                silent.push(address.clone());
                distrust = distrust.or_else(|| tls::distrust(&error));
            }
        }
    }
    Ok(if !members.is_empty() {
        Found::Cluster(members)
    } else if silent.is_empty() && differ.is_empty() {
        Found::AllWait
    } else {
        Found::NotYet {
            silent,
            distrust,
            differ,
        }
    })
}

pub(super) async fn identify(
    address: &str,
    wish: &Wish,
    member: Option<&Identity>,
    peers: &Peers,
) -> Result<IdentifyResponse, Status> {
    let limit = member.map_or(IDENTIFY_MAX, |_| RECOVERED_MAX);
    let cluster = member.map_or_else(Vec::new, |it| it.cluster.0.to_be_bytes().to_vec());
    let request = IdentifyRequest {
        // Answered to everybody.
        protocol: Spoken::OURS.oldest,
        name: wish.name.clone(),
        cluster: cluster.into(),
    };
    let channel = peers.channel(address);
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    within(limit, RaftClient::new(channel).identify(request)).await
}

/// Asks members to be let in, leaders first; tells whether one did.
async fn join(
    store: &Store,
    wish: &Wish,
    peers: &Peers,
    members: &[String],
    spoken: Spoken,
) -> Result<bool, RaftError> {
    let request = request_of(store)?;
    let mut asked = members.to_vec();
    while let Some(address) = (!asked.is_empty()).then(|| asked.remove(0)) {
        let request = JoinRequest {
            protocol: spoken.oldest,
            name: wish.name.clone(),
            address: wish.address.clone(),
            request: request.to_vec().into(),
            newest: spoken.newest,
        };
        let Ok(channel) = peers.channel(&address) else {
            continue;
        };
        let mut rpc = RaftClient::new(channel);
        match within(PROPOSE_MAX, rpc.join(request))
            .await
            .map(|answer| answer.end)
        {
            Ok(Some(join_response::End::Joined(joined))) => {
                let cluster = cluster_of(&joined.cluster);
                let identity = Identity {
                    cluster: cluster.ok_or_else(|| RaftError::broken("a cluster of no name"))?,
                    id: joined.id,
                    name: wish.name.clone(),
                };
                store.become_member(&identity, None, &[])?;
                tracing::info!(cluster = %identity.cluster, id = identity.id, "joined");
                return Ok(true);
            }
            Err(error) if error.code() == Code::FailedPrecondition => return Err(refusal(&error)),
            Ok(Some(join_response::End::NotLeader(_)) | None) => {}
            Err(error) => {
                tracing::debug!(%address, %error, "a member did not let this node in yet");
            }
        }
    }
    Ok(false)
}

/// Returns what makes asking to be let in harmless when it is done twice: it survives a crash between
/// being let in and knowing it.
fn request_of(store: &Store) -> Result<[u8; 16], RaftError> {
    if let Some(bytes) = store.mark(Mark::Joining)? {
        return Ok(from_bytes(&bytes)?);
    }
    let request: [u8; 16] = rand::random();
    store.write_log(&[LogWrite::Set(Mark::Joining, to_bytes(&request)?)])?;
    Ok(request)
}

/// Turns a peer's refusal into our own error, with the peer's code.
fn refusal(error: &Status) -> RaftError {
    let message = error.message();
    let coded = message.split_once(": ");
    let explanation = coded.and_then(|(code, _)| codes::find(code));
    let text = match (explanation, coded) {
        (Some(_), Some((_, text))) => text,
        _ => message,
    };
    let text = text.rsplit_once("; next: ").map_or(text, |(text, _)| text);
    RaftError::Coded {
        explanation: explanation.unwrap_or(&codes::cluster::NOT_JOINED),
        text: text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> Wish {
        Wish {
            name: "n1".to_owned(),
            address: "a:1".to_owned(),
            peers: vec!["a:1".to_owned(), "b:1".to_owned()],
        }
    }

    fn answer(peers: &[&str]) -> IdentifyResponse {
        IdentifyResponse {
            address: "b:1".to_owned(),
            peers: peers.iter().map(|peer| (*peer).to_owned()).collect(),
            ..IdentifyResponse::default()
        }
    }

    fn judged(answer: Result<IdentifyResponse, Status>) -> Found {
        judge(&wish(), std::iter::once((&"b:1".to_owned(), answer))).unwrap()
    }

    #[test]
    fn a_cluster_is_begun_only_when_all_wait_with_the_same_list() {
        let same = judged(Ok(answer(&["a:1", "b:1"])));
        assert!(matches!(same, Found::AllWait));
        // Both would be the first.
        for list in [&["b:1", "a:1"][..], &["a:1", "b:1", "c:1"], &[]] {
            let Found::NotYet { silent, differ, .. } = judged(Ok(answer(list))) else {
                panic!("{list:?}")
            };
            assert_eq!((silent.len(), differ.len()), (0, 1));
        }
        let Found::NotYet { silent, .. } = judged(Err(Status::unavailable("away"))) else {
            panic!("nobody answers")
        };
        assert_eq!(silent, ["b:1"]);
    }

    #[test]
    fn a_cluster_that_is_there_is_joined_whatever_its_list_says() {
        let member = IdentifyResponse {
            cluster: vec![1; 16].into(),
            leader: "c:1".to_owned(),
            ..answer(&["c:1"])
        };
        let Found::Cluster(members) = judged(Ok(member)) else {
            panic!("a member")
        };
        assert_eq!(members, ["c:1", "b:1"]);
    }
}
