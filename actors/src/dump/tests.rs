//! Dumps from the request to the last record, over a scripted reader and an agreed state in memory.
//! Time is paused: whatever waits is due at once, in its order.

mod faults;
mod nodes;
mod orders;
mod script;

use std::{sync::Arc, time::Duration};

use pgcapture_engine::{
    cluster::{DumpAction, DumpOptions, DumpState},
    dump::{DumpId, Extent, PageRange},
    lsn::Lsn,
};
use tokio::task::LocalSet;

use self::script::{Agreed, Fault, Script};
use super::*;

/// A node with dumps: the door, the script behind the reader, and the agreed state.
struct Node {
    dumps: DumpControllerHandle,
    script: Arc<Script>,
    agreed: Arc<Agreed>,
}

impl Node {
    /// Source `shop` with table `orders` of so many pages, and the named replicas.
    async fn start(pages_end: u32, replicas: &[&str]) -> Self {
        let script = Arc::new(Script::new(pages_end));
        let agreed = Arc::new(Agreed::new(replicas));
        let node = Self::on(&script, &agreed);
        node.until_replicas_were_asked().await;
        node
    }

    fn on(script: &Arc<Script>, agreed: &Arc<Agreed>) -> Self {
        let reader: Arc<dyn RowReader> = Arc::clone(script) as _;
        let consensus: Arc<dyn crate::consensus::Consensus> = Arc::clone(agreed) as _;
        Self {
            dumps: DumpControllerHandle::start(consensus, reader),
            script: Arc::clone(script),
            agreed: Arc::clone(agreed),
        }
    }

    /// Dies without a word, and starts again on what was agreed on.
    async fn kill(self) -> Self {
        self.dumps.kill();
        let node = Self::on(&self.script, &self.agreed);
        node.until_replicas_were_asked().await;
        node
    }

    async fn until_replicas_were_asked(&self) {
        let mut changes = self.dumps.changes();
        loop {
            let replicas = self.dumps.replicas().await.unwrap();
            if replicas
                .iter()
                .all(|replica| replica.health.as_str() != "unknown")
            {
                return;
            }
            changes.changed().await.unwrap();
        }
    }

    async fn create(&self) -> DumpId {
        self.dumps.create(request(small())).await.unwrap()
    }

    /// Waits for a range.
    async fn pull(&self) -> RangeTicket {
        let mut changes = self.dumps.changes();
        loop {
            changes.mark_unchanged();
            if let Some(ticket) = self.dumps.pull(&shop()).await.unwrap() {
                return ticket;
            }
            changes.changed().await.unwrap();
        }
    }

    /// Reads a range to its end; the number of rows.
    async fn read(&self, ticket: &RangeTicket) -> Result<u64, DumpError> {
        let mut opened = self.dumps.open(ticket, Lsn(1)).await?;
        let mut row_count = 0;
        loop {
            match opened.rows.recv().await {
                Some(RowEvent::Rows(batch)) => row_count += batch.rows.len() as u64,
                Some(RowEvent::End) => return Ok(row_count),
                Some(RowEvent::Failed(error)) => return Err(error),
                None => return Err(worker::died()),
            }
        }
    }

    async fn finish(&self, ticket: RangeTicket, row_count: u64) -> Result<(), DumpError> {
        let bytes = row_count * 8_192;
        let delivered = Delivered { row_count, bytes };
        self.dumps.finish(ticket, delivered).await
    }

    /// Serves ranges as a session does, until the dump is over; the extents that were finished.
    async fn serve(&self, id: DumpId) -> Vec<Extent> {
        let mut extents = Vec::new();
        let mut state = self.agreed.state();
        while !state.borrow_and_update().dumps[&id].is_over() {
            let ticket = tokio::select! {
                ticket = self.pull() => ticket,
                changed = state.changed() => {
                    changed.unwrap();
                    continue;
                }
            };
            match self.read(&ticket).await {
                Ok(row_count) => {
                    let extent = ticket.extent;
                    if self.finish(ticket, row_count).await.is_ok() {
                        extents.push(extent);
                    }
                }
                Err(error) => self.dumps.give_up(ticket, GivenUp::Failed(error)).await,
            }
        }
        extents
    }

    fn dump(&self, id: DumpId) -> Arc<pgcapture_engine::cluster::Dump> {
        Arc::clone(&self.agreed.state().borrow().dumps[&id])
    }

    fn state_of(&self, id: DumpId) -> DumpState {
        self.dump(id).state
    }
}

fn shop() -> SubscriptionId {
    SubscriptionId {
        stream: "shop".to_owned(),
        consumer: "shop".to_owned(),
    }
}

/// Ranges of eight pages, two at once.
fn small() -> DumpOptions {
    DumpOptions {
        range_bytes: 64 << 10,
        ..DumpOptions::default()
    }
}

