//! Looks whether anybody listens where a node was.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use pgcapture_actors::consensus::Consensus;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use super::Book;

/// A connection that is neither taken nor refused within this time proves nothing.
const PROBE_MAX: Duration = Duration::from_millis(300);

/// A process that dies closes its sockets one after the other: its listener may take connections for
/// a moment after others broke. So a connection that is taken is tried again, this often.
const PROBES: u32 = 5;

/// Pause between two of them; the sockets of a process are closed within a few milliseconds.
const PROBE_PAUSE: Duration = Duration::from_millis(20);

/// Enters a node as gone if nobody listens at its address. A connection that is taken, or a host
/// that is silent, proves nothing.
pub async fn look_for(consensus: &dyn Consensus, book: &Book, node: &str) {
    let state = Arc::clone(&consensus.state().borrow());
    let Some(known) = state.nodes.get(node) else {
        return;
    };
    let address = &known.address;
    for _ in 0..PROBES {
        match timeout(PROBE_MAX, TcpStream::connect(address)).await {
            Ok(Err(error)) => {
                tracing::warn!(node, address, %error, "a node is gone: nobody listens there");
                return book.gone(node);
            }
            Ok(Ok(_)) => sleep(PROBE_PAUSE).await,
            Err(_) => return,
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
