//! HTTP on loopback: metrics for Prometheus, health for a supervisor.
//!
//! | path | answer |
//! | --- | --- |
//! | `/metrics` | Prometheus text |
//! | `/healthz` | 200 while the process works |
//! | `/readyz` | 200 while the node takes sessions, else 503; the body names sources in trouble |

mod dumps;
mod raft;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use pgcapture_actors::supervise::{Task, TaskKind, spawn};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::sources::Sources;

/// Buckets of durations, in seconds: from a commit to loopback up to a minute's outage.
const SECONDS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
    15.0, 60.0,
];

static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// What the pages show.
#[derive(Clone, Debug)]
pub struct Pages {
    /// Whether the node takes sessions.
    pub ready: watch::Receiver<bool>,
    /// The sources.
    pub sources: Arc<Sources>,
}

/// Installs the recorder of metrics for the process. The second call does nothing.
pub fn install_metrics() {
    RECORDER.get_or_init(|| {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS);
        // A library user may have a recorder of his own; then /metrics is his.
        let handle = builder.ok()?.install_recorder().ok()?;
        let version = env!("CARGO_PKG_VERSION");
        metrics::gauge!("pgcapture_build_info", "version" => version).set(1.0);
        dumps::describe();
        raft::describe();
        Some(handle)
    });
}

/// Serves until `stop`; returns the bound address.
///
/// # Errors
///
/// When the listener has no address.
pub fn serve(
    listener: TcpListener,
    pages: Pages,
    stop: CancellationToken,
) -> std::io::Result<(SocketAddr, Task<()>)> {
    let address = listener.local_addr()?;
    let router = Router::new()
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready_page))
        .with_state(pages);
    let task = spawn(TaskKind::Server, "http", async move {
        let server = axum::serve(listener, router);
        let served = server.with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "the HTTP listener failed");
        }
    });
    Ok((address, task))
}

async fn metrics_page(State(pages): State<Pages>) -> String {
    pages.sources.report_metrics();
    let ready = f64::from(u8::from(*pages.ready.borrow()));
    metrics::gauge!("pgcapture_node_up").set(1.0);
    metrics::gauge!("pgcapture_node_ready").set(ready);
    crate::process::report_metrics();
    let handle = RECORDER.get().and_then(Option::as_ref);
    handle.map_or_else(String::new, |handle| {
        handle.run_upkeep();
        handle.render()
    })
}

async fn ready_page(State(pages): State<Pages>) -> (StatusCode, String) {
    let mut lines = pages.sources.complaints();
    let is_ready = *pages.ready.borrow();
    lines.insert(0, if is_ready { "ready" } else { "not ready" }.to_owned());
    let status = if is_ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, format!("{}\n", lines.join("\n")))
}
