//! The peer: `pg_recvlogical`, which PostgreSQL brings, with the same slot options, to `/dev/null`.
//!
//! It ends when a message beyond its end position arrives: the row that marks the end of the load
//! is written after that position, so it ends with its last byte and not with a keepalive later.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use pgcapture_engine::lsn::Lsn;
use tokio::process::Command;

use super::{
    database::{Database, RUN_SLOT},
    measure::children_cpu,
    workload::PUBLICATION,
};

/// Name in the results.
pub(super) const NAME: &str = "pg_recvlogical";

/// What one run took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// By the clock, from the start to the last change.
    pub(super) wall: Duration,
    /// Processor time.
    pub(super) cpu: Duration,
}

/// Tells whether the program can be run.
pub(super) async fn is_there(database: &Database) -> bool {
    let mut command = Command::new(&database.peer_program);
    let version = command.arg("--version").output().await;
    version.is_ok_and(|output| output.status.success())
}

/// Reads a fresh copy of the slot up to `end`.
pub(super) async fn run(database: &Database, end: Lsn) -> anyhow::Result<Cost> {
    database.copy_slot().await?;
    let mut command = Command::new(&database.peer_program);
    command.args(["-d", &database.peer_url, "--slot", RUN_SLOT, "--start"]);
    command.args(["-f", "/dev/null", "--no-loop"]);
    command.args(["-o", "proto_version=1", "-o", "binary=true"]);
    command.args(["-o", "messages=true", "-o"]);
    command.arg(format!("publication_names={PUBLICATION}"));
    command.arg(format!("--endpos={end}"));
    if let Some(password) = database.password() {
        command.env("PGPASSWORD", password.expose());
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::piped()).kill_on_drop(true);
    let (cpu, began) = (children_cpu(), Instant::now());
    let output = command.output().await.context("run pg_recvlogical")?;
    let cost = Cost {
        wall: began.elapsed(),
        cpu: children_cpu().saturating_sub(cpu),
    };
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("pg_recvlogical failed ({}): {text}", output.status);
    }
    database.drop_run_slot().await?;
    Ok(cost)
}
