//! Which ports the nodes of a `dev` cluster listen on.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

use rand::Rng as _;

use super::member::Addresses;
use crate::cli::dev::METRICS_OFFSET;

/// Free ports are looked for here: below those that the system hands out to connections, so that
/// none is taken between our look and the start of the node.
const FREE_PORTS: std::ops::Range<u16> = 20_000..30_000;

/// Ports that are tried before the machine counts as full.
const TRIES_MAX: usize = 200;

/// Where the ports come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ports {
    /// From this one upwards; metrics above.
    From(u16),
    /// Any that are free.
    Free,
}

impl Ports {
    /// Returns the addresses of a node, counted from 1.
    ///
    /// # Errors
    ///
    /// When there is no such port, or something listens there.
    pub(super) fn of(self, number: u8) -> io::Result<Addresses> {
        match self {
            Self::From(first) => {
                let listen = first.checked_add(u16::from(number.saturating_sub(1)));
                let metrics = listen.and_then(|port| port.checked_add(METRICS_OFFSET));
                let too_high = || io::Error::other(format!("port {first} is too high"));
                Ok(Addresses {
                    listen: take(listen.ok_or_else(too_high)?)?,
                    metrics: take(metrics.ok_or_else(too_high)?)?,
                })
            }
            Self::Free => {
                let listen = free()?;
                let metrics = loop {
                    let metrics = free()?;
                    if metrics != listen {
                        break metrics;
                    }
                };
                Ok(Addresses { listen, metrics })
            }
        }
    }
}

/// Checks that a port can be listened on.
fn take(port: u16) -> io::Result<SocketAddr> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let told = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
    TcpListener::bind(address).map(|_| address).map_err(told)
}

fn free() -> io::Result<SocketAddr> {
    let mut random = rand::rng();
    let mut tries = (0..TRIES_MAX).map(|_| take(random.random_range(FREE_PORTS)));
    let found = tries.find_map(Result::ok);
    found.ok_or_else(|| io::Error::other(format!("no free port in {FREE_PORTS:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_each_other_and_metrics_lie_above() {
        let first = free().unwrap().port();
        // Another test may have the port beside it: then that is what is told.
        match Ports::From(first).of(2) {
            Ok(addresses) => {
                assert_eq!(addresses.listen.port(), first + 1);
                assert_eq!(addresses.metrics.port(), first + 1 + METRICS_OFFSET);
            }
            Err(error) => assert!(error.to_string().contains("127.0.0.1:"), "{error}"),
        }
    }

    #[test]
    fn a_port_that_is_taken_or_does_not_exist_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = Ports::From(port).of(1).unwrap_err();
        assert!(error.to_string().contains(&port.to_string()), "{error}");
        let error = Ports::From(u16::MAX).of(2).unwrap_err();
        assert!(error.to_string().contains("too high"), "{error}");
    }

    #[test]
    fn free_ports_differ() {
        let addresses = Ports::Free.of(1).unwrap();
        assert_ne!(addresses.listen, addresses.metrics);
        assert!(FREE_PORTS.contains(&addresses.listen.port()));
    }
}
