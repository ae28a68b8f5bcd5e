//! The runs: a fresh consumer and its dump each, on one world that lives as long as all of them.
//!
//! Returns an error only for failures of the harness; what the product does wrong is a finding.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    consumer::{Consumer, Manners, Orders, Progress},
    copy::Copy,
    table,
    verdict::Verdict,
    world::{Counters, DumpSeen, Fault, SOURCE, Struck, World},
    writers::{self, Writers},
};
use crate::{checkers::findings::Findings, harness::sql::Sql};

/// Pause between two markers, and between two looks at a dump.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// From a consumer's first connection until a change reaches it.
const SUBSCRIBED_WITHIN: Duration = Duration::from_secs(60);

/// From the last write until the consumer has everything.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(120);

/// The writers are under way before the dump begins.
const HEAD_START: Duration = Duration::from_millis(800);

/// Ranges of a dump at least: with one snapshot of everything there is nothing to splice and to sweep.
const RANGES_MIN: u64 = 5;

/// Messages in a batch, for a consumer that asks for batches.
const BATCH: u32 = 500;

/// What to run.
#[derive(Clone, Debug)]
pub struct DumpPlan {
    /// Rows of the table.
    pub rows: u64,
    /// Dumps, one after the other.
    pub runs: u32,
    /// Faults that must take place while a dump runs, each time.
    pub kills: u32,
    /// Shortest and longest pause between two faults, in milliseconds.
    pub pause_ms: (u64, u64),
    /// Seed of the first run's choices; each later one has the next.
    pub seed: u64,
    /// The built node.
    pub binary: PathBuf,
    /// PostgreSQL's programs; looked for when not given.
    pub pg_bin: Option<PathBuf>,
    /// Concurrent writers.
    pub writers: u32,
    /// Rows a second that they aim at together.
    pub rows_per_second: u32,
    /// Rows a second below which a run proves nothing.
    pub rows_per_second_min: u32,
    /// Existing rows a second that the consumer takes at most; 0 for as many as come.
    pub pace: u64,
    /// A dump that takes longer is a finding.
    pub dump_within: Duration,
}

/// A consumer that runs.
struct Running {
    orders: watch::Sender<Orders>,
    progress: watch::Receiver<Progress>,
    task: JoinSet<Result<Copy>>,
}

impl Running {
    fn start(manners: Manners, copy: Copy) -> Self {
        let orders = watch::Sender::default();
        let consumer = Consumer::new(manners, orders.subscribe(), copy);
        let progress = consumer.progress();
        let mut task = JoinSet::new();
        task.spawn(consumer.run());
        Self {
            orders,
            progress,
            task,
        }
    }

    async fn stop(mut self) -> Result<(Copy, Progress)> {
        self.orders.send_modify(|orders| orders.stop = true);
        let ended = self.task.join_next().await.context("the consumer runs")?;
        let copy = ended.context("the consumer failed")??;
        Ok((copy, self.progress.borrow().clone()))
    }
}

/// Runs all, and judges each. Everything lies below `dir`, which the user `postgres` can traverse.
pub async fn run(plan: &DumpPlan, dir: &Path) -> Verdict {
    let mut verdict = Verdict::new(plan.seed);
    let began = World::set_up(dir, &plan.binary, plan.pg_bin.as_deref(), plan.rows).await;
    let mut world = match began {
        Ok(world) => world,
        Err(error) => return verdict.failed(&error),
    };
    for number in 0..plan.runs {
        let seed = plan.seed.wrapping_add(u64::from(number));
        match Box::pin(one(plan, &mut world, number, seed)).await {
            Ok(run) => {
                eprintln!("{}", run.to_line().unwrap_or_default());
                verdict.add(run);
            }
            Err(error) => {
                let log = world.node.log_tail();
                return verdict.failed(&error.context(format!("the node's log ends:\n{log}\n")));
            }
        }
    }
    verdict
}

