//! The processes of the scenario: a source and three nodes that are one cluster.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use tokio::time::{Instant, timeout};

use super::fault::{Fault, Kind};
use crate::harness::{node::Node, ports::free_ports, postgres::Postgres, sql::Sql};

/// The stream's name.
pub const SOURCE: &str = "shop";

/// How long a polite end may take; a node gives itself 15 seconds.
const END_WITHIN: Duration = Duration::from_secs(30);

/// How long a move may take, until the server sees the other node.
const MOVED_WITHIN: Duration = Duration::from_secs(30);

/// A move is asked for again after this time: a leader that was just elected refuses some.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// Pause between two looks at what the server sees.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Who reads the slot, as the server sees it: the second part of its application name.
const READERS: &str = "SELECT split_part(application_name, '/', 2) FROM pg_stat_replication
    WHERE application_name LIKE 'pgcapture/%' AND state = 'streaming'";

/// A source and a cluster of three.
#[derive(Debug)]
pub struct World {
    /// The source.
    pub postgres: Postgres,
    nodes: Vec<Node>,
}

impl World {
    /// Starts everything and declares the source.
    ///
    /// # Errors
    ///
    /// When something does not start, or the cluster refuses the source.
    pub async fn set_up(dir: &Path, binary: &Path, pg_bin: Option<&Path>) -> Result<Self> {
        let postgres = Postgres::start(pg_bin, dir).await?;
        let [first, second, third, rest @ ..] = free_ports::<6>()?;
        let peers = [first, second, third].map(|port| format!("127.0.0.1:{port}"));
        let ports = [first, second, third].into_iter().zip(rest);
        let mut nodes = Vec::new();
        for (number, (grpc, http)) in (1..).zip(ports) {
            let name = format!("n{number}");
            let dir = dir.join(&name);
            nodes.push(Node::launch_first(
                binary,
                &dir,
                &name,
                [grpc, http],
                &peers,
            )?);
        }
        for node in &mut nodes {
            node.ready().await?;
        }
        Ok(Self { postgres, nodes })
    }

    /// Returns the node of this index.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn node(&mut self, index: usize) -> Result<&mut Node> {
        self.nodes.get_mut(index).context("a node of three")
    }

    /// Returns the third node, which is never struck.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn reader(&self) -> Result<&Node> {
        self.nodes.last().context("a node of three")
    }

    /// Returns the ends of all logs of nodes, for a run that failed.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let tails = self.nodes.iter().zip(1..);
        tails
            .map(|(node, number)| format!("n{number}:\n{}\n", node.log_tail()))
            .collect()
    }

    /// Starts again what has ended by itself; says what that was.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn revive(&mut self) -> Result<Option<String>> {
        let mut died = None;
        for (node, number) in self.nodes.iter_mut().zip(1..) {
            if let Some(status) = node.status()? {
                died = Some(format!("n{number} ended with {status} by itself"));
                node.launch()?;
            }
        }
        Ok(died)
    }

    /// Tells whether the node of this index reads the slot, as the server sees it.
    ///
    /// # Errors
    ///
    /// When the server cannot be asked.
    pub async fn has_source(&self, index: usize) -> Result<bool> {
        let sql = Sql::connect_again(&self.postgres.dsn()).await?;
        has_source(&sql, index).await
    }

    /// Moves the source to a node, as an operator would; returns what went wrong otherwise.
    ///
    /// # Errors
    ///
    /// When the server cannot be asked.
    pub async fn move_source(&self, index: usize) -> Result<Option<String>> {
        let sql = Sql::connect_again(&self.postgres.dsn()).await?;
        let deadline = Instant::now() + MOVED_WITHIN;
        let mut refused = String::new();
        while Instant::now() < deadline {
            let to = format!("n{}", index + 1);
            if let Err(error) = self.reader()?.command(&["slot", "move", SOURCE, &to]) {
                refused = format!("{error:#}");
            }
            let moved = async {
                while !has_source(&sql, index).await? {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Ok::<_, anyhow::Error>(())
            };
            if let Ok(moved) = timeout(ASK_AGAIN, moved).await {
                return moved.map(|()| None);
            }
        }
        Ok(Some(format!(
            "the source did not go to n{} within {MOVED_WITHIN:?}: {refused}",
            index + 1
        )))
    }

    /// Brings a fault about and lets the victim run again; it need not be ready yet. Returns what was
    /// seen that must not happen.
    ///
    /// # Errors
    ///
    /// When a process cannot be signalled or started.
    pub async fn strike(&mut self, fault: &Fault) -> Result<Option<String>> {
        let lasts = Duration::from_millis(fault.lasts_ms);
        let node = self.node(fault.victim)?;
        match fault.kind {
            Kind::Kill => {
                node.kill().await?;
                tokio::time::sleep(lasts).await;
            }
            Kind::KillStarting => {
                node.kill().await?;
                node.launch()?;
                tokio::time::sleep(lasts).await;
                if let Some(status) = node.status()? {
                    node.launch()?;
                    return Ok(Some(format!("it ended with {status} while starting")));
                }
                node.kill().await?;
            }
            Kind::Restart => {
                let trouble = node.end_politely(END_WITHIN).await?;
                node.launch()?;
                return Ok(trouble);
            }
            Kind::Freeze => {
                node.freeze(true)?;
                tokio::time::sleep(lasts).await;
                node.freeze(false)?;
                return Ok(None);
            }
        }
        node.launch()?;
        Ok(None)
    }

    /// Ends every node politely, the last one first; returns what was wrong with that.
    ///
    /// # Errors
    ///
    /// When one cannot be signalled.
    pub async fn end(&mut self) -> Result<Option<String>> {
        let mut trouble = None;
        while let Some(mut node) = self.nodes.pop() {
            let number = self.nodes.len() + 1;
            let what = node.end_politely(END_WITHIN).await?;
            trouble = trouble.or(what.map(|what| format!("n{number}: {what}")));
        }
        Ok(trouble)
    }
}

async fn has_source(sql: &Sql, index: usize) -> Result<bool> {
    let rows = sql.client.query(READERS, &[]).await?;
    let wanted = format!("n{}", index + 1);
    let names = rows.iter().map(|row| row.try_get::<_, String>(0));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    // Two for a moment when it moves: the old one ends, the new one has begun.
    Ok(names == [wanted])
}
