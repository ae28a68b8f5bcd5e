//! The processes of the scenario, and the faults that strike them.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use rand::{Rng, rngs::StdRng};
use serde::Serialize;
use serde_json::Value;

use super::{
    table::{self, CREATE, TABLE},
    writers::Written,
};
use crate::harness::{node::Node, postgres::Postgres, sql::Sql};

/// The stream's name.
pub const SOURCE: &str = "shop";

/// The replica's name.
const REPLICA: &str = "standby";

/// A table of fewer rows fits into few ranges of the usual size; a slow rate makes them small.
const MANY_ROWS: u64 = 2_000_000;

/// Rows of the table for each KiB a second of that rate: a range has two seconds of it, the table some
/// ten ranges.
const RATE_ROWS_PER_KIB: u64 = 64;

/// How long a node that was killed while it started had run.
const STARTING_MS: std::ops::Range<u64> = 5..400;

/// How long the standby stays away at most.
const AWAY_MS: std::ops::Range<u64> = 0..3_000;

/// A source, its standby, and a node that knows both.
#[derive(Debug)]
pub struct World {
    /// The source.
    pub postgres: Postgres,
    /// Its standby.
    pub standby: Postgres,
    /// The node.
    pub node: Node,
    /// Keys 1 to this number may be there.
    pub keys: i64,
}

/// What strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to the node, then a start.
    KillNode,
    /// The same, and again while it starts.
    KillNodeStarting,
    /// SIGKILL to the standby's postmaster, a while later a start.
    KillStandby,
    /// The consumer's connection is cut; it comes back with its copy.
    CutConsumer,
}

/// How often each took place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Struck {
    /// Node.
    pub node: u32,
    /// Standby.
    pub standby: u32,
    /// Consumer.
    pub consumer: u32,
}

impl Struck {
    /// Returns how many there were.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.node + self.standby + self.consumer
    }

    /// Adds those of another run.
    pub const fn add(&mut self, other: Self) {
        self.node += other.node;
        self.standby += other.standby;
        self.consumer += other.consumer;
    }
}

impl Fault {
    /// Draws one. The first three of a run are of three kinds, so that a short run has each.
    pub fn draw(number: u32, rng: &mut StdRng) -> Self {
        match if number < 3 {
            number * 3
        } else {
            rng.random_range(0..9)
        } {
            0..2 => Self::KillNode,
            2 => Self::KillNodeStarting,
            3..6 => Self::KillStandby,
            _ => Self::CutConsumer,
        }
    }
}

/// What the node says of a dump.
#[derive(Clone, Debug)]
pub struct DumpSeen {
    /// Its state.
    pub state: String,
    /// Ranges that are finished.
    pub ranges: u64,
    /// Everything.
    pub all: String,
}

impl World {
    /// Starts everything, with a table of so many rows.
    ///
    /// # Errors
    ///
    /// When something does not start, or the node refuses the source or the replica.
    pub async fn set_up(
        dir: &Path,
        binary: &Path,
        pg_bin: Option<&Path>,
        rows: u64,
    ) -> Result<Self> {
        let postgres = Postgres::start(pg_bin, dir).await?;
        let sql = Sql::connect_again(&postgres.dsn()).await?;
        let created = sql.client.batch_execute(CREATE).await;
        created.context("create the tables")?;
        table::fill(&sql, rows).await?;
        eprintln!("{rows} rows are there");
        let standby = postgres.start_standby(dir).await?;
        let node = Node::start(binary, dir).await?;
        node.add_source(SOURCE, &postgres.url(), "public.*")?;
        let url = standby.url();
        node.command(&["replica", "add", REPLICA, "--source", SOURCE, "--url", &url])?;
        let keys = i64::try_from(rows)?;
        Ok(Self {
            postgres,
            standby,
            node,
            keys,
        })
    }

