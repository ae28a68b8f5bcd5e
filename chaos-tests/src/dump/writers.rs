//! Writers that rewrite the table while it is copied.
//!
//! Each writer has the keys of its own residue class, so that the versions of a key grow in commit
//! order. They update in place (HOT) and not, write and drop wide columns, leave wide columns
//! unchanged, delete, insert, insert again under an old key, move rows to new keys, rewrite runs of
//! neighbours, roll back. A cleaner vacuums, so that rows move to pages that were read already.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use crate::harness::sql::Sql;

/// Statements of one transaction.
const STATEMENTS: std::ops::RangeInclusive<u32> = 1..=12;

/// Pause of the cleaner between two vacuums.
const CLEAN_EVERY: Duration = Duration::from_secs(2);

/// Keys of a run of neighbours that is rewritten at once.
const RUN: i64 = 400;

const HOT: &str = "UPDATE public.dumped
    SET n = n + 1, at = now(), version = nextval('public.versions') WHERE id = $1";
const NOT_HOT: &str = "UPDATE public.dumped
    SET tag = 'tag ' || $2::bigint, amount = amount + 0.01, version = nextval('public.versions')
    WHERE id = $1";
const WIDE: &str = "UPDATE public.dumped
    SET doc = public.wide($2), version = nextval('public.versions') WHERE id = $1";
const WIDE_DATA: &str =
    "UPDATE public.dumped SET data = jsonb_build_object('w', public.wide($2::bigint)),
    tags = ARRAY[$2::bigint % 9, 1]::int[], version = nextval('public.versions') WHERE id = $1";
const SHORT: &str = "UPDATE public.dumped SET doc = NULL, data = to_jsonb($2::bigint),
    version = nextval('public.versions') WHERE id = $1";
const REWRITE: &str = "UPDATE public.dumped
    SET tag = 'run ' || id % 13, version = nextval('public.versions')
    WHERE id BETWEEN $1 AND $1 + $2::bigint AND id % $3::bigint = $4";
const DELETE: &str = "DELETE FROM public.dumped WHERE id = $1";
const INSERT: &str = "INSERT INTO public.dumped (id, version, n, doc, tag, data)
    VALUES ($1, nextval('public.versions'), 1,
        CASE WHEN $2::bigint % 4 = 0 THEN public.wide($2::bigint) END,
        'tag ' || $2::bigint, to_jsonb($2::bigint))
    ON CONFLICT DO NOTHING";
const MOVE: &str = "UPDATE public.dumped
    SET id = $2, version = nextval('public.versions') WHERE id = $1";

/// What to write.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Connection string of the source.
    pub dsn: String,
    /// Seed of all choices.
    pub seed: u64,
    /// Writers.
    pub writers: u32,
    /// Rows a second that they aim at together.
    pub rows_per_second: u32,
    /// Keys 1 to this number are there, or were, when they begin.
    pub keys: i64,
}

/// The running writers.
#[derive(Debug)]
pub struct Writers {
    stop: watch::Sender<bool>,
    tasks: JoinSet<Result<()>>,
    rows: Arc<AtomicU64>,
    highest: Arc<AtomicU64>,
    began: Instant,
}

/// What was written.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Committed rows.
    pub rows: u64,
    /// Rows a second.
    pub rows_per_second: u64,
    /// No key is above.
    pub keys: i64,
}

/// One writer.
struct Writer {
    number: i64,
    of: i64,
    plan: Plan,
    rng: StdRng,
    rows: Arc<AtomicU64>,
    highest: Arc<AtomicU64>,
    next_key: i64,
}

impl Writers {
    /// Starts them.
    #[must_use]
    pub fn start(plan: &Plan) -> Self {
        let (stop, _) = watch::channel(false);
        let (rows, highest) = (Arc::default(), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        let of = i64::from(plan.writers.max(1));
        for number in 0..of {
            let writer = Writer {
                number,
                of,
                plan: plan.clone(),
                rng: StdRng::seed_from_u64(plan.seed.wrapping_add(number.unsigned_abs())),
                rows: Arc::clone(&rows),
                highest: Arc::clone(&highest),
                next_key: plan.keys - plan.keys % of + of + number,
            };
            tasks.spawn(writer.run(stop.subscribe()));
        }
        tasks.spawn(clean(plan.dsn.clone(), stop.subscribe()));
        Self {
            stop,
            tasks,
            rows,
            highest,
            began: Instant::now(),
        }
    }

    /// Fails as soon as a writer has failed; never returns otherwise.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok(Err(error))) => error.context("a writer failed"),
            Some(Ok(Ok(()))) => anyhow::anyhow!("a writer ended by itself"),
            Some(Err(error)) => anyhow::Error::new(error).context("a writer failed"),
            None => std::future::pending().await,
        }
    }

    /// Lets every writer finish its transaction.
    ///
    /// # Errors
    ///
    /// When one failed: the run is void.
    pub async fn stop(mut self) -> Result<Written> {
        let seconds = self.began.elapsed().as_secs_f64().max(0.001);
        let rows = self.rows.load(Ordering::Relaxed);
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a writer failed")??;
        }
        Ok(Written {
            rows: self.rows.load(Ordering::Relaxed),
            rows_per_second: (rows as f64 / seconds) as u64,
            keys: i64::try_from(self.highest.load(Ordering::Relaxed))?,
        })
    }
}

