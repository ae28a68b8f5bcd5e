//! Following a scripted walsender over a real socket.
//!
//! The clock stands still and moves only when a test says so: what "at once" and "for a moment" mean
//! is then a fact.

use std::sync::Arc;

use actix::Arbiter;
use pgcapture_engine::{
    batch::Batch,
    checkpoint::Epoch,
    decoder::{Decoder as PgoutputDecoder, DecoderOptions},
    fence::{AgentName, ClusterId},
    progress::Progress,
    slot_mode::{SlotModeOptions, SlotModeSwitch},
};
use tokio::time::advance;
use tokio_util::sync::CancellationToken;

use super::{
    walsender::{Listening, Walsender, keepalive, transaction},
    *,
};
use crate::{
    agent::{AgentLimits, AgentSpec, AgentStatus, Durability, Lease},
    decoder::{asked::Asked, meter::DecodeMeter, slot_reader::Probe},
    log::{
        ChangeLog as _, LogReader, Start,
        memory::{MemoryLog, MemoryLogOptions},
    },
    publisher::Publisher,
    supervise::{Alive, Task},
};

const MILLI: Duration = Duration::from_millis(1);

/// More in four milliseconds than from where a stream is fast.
const FAST_BYTES: usize = 64 << 10;

/// Runs a test on one thread with actors, where time moves by [`advance`] alone.
fn without_time(test: impl Future<Output = ()>) {
    let system = actix_rt::System::with_tokio_rt(|| {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().unwrap()
    });
    system.block_on(async {
        // A paused clock jumps when everything waits, for a socket as well: not while this runs.
        let (release, held) = std::sync::mpsc::channel::<()>();
        let hold = tokio::task::spawn_blocking(move || held.recv().is_err());
        test.await;
        drop(release);
        assert!(hold.await.unwrap());
    });
}

/// A walsender, its follower and the log between.
struct World {
    walsender: Walsender,
    log: Arc<MemoryLog>,
    reader: Box<dyn LogReader>,
    status: watch::Receiver<AgentStatus>,
    drain: CancellationToken,
    follower: Task<Result<(), AgentError>>,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listening = Listening::new(folder.path());
        let log = MemoryLog::new(MemoryLogOptions::default());
        let writer = log.open_writer(Epoch(1)).await.unwrap();
        let (alive, _gone) = Alive::pair();
        let publisher = Publisher::start(&Arbiter::current(), writer, Lease::permanent(), alive);
        let options = DecoderOptions {
            row_bytes_max: 1 << 20,
        };
        let decoder = PgoutputDecoder::new(options, None, Lsn::ZERO);
        // Nothing is held back by consumers: nobody asks whether the server wants to end.
        let (_confirm, confirmable) = watch::channel(Lsn(1 << 40));
        let (status_tx, status) = watch::channel(AgentStatus::default());
        let drain = CancellationToken::new();
        let reader = SlotReader {
            asked: Asked::new(log.asked_progress()),
            meter: DecodeMeter::new("test", *decoder.counters()),
            decoder,
            progress: Progress::new(None, Lsn::ZERO, Default::default()),
            mode: SlotModeSwitch::new(SlotModeOptions::default()),
            publisher,
            tail: log.tail(),
            confirmable,
            status: Arc::new(status_tx),
            drain: drain.clone(),
            started: Instant::now(),
            server_end: Lsn::ZERO,
            name: Arc::new(AgentName::new("n1", Epoch(1), ClusterId::default())),
            walsender: None,
            began: Instant::now(),
            probe: Probe::default(),
            spec: Arc::new(spec()),
            config: listening.config.clone(),
        };
        let follower = spawn(TaskKind::SlotReader, "test", reader.run());
        Self {
            walsender: listening.accept().await,
            reader: log.open_reader(Start::Earliest).await.unwrap(),
            log,
            status,
            drain,
            follower,
            _folder: folder,
        }
    }

    /// Sends a transaction and waits until it was decoded.
    async fn commit(&mut self, lsn: Lsn, bytes: usize) {
        let count = self.status.borrow().transaction_count;
        self.walsender.send(&[transaction(lsn, bytes)]).await;
        let is_seen = |status: &AgentStatus| status.transaction_count > count;
        self.status.wait_for(is_seen).await.unwrap();
    }

    /// Makes the stream fast, by transactions up to 3.
    async fn hurry(&mut self) {
        self.commit(Lsn(1), 1).await;
        // A slow stream waits for nothing: the clock stands.
        assert_eq!(commits(&self.batch().await), [1]);
        // The rate is taken at the first read of a window, which may be a small part.
        for lsn in [2, 3] {
            advance(4 * MILLI).await;
            self.commit(Lsn(lsn), FAST_BYTES).await;
        }
        advance(HOLD_MAX).await;
        assert_eq!(self.told_after(Lsn(3)).await, Lsn(4));
        self.reader = self.log.open_reader(Start::Latest).await.unwrap();
    }

    /// Waits until the log tells of a later position than `before`, and returns it.
    async fn told_after(&self, before: Lsn) -> Lsn {
        let mut tail = self.log.tail();
        let told = tail.wait_for(|tail| tail.resume_lsn > before).await;
        told.unwrap().resume_lsn
    }

    /// The next batch of the log; waits for it.
    async fn batch(&mut self) -> Batch {
        self.reader.next().await.unwrap()
    }

    async fn drained(mut self) {
        self.drain.cancel();
        self.follower.join().await.unwrap().unwrap();
    }
}

