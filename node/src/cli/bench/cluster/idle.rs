//! Idle nodes: without a source, and with one.

use std::{path::Path, time::Duration};

use super::{
    ClusterArgs,
    report::Idle,
    server::{Server, source_name},
    told,
    trio::Trio,
};
use crate::cli::{bench::progress::Progress, dev::cluster::api};

/// What starts costs for some seconds: first connections, first pages.
const SETTLE: Duration = Duration::from_secs(5);

/// Measures both.
pub(super) async fn measure(
    args: &ClusterArgs,
    server: &Server,
    data: &Path,
    progress: &Progress,
) -> anyhow::Result<Vec<Idle>> {
    server.make_tables(1).await?;
    progress.step("starting three nodes");
    let trio = Trio::start(data).await?;
    let mut measured = Vec::new();
    for sources in [0, 1] {
        if sources > 0 {
            let added = api::add_source(trio.first()?, server.source(sources)).await;
            added.map_err(told)?;
        }
        progress.step(format!("idle with {sources} sources"));
        tokio::time::sleep(SETTLE).await;
        let window = trio.rest(Duration::from_secs(args.seconds)).await?;
        progress.result(&format!("{sources} sources: {}", Idle::text(&window)));
        measured.push(Idle { sources, window });
    }
    let removed = api::remove_source(trio.first()?, &source_name(1)).await;
    removed.map_err(told)?;
    trio.cluster.stop().await;
    Ok(measured)
}
