//! One run: cluster up, writers and the stream on, faults, everything caught up, verdict.
//!
//! Returns an error only for failures of the harness; what the product does wrong is written into the
//! history and judged with the rest.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{sync::watch, task::JoinSet, time::Instant, time::timeout};

use super::{
    fault::Fault,
    stream::Stream,
    verdict::Verdict,
    world::{SOURCE, World},
};
use crate::{
    harness::sql::Sql,
    history::{
        event::{Event, FaultOutcome, RunHeader},
        reader::Progress,
        recorder::{Recorder, read_history},
        sampler,
    },
    scenario::{
        CAUGHT_UP_WITHIN, LAST_MARKER, RECOVERED_WITHIN, URI, await_subscription, insert_marker,
        trouble,
    },
    workload::{
        bank,
        journal::{JournalWriter, read_journal},
        ledger,
        load::{LoadPlan, RunningLoad},
        schema::{ACCOUNTS, BALANCE, CREATE},
    },
};

/// Rows of a writer's transaction, on average: half have one, half two to twelve.
const ROWS_PER_TRANSACTION: u32 = 4;

/// At least this often a minute something is struck.
const FAULTS_PER_MINUTE_MIN: u64 = 2;

/// How long a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Until so many faults took place.
    Faults(u32),
    /// For this time.
    Time(Duration),
}

impl Length {
    fn goes_on(self, faults: u32, elapsed: Duration) -> bool {
        match self {
            Self::Faults(wanted) => faults < wanted,
            Self::Time(wanted) => elapsed < wanted,
        }
    }