fn request(options: DumpOptions) -> DumpRequest {
    DumpRequest {
        uri: "shop".to_owned(),
        subscription: shop(),
        tables: vec![TableRequest {
            pattern: "public.orders".to_owned(),
            pages: Vec::new(),
        }],
        options,
    }
}

fn pages(first: u32, last: u32) -> Extent {
    Extent::Pages(PageRange { first, last })
}

const SWEEP: Extent = Extent::Sweep { since_xid: 700 };

async fn on_local_set(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn a_dump_is_read_range_by_range_swept_and_finished() {
    on_local_set(async {
        let node = Node::start(24, &["r1"]).await;
        let id = node.create().await;
        let mut watch = node.dumps.watch(id).await.unwrap();
        let extents = node.serve(id).await;
        let wanted = [pages(0, 7), pages(8, 15), pages(16, u32::MAX), SWEEP];
        assert_eq!(extents, wanted);
        assert_eq!(node.state_of(id), DumpState::Finished);
        let last = watch
            .wait_for(|status| status.state == DumpState::Finished)
            .await
            .unwrap()
            .clone();
        assert_eq!(
            (last.progress.row_count, last.progress.pages_done),
            (24, 24)
        );
        assert!(watch.changed().await.is_err(), "nothing follows the end");
        for order in node.script.orders() {
            assert!(order.at_least >= Lsn(50), "not before the plan: {order:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_comes_later_gets_the_rows_then() {
    on_local_set(async {
        let node = Node::start(8, &["r1"]).await;
        let id = node.create().await;
        let status = node.dumps.status(id).await.unwrap();
        let waits = Some(pgcapture_engine::dump::WaitsFor::Consumer);
        assert_eq!(status.waits_for, waits);
        tokio::time::sleep(Duration::from_hours(30)).await;
        node.serve(id).await;
        assert_eq!(node.state_of(id), DumpState::Finished);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn only_the_asking_subscription_is_served_and_others_cost_nothing() {
    on_local_set(async {
        let node = Node::start(8, &["r1"]).await;
        node.create().await;
        node.pull().await;
        let other = SubscriptionId {
            consumer: "other".to_owned(),
            ..shop()
        };
        assert_eq!(node.dumps.pull(&other).await.unwrap(), None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn whenever_the_node_dies_what_was_recorded_never_runs_again() {
    // The number of steps that a life takes before the node is killed.
    for step in 0..40 {
        on_local_set(async {
            let mut node = Node::start(20, &["r1"]).await;
            let id = node.create().await;
            let mut recorded: Vec<Extent> = Vec::new();
            while !node.dump(id).is_over() {
                let mut steps_left = step;
                // Each life may at least finish one range, or nothing would ever end.
                while !node.dump(id).is_over() {
                    let ticket = node.pull().await;
                    let extent = ticket.extent;
                    assert!(!recorded.contains(&extent), "{extent} ran again");
                    let (first, second) = (steps_left == 1, steps_left == 2);
                    steps_left = if steps_left == 0 { 0 } else { steps_left - 1 };
                    if first {
                        break;
                    }
                    let row_count = node.read(&ticket).await.unwrap();
                    if second {
                        break;
                    }
                    node.finish(ticket, row_count).await.unwrap();
                    recorded.push(extent);
                }
                if node.dump(id).is_over() {
                    break;
                }
                node = node.kill().await;
                // The next life lives one step longer.
                let ticket = node.pull().await;
                let extent = ticket.extent;
                assert!(!recorded.contains(&extent), "{extent} ran again");
                node.finish(ticket, 1).await.unwrap();
                recorded.push(extent);
            }
            assert_eq!(node.state_of(id), DumpState::Finished);
            node.dumps.kill();
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_ranges_given_by_hand_come_each_once() {
    on_local_set(async {
        let node = Node::start(10_000, &["r1"]).await;
        let table = script::orders_name();
        let ranges: Vec<_> = (0..10_000)
            .map(|page| ScheduledRange {
                table: table.clone(),
                pages: PageRange {
                    first: page,
                    last: page,
                },
            })
            .collect();
        let id = node.dumps.schedule("shop", &shop(), &ranges).await.unwrap();
        let mut count = 0;
        let begun = node.agreed.proposal_count();
        while !node.dump(id).is_over() {
            // Nothing to pull is answered at once; others must run meanwhile.
            tokio::task::yield_now().await;
            let tickets = [
                node.dumps.pull(&shop()).await,
                node.dumps.pull(&shop()).await,
            ];
            let finishing = tickets.map(|ticket| async {
                match ticket.unwrap() {
                    Some(ticket) => node.finish(ticket, 1).await.map(|()| 1).unwrap(),
                    None => 0,
                }
            });
            let [first, second] = finishing;
            let (first, second) = tokio::join!(first, second);
            count += first + second;
        }
        assert_eq!(count, 10_001, "with the sweep");
        assert!(node.agreed.proposal_count() - begun <= 10_001);
        assert_eq!(node.dump(id).tables[0].done.ranges().len(), 1);
    })
    .await;
}