    /// Asks for the table on a consumer's stream; returns the dump's id.
    ///
    /// # Errors
    ///
    /// When the node refuses.
    pub fn start_dump(&self, consumer: &str, rows: u64) -> Result<String> {
        let table = format!("public.{TABLE}");
        let words = ["dump", "start", SOURCE, "--table", &table, "--consumer"];
        let mut words = [&words[..], &[consumer, "--detach"]].concat();
        let rate = format!("{}KiB/s", rows / RATE_ROWS_PER_KIB + 1);
        if rows < MANY_ROWS {
            words.extend(["--rate", &rate]);
        }
        let dump = self.node.ask(&words)?;
        let id = first(&dump).get("id").and_then(Value::as_str);
        id.map(str::to_owned).context("a dump has an id")
    }

    /// Returns what the node says of a dump.
    ///
    /// # Errors
    ///
    /// When the node does not answer, as while it starts.
    pub fn dump_state(&self, id: &str) -> Result<DumpSeen> {
        let dump = self.node.ask(&["dump", "show", id])?;
        let state = first(&dump).get("state").and_then(Value::as_str);
        let ranges = first(&dump).get("ranges_finished").and_then(Value::as_u64);
        Ok(DumpSeen {
            state: state.context("a dump has a state")?.to_owned(),
            ranges: ranges.context("a dump has ranges")?,
            all: dump.to_string(),
        })
    }

    /// Brings a fault about and heals it, except for the consumer, which the caller cuts. Returns a
    /// finding when a process died by itself.
    ///
    /// # Errors
    ///
    /// When a process does not come back.
    pub async fn strike(&mut self, fault: Fault, rng: &mut StdRng) -> Result<Option<String>> {
        if let Some(status) = self.node.status()? {
            self.node.launch()?;
            self.node.ready().await?;
            return Ok(Some(format!("the node ended with {status} by itself")));
        }
        match fault {
            Fault::CutConsumer => {}
            Fault::KillStandby => {
                self.standby.kill().await?;
                let away = Duration::from_millis(rng.random_range(AWAY_MS));
                tokio::time::sleep(away).await;
                self.standby.start_again().await?;
            }
            Fault::KillNode | Fault::KillNodeStarting => {
                self.node.kill().await?;
                self.node.launch()?;
                if fault == Fault::KillNodeStarting {
                    let started = Duration::from_millis(rng.random_range(STARTING_MS));
                    tokio::time::sleep(started).await;
                    if let Some(status) = self.node.status()? {
                        bail!("the node ended with {status} while starting");
                    }
                    self.node.kill().await?;
                    self.node.launch()?;
                }
                self.node.ready().await?;
            }
        }
        Ok(None)
    }

    /// Writers have ended: later ones begin above their keys.
    pub fn note_written(&mut self, written: Written) {
        self.keys = self.keys.max(written.keys);
    }

    /// Returns what the source has counted for the table.
    ///
    /// # Errors
    ///
    /// When it cannot be asked.
    pub async fn counters(&self) -> Result<Counters> {
        let sql = Sql::connect_again(&self.postgres.dsn()).await?;
        let statement = "SELECT seq_tup_read, n_tup_upd, n_tup_hot_upd, n_tup_del
            FROM pg_stat_user_tables WHERE relid = 'public.dumped'::regclass";
        let row = sql.client.query_one(statement, &[]).await?;
        Ok(Counters {
            read: row.try_get(0)?,
            updated: row.try_get(1)?,
            updated_hot: row.try_get(2)?,
            deleted: row.try_get(3)?,
        })
    }
}

/// What the source has counted for the table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Rows read otherwise than by an index.
    pub read: i64,
    /// Rows updated.
    pub updated: i64,
    /// Of these, in place.
    pub updated_hot: i64,
    /// Rows deleted.
    pub deleted: i64,
}

/// The command line prints one thing as itself or as the only one of a list.
fn first(value: &Value) -> &Value {
    value.get(0).unwrap_or(value)
}
