//! Whether all nodes were told the same of each other.
//!
//! A node that starts asks every other one of its list once; who is silent is asked again. What differs is
//! told with its place and what to do; nothing else depends on it once there is a cluster.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use pgcapture_engine::{
    codes,
    membership::{Difference, Told, differences},
};
use pgcapture_proto::peer::v1::IdentifyResponse;

use super::join::{Wish, identify};
use crate::peers::Peers;

/// Who is silent is asked again after this time: a node that is started later is seen soon, and one that
/// is gone for good costs nothing.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Compares with one peer's answer.
pub(super) fn with(wish: &Wish, listed: &str, answer: IdentifyResponse) -> Vec<Difference> {
    let theirs = Told {
        address: answer.address,
        peers: answer.peers,
    };
    differences(&wish.told(), listed, &theirs)
}

/// Tells what differs before there is a cluster: nobody begins one.
pub(super) fn tell(found: &[Difference]) {
    let differ = &codes::cluster::PEERS_DIFFER;
    for difference in found {
        tracing::error!(
            code = differ.code,
            next = differ.next,
            "no cluster is begun: {difference}"
        );
    }
}

/// Asks every other node of the list once, and tells what differs from what this node was told. Returns
/// when all have answered.
pub async fn compare_peers(wish: &Wish, peers: &Peers) -> Vec<Difference> {
    let others = wish.peers.iter().filter(|it| **it != wish.address);
    let mut silent: BTreeSet<String> = others.cloned().collect();
    let mut all = Vec::new();
    while !silent.is_empty() {
        let asked: Vec<_> = silent.iter().cloned().collect();
        let answers = asked
            .iter()
            .map(|address| identify(address, wish, None, peers));
        for (address, answer) in asked.iter().zip(join_all(answers).await) {
            let Ok(answer) = answer else { continue };
            silent.remove(address);
            let mut found = with(wish, address, answer);
            found.retain(|difference| !difference.is_about_beginning());
            let differ = &codes::cluster::PEERS_DIFFER;
            for difference in &found {
                tracing::warn!(code = differ.code, next = differ.next, "{difference}");
            }
            all.append(&mut found);
        }
        if !silent.is_empty() {
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
    all
}
