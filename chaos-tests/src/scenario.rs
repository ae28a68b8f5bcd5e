//! One run: world up, readers and writers on, faults, heal, everything caught up, log read, verdict.
//!
//! Returns an error only for failures of the harness; what the product does wrong is written into the
//! history and judged with the rest.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    harness::{node::Node, postgres::Postgres, sql::Sql},
    history::{
        event::{Event, FaultOutcome, RunHeader},
        reader::{Consumer, Progress, scan},
        recorder::Recorder,
        sampler,
    },
    nemesis::{Menu, World, node::END_WITHIN},
    report::{Verdict, judge_files},
    workload::{
        bank,
        journal::{JournalWriter, read_journal},
        ledger,
        load::{LoadPlan, RunningLoad},
        schema::{ACCOUNTS, BALANCE, CREATE},
    },
};

/// After a fault is healed, readers must receive something new within this time.
pub(crate) const RECOVERED_WITHIN: Duration = Duration::from_secs(30);

/// After all faults, the consumer must have everything within this time.
pub(crate) const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(60);

/// Pause between two of the markers that find out when the consumer's subscription has begun.
const MARKER_PAUSE: Duration = Duration::from_millis(250);

/// Id of the marker that is committed after everything else.
pub(crate) const LAST_MARKER: i64 = 1_000_000;

/// Attempts for each fault that was wanted; a menu may hold such that find nothing to break.
const ATTEMPTS_PER_FAULT: u32 = 4;

/// The stream's name, and the consumer's subscription on it.
const SOURCE: &str = "shop";
pub(crate) const URI: &str = "shop/checker";

/// What to run.
#[derive(Clone, Debug)]
pub struct RunPlan {
    /// What is broken.
    pub menu: Menu,
    /// How often.
    pub faults: u32,
    /// Shortest and longest pause between two faults, in milliseconds.
    pub pause_ms: (u64, u64),
    /// Seed of all random choices.
    pub seed: u64,
    /// The built node.
    pub binary: PathBuf,
    /// PostgreSQL's programs; looked for when not given.
    pub pg_bin: Option<PathBuf>,
    /// Concurrent ledger writers.
    pub writers: u32,
    /// Rows a second that they aim at together.
    pub rows_per_second: u32,
    /// Rows of the large transaction.
    pub large_transaction_rows: u32,
    /// Rows a second below which the run proves nothing.
    pub rows_per_second_min: u32,
    /// Transactions a second below which the run proves nothing.
    pub transactions_per_second_min: u32,
}

/// Runs and judges. Everything lies below `dir`, which the user `postgres` must be able to traverse.
///
/// # Errors
///
/// When the harness itself failed: the run says nothing about the product.
pub async fn run(plan: &RunPlan, dir: &Path) -> Result<Verdict> {
    let history = dir.join("history.jsonl");
    let journal = dir.join("journal.jsonl");
    let mut experiment = Experiment::set_up(plan, dir, &history, &journal).await?;
    let outcome = experiment.run(plan, &journal).await;
    experiment.recorder.finish()?;
    outcome.with_context(|| {
        let log = experiment.world.node.log_tail();
        format!("the node's log ends:\n{log}\n")
    })?;
    drop(experiment);
    judge_files(&history, &journal)
}

/// Everything that lives while a run lasts.
struct Experiment {
    world: World,
    recorder: Arc<Recorder>,
    journal: Arc<JournalWriter>,
    progress: watch::Receiver<Progress>,
    stop: watch::Sender<bool>,
    observers: JoinSet<Result<()>>,
    rng: StdRng,
    /// The node did not come back: there is nothing more to break or to read.
    is_given_up: bool,
}

