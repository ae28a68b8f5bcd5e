//! The peer: `COPY (SELECT * …) TO STDOUT (FORMAT binary)` through psql, once or several at a time, through
//! the same kind of socket.

use std::{process::Stdio, time::Instant};

use anyhow::{Context as _, bail};
use futures_util::future::try_join_all;
use pgcapture_actors::postgres::LocalServer;
use tokio::process::Command;

use super::world::{Cost, dumped, servers_cpu};
use crate::cli::bench::measure::children_cpu;

/// Copies the whole table so many times at once, from one server after the other.
pub(super) async fn copy(servers: &[&LocalServer], count: usize) -> anyhow::Result<Cost> {
    let server_cpu = servers_cpu(servers);
    let (cpu, began) = (children_cpu(), Instant::now());
    let each = servers.iter().cycle().take(count);
    try_join_all(each.map(|server| copy_one(server))).await?;
    Ok(Cost {
        seconds: began.elapsed().as_secs_f64(),
        cpu_seconds: children_cpu().saturating_sub(cpu).as_secs_f64(),
        server_cpu_seconds: servers_cpu(servers)
            .saturating_sub(server_cpu)
            .as_secs_f64(),
        ..Cost::default()
    })
}

async fn copy_one(server: &LocalServer) -> anyhow::Result<()> {
    let mut command = Command::new(server.bin_dir().join("psql"));
    command.args(["-X", "-q", "-d", &server.url("postgres"), "-c"]);
    let table = dumped();
    command.arg(format!(
        "COPY (SELECT * FROM {table}) TO STDOUT (FORMAT binary)"
    ));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::piped()).kill_on_drop(true);
    let output = command.output().await.context("run psql")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("psql failed ({}): {text}", output.status);
    }
    Ok(())
}