fn spec() -> AgentSpec {
    AgentSpec {
        source: "test".to_owned(),
        node: "n1".to_owned(),
        epoch: Epoch(1),
        slot: "s".to_owned(),
        publication: "p".to_owned(),
        is_binary: true,
        accepts_gap: false,
        cluster: ClusterId::default(),
        durability: Durability::Log,
        lease: Lease::permanent(),
        wal_guard: None,
        limits: AgentLimits::default(),
    }
}

/// Commits of the transactions in a batch.
fn commits(batch: &Batch) -> Vec<u64> {
    let mut lsns: Vec<_> = batch
        .iter()
        .map(|entry| entry.unwrap().checkpoint.lsn.0)
        .collect();
    lsns.dedup();
    lsns
}

#[test]
fn of_several_keepalives_in_one_read_none_keeps_the_others_from_the_log() {
    without_time(async {
        let world = World::new().await;
        let both = [keepalive(Lsn(1_000), false), keepalive(Lsn(2_000), false)];
        world.walsender.send(&both).await;
        assert_eq!(world.told_after(Lsn::ZERO).await, Lsn(1_000));
        // The other is held back by the interval, and by nothing else.
        advance(pgcapture_engine::progress::PROGRESS_INTERVAL).await;
        world.walsender.send(&[keepalive(Lsn(2_000), false)]).await;
        assert_eq!(world.told_after(Lsn(1_000)).await, Lsn(2_000));
        // A server that waits is not kept waiting.
        let both = [keepalive(Lsn(3_000), true), keepalive(Lsn(4_000), true)];
        world.walsender.send(&both).await;
        assert_eq!(world.told_after(Lsn(3_000)).await, Lsn(4_000));
        world.drained().await;
    });
}

#[test]
fn a_fast_stream_is_held_for_a_moment_and_comes_in_one_batch() {
    without_time(async {
        let mut world = World::new().await;
        world.hurry().await;
        world.commit(Lsn(10), 1).await;
        advance(HOLD_MAX - MILLI).await;
        world.commit(Lsn(20), 1).await;
        assert_eq!(world.log.tail().borrow().resume_lsn, Lsn(4), "held");
        // The second does not begin the moment anew.
        advance(MILLI).await;
        assert_eq!(commits(&world.batch().await), [10, 20]);
        // A full batch does not wait.
        world.commit(Lsn(30), 512 << 10).await;
        assert_eq!(commits(&world.batch().await), [30]);
        world.drained().await;
    });
}

#[test]
fn what_is_held_goes_out_before_a_keepalive_counts_and_when_drained() {
    without_time(async {
        let mut world = World::new().await;
        world.hurry().await;
        world.commit(Lsn(10), 1).await;
        world.walsender.send(&[keepalive(Lsn(50), true)]).await;
        assert_eq!(commits(&world.batch().await), [10]);
        assert_eq!(world.told_after(Lsn(11)).await, Lsn(50));
        world.commit(Lsn(60), 1).await;
        let log = Arc::clone(&world.log);
        assert_eq!(log.tail().borrow().resume_lsn, Lsn(50), "held");
        world.drained().await;
        assert_eq!(log.tail().borrow().resume_lsn, Lsn(61));
    });
}

#[test]
fn a_stream_that_is_slow_again_is_held_no_more() {
    without_time(async {
        let mut world = World::new().await;
        world.hurry().await;
        advance(100 * MILLI).await;
        // Fast streams are measured over a while: the read that ends it is held yet.
        world.commit(Lsn(10), 1).await;
        advance(HOLD_MAX).await;
        assert_eq!(commits(&world.batch().await), [10]);
        world.commit(Lsn(20), 1).await;
        assert_eq!(commits(&world.batch().await), [20]);
        world.drained().await;
    });
}
