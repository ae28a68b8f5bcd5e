//! How long a session may hold up a dump, and a dump a session, by a clock that the test moves.
//!
//! The gateway is whole: its actors, a log in memory, a scripted source of ranges. Time stands still
//! and jumps to the next thing that is due whenever everybody waits.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests: a panic is a failure"
)]

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use pgcapture_actors::{
    cursors::{NoCursors, SubscriptionId},
    dump::{
        GivenUp, ROW_BATCHES_WAITING_MAX, RowBatch, RowEvent,
        scripted::{Ended, Script, script},
    },
    gateway::{
        Deliveries, GatewayHandle, GatewayLimits, RequestError, RequestSource, Requested,
        ResolveError, Resolved, SourceResolver,
    },
    log::{
        ChangeLog as _, LogWriter,
        memory::{MemoryLog, MemoryLogOptions},
    },
};
use pgcapture_engine::{
    batch::{BatchBuilder, EntryKind},
    checkpoint::{Checkpoint, Epoch},
    cluster::DumpOptions,
    ledger::{Ack, AckKind},
    lsn::{Lsn, PgTime},
    splice::{HOLD_MAX, STALL_ALONE_MAX, STALL_MAX, WAIT_MAX},
};
use pgcapture_proto::pgcapture::{CaptureInit, CaptureMessage, Change, Message, message};
use prost::Message as _;
use prost_types::{Struct, Value, value::Kind};
use tokio::{sync::mpsc, time::Instant};

/// A wait ends at its limit, but for the hand-overs between tasks, which take no time here.
const SLACK: Duration = Duration::from_millis(500);

/// Rows of a batch.
const BATCH_ROWS: usize = 100;

/// Runs a test as a node runs, with time paused.
fn run(test: impl Future<Output = ()>) {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    };
    actix::System::with_tokio_rt(runtime).block_on(test);
}

fn shop() -> SubscriptionId {
    SubscriptionId {
        stream: "shop".to_owned(),
        consumer: "shop".to_owned(),
    }
}

#[derive(Debug)]
struct Shop(Arc<MemoryLog>);

#[async_trait]
impl SourceResolver for Shop {
    async fn resolve(&self, _: &str) -> Result<Resolved, ResolveError> {
        let log: Arc<MemoryLog> = Arc::clone(&self.0);
        Ok(Resolved {
            subscription: shop(),
            log,
        })
    }
}

/// What a consumer says.
struct Requests(mpsc::Receiver<Result<Ack, Requested>>);

#[async_trait]
impl RequestSource for Requests {
    async fn next(&mut self, acks: &mut Vec<Ack>) -> Result<Requested, RequestError> {
        Ok(match self.0.recv().await {
            Some(Ok(ack)) => {
                acks.push(ack);
                Requested::Acks
            }
            Some(Err(requested)) => requested,
            None => Requested::End,
        })
    }
}

struct Consumer {
    requests: mpsc::Sender<Result<Ack, Requested>>,
    deliveries: Deliveries,
    /// What came and was not looked at.
    rest: Vec<CaptureMessage>,
}

impl Consumer {
    /// The next message. Time passes until it comes.
    async fn next(&mut self) -> CaptureMessage {
        while self.rest.is_empty() {
            let chunk = self.deliveries.next().await.unwrap().unwrap();
            let mut bytes = &chunk.bytes[..];
            while let [0, a, b, c, d, after @ ..] = bytes {
                let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
                self.rest
                    .push(CaptureMessage::decode(&after[..length]).unwrap());
                bytes = &after[length..];
            }
        }
        self.rest.remove(0)
    }

    /// The next change, which must not be a row.
    async fn change_at(&mut self) -> u64 {
        let lsn = self.next().await.checkpoint.unwrap().lsn;
        assert_ne!(lsn, 0, "a row");
        lsn
    }

    /// The next row, answered or not.
    async fn row(&mut self, is_answered: bool) {
        let checkpoint = self.next().await.checkpoint.unwrap();
        assert_eq!(checkpoint.lsn, 0, "a change");
        if is_answered {
            let ack = Ack {
                checkpoint: Checkpoint::new(Lsn::ZERO, checkpoint.seq),
                kind: AckKind::Done,
            };
            self.requests.send(Ok(ack)).await.unwrap();
        }
    }
}

