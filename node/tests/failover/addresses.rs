//! Addresses that nobody listens at: peers must know them before a node does.

use std::{net::TcpListener, ops::Range};

/// Below those that the system gives to whoever connects somewhere: one that is free now stays so until the
/// node that is told of it listens there, unless another test draws the same.
const PORTS: Range<u16> = 20_000..32_000;

/// So many addresses of this machine that are free now.
pub(crate) fn free_addresses(count: usize) -> Vec<String> {
    let mut held = Vec::new();
    while held.len() < count {
        // Others are as good as one that is taken.
        held.extend(TcpListener::bind(("127.0.0.1", rand::random_range(PORTS))));
    }
    let addresses = held.iter().map(|it| it.local_addr().unwrap());
    addresses.map(|address| address.to_string()).collect()
}
