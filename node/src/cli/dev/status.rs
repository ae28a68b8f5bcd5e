//! `pgcapture dev status`: the addresses of a running `dev`, for people and scripts.

use pgcapture_proto::admin::v1::{GetNodeRequest, ListSourcesRequest};
use serde::Serialize;

use super::{
    control::{self, NodeView, Request},
    faults::Target,
};
use crate::cli::{
    Failure, Global, connect,
    output::{self, Column, Format, View},
};

#[derive(Debug, Serialize)]
struct DevView {
    endpoint: String,
    metrics_url: String,
    postgres_url: String,
    stream: String,
    slot: String,
    state: String,
    ready: bool,
    version: String,
    /// Those of a cluster.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<NodeView>,
}

impl View for DevView {
    const COLUMNS: &'static [Column] = &[
        ("ENDPOINT", false),
        ("METRICS", false),
        ("POSTGRES", false),
        ("STREAM", false),
        ("SLOT", false),
        ("STATE", false),
        ("READY", false),
        ("VERSION", true),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.endpoint.clone(),
            self.metrics_url.clone(),
            self.postgres_url.clone(),
            self.stream.clone(),
            self.slot.clone(),
            self.state.clone(),
            self.ready.to_string(),
            self.version.clone(),
        ]
    }
}

pub(super) async fn run(global: &Global, target: Target) -> Result<(), Failure> {
    let mut global = global.clone();
    let port = control::port(&global, target.port)?;
    let socket = control::path(port);
    let nodes = if socket.exists() {
        let asked = control::ask(&socket, &Request::Status, global.timeout.0).await?;
        asked.into_result()?.1
    } else {
        Vec::new()
    };
    if !nodes.is_empty() && matches!(global.output, Format::Table | Format::Wide) {
        return Ok(output::list(&global, &nodes)?);
    }
    // A cluster answers as long as one of its nodes does.
    if let Some(node) = nodes.iter().find(|node| node.is_running()) {
        global.endpoint.clone_from(&node.endpoint);
    } else if target.port.is_some() {
        global.endpoint = format!("127.0.0.1:{port}");
    }
    let global = &global;
    let mut client = connect::admin(global).await?;
    let node = client.get_node(GetNodeRequest {}).await?.into_inner();
    let sources = client.list_sources(ListSourcesRequest {}).await?;
    let source = sources.into_inner().sources.into_iter().next();
    let source = source.unwrap_or_default();
    let definition = source.definition.unwrap_or_default();
    let view = DevView {
        endpoint: node.listen,
        metrics_url: format!("http://{}/metrics", node.metrics),
        postgres_url: definition.url,
        stream: definition.stream,
        slot: definition.slot,
        state: source.status.unwrap_or_default().state,
        ready: node.ready,
        version: node.version,
        nodes,
    };
    Ok(output::one(global, &view)?)
}
