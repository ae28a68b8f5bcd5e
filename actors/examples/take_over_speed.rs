//! Measures a take-over: `cargo run --release --example take_over_speed`.
//!
//! Starts its own PostgreSQL and lets one agent after another take a slot, each with a log and an
//! epoch of its own: from `agent::start` to the first change in its log, with the steps in between,
//! when the holder before was killed and when it hangs with full buffers; on an idle server and under
//! load, with the restart position as it comes and made recent. Then the draining of an idle agent.
//! Argument: rounds.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use pgcapture_actors::{
    agent::{
        self, AgentHandle, AgentLimits, AgentSpec, AgentState, Durability, Lease, TakeOverTimes,
    },
    log::{
        ChangeLog,
        embedded::{EmbeddedLog, EmbeddedLogOptions},
    },
    postgres::{
        Config, Connection, LocalServer, LocalServerOptions, PgError, Replication,
        ReplicationOptions,
    },
    supervise::{self, Task, TaskKind},
};
use pgcapture_engine::{checkpoint::Epoch, fence::ClusterId, lsn::Lsn};

type Failure = Box<dyn std::error::Error>;

/// One row at a time, as fast as one client can.
const ONE_ROW: &str = "INSERT INTO t (v) VALUES (repeat('x', 200))";

/// Rows of another table: WAL that is decoded and not sent.
const ELSEWHERE: &str =
    "INSERT INTO elsewhere SELECT repeat('x', 1000) FROM generate_series(1, 200)";

fn main() -> Result<(), Failure> {
    let system = actix_rt::System::with_tokio_rt(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all();
        builder.build().expect("a runtime can be built")
    });
    system.block_on(run())
}

