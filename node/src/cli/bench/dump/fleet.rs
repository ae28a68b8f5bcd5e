//! Worker processes and several servers: a cluster of real nodes, standbys of one source, and one consumer at
//! each node, each with a dump of the whole table.
//!
//! A range is read by whichever node has the most room, from whichever standby is read least; its rows go
//! straight to the node of its consumer. The peer is as many COPYs of the whole table at once, from the same
//! standbys.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use pgcapture_actors::postgres::{LocalServer, StandbyOptions};
use pgcapture_engine::cluster::DumpOptions;
use pgcapture_proto::admin::v1::{ReplicaDefinition, SourceDefinition};

use super::{
    DumpArgs, Measured,
    copy::copy,
    taker::Taker,
    world::{Cost, dumped, server_version, servers_cpu, start_source},
};
use crate::cli::{
    bench::{
        measure::{process_cpu, process_resident_mib, with_memory},
        node_side::STREAM,
        told,
    },
    dev::cluster::{Cluster, NODES_MAX, api},
};

/// Nodes and servers. Stop it by [`Fleet::stop`].
#[derive(Debug)]
pub(super) struct Fleet {
    // Ends before the servers that it reads.
    cluster: Cluster,
    standbys: Vec<LocalServer>,
    source: LocalServer,
}

impl Fleet {
    /// Starts everything and fills the table.
    pub(super) async fn start(
        args: &DumpArgs,
        instances: u32,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let count = u8::try_from(args.workers).unwrap_or(u8::MAX);
        ensure!(
            count <= NODES_MAX,
            "there are at most {NODES_MAX} worker processes"
        );
        let source = start_source(args).await?;
        let mut standbys = Vec::new();
        for _ in 0..instances {
            let standby = source.start_standby(StandbyOptions::default()).await?;
            standby.catch_up_with(&source).await?;
            standbys.push(standby);
        }
        let cluster = Cluster::start_direct(directory, count).await;
        let fleet = Self {
            cluster: cluster.map_err(told)?,
            standbys,
            source,
        };
        fleet.register(args).await?;
        Ok(fleet)
    }

    /// Stops the nodes, then the servers; tells whether all stopped cleanly.
    pub(super) async fn stop(self) -> bool {
        self.cluster.stop().await.is_empty()
    }

    /// Declares source and replicas, as an operator would.
    async fn register(&self, args: &DumpArgs) -> anyhow::Result<()> {
        let first = self.cluster.address(1).context("the first node")?;
        let source = SourceDefinition {
            name: STREAM.to_owned(),
            url: self.source.url("postgres"),
            tables: vec![dumped()],
            ..SourceDefinition::default()
        };
        api::add_source(first, source).await.map_err(told)?;
        for (number, standby) in (1..).zip(&self.standbys) {
            let replica = ReplicaDefinition {
                name: format!("r{number}"),
                source: STREAM.to_owned(),
                url: standby.url("postgres"),
                kind: "standby".to_owned(),
                // It shall not be what bounds anything.
                max_ranges: args.workers * DumpOptions::DEFAULT_PARALLEL,
                ..ReplicaDefinition::default()
            };
            api::add_replica(first, replica).await.map_err(told)?;
        }
        Ok(())
    }

    fn servers(&self) -> Vec<&LocalServer> {
        self.standbys.iter().collect()
    }

    fn pids(&self) -> Vec<u32> {
        let nodes = self.cluster.view().into_iter();
        nodes.filter_map(|node| node.pid).collect()
    }
}

impl Measured for Fleet {
    async fn copy(&self, args: &DumpArgs) -> anyhow::Result<Cost> {
        copy(&self.servers(), args.workers as usize).await
    }

    async fn dump(&self, args: &DumpArgs, name: &str) -> anyhow::Result<Cost> {
        let mut takers = Vec::new();
        for node in self.cluster.view() {
            let address = self.cluster.address(node.node).context("a node")?;
            let name = format!("{name}-{}", node.name);
            takers.push(Taker::start(args, &address.to_string(), &name, 0).await?);
        }
        let pids = self.pids();
        let memory = || {
            pids.iter()
                .map(|pid| process_resident_mib(&pid.to_string()))
                .fold(0.0, f64::max)
        };
        let nodes_cpu = || pids.iter().map(|pid| process_cpu(*pid)).sum::<Duration>();
        let rss_before_mib = memory();
        let (server_cpu, cpu) = (servers_cpu(&self.servers()), nodes_cpu());
        let began = std::time::Instant::now();
        let taking = try_join_all(takers.iter_mut().map(Taker::take));
        let (done, rss_mib) = with_memory(memory, taking).await?;
        let seconds = began.elapsed().as_secs_f64();
        let cpu = nodes_cpu().saturating_sub(cpu);
        let server_cpu = servers_cpu(&self.servers()).saturating_sub(server_cpu);
        for taker in takers {
            taker.end().await?;
        }
        Ok(Cost {
            seconds,
            cpu_seconds: cpu.as_secs_f64(),
            consumer_cpu_seconds: done.iter().map(|done| done.cpu_seconds).sum(),
            server_cpu_seconds: server_cpu.as_secs_f64(),
            rss_before_mib,
            rss_mib,
        })
    }

    async fn server_version(&self) -> anyhow::Result<String> {
        server_version(&self.source).await
    }
}