async fn one(plan: &DumpPlan, world: &mut World, number: u32, seed: u64) -> Result<Verdict> {
    let mut rng = StdRng::seed_from_u64(seed);
    let name = format!("copy-{number}");
    let manners = |name: &str| Manners {
        endpoint: world.node.address().endpoint(),
        uri: format!("{SOURCE}/{name}"),
        seed,
        sent_back_max: 3,
        sent_back_one_in: u32::try_from(plan.rows / 2).unwrap_or(u32::MAX),
        // Old consumers and new ones in turn.
        batch: if seed.is_multiple_of(2) { 0 } else { BATCH },
        rows_per_second: plan.pace,
    };
    let mut consumer = Running::start(manners(&name), Copy::default());
    let bystander = manners(&format!("bystander-{number}"));
    let bystander = Running::start(bystander, Copy::bystander());
    subscribe(world, &mut consumer.progress).await?;
    let before = world.counters().await?;
    let mut writers = Writers::start(&writers::Plan {
        dsn: world.postgres.dsn(),
        seed,
        writers: plan.writers,
        rows_per_second: plan.rows_per_second,
        keys: world.keys,
    });
    tokio::time::sleep(HEAD_START).await;
    let mut findings = Findings::default();
    let began = Instant::now();
    let dump = world.start_dump(&name, plan.rows)?;
    let attack = Attack {
        plan,
        dump: &dump,
        deadline: began + plan.dump_within,
        orders: &consumer.orders,
        findings: &mut findings,
    };
    let struck = tokio::select! {
        struck = attack.run(world, &mut rng) => struck?,
        error = writers.failed() => return Err(error),
    };
    let dump_seconds = began.elapsed().as_secs();
    let written = writers.stop().await?;
    world.note_written(written);
    let after = world.counters().await?;
    judge_run(
        plan,
        written.rows_per_second,
        struck,
        before,
        after,
        &mut findings,
    );
    catch_up(world, &mut consumer.progress, &mut findings).await?;
    let (mut copy, progress) = consumer.stop().await?;
    let (other, _) = bystander.stop().await?;
    let rows_compared = compare(world, &mut copy).await?;
    let all = [&findings, &copy.findings, &other.findings];
    let violations = all.iter().flat_map(|some| some.violations()).collect();
    Ok(Verdict {
        rows_compared,
        kills: struck,
        existing_rows: copy.existing_rows,
        sent_back: progress.sent_back,
        changes: copy.changes,
        sessions: progress.sessions,
        written: written.rows,
        dump_seconds,
        ..Verdict::of_run(seed, violations)
    })
}

/// Nobody writes any more: the copy must be the table.
async fn compare(world: &World, copy: &mut Copy) -> Result<u64> {
    let sql = Sql::connect_again(&world.postgres.dsn()).await?;
    let rows = table::read(&sql, |row| copy.compare(&row)).await?;
    copy.finish_comparison();
    Ok(rows)
}

/// Writes markers until one arrives: from then on the subscription misses nothing.
async fn subscribe(world: &World, progress: &mut watch::Receiver<Progress>) -> Result<()> {
    let sql = Sql::connect_again(&world.postgres.dsn()).await?;
    let deadline = Instant::now() + SUBSCRIBED_WITHIN;
    loop {
        insert_marker(&sql).await?;
        let arrived = progress.wait_for(|progress| progress.marker > 0);
        if timeout(LOOK_EVERY, arrived).await.is_ok() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let last = progress.borrow().clone();
            bail!("no change reached the consumer before any fault: {last:?}");
        }
    }
}

/// All writers have ended: the consumer must get the last marker.
async fn catch_up(
    world: &World,
    progress: &mut watch::Receiver<Progress>,
    findings: &mut Findings,
) -> Result<()> {
    let sql = Sql::connect_again(&world.postgres.dsn()).await?;
    let last = insert_marker(&sql).await?;
    let arrived = progress.wait_for(|progress| progress.marker >= last);
    if timeout(CAUGHT_UP_WITHIN, arrived).await.is_err() {
        let progress = progress.borrow().clone();
        findings.add("liveness/never_caught_up", || format!("{progress:?}"));
    }
    Ok(())
}

