//! Three nodes in a folder of their own, and what they cost.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::Context as _;
use pgcapture_proto::admin::v1::{GetClusterRequest, cluster_client::ClusterClient};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::NODES;
use crate::cli::{
    bench::{
        measure::{process_cpu, process_resident_mib},
        scratch, told,
    },
    dev::{
        NodeView,
        cluster::{Cluster, api},
    },
};

/// A page of metrics is there within this time, of a thousand sources as well.
const SCRAPE_MAX: Duration = Duration::from_secs(10);

/// Three nodes; they are killed and their folder is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Trio {
    pub(super) cluster: Cluster,
    _folder: tempfile::TempDir,
}

/// What one node costs.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NodeCost {
    /// Its name.
    pub(super) node: String,
    /// Resident memory at the end.
    pub(super) rss_mib: f64,
    /// Processor time, in parts of one core.
    pub(super) cpu_percent: f64,
}

/// What happened while nothing was asked of the nodes.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Window {
    /// Each node.
    pub(super) nodes: Vec<NodeCost>,
    /// Entries that the Raft group agreed on.
    pub(super) proposals_per_second: f64,
    /// Encoded size of the agreed state, without cursors and dumps.
    pub(super) state_bytes: u64,
}

/// What the Raft group has agreed on, as the nodes' metrics say.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Agreed {
    /// The last entry that a node has applied.
    pub(super) applied: u64,
    /// Encoded size of the state.
    pub(super) state_bytes: u64,
}

impl Trio {
    /// Starts the nodes on empty disks.
    pub(super) async fn start(data: &Path) -> anyhow::Result<Self> {
        let folder = scratch(data)?;
        let cluster = Cluster::start_direct(folder.path(), NODES);
        Ok(Self {
            cluster: cluster.await.map_err(told)?,
            _folder: folder,
        })
    }

    /// Where the nodes listen.
    pub(super) fn addresses(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let address = |node: &NodeView| self.cluster.address(node.node).context("a node");
        self.cluster.view().iter().map(address).collect()
    }

    /// Where the first node listens.
    pub(super) fn first(&self) -> anyhow::Result<SocketAddr> {
        self.cluster.address(1).context("the first node")
    }

    /// Name of the node that leads the Raft group.
    pub(super) async fn leader(&self) -> anyhow::Result<String> {
        let mut client = ClusterClient::new(api::connect(self.first()?).await.map_err(told)?);
        let status = client.get_cluster(GetClusterRequest {}).await?;
        Ok(status.into_inner().leader)
    }

    /// Lets the nodes be for a while and returns what they cost.
    pub(super) async fn rest(&self, span: Duration) -> anyhow::Result<Window> {
        let began = tokio::time::Instant::now();
        let before = (self.agreed().await?, self.cpu());
        tokio::time::sleep(span).await;
        let nodes = self.costs(&before.1, began.elapsed());
        let after = self.agreed().await?;
        let proposals = after.applied.saturating_sub(before.0.applied);
        Ok(Window {
            nodes,
            proposals_per_second: proposals as f64 / began.elapsed().as_secs_f64(),
            state_bytes: after.state_bytes,
        })
    }

    /// Processor time of every node that runs.
    pub(super) fn cpu(&self) -> Vec<(u32, Duration)> {
        let nodes = self.cluster.view();
        let processes = nodes.iter().filter_map(|node| node.pid);
        processes.map(|pid| (pid, process_cpu(pid))).collect()
    }

    /// What every node costs now, given its processor time `span` ago.
    pub(super) fn costs(&self, before: &[(u32, Duration)], span: Duration) -> Vec<NodeCost> {
        let nodes = self.cluster.view();
        let costs = nodes.into_iter().filter_map(|node| {
            let pid = node.pid?;
            let (_, before) = before.iter().find(|(before, _)| *before == pid)?;
            let used = process_cpu(pid).saturating_sub(*before);
            Some(NodeCost {
                node: node.name,
                rss_mib: process_resident_mib(&pid.to_string()),
                cpu_percent: used.as_secs_f64() / span.as_secs_f64() * 100.0,
            })
        });
        costs.collect()
    }

    /// What was agreed on so far, as the node that knows most says.
    pub(super) async fn agreed(&self) -> anyhow::Result<Agreed> {
        let mut newest = Agreed::default();
        for node in self.cluster.view() {
            if node.pid.is_none() {
                continue;
            }
            let page = tokio::time::timeout(SCRAPE_MAX, page(&node.metrics_url)).await;
            let page = page.context("the metrics of a node")??;
            let agreed = Agreed {
                applied: metric(&page, "pgcapture_raft_applied_index")?,
                state_bytes: metric(&page, "pgcapture_raft_state_bytes")?,
            };
            if agreed.applied >= newest.applied {
                newest = agreed;
            }
        }
        Ok(newest)
    }
}

/// Fetches a page over HTTP: one request, one answer, and the connection ends.
async fn page(url: &str) -> anyhow::Result<String> {
    let rest = url.strip_prefix("http://").context("a plain url")?;
    let (host, path) = rest.split_once('/').context("a path")?;
    let mut stream = TcpStream::connect(host).await?;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Finds a metric without labels.
fn metric(page: &str, name: &str) -> anyhow::Result<u64> {
    let mut lines = page.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.with_context(|| format!("a node does not tell {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let page = "HTTP/1.1 200 OK\r\n\r\n# TYPE a gauge\na_b 7\na{x=\"1\"} 8\na 9\n";
        assert_eq!(metric(page, "a").unwrap(), 9);
        assert_eq!(metric(page, "a_b").unwrap(), 7);
        assert!(metric(page, "b").is_err());
    }
}
