//! Orders whose answer is lost: nobody may hold a range for ever.

use std::sync::Arc;

use async_trait::async_trait;
use pgcapture_actors::{
    cursors::SubscriptionId,
    dump::{
        Delivered, DumpError, GivenUp, OpenedRange, RangeSource, RangeTicket,
        scripted::{Ended, ScriptedRanges, failure, script},
    },
};
use pgcapture_engine::lsn::Lsn;
use tokio::sync::watch;

use crate::harness::{Leader, id, member, pull, soon};

/// What becomes of a finish.
#[derive(Clone, Copy, Debug)]
enum Finish {
    /// The answer never comes: what works on it dies.
    Unanswered,
    /// It cannot be recorded.
    Refused,
}

/// A controller that does not say that a range is finished.
#[derive(Debug)]
struct Unfinished(Arc<ScriptedRanges>, Finish);

#[async_trait]
impl RangeSource for Unfinished {
    fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes()
    }

    async fn pull(&self, id: &SubscriptionId) -> Result<Option<RangeTicket>, DumpError> {
        self.0.pull(id).await
    }

    async fn open(&self, ticket: &RangeTicket, at_least: Lsn) -> Result<OpenedRange, DumpError> {
        self.0.open(ticket, at_least).await
    }

    async fn finish(&self, _: RangeTicket, _: Delivered) -> Result<(), DumpError> {
        match self.1 {
            Finish::Unanswered => panic!("the answer is lost"),
            Finish::Refused => Err(failure("the disk is full")),
        }
    }

    async fn give_up(&self, ticket: RangeTicket, reason: GivenUp) {
        self.0.give_up(ticket, reason).await;
    }
}

async fn leader(leading: &watch::Sender<Option<String>>, finish: Finish) -> Leader {
    let script = script();
    let ranges = Arc::new(Unfinished(Arc::clone(&script.ranges), finish));
    let leader = Leader::start_with(leading, script, ranges).await;
    leading.send_replace(Some(leader.address.to_string()));
    leader
}

#[tokio::test]
async fn a_finish_without_an_answer_frees_all_that_the_node_held() {
    let (leading, _) = watch::channel(None);
    let mut leader = leader(&leading, Finish::Unanswered).await;
    let ranges = member(&leading, "b:1");
    leader.schedule();
    leader.schedule();
    let (first, second) = (pull(&ranges).await, pull(&ranges).await);
    let told = ranges.finish(first.clone(), Delivered::default()).await;
    told.unwrap_err();
    for _ in 0..2 {
        let ended = leader.ended().await;
        let is_free = matches!(ended, Ended::GivenUp(_, GivenUp::Disconnected));
        assert!(is_free, "{ended:?}");
    }
    // What it held under the old membership counts no more, and it takes part again.
    for ticket in [first, second] {
        let late = ranges.finish(ticket, Delivered::default()).await;
        late.unwrap_err();
    }
    leader.schedule();
    pull(&ranges).await;
}

#[tokio::test]
async fn a_finish_that_is_refused_leaves_nothing_behind() {
    let (leading, _) = watch::channel(None);
    let mut leader = leader(&leading, Finish::Refused).await;
    let ranges = member(&leading, "b:1");
    leader.schedule();
    leader.schedule();
    let (first, second) = (pull(&ranges).await, pull(&ranges).await);
    let refused = ranges.finish(first.clone(), Delivered::default()).await;
    let refused = refused.unwrap_err();
    assert!(refused.what.contains("the disk is full"), "{refused}");
    let again = ranges.finish(first, Delivered::default()).await;
    let again = again.unwrap_err();
    assert!(again.what.contains("ended already"), "{again}");
    // The membership goes on: the other range is still held, and nothing is given up with it but that.
    drop(ranges);
    match soon("the end", leader.script.ended()).await {
        Some(Ended::GivenUp(number, GivenUp::Disconnected)) => assert_eq!(number, second.number),
        other => panic!("{other:?}"),
    }
    assert_eq!(leader.script.ranges.pull(&id()).await.unwrap(), None);
}