async fn insert_marker(sql: &Sql) -> Result<i64> {
    let statement = "INSERT INTO public.marker
        SELECT coalesce(max(id), 0) + 1 FROM public.marker RETURNING id";
    let row = sql.client.query_one(statement, &[]).await;
    Ok(row.context("write a marker")?.try_get(0)?)
}

/// Faults until the dump has ended.
struct Attack<'a> {
    plan: &'a DumpPlan,
    dump: &'a str,
    deadline: Instant,
    orders: &'a watch::Sender<Orders>,
    findings: &'a mut Findings,
}

impl Attack<'_> {
    async fn run(self, world: &mut World, rng: &mut StdRng) -> Result<Struck> {
        let mut struck = Struck::default();
        let mut next = self.next_strike(rng);
        let mut silent_since = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let DumpSeen { state, ranges, all } = match world.dump_state(self.dump) {
                Ok(answer) => answer,
                Err(error) => {
                    let since = *silent_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > SUBSCRIBED_WITHIN {
                        return Err(error.context("ask for the dump's state"));
                    }
                    continue;
                }
            };
            silent_since = None;
            if state == "finished" {
                if ranges < RANGES_MIN {
                    self.findings.add("sound/too_few_ranges", || all);
                }
                return Ok(struck);
            }
            if state == "failed" || state == "cancelled" {
                self.findings.add("dump/failed", || all);
                return Ok(struck);
            }
            if Instant::now() > self.deadline {
                self.findings.add("liveness/dump_never_finished", || all);
                return Ok(struck);
            }
            if struck.total() < self.plan.kills && Instant::now() >= next {
                let fault = Fault::draw(struck.total(), rng);
                eprintln!("fault {}: {fault:?}", struck.total() + 1);
                if let Some(what) = world.strike(fault, rng).await? {
                    self.findings.add("node/died", || what);
                }
                match fault {
                    Fault::KillNode | Fault::KillNodeStarting => struck.node += 1,
                    Fault::KillStandby => struck.standby += 1,
                    Fault::CutConsumer => {
                        self.orders.send_modify(|orders| orders.cuts += 1);
                        struck.consumer += 1;
                    }
                }
                next = self.next_strike(rng);
            }
        }
    }

    fn next_strike(&self, rng: &mut StdRng) -> Instant {
        let (shortest, longest) = self.plan.pause_ms;
        Instant::now() + Duration::from_millis(rng.random_range(shortest..=longest))
    }
}

/// A run without load, without faults or without rows that move proves nothing; and a dump that
/// reads a standby reads nothing of the source.
fn judge_run(
    plan: &DumpPlan,
    rows_per_second: u64,
    struck: Struck,
    before: Counters,
    after: Counters,
    findings: &mut Findings,
) {
    if rows_per_second < u64::from(plan.rows_per_second_min) {
        findings.add("sound/too_little_load", || {
            format!("{rows_per_second} rows/s")
        });
    }
    if struck.total() < plan.kills {
        findings.add("sound/too_few_faults", || {
            format!("{struck:?}: the dump was over before")
        });
    }
    let hot = after.updated_hot - before.updated_hot;
    let moved = after.updated - before.updated - hot;
    let deleted = after.deleted - before.deleted;
    if hot < 1 || moved < 1 || deleted < 1 {
        findings.add("sound/nothing_moved", || {
            format!("{hot} updated in place, {moved} moved, {deleted} deleted")
        });
    }
    let read = after.read - before.read;
    if read > 0 {
        findings.add("isolation/source_was_read", || {
            format!("{read} rows without an index")
        });
    }
}
