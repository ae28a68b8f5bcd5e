//! Runs all writers, lets them rest now and then, and counts what they did.
//!
//! A writer that loses its connection comes back by itself. Any other failure of a writer is a failure
//! of the harness and voids the run.

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

use super::{bank, journal::JournalWriter, ledger};
use crate::history::event::Load;

/// How long writers write before a rest, and how long they rest: a capture must be idle now and then,
/// because an idle slot is confirmed by another path than a busy one.
const BUSY_MS: std::ops::Range<u64> = 4_000..9_000;
const IDLE_MS: std::ops::Range<u64> = 400..1_200;

/// What to run.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// Connection string of the source.
    pub dsn: String,
    /// Seed of all choices.
    pub seed: u64,
    /// Concurrent ledger writers.
    pub writers: u32,
    /// Rows a second that all of them aim at.
    pub rows_per_second: u32,
    /// Rows of the large transaction that is written now and then; 0 for none.
    pub large_transaction_rows: u32,
    /// Whether the writers rest now and then.
    pub with_rests: bool,
}

/// What a writer should do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Write.
    Busy,
    /// Rest.
    Idle,
    /// Finish the transaction at hand and return.
    Stop,
}

/// What all writers share.
#[derive(Debug)]
pub struct Shared {
    /// Connection string of the source.
    pub dsn: String,
    /// Where outcomes are written.
    pub journal: Arc<JournalWriter>,
    /// Committed rows.
    pub rows: AtomicU64,
    /// Committed transactions.
    pub transactions: AtomicU64,
    /// Rows of the largest one.
    pub largest: AtomicU64,
}

impl Shared {
    /// Counts a committed transaction.
    pub fn count(&self, rows: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.transactions.fetch_add(1, Ordering::Relaxed);
        self.largest.fetch_max(rows, Ordering::Relaxed);
    }
}

/// The running writers.
#[derive(Debug)]
pub struct RunningLoad {
    phase: Arc<watch::Sender<Phase>>,
    writers: JoinSet<Result<()>>,
    conductor: JoinSet<u64>,
    shared: Arc<Shared>,
}

impl RunningLoad {
    /// Starts the writers.
    #[must_use]
    pub fn start(plan: &LoadPlan, journal: Arc<JournalWriter>) -> Self {
        let shared = Arc::new(Shared {
            dsn: plan.dsn.clone(),
            journal,
            rows: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
            largest: AtomicU64::new(0),
        });
        let phase = Arc::new(watch::Sender::new(Phase::Busy));
        let mut writers = JoinSet::new();
        let per_writer = f64::from(plan.rows_per_second) / f64::from(plan.writers.max(1));
        for writer in 1..=i64::from(plan.writers) {
            let rng = StdRng::seed_from_u64(plan.seed.wrapping_add(writer.unsigned_abs()));
            let pen = ledger::Pen {
                writer,
                rows_per_second: per_writer,
                shared: Arc::clone(&shared),
                phase: phase.subscribe(),
            };
            writers.spawn(ledger::write(pen, rng));
        }
        if plan.large_transaction_rows > 0 {
            let pen = ledger::Pen {
                writer: ledger::LARGE_WRITER,
                rows_per_second: per_writer,
                shared: Arc::clone(&shared),
                phase: phase.subscribe(),
            };
            writers.spawn(ledger::write_large(pen, plan.large_transaction_rows));
        }
        let bank_rng = StdRng::seed_from_u64(plan.seed ^ 0xBA4C);
        writers.spawn(bank::transfer(
            Arc::clone(&shared),
            phase.subscribe(),
            bank_rng,
        ));
        let mut conductor = JoinSet::new();
        conductor.spawn(conduct(
            Arc::clone(&phase),
            StdRng::seed_from_u64(plan.seed ^ 0xC0),
            plan.with_rests,
        ));
        Self {
            phase,
            writers,
            conductor,
            shared,
        }
    }

    /// Fails as soon as a writer has failed; never returns otherwise.
    pub async fn failed(&mut self) -> anyhow::Error {
        loop {
            match self.writers.join_next().await {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => return error.context("a writer failed"),
                Some(Err(error)) => return anyhow::Error::new(error).context("a writer failed"),
                None => std::future::pending().await,
            }
        }
    }

    /// Lets every writer finish its transaction, and says how much they did.
    ///
    /// # Errors
    ///
    /// When a writer failed: the run is void.
    pub async fn stop(mut self) -> Result<Load> {
        self.phase.send_replace(Phase::Stop);
        while let Some(ended) = self.writers.join_next().await {
            ended
                .context("a writer failed")?
                .context("a writer failed")?;
        }
        let conducted = self.conductor.join_next().await;
        let busy_ms = conducted.context("nobody conducted")??;
        Ok(Load {
            busy_ms,
            rows: self.shared.rows.load(Ordering::Relaxed),
            transactions: self.shared.transactions.load(Ordering::Relaxed),
            largest_transaction_rows: self.shared.largest.load(Ordering::Relaxed),
        })
    }
}

/// Alternates work and rest until stopped; returns the milliseconds of work.
async fn conduct(phase: Arc<watch::Sender<Phase>>, mut rng: StdRng, with_rests: bool) -> u64 {
    let mut stopped = phase.subscribe();
    let mut busy_ms = 0;
    loop {
        let turns = [
            (Phase::Busy, rng.random_range(BUSY_MS)),
            (Phase::Idle, rng.random_range(IDLE_MS)),
        ];
        let turns = turns.into_iter();
        for (turn, length_ms) in turns.filter(|(turn, _)| with_rests || *turn == Phase::Busy) {
            // The writers may have been told to stop in the meantime: that word stays.
            phase.send_if_modified(|now| {
                let is_change = *now != Phase::Stop && *now != turn;
                if is_change {
                    *now = turn;
                }
                is_change
            });
            let began = Instant::now();
            let stop = stopped.wait_for(|now| *now == Phase::Stop);
            let is_stopped = tokio::time::timeout(Duration::from_millis(length_ms), stop)
                .await
                .is_ok();
            if turn == Phase::Busy {
                busy_ms += u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            }
            if is_stopped {
                return busy_ms;
            }
        }
    }
}