    /// Returns how many faults there must be.
    fn faults_min(self) -> u32 {
        match self {
            Self::Faults(wanted) => wanted,
            Self::Time(wanted) => {
                let faults = wanted.as_secs() * FAULTS_PER_MINUTE_MIN / 60;
                u32::try_from(faults).unwrap_or(u32::MAX).max(1)
            }
        }
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct ClusterPlan {
    /// How long.
    pub length: Length,
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
    /// Transactions a second that they aim at together.
    pub transactions_per_second: u32,
    /// Transactions a second below which the run proves nothing.
    pub transactions_per_second_min: u32,
    /// Rows of the large transaction that is written now and then; 0 for none.
    pub large_transaction_rows: u32,
}

/// Runs and judges. Everything lies below `dir`, which the user `postgres` must be able to traverse.
///
/// # Errors
///
/// When the harness itself failed: the run says nothing about the product.
pub async fn run(plan: &ClusterPlan, dir: &Path) -> Result<Verdict> {
    let history = dir.join("history.jsonl");
    let journal = dir.join("journal.jsonl");
    let mut experiment = Experiment::set_up(plan, dir, &history, &journal).await?;
    let outcome = experiment.run(plan, &journal).await;
    experiment.recorder.finish()?;
    outcome.with_context(|| experiment.world.log_tails())?;
    drop(experiment);
    Ok(Verdict::of(
        read_history(&history)?,
        read_journal(&journal)?,
    ))
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
    lsn_before: u64,
    /// A node did not come back: there is nothing more to break.
    is_given_up: bool,
}

impl Experiment {
    async fn set_up(
        plan: &ClusterPlan,
        dir: &Path,
        history: &Path,
        journal: &Path,
    ) -> Result<Self> {
        let recorder = Arc::new(Recorder::create(history)?);
        recorder.record(Event::Run(header(plan)))?;
        let world = World::set_up(dir, &plan.binary, plan.pg_bin.as_deref()).await?;
        let dsn = world.postgres.dsn();
        let sql = Sql::connect_again(&dsn).await?;
        let created = sql.client.batch_execute(CREATE).await;
        created.context("create the tables")?;
        let reader = world.reader()?;
        reader.add_source(SOURCE, &world.postgres.url(), "public.*")?;
        let stream = Stream::new(reader.address().endpoint(), URI, Arc::clone(&recorder));
        let progress = stream.progress();
        let (stop, _) = watch::channel(false);
        let mut observers = JoinSet::new();
        observers.spawn(stream.run(stop.subscribe()));
        // The slot may not pass what the consumer has.
        let consumed = progress.clone();
        let sampled = sampler::sample(
            dsn,
            move || std::future::ready(Some(consumed.borrow().lsn).filter(|lsn| *lsn > 0)),
            Arc::clone(&recorder),
            stop.subscribe(),
        );
        observers.spawn(sampled);
        Ok(Self {
            world,
            recorder,
            journal: Arc::new(JournalWriter::create(journal)?),
            progress,
            stop,
            observers,
            rng: StdRng::seed_from_u64(plan.seed),
            lsn_before: 0,
            is_given_up: false,
        })
    }

    async fn run(&mut self, plan: &ClusterPlan, journal: &Path) -> Result<()> {
        let sql = Sql::connect_again(&self.world.postgres.dsn()).await?;
        await_subscription(&mut self.progress, &sql).await?;
        bank::open_accounts(&sql).await?;
        let load_plan = LoadPlan {
            dsn: self.world.postgres.dsn(),
            seed: plan.seed,
            writers: plan.writers,
            rows_per_second: plan.transactions_per_second * ROWS_PER_TRANSACTION,
            large_transaction_rows: plan.large_transaction_rows,
            with_rests: false,
        };
        let mut load = RunningLoad::start(&load_plan, Arc::clone(&self.journal));
        tokio::select! {
            broken = self.break_things(plan) => broken?,
            error = load.failed() => return Err(error),
        }
        self.recorder.record(Event::Load(load.stop().await?))?;
        self.journal.finish()?;
        let lines = ledger::resolve_unknown(&sql, &read_journal(journal)?).await?;
        for line in &lines {
            self.journal.append(line)?;
        }
        self.journal.finish()?;
        self.catch_up(&sql).await?;
        self.stop.send_replace(true);
        while let Some(ended) = self.observers.join_next().await {
            ended.context("an observer failed")??;
        }
        if let Some(what) = self.world.end().await? {
            self.trouble("node/unclean_end", what)?;
        }
        Ok(())
    }

    async fn break_things(&mut self, plan: &ClusterPlan) -> Result<()> {
        let began = Instant::now();
        let mut number = 0;
        while !self.is_given_up && plan.length.goes_on(number, began.elapsed()) {
            let (shortest, longest) = plan.pause_ms;
            let pause = self.rng.random_range(shortest..=longest);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if let Some(died) = self.world.revive()? {
                self.trouble("node/died", died)?;
            }
            self.strike(number).await?;
            number += 1;
        }
        Ok(())
    }

    async fn strike(&mut self, number: u32) -> Result<()> {
        let fault = Fault::draw(number, &mut self.rng);
        if fault.with_source
            && let Some(what) = self.world.move_source(fault.victim).await?
        {
            self.trouble("liveness/not_moved", what)?;
        }
        let name = fault.name(self.world.has_source(fault.victim).await?);
        let lsn = self.progress.borrow().lsn;
        let made_progress = lsn > self.lsn_before;
        self.lsn_before = lsn;
        eprintln!("fault {}: {name}, {} ms", number + 1, fault.lasts_ms);
        self.recorder.record(Event::Fault {
            name,
            outcome: FaultOutcome::Installed,
            made_progress,
        })?;
        if let Some(what) = self.world.strike(&fault).await? {
            self.trouble("node/ended_badly", what)?;
        }
        self.await_recovery().await
    }

    /// Waits for all nodes to be ready and for something that was committed after the fault.
    async fn await_recovery(&mut self) -> Result<()> {
        let sql = Sql::connect_again(&self.world.postgres.dsn()).await?;
        let statement = "SELECT (pg_current_wal_lsn() - '0/0')::bigint";
        let lsn: i64 = sql.client.query_one(statement, &[]).await?.try_get(0)?;
        for index in 0..3 {
            if let Err(error) = self.world.node(index)?.ready().await {
                self.is_given_up = true;
                self.trouble("liveness/node_not_ready", format!("{error:#}"))?;
            }
        }
        let is_new = |progress: &Progress| progress.lsn > lsn.unsigned_abs();
        let recovered = self.progress.wait_for(is_new);
        if timeout(RECOVERED_WITHIN, recovered).await.is_err() {
            let last = self.progress.borrow().clone();
            let what = format!("nothing new for {RECOVERED_WITHIN:?} after a fault: {last:?}");
            self.trouble("liveness/no_progress", what)?;
        }
        Ok(())
    }

    /// All faults are healed and all writers have ended: the stream must bring everything.
    async fn catch_up(&mut self, sql: &Sql) -> Result<()> {
        insert_marker(sql, LAST_MARKER).await?;
        let has_all = |progress: &Progress| progress.marker == LAST_MARKER;
        let has_all = self.progress.wait_for(has_all);
        if timeout(CAUGHT_UP_WITHIN, has_all).await.is_err() {
            let last = self.progress.borrow().clone();
            return self.trouble("liveness/never_caught_up", format!("{last:?}"));
        }
        Ok(())
    }

    fn trouble(&self, property: &str, what: String) -> Result<()> {
        trouble(&self.recorder, property, what)
    }
}

fn header(plan: &ClusterPlan) -> RunHeader {
    RunHeader {
        seed: plan.seed,
        scenario: "cluster".to_owned(),
        faults_wanted: plan.length.faults_min(),
        accounts: ACCOUNTS,
        total_balance: i64::from(ACCOUNTS) * BALANCE,
        last_marker: LAST_MARKER,
        // What is aimed at are transactions.
        rows_per_second_min: 0,
        transactions_per_second_min: plan.transactions_per_second_min,
    }
}