impl Experiment {
    async fn set_up(plan: &RunPlan, dir: &Path, history: &Path, journal: &Path) -> Result<Self> {
        let recorder = Arc::new(Recorder::create(history)?);
        recorder.record(Event::Run(header(plan)))?;
        let postgres = Postgres::start(plan.pg_bin.as_deref(), dir).await?;
        let sql = Sql::connect_again(&postgres.dsn()).await?;
        let created = sql.client.batch_execute(CREATE).await;
        created.context("create the tables")?;
        let node = Node::start(&plan.binary, dir).await?;
        node.add_source(SOURCE, &postgres.url(), "public.*")?;
        let (stop, _) = watch::channel(false);
        let mut observers = JoinSet::new();
        let address = node.address();
        let consumer = Consumer::new(address.endpoint(), URI, Arc::clone(&recorder));
        let progress = consumer.progress();
        observers.spawn(consumer.run(stop.subscribe()));
        let sampled = sampler::sample(
            postgres.dsn(),
            move || async move { address.durable_lsn().await.ok().flatten() },
            Arc::clone(&recorder),
            stop.subscribe(),
        );
        observers.spawn(sampled);
        Ok(Self {
            world: World { postgres, node },
            recorder,
            journal: Arc::new(JournalWriter::create(journal)?),
            progress,
            stop,
            observers,
            rng: StdRng::seed_from_u64(plan.seed),
            is_given_up: false,
        })
    }

    async fn run(&mut self, plan: &RunPlan, journal: &Path) -> Result<()> {
        let sql = Sql::connect_again(&self.world.postgres.dsn()).await?;
        await_subscription(&mut self.progress, &sql).await?;
        bank::open_accounts(&sql).await?;
        let load_plan = LoadPlan {
            dsn: self.world.postgres.dsn(),
            seed: plan.seed,
            writers: plan.writers,
            rows_per_second: plan.rows_per_second,
            large_transaction_rows: plan.large_transaction_rows,
            with_rests: true,
        };
        let mut load = RunningLoad::start(&load_plan, Arc::clone(&self.journal));
        tokio::select! {
            broken = self.break_things(plan) => broken?,
            error = load.failed() => return Err(error),
        }
        self.recorder.record(Event::Load(load.stop().await?))?;
        self.journal.finish()?;
        self.resolve_unknown(journal).await?;
        if self.is_given_up {
            return self.stop_observers().await;
        }
        self.catch_up().await?;
        self.stop_observers().await?;
        let endpoint = self.world.node.address().endpoint();
        if let Err(error) = scan(&endpoint, SOURCE, &self.recorder, LAST_MARKER).await {
            self.trouble("liveness/log_unreadable", format!("{error:#}"))?;
        }
        if let Some(what) = self.world.node.end_politely(END_WITHIN).await? {
            self.trouble("node/unclean_end", what)?;
        }
        Ok(())
    }

    /// Injects faults until as many as wanted took place.
    async fn break_things(&mut self, plan: &RunPlan) -> Result<()> {
        let mut installed = 0;
        let mut lsn_before = self.progress.borrow().lsn;
        for _ in 0..plan.faults * ATTEMPTS_PER_FAULT {
            if installed == plan.faults || self.is_given_up {
                break;
            }
            let (shortest, longest) = plan.pause_ms;
            let pause = Duration::from_millis(self.rng.random_range(shortest..=longest));
            tokio::time::sleep(pause).await;
            self.verify_health_before().await?;
            let made_progress = self.progress.borrow().lsn > lsn_before;
            let fault = plan.menu.choose(&mut self.rng);
            let strike = fault.strike(&mut self.world, &mut self.rng).await?;
            let outcome = strike.outcome;
            self.recorder.record(Event::Fault {
                name: fault.name().to_owned(),
                outcome,
                made_progress,
            })?;
            if let Some((property, what)) = strike.trouble {
                self.trouble(&property, what)?;
            }
            lsn_before = self.progress.borrow().lsn;
            if outcome == FaultOutcome::Installed {
                installed += 1;
                eprintln!("fault {installed} of {}: {}", plan.faults, fault.name());
                self.await_recovery().await?;
            }
        }
        Ok(())
    }

    /// A node that died by itself is a finding; it is started again so that the run can go on.
    async fn verify_health_before(&mut self) -> Result<()> {
        if let Some(status) = self.world.node.status()? {
            self.trouble("node/died", format!("it ended with {status} by itself"))?;
            self.world.node.launch()?;
            self.await_recovery().await?;
        }
        Ok(())
    }