impl Writer {
    async fn run(mut self, stop: watch::Receiver<bool>) -> Result<()> {
        let sql = Sql::connect_again(&self.plan.dsn).await?;
        // A writer reads by key alone: what else reads the table on the source is a finding.
        let settings = "SET enable_seqscan = off; SET enable_bitmapscan = off";
        sql.client.batch_execute(settings).await?;
        let per_second = f64::from(self.plan.rows_per_second) / self.of as f64;
        let began = Instant::now();
        let mut written = 0;
        while !*stop.borrow() {
            written += self.transaction(&sql).await?;
            let due = began + Duration::from_secs_f64(written as f64 / per_second.max(1.0));
            tokio::time::sleep_until(due.min(Instant::now() + Duration::from_secs(1))).await;
        }
        Ok(())
    }

    async fn transaction(&mut self, sql: &Sql) -> Result<u64> {
        sql.client.batch_execute("BEGIN").await?;
        let mut rows = 0;
        for _ in 0..self.rng.random_range(STATEMENTS) {
            rows += self.statement(sql).await?;
        }
        if self.rng.random_bool(0.08) {
            sql.client.batch_execute("ROLLBACK").await?;
            return Ok(rows);
        }
        sql.client.batch_execute("COMMIT").await?;
        self.rows.fetch_add(rows, Ordering::Relaxed);
        Ok(rows)
    }

    async fn statement(&mut self, sql: &Sql) -> Result<u64> {
        let (key, word) = (self.key(), self.rng.random_range(0..1_000_000_i64));
        let done = match self.rng.random_range(0..100_u32) {
            0..30 => sql.execute(HOT, &[&key]).await,
            30..52 => sql.execute(NOT_HOT, &[&key, &word]).await,
            52..60 => sql.execute(WIDE, &[&key, &word]).await,
            60..65 => sql.execute(WIDE_DATA, &[&key, &word]).await,
            65..69 => sql.execute(SHORT, &[&key, &word]).await,
            69..80 => sql.execute(DELETE, &[&key]).await,
            80..86 => sql.execute(INSERT, &[&key, &word]).await,
            86..92 => {
                let new = self.new_key();
                sql.execute(INSERT, &[&new, &word]).await
            }
            92..98 => {
                let new = self.new_key();
                sql.execute(MOVE, &[&key, &new]).await
            }
            _ => {
                let run = [RUN, self.of, self.number];
                sql.execute(REWRITE, &[&key, &run[0], &run[1], &run[2]])
                    .await
            }
        };
        done.context("write")
    }

    /// One of this writer's keys, whether a row has it or not; often among the few that are hot.
    fn key(&mut self) -> i64 {
        let top = self.next_key / self.of;
        let among = if self.rng.random_bool(0.3) {
            top.min(2_000)
        } else {
            top
        };
        self.rng.random_range(0..among.max(1)) * self.of + self.number
    }

    fn new_key(&mut self) -> i64 {
        let key = self.next_key;
        self.next_key += self.of;
        self.highest
            .fetch_max(key.unsigned_abs(), Ordering::Relaxed);
        key
    }
}

async fn clean(dsn: String, mut stop: watch::Receiver<bool>) -> Result<()> {
    let sql = Sql::connect_again(&dsn).await?;
    loop {
        let stopped = stop.wait_for(|stop| *stop);
        if tokio::time::timeout(CLEAN_EVERY, stopped).await.is_ok() {
            return Ok(());
        }
        let cleaned = sql.client.batch_execute("VACUUM public.dumped").await;
        cleaned.context("vacuum")?;
    }
}
