//! The node's side of a measurement, in this process: a log on disk, an agent, a gateway.
//!
//! The same parts as in `pgcapture start`, without HTTP and the administration.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use async_trait::async_trait;
use pgcapture_actors::{
    agent::{AgentLimits, AgentSpec},
    dump::NoRanges,
    gateway::{GatewayHandle, GatewayLimits, ResolveError, Resolved, SourceResolver},
    log::{
        ChangeLog,
        embedded::{EmbeddedLog, EmbeddedLogOptions},
    },
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::checkpoint::Epoch;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::TcpIncoming};

use super::{database::RUN_SLOT, workload::PUBLICATION};
use crate::{
    raft::RaftConsensus,
    resolver::subscription_of,
    rpc::capture::{CaptureService, configure},
};

/// The stream of every measurement.
pub(super) const STREAM: &str = "bench";

/// Opens a log.
pub(super) fn open_log(directory: &Path) -> anyhow::Result<Arc<EmbeddedLog>> {
    let options = EmbeddedLogOptions {
        source: STREAM.to_owned(),
        ..EmbeddedLogOptions::default()
    };
    Ok(EmbeddedLog::open(directory.join("log"), options)?)
}

/// How the slot of a run is read.
pub(super) fn spec(limits: AgentLimits) -> AgentSpec {
    AgentSpec {
        source: STREAM.to_owned(),
        node: STREAM.to_owned(),
        epoch: Epoch(1),
        slot: RUN_SLOT.to_owned(),
        publication: PUBLICATION.to_owned(),
        is_binary: true,
        accepts_gap: false,
        limits,
    }
}

/// A gateway over one log, serving gRPC on a free port.
#[derive(Debug)]
pub(super) struct Served {
    /// Where it listens.
    pub(super) address: String,
    gateway: GatewayHandle,
    stop: CancellationToken,
    task: Task<()>,
}

impl Served {
    /// Starts serving; cursors are kept in `directory`.
    pub(super) async fn start(log: Arc<dyn ChangeLog>, directory: &Path) -> anyhow::Result<Self> {
        let cursors = Arc::new(RaftConsensus::alone(directory, STREAM).await?);
        let limits = GatewayLimits::default();
        let gateway = GatewayHandle::start(
            Arc::new(OneStream(log)),
            cursors,
            Arc::new(NoRanges),
            limits,
        );
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let router = configure(Server::builder()).add_service(CaptureService::new(gateway.clone()));
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let task = spawn(TaskKind::Server, "grpc", async move {
            if let Err(error) = router.serve_with_incoming_shutdown(incoming, stopped).await {
                tracing::error!(%error, "the gRPC listener failed");
            }
        });
        Ok(Self {
            address,
            gateway,
            stop,
            task,
        })
    }

    /// Ends the sessions and the listener.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.gateway.drain().await?;
        self.stop.cancel();
        self.task.join().await.context("the gRPC listener ended")?;
        Ok(())
    }
}

/// One log under one name.
#[derive(Debug)]
struct OneStream(Arc<dyn ChangeLog>);

#[async_trait]
impl SourceResolver for OneStream {
    async fn resolve(&self, uri: &str) -> Result<Resolved, ResolveError> {
        Ok(Resolved {
            subscription: subscription_of(uri),
            log: Arc::clone(&self.0),
        })
    }
}
