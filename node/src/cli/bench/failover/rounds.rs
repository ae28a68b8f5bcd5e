//! One failure after another: make sure that all is well, do it, measure, make it well again.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail};
use pgcapture_proto::admin::v1::{
    ClusterStatus, GetClusterRequest, GetSourceRequest, MoveSourceRequest, Source,
    TransferLeadershipRequest, admin_client::AdminClient, cluster_client::ClusterClient,
};
use tokio::time::Instant;

use super::{How, STREAM, told, watcher::Watcher};
use crate::cli::dev::{
    NodeView,
    cluster::{Cluster, api},
};

/// The next change must come within this time: far beyond what is promised.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// After a failure everything must be well within this time.
const WELL_MAX: Duration = Duration::from_secs(60);

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The nodes, and what is done to them.
#[derive(Debug)]
pub(super) struct Rounds {
    pub(super) cluster: Cluster,
    pub(super) how: How,
    pub(super) is_with_leader: bool,
}

/// Who does what before a failure.
#[derive(Debug)]
struct Roles {
    owner: NodeView,
    /// Where the consumer is: not the owner.
    consumer: SocketAddr,
    /// Who takes the source in a move.
    heir: NodeView,
}

impl Rounds {
    /// Runs one failure; returns which node it hit and how long the consumer waited: after the signal,
    /// or, where the old owner goes on for a while in good order, at most.
    pub(super) async fn run(
        &mut self,
        watcher: &mut Watcher,
    ) -> anyhow::Result<(String, Duration)> {
        let roles = tokio::time::timeout(WELL_MAX, self.roles()).await;
        let roles = roles.context("the cluster does not become healthy")??;
        watcher.move_to(roles.consumer);
        // It consumes there when something new has come.
        let settled = watcher.next_change();
        wait(watcher, settled).await.context("before the failure")?;

        watcher.forget_pauses();
        let next = watcher.next_change();
        let began = Instant::now();
        let number = roles.owner.node;
        let fail = async {
            match self.how {
                How::Kill => self.cluster.kill(number).await.map(drop).map_err(told),
                How::Stop => self.cluster.stop_node(number).await.map(drop).map_err(told),
                How::Move => move_source(roles.consumer, &roles.heir.name).await,
                How::Partition => {
                    let alone = vec![[number].into()];
                    self.cluster.partition(alone).map(drop).map_err(told)
                }
            }
        };
        // The change may come before the order has been answered.
        let (failed, arrived) = tokio::join!(fail, wait(watcher, next));
        failed?;
        let mut waited = arrived?.saturating_duration_since(began);
        if self.how.is_orderly() {
            let moved = self.moved_from(&roles);
            let moved = tokio::time::timeout(WELL_MAX, moved).await;
            moved.context("the source does not move")?;
            let after = watcher.next_change();
            wait(watcher, after).await?;
            waited = watcher.longest_pause();
        }
        match self.how {
            How::Kill | How::Stop => {
                self.cluster.start_node(number).await.map_err(told)?;
            }
            How::Partition => drop(self.cluster.heal()),
            How::Move => (),
        }
        Ok((roles.owner.name, waited))
    }

    /// Waits until another node reads the source.
    async fn moved_from(&self, roles: &Roles) {
        loop {
            let source = source(roles.consumer).await.ok();
            let is_there = source.is_some_and(|source| {
                let state = source.status.map(|status| status.state);
                source.owner != roles.owner.name && state.as_deref() == Some("following")
            });
            if is_there {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until all is well, with the leader where it shall be, and says who does what.
    async fn roles(&self) -> anyhow::Result<Roles> {
        loop {
            if let Some(roles) = self.look().await {
                return Ok(roles);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Looks once; an error is a state that passes.
    async fn look(&self) -> Option<Roles> {
        let nodes = self.cluster.view();
        let first = self.cluster.address(nodes.first()?.node)?;
        let source = source(first).await.ok()?;
        let state = source.status.as_ref().map(|status| status.state.as_str());
        if !matches!(state, Some("following" | "catching_up")) {
            return None;
        }
        let status = status(first).await.ok()?;
        let is_alive = status.members.iter().all(|member| member.state == "alive");
        if status.stale || !is_alive || status.members.len() < nodes.len() {
            return None;
        }
        let owner = nodes.iter().find(|node| node.name == source.owner)?.clone();
        let heir = nodes.iter().find(|node| node.node != owner.node)?.clone();
        let leads = status.leader == owner.name;
        if leads != self.is_with_leader {
            let leader = if leads { &heir.name } else { &owner.name };
            // Whether it has worked is seen at the next look.
            drop(transfer(first, leader).await);
            return None;
        }
        let others = nodes.iter().rev();
        let others = others.filter(|node| node.node != owner.node);
        let consumer = others.map(|node| node.node).next()?;
        Some(Roles {
            consumer: self.cluster.address(consumer)?,
            owner,
            heir,
        })
    }
}

/// Waits for a change.
async fn wait(
    watcher: &mut Watcher,
    next: tokio::sync::oneshot::Receiver<Instant>,
) -> anyhow::Result<Instant> {
    tokio::select! {
        arrived = tokio::time::timeout(WAIT_MAX, next) => match arrived {
            Ok(arrived) => arrived.context("the consumer ended"),
            Err(_) => bail!("no change for {} s", WAIT_MAX.as_secs()),
        },
        ended = watcher.ended() => Err(ended),
    }
}

async fn source(address: SocketAddr) -> anyhow::Result<Source> {
    let mut client = AdminClient::new(api::connect(address).await.map_err(told)?);
    let name = STREAM.to_owned();
    Ok(client
        .get_source(GetSourceRequest { name })
        .await?
        .into_inner())
}

async fn status(address: SocketAddr) -> anyhow::Result<ClusterStatus> {
    let mut client = ClusterClient::new(api::connect(address).await.map_err(told)?);
    Ok(client.get_cluster(GetClusterRequest {}).await?.into_inner())
}

async fn transfer(address: SocketAddr, name: &str) -> anyhow::Result<()> {
    let mut client = ClusterClient::new(api::connect(address).await.map_err(told)?);
    let name = name.to_owned();
    client
        .transfer_leadership(TransferLeadershipRequest { name })
        .await?;
    Ok(())
}

async fn move_source(address: SocketAddr, node: &str) -> anyhow::Result<()> {
    let mut client = ClusterClient::new(api::connect(address).await.map_err(told)?);
    let request = MoveSourceRequest {
        source: STREAM.to_owned(),
        node: node.to_owned(),
    };
    client.move_source(request).await?;
    Ok(())
}