    /// Waits for the node to be ready and for something that was committed after the fault.
    async fn await_recovery(&mut self) -> Result<()> {
        let lsn = self.source_lsn().await?;
        if let Err(error) = self.world.node.ready().await {
            self.is_given_up = true;
            return self.trouble("liveness/node_not_ready", format!("{error:#}"));
        }
        let recovered = self.progress.wait_for(|progress| progress.lsn > lsn);
        if timeout(RECOVERED_WITHIN, recovered).await.is_err() {
            let last = self.progress.borrow().clone();
            let what = format!("nothing new for {RECOVERED_WITHIN:?} after a fault: {last:?}");
            self.trouble("liveness/no_progress", what)?;
        }
        Ok(())
    }

    /// All faults are healed and all writers have ended: the consumer must get everything.
    async fn catch_up(&mut self) -> Result<()> {
        let sql = Sql::connect_again(&self.world.postgres.dsn()).await?;
        insert_marker(&sql, LAST_MARKER).await?;
        let has_all = self
            .progress
            .wait_for(|progress| progress.marker == LAST_MARKER && progress.awaited == 0);
        if timeout(CAUGHT_UP_WITHIN, has_all).await.is_err() {
            let last = self.progress.borrow().clone();
            self.trouble("liveness/never_caught_up", format!("{last:?}"))?;
        }
        Ok(())
    }

    async fn resolve_unknown(&self, journal: &Path) -> Result<()> {
        let sql = Sql::connect_again(&self.world.postgres.dsn()).await?;
        for line in ledger::resolve_unknown(&sql, &read_journal(journal)?).await? {
            self.journal.append(&line)?;
        }
        self.journal.finish()
    }

    async fn stop_observers(&mut self) -> Result<()> {
        self.stop.send_replace(true);
        while let Some(ended) = self.observers.join_next().await {
            ended.context("an observer failed")??;
        }
        Ok(())
    }

    async fn source_lsn(&self) -> Result<u64> {
        let sql = Sql::connect_again(&self.world.postgres.dsn()).await?;
        let statement = "SELECT (pg_current_wal_lsn() - '0/0')::bigint";
        let lsn: i64 = sql.client.query_one(statement, &[]).await?.try_get(0)?;
        Ok(lsn.unsigned_abs())
    }

    fn trouble(&self, property: &str, what: String) -> Result<()> {
        trouble(&self.recorder, property, what)
    }
}

/// Says and records what no run may show.
pub(crate) fn trouble(recorder: &Recorder, property: &str, what: String) -> Result<()> {
    eprintln!("trouble: {property}: {what}");
    let property = property.to_owned();
    recorder.record(Event::Trouble { property, what })
}

/// Writes markers until one arrives: from then on the subscription misses nothing.
pub(crate) async fn await_subscription(
    progress: &mut watch::Receiver<Progress>,
    sql: &Sql,
) -> Result<()> {
    let deadline = Instant::now() + CAUGHT_UP_WITHIN;
    for marker in 1.. {
        insert_marker(sql, marker).await?;
        let arrived = progress.wait_for(|progress| progress.marker > 0);
        if timeout(MARKER_PAUSE, arrived).await.is_ok() {
            break;
        }
        if Instant::now() > deadline {
            let progress = progress.borrow().clone();
            bail!("no change reached the consumer before any fault: {progress:?}");
        }
    }
    Ok(())
}

pub(crate) async fn insert_marker(sql: &Sql, marker: i64) -> Result<()> {
    let statement = "INSERT INTO public.marker (id) VALUES ($1)";
    let inserted = sql.execute(statement, &[&marker]).await;
    inserted.map(|_| ()).context("write a marker")
}

fn header(plan: &RunPlan) -> RunHeader {
    RunHeader {
        seed: plan.seed,
        scenario: plan.menu.name().to_owned(),
        faults_wanted: plan.faults,
        accounts: ACCOUNTS,
        total_balance: i64::from(ACCOUNTS) * BALANCE,
        last_marker: LAST_MARKER,
        rows_per_second_min: plan.rows_per_second_min,
        transactions_per_second_min: plan.transactions_per_second_min,
    }
}
