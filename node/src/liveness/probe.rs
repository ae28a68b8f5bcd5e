//! Looks whether anybody listens where a node was.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use pgcapture_actors::consensus::Consensus;
use tokio::time::sleep;

use super::Book;
use crate::knock::{Knock, knock};

/// A connection that is neither taken nor refused within this time proves nothing.
const PROBE_MAX: Duration = Duration::from_millis(300);

/// A process that dies closes its sockets one after the other: its listener may take connections for
/// a moment after others broke. So a connection that is taken is tried again, this often.
const PROBES: u32 = 5;

/// Pause between two of them; the sockets of a process are closed within a few milliseconds.
const PROBE_PAUSE: Duration = Duration::from_millis(20);

/// How often a node that stops looks whether the others are still there.
const DESERTED_PAUSE: Duration = Duration::from_millis(100);

/// Enters a node as gone if its address refuses connections; nothing else proves it.
pub async fn look_for(consensus: &dyn Consensus, book: &Book, node: &str) {
    let state = Arc::clone(&consensus.state().borrow());
    let Some(known) = state.nodes.get(node) else {
        return;
    };
    let address = &known.address;
    for _ in 0..PROBES {
        match knock(address, PROBE_MAX).await {
            Knock::Refused => {
                tracing::warn!(node, address, "a node is gone: nobody listens there");
                return book.gone(node);
            }
            Knock::Unknown(error) => {
                tracing::debug!(
                    node,
                    address,
                    error,
                    "whether a node is gone cannot be told"
                );
                return;
            }
            Knock::Taken => sleep(PROBE_PAUSE).await,
        }
    }
}

/// Looks for every node. A new leader has no connections that could close: a node that died with the
/// old leader would be missed only for its silence.
pub async fn look_for_all(consensus: &dyn Consensus, book: &Book) {
    let state = Arc::clone(&consensus.state().borrow());
    let looks = state.nodes.keys();
    join_all(looks.map(|node| look_for(consensus, book, node))).await;
}

/// Ends once nobody listens at the address of any other node: nothing can be handed over then. A host
/// that is silent proves nothing.
pub async fn deserted(consensus: &dyn Consensus, node: &str) {
    loop {
        let state = Arc::clone(&consensus.state().borrow());
        let others = state.nodes.values().filter(|other| other.name != node);
        if nobody_listens(others.map(|other| other.address.as_str())).await {
            return;
        }
        sleep(DESERTED_PAUSE).await;
    }
}

async fn nobody_listens(addresses: impl Iterator<Item = &str>) -> bool {
    let looks = addresses.map(|address| knock(address, PROBE_MAX));
    join_all(looks).await.iter().all(Knock::is_refused)
}

#[cfg(test)]
mod tests {
    use pgcapture_engine::cluster::liveness::Life;
    use tokio::net::TcpListener;

    use super::*;
    use crate::liveness::tests::Group;

    /// What a new leader concludes of a node at an address.
    async fn found_at(address: &str) -> Life {
        let group = Group::of(&[("n2", address)]);
        let book = Book::default();
        book.open();
        look_for_all(&group, &book).await;
        book.read(|liveness, now| liveness.life("n2", now)).unwrap()
    }

    #[tokio::test]
    async fn an_address_that_refuses_is_proof_of_death() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert_eq!(found_at(&address).await, Life::Alive);
        drop(listener);
        assert_eq!(found_at(&address).await, Life::Gone);
    }

    #[tokio::test]
    async fn other_failures_prove_nothing() {
        // No address at all, and one that no connection can be made to.
        for address in ["n2", "255.255.255.255:1"] {
            assert_eq!(found_at(address).await, Life::Alive, "{address}");
        }
    }

    #[tokio::test]
    async fn nobody_is_left_once_every_address_refuses() {
        let listeners = [
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        ];
        let addresses = listeners
            .each_ref()
            .map(|listener| listener.local_addr().unwrap().to_string());
        let is_deserted = || nobody_listens(addresses.iter().map(String::as_str));
        assert!(!is_deserted().await);
        let [first, second] = listeners;
        drop(first);
        assert!(!is_deserted().await, "the second one lives");
        drop(second);
        assert!(is_deserted().await);
        assert!(
            nobody_listens(std::iter::empty()).await,
            "there are no others"
        );
    }
}
