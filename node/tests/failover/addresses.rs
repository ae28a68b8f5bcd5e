//! Addresses that nobody listens at: peers must know them before a node does.

use std::net::TcpListener;

/// So many addresses of this machine that are free now.
pub(crate) fn free_addresses(count: usize) -> Vec<String> {
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let addresses = listeners.iter().map(|it| it.local_addr().unwrap());
    addresses.map(|address| address.to_string()).collect()
}
