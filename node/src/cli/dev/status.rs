//! `pgcapture dev status`: the addresses of a running `dev`, for people and scripts.

use pgcapture_proto::admin::v1::{GetNodeRequest, ListSourcesRequest};
use serde::Serialize;

use crate::cli::{
    Failure, Global, connect,
    output::{self, Column, View},
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

pub(super) async fn run(global: &Global) -> Result<(), Failure> {
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
    };
    Ok(output::one(global, &view)?)
}
