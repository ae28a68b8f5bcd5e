//! Whom a command asks that names the first node of a running `dev`: all of its nodes, in turn.
//!
//! The socket of that `dev` tells who runs. Where there is none, or it does not answer, the address means
//! what it says.

use std::{net::SocketAddr, path::Path, time::Duration};

use super::control::{self, NodeView, Request};

/// The answer is in the memory of `dev`; one that is busy with a node is not waited for.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// Returns the running nodes of the `dev` whose first node listens at an endpoint, as an endpoint.
pub(in crate::cli) async fn every_node(endpoint: &str) -> Option<String> {
    let path = control::path(port_of(endpoint)?);
    every_node_at(&path).await
}

async fn every_node_at(socket: &Path) -> Option<String> {
    if !socket.exists() {
        return None;
    }
    let answer = control::ask(socket, &Request::Status, ANSWER_MAX).await;
    let (_, nodes) = answer.ok()?.into_result().ok()?;
    running(&nodes)
}

/// The port of one address on this machine.
fn port_of(endpoint: &str) -> Option<u16> {
    let address = endpoint.strip_prefix("http://").unwrap_or(endpoint);
    let address: SocketAddr = address.trim_end_matches('/').parse().ok()?;
    address.ip().is_loopback().then_some(address.port())
}

fn running(nodes: &[NodeView]) -> Option<String> {
    let running = nodes.iter().filter(|node| node.is_running());
    let endpoints: Vec<&str> = running.map(|node| node.endpoint.as_str()).collect();
    (!endpoints.is_empty()).then(|| endpoints.join(","))
}

#[cfg(test)]
mod tests {
    use super::{super::control::NodeState, *};

    fn node(number: u8, state: NodeState) -> NodeView {
        NodeView {
            node: number,
            name: format!("n{number}"),
            state,
            endpoint: format!("127.0.0.1:770{number}"),
            metrics_url: String::new(),
            pid: None,
            cut_off_from: Vec::new(),
        }
    }

    #[test]
    fn those_that_run_are_asked_in_turn() {
        let nodes = [
            node(1, NodeState::Dead),
            node(2, NodeState::Running),
            node(3, NodeState::Paused),
            node(4, NodeState::Running),
        ];
        let asked = running(&nodes);
        assert_eq!(asked.as_deref(), Some("127.0.0.1:7702,127.0.0.1:7704"));
        assert_eq!(running(&nodes[..1]), None);
    }

    #[test]
    fn only_one_address_on_this_machine_is_that_of_a_dev() {
        assert_eq!(port_of("127.0.0.1:7700"), Some(7700));
        assert_eq!(port_of("http://127.0.0.1:7700/"), Some(7700));
        for other in [
            "10.0.0.1:7700",
            "127.0.0.1:1,127.0.0.1:2",
            "n1:7700",
            "https://127.0.0.1:1",
        ] {
            assert_eq!(port_of(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_nobody_serves_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("dev.sock");
        assert_eq!(every_node_at(&socket).await, None);
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert_eq!(every_node_at(&socket).await, None);
    }
}
