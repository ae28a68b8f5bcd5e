//! Talking to the nodes of a `dev` cluster over gRPC, as every user does.

use std::{net::SocketAddr, time::Duration};

use pgcapture_engine::codes;
use pgcapture_proto::admin::v1::{
    AddReplicaRequest, AddSourceRequest, GetNodeRequest, RemoveSourceRequest, ReplicaDefinition,
    SourceDefinition, admin_client::AdminClient, check::Severity, replicas_client::ReplicasClient,
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::cli::Failure;

/// A call on loopback that takes longer is made again.
const CALL_MAX: Duration = Duration::from_secs(10);

/// Pause between two looks at a node that starts: nothing announces that it listens.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A cluster that has just begun elects a leader within this time; orders are repeated until then.
const ORDER_MAX: Duration = Duration::from_secs(30);

/// Waits until a node says that it is ready.
///
/// # Errors
///
/// When `is_alive` says that its process has ended.
pub(super) async fn wait_ready(
    address: SocketAddr,
    is_alive: impl Fn() -> bool,
) -> Result<(), String> {
    loop {
        if let Ok(channel) = connect(address).await {
            let asked = AdminClient::new(channel).get_node(GetNodeRequest {}).await;
            if asked.is_ok_and(|node| node.into_inner().ready) {
                return Ok(());
            }
        }
        if !is_alive() {
            return Err("has ended before it was ready".to_owned());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Connects to a node.
pub(in crate::cli) async fn connect(address: SocketAddr) -> Result<Channel, Failure> {
    let unreachable = |error: tonic::transport::Error| {
        let text = format!("cannot reach {address}: {error}");
        Failure::new(6, &codes::node::UNREACHABLE, text)
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(unreachable)?;
    let endpoint = endpoint.timeout(CALL_MAX).connect_timeout(CALL_MAX);
    endpoint.connect().await.map_err(unreachable)
}

/// Captures a database.
pub(in crate::cli) async fn add_source(
    address: SocketAddr,
    definition: SourceDefinition,
) -> Result<(), Failure> {
    let client = AdminClient::new(connect(address).await?);
    let add = async || {
        let definition = Some(definition.clone());
        let request = AddSourceRequest { definition };
        client.clone().add_source(request).await.map(drop)
    };
    insist(add).await
}

/// Drops a source with its slot and publication.
pub(in crate::cli) async fn remove_source(address: SocketAddr, name: &str) -> Result<(), Failure> {
    let client = AdminClient::new(connect(address).await?);
    let remove = async || {
        let name = name.to_owned();
        let request = RemoveSourceRequest {
            name,
            ..RemoveSourceRequest::default()
        };
        client.clone().remove_source(request).await.map(drop)
    };
    insist(remove).await
}

/// Registers where existing rows are read from.
pub(in crate::cli) async fn add_replica(
    address: SocketAddr,
    definition: ReplicaDefinition,
) -> Result<(), Failure> {
    let client = ReplicasClient::new(connect(address).await?);
    let mut failed = None;
    let add = async || {
        let request = AddReplicaRequest {
            definition: Some(definition.clone()),
            dry_run: false,
        };
        let added = client.clone().add_replica(request).await?.into_inner();
        let mut checks = added.checks.into_iter();
        failed = match added.replica {
            Some(_) => None,
            None => checks.find(|check| check.severity() == Severity::Error),
        };
        Ok(())
    };
    insist(add).await?;
    match failed {
        None => Ok(()),
        Some(check) => Err(Failure {
            exit: 1,
            code: check.code,
            text: format!("replica {}: {}", definition.name, check.text),
            next: check.next,
        }),
    }
}

/// Gives an order again while the cluster cannot take it yet.
async fn insist(mut order: impl AsyncFnMut() -> Result<(), Status>) -> Result<(), Failure> {
    let deadline = tokio::time::Instant::now() + ORDER_MAX;
    loop {
        let Err(status) = order().await else {
            return Ok(());
        };
        let is_over = tokio::time::Instant::now() >= deadline;
        if is_over || !matches!(status.code(), Code::Unavailable | Code::Cancelled) {
            return Err(Failure::from(status));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