async fn run() -> Result<(), Failure> {
    let rounds = std::env::args().nth(1);
    let rounds: usize = rounds.map_or(Ok(10), |text| text.parse())?;
    let server = LocalServer::start(LocalServerOptions::default()).await?;
    let config = server.config("postgres");
    let mut sql = Connection::connect(&config, Replication::Off).await?;
    for statement in [
        "CREATE TABLE t (id bigserial PRIMARY KEY, v text)",
        "CREATE TABLE elsewhere (v text)",
        "CREATE PUBLICATION p FOR TABLE t",
        "SELECT pg_create_logical_replication_slot('s', 'pgoutput')",
    ] {
        sql.query(statement).await?;
    }
    let mut bench = Bench {
        config,
        sql,
        epoch: 0,
        rounds,
        log: None,
    };
    bench.measure("idle, killed", Holder::Killed, None).await?;
    bench.measure("idle, hung", Holder::Hung, None).await?;
    bench.drains().await?;
    for (name, statement) in [("rows", ONE_ROW), ("elsewhere", ELSEWHERE)] {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = write(&bench.config, statement, Arc::clone(&stop));
        let killed = format!("load ({name}), killed");
        bench.measure(&killed, Holder::Killed, None).await?;
        let hung = format!("load ({name}), hung");
        bench.measure(&hung, Holder::Hung, None).await?;
        let recent = format!("load ({name}), killed, recent restart_lsn");
        bench
            .measure(&recent, Holder::Killed, Some("CHECKPOINT"))
            .await?;
        stop.store(true, Ordering::SeqCst);
        let mut writer = writer;
        writer.join().await??;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Holder {
    Killed,
    Hung,
}

struct Bench {
    config: Config,
    sql: Connection,
    epoch: u64,
    rounds: usize,
    /// The log of every agent: the same, as on a node that leads again.
    log: Option<(Arc<EmbeddedLog>, tempfile::TempDir)>,
}

impl Bench {
    fn log(&mut self) -> Result<Arc<dyn ChangeLog>, Failure> {
        if let Some((log, _)) = &self.log {
            return Ok(Arc::<EmbeddedLog>::clone(log));
        }
        let directory = tempfile::tempdir()?;
        let log = EmbeddedLog::open(directory.path(), EmbeddedLogOptions::default())?;
        self.log = Some((Arc::clone(&log), directory));
        Ok(log)
    }

    fn start(&mut self) -> Result<AgentHandle, Failure> {
        self.epoch += 1;
        let spec = AgentSpec {
            source: "speed".to_owned(),
            node: format!("n{}", self.epoch % 3),
            epoch: Epoch(self.epoch),
            slot: "s".to_owned(),
            publication: "p".to_owned(),
            is_binary: true,
            accepts_gap: false,
            cluster: ClusterId(1),
            durability: Durability::Log,
            lease: Lease::permanent(),
            wal_guard: None,
            limits: AgentLimits::default(),
        };
        let log = self.log()?;
        Ok(agent::start(spec, Arc::new(self.config.clone()), log))
    }

    /// Prints the median and the worst of each step, in milliseconds since the start.
    async fn measure(
        &mut self,
        name: &str,
        holder: Holder,
        before: Option<&str>,
    ) -> Result<(), Failure> {
        let mut samples = Vec::new();
        let mut behind = Vec::new();
        for _ in 0..self.rounds {
            let old = self.start()?;
            following(&old).await?;
            self.caught_up().await?;
            // The server hears of a position twice a second: let it hear of this one.
            old.drain().await;
            if let Some(statement) = before {
                self.sql.query(statement).await?;
                let again = self.start()?;
                following(&again).await?;
                self.caught_up().await?;
                again.drain().await;
            }
            let again = self.start()?;
            following(&again).await?;
            self.caught_up().await?;
            drop(again);
            let hung = match holder {
                Holder::Killed => None,
                Holder::Hung => Some(self.hang().await?),
            };
            behind.push(self.restart_distance().await?);
            let log = self.log()?;
            let mut tail = log.tail();
            self.sql.query(ONE_ROW).await?;
            let before = tail.borrow_and_update().last;
            let began = Instant::now();
            let agent = self.start()?;
            tail.wait_for(|tail| tail.last > before).await?;
            let first = began.elapsed();
            samples.push((agent.status().borrow().take_over, first));
            agent.drain().await;
            drop(hung);
        }
        report(name, &samples, &behind);
        Ok(())
    }

    /// A client of the next epoch that takes the slot and then nothing more.
    async fn hang(&mut self) -> Result<pgcapture_actors::postgres::ReplicationStream, Failure> {
        self.epoch += 1;
        let name = format!("pgcapture/n9/{}/00000001", self.epoch);
        let config = self.config.clone().with_application_name(name);
        loop {
            let connection = Connection::connect(&config, Replication::Database).await?;
            let options = ReplicationOptions::new("s", "p");
            match connection.start_replication(&options).await {
                Err(error) if error.has_sqlstate("55006") => {}
                stream => {
                    let many = "INSERT INTO t (v) SELECT repeat('x', 1000) \
                                FROM generate_series(1, 10000)";
                    self.sql.query(many).await?;
                    return Ok(stream?);
                }
            }
        }
    }

    async fn caught_up(&mut self) -> Result<(), Failure> {
        let end = self.lsn("SELECT pg_current_wal_flush_lsn()").await?;
        let log = self.log()?;
        log.ask_progress(end);
        let mut tail = log.tail();
        let mark = "SELECT pg_logical_emit_message(true, 'mark', '')";
        self.sql.query(mark).await?;
        tail.wait_for(|tail| tail.resume_lsn >= end).await?;
        Ok(())
    }

    async fn restart_distance(&mut self) -> Result<u64, Failure> {
        let restart = "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 's'";
        let restart = self.lsn(restart).await?;
        let end = self.lsn("SELECT pg_current_wal_flush_lsn()").await?;
        Ok(end.bytes_since(restart))
    }

    async fn lsn(&mut self, sql: &str) -> Result<Lsn, Failure> {
        let rows = self.sql.query(sql).await?;
        let text = rows.into_iter().flatten().next().flatten();
        Ok(text.unwrap_or_default().parse()?)
    }

    async fn drains(&mut self) -> Result<(), Failure> {
        let mut took = Vec::new();
        for _ in 0..self.rounds {
            let agent = self.start()?;
            following(&agent).await?;
            self.caught_up().await?;
            let began = Instant::now();
            agent.drain().await;
            took.push(began.elapsed());
        }
        took.sort_unstable();
        say(&format!("drain, idle: {}", spread(&took)));
        Ok(())
    }
}

async fn following(agent: &AgentHandle) -> Result<(), Failure> {
    let mut status = agent.status();
    status
        .wait_for(|status| status.state == AgentState::Following)
        .await?;
    Ok(())
}

fn write(
    config: &Config,
    statement: &'static str,
    stop: Arc<AtomicBool>,
) -> Task<Result<(), PgError>> {
    let config = config.clone();
    supervise::spawn(TaskKind::Tool, "load", async move {
        let mut sql = Connection::connect(&config, Replication::Off).await?;
        while !stop.load(Ordering::SeqCst) {
            sql.query(statement).await?;
        }
        Ok(())
    })
}

/// The steps of one take-over, and the time to the first change.
type Sample = (TakeOverTimes, Duration);

/// What a step is called and how long it took.
type Step = (&'static str, fn(&Sample) -> Duration);

fn report(name: &str, samples: &[Sample], behind: &[u64]) {
    let distance = behind.iter().max().copied().unwrap_or_default() / 1024;
    say(&format!(
        "{name}: restart_lsn at most {distance} KiB behind"
    ));
    let steps: [Step; 6] = [
        ("prepared", |(times, _)| times.prepared),
        ("looked", |(times, _)| times.looked),
        ("freed", |(times, _)| times.freed),
        ("ready", |(times, _)| times.ready),
        ("streaming", |(times, _)| times.streaming),
        ("first change", |(_, first)| *first),
    ];
    for (step, of) in steps {
        let mut took: Vec<_> = samples.iter().map(of).collect();
        took.sort_unstable();
        say(&format!("  {step:13} {}", spread(&took)));
    }
}

fn spread(sorted: &[Duration]) -> String {
    let at = |place: usize| sorted.get(place).copied().unwrap_or_default();
    let (median, worst) = (at(sorted.len() / 2), at(sorted.len().saturating_sub(1)));
    format!(
        "median {:7.1} ms, worst {:7.1} ms",
        median.as_secs_f64() * 1e3,
        worst.as_secs_f64() * 1e3
    )
}

#[expect(
    clippy::print_stdout,
    reason = "the figures are what this program is for"
)]
fn say(text: &str) {
    println!("{text}");
}