/// A gateway whose source of ranges is the test.
struct World {
    gateway: GatewayHandle,
    writer: Box<dyn LogWriter>,
    script: Script,
}

impl World {
    /// One range is due; the consumer had the changes up to position 10.
    async fn new() -> Self {
        Self::wanting(DumpOptions::DEFAULT_PARALLEL).await
    }

    /// The same for a dump that wants so many ranges read at once.
    async fn wanting(parallel: u32) -> Self {
        let log = MemoryLog::new(MemoryLogOptions::default());
        let mut script = script();
        script.parallel = parallel;
        script.schedule(&shop());
        let ranges = Arc::clone(&script.ranges);
        let resolver = Arc::new(Shop(Arc::clone(&log)));
        let limits = GatewayLimits::default();
        let gateway = GatewayHandle::start(resolver, Arc::new(NoCursors), ranges, limits);
        let writer = log.open_writer(Epoch(1)).await.unwrap();
        let mut world = Self {
            gateway,
            writer,
            script,
        };
        world.publish(10).await;
        world
    }

    /// Appends a transaction of one change.
    async fn publish(&mut self, lsn: u64) {
        let change = Change {
            schema: "public".to_owned(),
            table: "t".to_owned(),
            ..Change::default()
        };
        let payload = encoded(change);
        let mut builder = BatchBuilder::default();
        let kind = EntryKind::from_tag(payload[0]).unwrap();
        builder.push(Checkpoint::new(Lsn(lsn), 1), kind, &payload);
        let batch = builder.finish(Lsn(lsn + 1), PgTime(0));
        self.writer.append(batch).await.unwrap();
        self.writer.flush().await.unwrap();
    }

    async fn join(&self, parameters: &[(&str, &str)]) -> Consumer {
        let fields = parameters.iter().map(|(name, text)| {
            let kind = Some(Kind::StringValue((*text).to_owned()));
            ((*name).to_owned(), Value { kind })
        });
        let init = CaptureInit {
            uri: "shop".to_owned(),
            parameters: Some(Struct {
                fields: fields.collect(),
            }),
        };
        let (requests, queue) = mpsc::channel(1_000);
        requests.send(Err(Requested::Init(init))).await.unwrap();
        let deliveries = self.gateway.capture(Box::new(Requests(queue))).await;
        Consumer {
            requests,
            deliveries: deliveries.unwrap(),
            rest: Vec::new(),
        }
    }

    /// Waits until the subscription has so many sessions.
    async fn until_joined(&self, count: usize) {
        loop {
            let all = self.gateway.subscriptions().await.unwrap();
            if all.iter().any(|status| status.session_count == count) {
                return;
            }
            tokio::time::advance(Duration::from_millis(1)).await;
        }
    }

    /// Opens the range that is due.
    async fn open(&mut self, at: u64) -> mpsc::Sender<RowEvent> {
        self.script.opening().await.unwrap().at(Lsn(at))
    }

    /// Waits until the range was given up, and tells why and how long that took.
    async fn given_up(&mut self, since: Instant) -> (GivenUp, Duration) {
        match self.script.ended().await.unwrap() {
            Ended::GivenUp(_, reason) => (reason, since.elapsed()),
            Ended::Finished(number, _) => panic!("{number} was finished"),
            Ended::Read(number) => panic!("{number} was read elsewhere"),
        }
    }
}

fn encoded(change: Change) -> Vec<u8> {
    let message = Message {
        r#type: Some(message::Type::Change(change)),
    };
    message.encode_to_vec()
}

/// A batch of rows of so many bytes each.
fn rows(bytes: usize) -> RowEvent {
    let change = Change {
        schema: "public".to_owned(),
        table: "t".repeat(bytes),
        ..Change::default()
    };
    let row = encoded(change);
    let length = u32::try_from(row.len()).unwrap();
    let offsets = (0..BATCH_ROWS).map(|nth| (u32::try_from(nth).unwrap() * length, length));
    RowEvent::Rows(RowBatch {
        rows: offsets.collect(),
        bytes: row.repeat(BATCH_ROWS).into(),
    })
}

