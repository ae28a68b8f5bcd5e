//! Free ports for processes that cannot be handed a listener.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result};

/// Returns ports on 127.0.0.1 that were free just now, all different.
///
/// Somebody else may take one before our process binds it; the process then fails to start, which is
/// an error of the harness, never of the product.
///
/// # Errors
///
/// When nothing can be bound.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind a free port")?;
        *port = listener.local_addr().context("read its number")?.port();
        held.push(listener);
    }
    Ok(ports)
}