#[track_caller]
fn assert_about(took: Duration, limit: Duration) {
    let range = limit..limit + SLACK;
    assert!(range.contains(&took), "{took:?} instead of {limit:?}");
}

/// `Start` at the oldest entry, for one that has not come before.
const EARLIEST: (&str, &str) = ("Start", "earliest");

#[test]
fn a_lone_consumer_that_takes_nothing_loses_its_range_in_time() {
    run(async {
        let mut world = World::new().await;
        let mut consumer = world.join(&[EARLIEST]).await;
        assert_eq!(consumer.change_at().await, 10);
        let sender = world.open(11).await;
        let since = Instant::now();
        let sending = async {
            // Until nobody wants more.
            while sender.send(rows(100_000)).await.is_ok() {}
        };
        let ((reason, took), ()) = tokio::join!(world.given_up(since), sending);
        assert!(matches!(reason, GivenUp::Stalled), "{reason:?}");
        assert_about(took, STALL_ALONE_MAX);
        // It gets what was on its way, and then the changes.
        world.publish(20).await;
        let mut lsn = 0;
        while lsn == 0 {
            lsn = consumer.next().await.checkpoint.unwrap().lsn;
        }
        assert_eq!(lsn, 20);
    });
}

#[test]
fn a_lone_consumer_that_takes_and_answers_slowly_keeps_its_range() {
    run(async {
        let mut world = World::new().await;
        let mut consumer = world.join(&[EARLIEST]).await;
        assert_eq!(consumer.change_at().await, 10);
        let sender = world.open(11).await;
        sender.send(rows(1)).await.unwrap();
        sender.send(RowEvent::End).await.unwrap();
        // Answers come at the end, much later than a stall beside others would allow.
        for _ in 0..BATCH_ROWS {
            consumer.row(false).await;
        }
        tokio::time::advance(STALL_ALONE_MAX * 10).await;
        for _ in 0..BATCH_ROWS {
            let ack = Ack {
                checkpoint: Checkpoint::new(Lsn::ZERO, 1),
                kind: AckKind::Done,
            };
            consumer.requests.send(Ok(ack)).await.unwrap();
        }
        let ended = world.script.ended().await.unwrap();
        assert!(matches!(ended, Ended::Finished(1, delivered) if delivered.row_count == 100));
    });
}

#[test]
fn beside_another_a_consumer_that_answers_nothing_loses_its_range_sooner() {
    run(async {
        let mut world = World::new().await;
        let mut silent = world.join(&[EARLIEST]).await;
        assert_eq!(silent.change_at().await, 10);
        let sender = world.open(11).await;
        sender.send(rows(1)).await.unwrap();
        sender.send(RowEvent::End).await.unwrap();
        for _ in 1..BATCH_ROWS {
            silent.row(true).await;
        }
        silent.row(false).await;
        let since = Instant::now();
        let mut other = world.join(&[]).await;
        world.until_joined(2).await;
        // The lone one waited for a change already; on its own stream it comes after the rows.
        world.publish(20).await;
        assert_eq!(silent.change_at().await, 20);
        world.publish(30).await;
        // Whoever has room gets it, but not before the rows are answered or given up.
        let change = async {
            let lsn = tokio::select! {
                lsn = other.change_at() => lsn,
                lsn = silent.change_at() => lsn,
            };
            (lsn, since.elapsed())
        };
        let ((reason, took), (lsn, held)) = tokio::join!(world.given_up(since), change);
        assert!(matches!(reason, GivenUp::Stalled), "{reason:?}");
        assert_about(took, STALL_MAX);
        assert_about(held, STALL_MAX);
        assert_eq!(lsn, 30);
    });
}

#[test]
fn a_session_with_a_time_out_loses_rows_that_it_leaves_unanswered() {
    run(async {
        let mut world = World::new().await;
        let mut consumer = world.join(&[EARLIEST, ("AckTimeout", "20s")]).await;
        assert_eq!(consumer.change_at().await, 10);
        let sender = world.open(11).await;
        let since = Instant::now();
        sender.send(rows(1)).await.unwrap();
        sender.send(RowEvent::End).await.unwrap();
        for _ in 1..BATCH_ROWS {
            consumer.row(true).await;
        }
        consumer.row(false).await;
        let (reason, took) = world.given_up(since).await;
        assert!(matches!(reason, GivenUp::Stalled), "{reason:?}");
        // It is looked at four times within the time-out.
        let range = Duration::from_secs(20)..Duration::from_secs(26);
        assert!(range.contains(&took), "{took:?}");
    });
}

#[test]
fn changes_wait_for_a_range_to_be_opened_only_so_long() {
    run(async {
        let mut world = World::new().await;
        let mut consumer = world.join(&[EARLIEST]).await;
        assert_eq!(consumer.change_at().await, 10);
        let mut opening = world.script.opening().await.unwrap();
        assert_eq!(opening.at_least, Lsn(11));
        world.publish(20).await;
        let since = Instant::now();
        let change = async { (consumer.change_at().await, since.elapsed()) };
        let ((reason, took), (lsn, waited)) = tokio::join!(world.given_up(since), change);
        assert!(matches!(reason, GivenUp::TooOld), "{reason:?}");
        assert_about(took, HOLD_MAX);
        assert_about(waited, HOLD_MAX);
        assert_eq!(lsn, 20);
        // Whoever opens it hears that nobody waits.
        opening.cancelled().await;
        world.publish(30).await;
        assert_eq!(consumer.change_at().await, 30);
        assert!(
            since.elapsed() < HOLD_MAX + SLACK,
            "nothing is held any more"
        );
    });
}

#[test]
fn a_range_waits_for_the_changes_before_it_only_so_long() {
    run(async {
        let mut world = World::new().await;
        let mut consumer = world.join(&[EARLIEST]).await;
        assert_eq!(consumer.change_at().await, 10);
        // The log never comes so far.
        let since = Instant::now();
        let sender = world.open(1_000).await;
        let (reason, took) = world.given_up(since).await;
        assert!(matches!(reason, GivenUp::Stalled), "{reason:?}");
        assert_about(took, WAIT_MAX);
        sender.closed().await;
        world.publish(20).await;
        assert_eq!(consumer.change_at().await, 20);
    });
}

#[test]
fn as_many_ranges_are_read_as_the_dump_wants_and_a_stuck_consumer_stops_them_all() {
    const RANGES: usize = 6;
    run(async {
        let mut world = World::wanting(4).await;
        for _ in 1..RANGES {
            world.script.schedule(&shop());
        }
        let mut consumer = world.join(&[EARLIEST]).await;
        assert_eq!(consumer.change_at().await, 10);
        let mut readers = Vec::new();
        for _ in 0..4 {
            readers.push(world.open(11).await);
        }
        let fifth = tokio::time::timeout(SLACK, world.script.opening()).await;
        assert!(fifth.is_err(), "more are open than are wanted");
        // Each has room for so many batches and no more: the consumer takes nothing.
        for reader in &readers[1..] {
            for _ in 0..ROW_BATCHES_WAITING_MAX {
                reader.try_send(rows(1)).unwrap();
            }
            reader.try_send(rows(1)).unwrap_err();
        }
        // They come one after another, and the next is opened for each that was delivered.
        for index in 0..RANGES {
            let reader = match readers.get(index) {
                Some(reader) => reader.clone(),
                None => world.open(11).await,
            };
            let mut batches = ROW_BATCHES_WAITING_MAX;
            if !(1..4).contains(&index) {
                reader.send(rows(1)).await.unwrap();
                batches = 1;
            }
            let taking = async {
                for _ in 0..batches * BATCH_ROWS {
                    consumer.row(true).await;
                }
            };
            let (told, ()) = tokio::join!(reader.send(RowEvent::End), taking);
            told.unwrap();
            let told = match world.script.ended().await.unwrap() {
                Ended::Finished(ticket, delivered) => (ticket, delivered.row_count),
                other @ (Ended::GivenUp(..) | Ended::Read(_)) => panic!("{other:?}"),
            };
            assert_eq!(told, (index as u64 + 1, (batches * BATCH_ROWS) as u64));
        }
    });
}
