//! What goes wrong with readers, replicas, consumers, the store and the controller itself.

use futures_util::FutureExt as _;
use pgcapture_engine::{
    cluster::Command,
    codes::{Explanation, existing_rows},
    dump::{ReplicaFacts, ReplicaHealth},
};

use super::*;

fn error(explanation: &'static Explanation, remedy: RangeRemedy) -> DumpError {
    DumpError {
        explanation,
        what: "on purpose".to_owned(),
        remedy,
    }
}

fn cancelled() -> DumpError {
    error(&existing_rows::READ_CANCELLED, RangeRemedy::Retry)
}

fn rewritten() -> DumpError {
    error(&existing_rows::TABLE_REWRITTEN, RangeRemedy::Replan)
}

/// Serves a dump with these faults on its first ranges; the node and the dump at its end.
async fn served_with(faults: Vec<Fault>) -> (Node, DumpId) {
    let node = Node::start(24, &["r1"]).await;
    for fault in faults {
        node.script.add(fault);
    }
    let id = node.create().await;
    node.serve(id).await;
    (node, id)
}

fn failure_code(node: &Node, id: DumpId) -> String {
    let failure = node.dump(id).tables[0].failure.clone();
    failure.expect("the table failed").code
}

#[tokio::test(start_paused = true)]
async fn what_passes_by_itself_is_read_again() {
    on_local_set(async {
        for fault in [
            Fault::Open(cancelled()),
            Fault::Midway(cancelled()),
            Fault::PanicOpening,
            Fault::PanicMidway,
        ] {
            let (node, id) = served_with(vec![fault]).await;
            assert_eq!(node.state_of(id), DumpState::Finished);
            assert_eq!(node.dump(id).tables[0].row_count, 24);
            assert_eq!(node.script.orders().len(), 5, "one range twice");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_never_passes_fails_the_table_after_many_tries() {
    on_local_set(async {
        let node = Node::start(24, &["r1"]).await;
        let id = node.create().await;
        let options = pgcapture_engine::dump::schedule::RANGE_TRIES_MAX;
        let bad = node.pull().await;
        let (extent, mut tries) = (bad.extent, 1);
        let failed = GivenUp::Failed(cancelled());
        node.dumps.give_up(bad, failed).await;
        let mut state = node.agreed.state();
        while tries < options {
            let ticket = node.pull().await;
            if ticket.extent == extent {
                tries += 1;
                let failed = GivenUp::Failed(cancelled());
                node.dumps.give_up(ticket, failed).await;
            } else {
                node.finish(ticket, 1).await.unwrap();
            }
        }
        state
            .wait_for(|state| state.dumps[&id].state == DumpState::Failed)
            .await
            .unwrap();
        assert_eq!(failure_code(&node, id), "PGC-E10");
        node.dumps.act(id, DumpAction::Retry).await.unwrap();
        node.serve(id).await;
        assert_eq!(node.state_of(id), DumpState::Finished);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_lasts_fails_the_table_at_once() {
    on_local_set(async {
        let fault = error(&existing_rows::NO_SELECT, RangeRemedy::Fail);
        let (node, id) = served_with(vec![Fault::Open(fault)]).await;
        assert_eq!(node.state_of(id), DumpState::Failed);
        assert_eq!(failure_code(&node, id), "PGC-E28");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_rewritten_table_is_planned_anew_and_read_whole() {
    on_local_set(async {
        let node = Node::start(24, &["r1"]).await;
        let id = node.create().await;
        let first = node.pull().await;
        node.finish(first, 8).await.unwrap();
        *node.script.found.lock().unwrap() = vec![script::found(1, 2, 16)];
        node.script.add(Fault::Midway(rewritten()));
        let extents = node.serve(id).await;
        assert_eq!(extents, [pages(0, 7), pages(8, u32::MAX), SWEEP]);
        let dump = node.dump(id);
        assert_eq!(dump.state, DumpState::Finished);
        assert_eq!(dump.tables[0].heap.filenode, 2);
        assert_eq!(dump.tables[0].replan_count, 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dropped_table_fails_with_a_clear_word() {
    on_local_set(async {
        let missing = || error(&existing_rows::TABLE_MISSING, RangeRemedy::Fail);
        for (found, problems, code) in [
            (vec![], vec![missing()], "PGC-E25"),
            (vec![script::found(9, 9, 5)], vec![], "PGC-E09"),
        ] {
            let node = Node::start(24, &["r1"]).await;
            let id = node.create().await;
            *node.script.found.lock().unwrap() = found;
            *node.script.problems.lock().unwrap() = problems;
            node.script.add(Fault::Open(rewritten()));
            node.serve(id).await;
            assert_eq!(node.state_of(id), DumpState::Failed);
            assert_eq!(failure_code(&node, id), code);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_rewritten_for_ever_fails() {
    on_local_set(async {
        let faults = (0..50).map(|_| Fault::Open(rewritten())).collect();
        let (node, id) = served_with(faults).await;
        assert_eq!(node.state_of(id), DumpState::Failed);
        assert_eq!(failure_code(&node, id), "PGC-E08");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn planning_anew_waits_for_a_replica_that_answers() {
    on_local_set(async {
        let node = Node::start(24, &["r1"]).await;
        let id = node.create().await;
        let away = error(&existing_rows::REPLICA_UNREACHABLE, RangeRemedy::Retry);
        let key = "r1".to_owned();
        node.script.away.lock().unwrap().insert(key, away);
        let ticket = node.pull().await;
        node.dumps
            .give_up(ticket, GivenUp::Failed(rewritten()))
            .await;
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert_eq!(node.dumps.pull(&shop()).await.unwrap(), None);
        assert_eq!(node.dump(id).tables[0].replan_count, 0);
        node.script.away.lock().unwrap().clear();
        node.serve(id).await;
        assert_eq!(node.state_of(id), DumpState::Finished);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn page_ranges_given_by_hand_fail_when_the_table_is_rewritten() {
    on_local_set(async {
        let node = Node::start(24, &["r1"]).await;
        let mut request = request(small());
        request.tables[0].pages = vec![PageRange { first: 3, last: 9 }];
        let id = node.dumps.create(request).await.unwrap();
        node.script.add(Fault::Open(rewritten()));
        node.serve(id).await;
        assert_eq!(failure_code(&node, id), "PGC-E17");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_stops_waiting_or_reading_ends_the_reading() {
    on_local_set(async {
        let node = Node::start(24, &["r1"]).await;
        node.create().await;
        let ticket = node.pull().await;
        node.script.add(Fault::Hang);
        let second = Duration::from_secs(1);
        let opening = tokio::time::timeout(second, node.dumps.open(&ticket, Lsn(1)));
        assert!(opening.await.is_err());
        node.script.until_nothing_is_read().await;

        node.script.add(Fault::Silence);
        let opened = node.dumps.open(&ticket, Lsn(1)).await.unwrap();
        drop(opened);
        node.script.until_nothing_is_read().await;

        // More rows than the channel takes: the reading waits for its consumer, then ends with it.
        let opened = node.dumps.open(&ticket, Lsn(1)).await.unwrap();
        tokio::time::sleep(second).await;
        drop(opened);
        node.script.until_nothing_is_read().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_node_reads_so_many_ranges_at_once_and_no_more() {
    on_local_set(async {
        let node = Node::start(24, &["r1"]).await;
        node.create().await;
        let ticket = node.pull().await;
        let mut opened = Vec::new();
        for _ in 0..pgcapture_engine::dump::schedule::NODE_SEATS_MAX {
            node.script.add(Fault::Silence);
            opened.push(node.dumps.open(&ticket, Lsn(1)).await.unwrap());
        }
        let error = node.dumps.open(&ticket, Lsn(1)).await.unwrap_err();
        assert!(error.what.contains("256 ranges"), "{error}");
        drop(opened);
        node.script.until_nothing_is_read().await;
        tokio::task::yield_now().await;
        while node.dumps.open(&ticket, Lsn(1)).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_ticket_that_never_reached_its_asker_comes_back() {
    on_local_set(async {
        let node = Node::start(24, &["r1"]).await;
        node.create().await;
        let first = node.pull().await;
        let id = shop();
        let mut lost = Box::pin(node.dumps.pull(&id));
        // Sent, and not answered yet.
        assert!((&mut lost).now_or_never().is_none());
        node.dumps.replicas().await.unwrap();
        drop(lost);
        let second = node.pull().await;
        assert_eq!((first.extent, second.extent), (pages(0, 7), pages(8, 15)));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_panics_is_built_anew_from_the_state() {
    on_local_set(async {
        let node = Node::start(24, &["r1"]).await;
        let id = node.create().await;
        let (first, second) = (node.pull().await, node.pull().await);
        node.finish(first, 8).await.unwrap();
        node.dumps.panic_controller().await;
        let stale = node.finish(second.clone(), 8).await.unwrap_err();
        assert_eq!(stale.explanation.code, "PGC-E11");
        node.dumps.give_up(second, GivenUp::Disconnected).await;
        let extents = node.serve(id).await;
        assert_eq!(extents, [pages(8, 15), pages(16, u32::MAX), SWEEP]);
        assert_eq!(node.state_of(id), DumpState::Finished);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_end_that_cannot_be_recorded_is_told_and_the_range_comes_again() {
    on_local_set(async {
        let node = Node::start(8, &["r1"]).await;
        let id = node.create().await;
        let ticket = node.pull().await;
        *node.agreed.broken.lock().unwrap() = Some("PGC-N04: the disk is full".to_owned());
        let error = node.finish(ticket.clone(), 8).await.unwrap_err();
        assert_eq!(error.explanation.code, "PGC-E12");
        assert!(error.what.contains("the disk is full"), "{error}");
        *node.agreed.broken.lock().unwrap() = None;
        let again = node.pull().await;
        assert_eq!(again.extent, ticket.extent);
        node.finish(again, 8).await.unwrap();
        assert_eq!(node.state_of(id), DumpState::Finished);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_lags_or_cannot_be_used_is_not_read_and_says_why() {
    on_local_set(async {
        let node = Node::start(24, &["r1"]).await;
        let set = |health| *node.script.health.lock().unwrap() = health;
        node.create().await;
        node.pull().await;
        let lag = Duration::from_secs(40);
        let promoted = || error(&existing_rows::NOT_A_STANDBY, RangeRemedy::Retry);
        let behind = ReplicaFacts {
            lag,
            ..ReplicaFacts::default()
        };
        for (health, wanted) in [
            (Ok(behind), ReplicaHealth::Behind { lag }),
            (
                Err(promoted()),
                ReplicaHealth::Unusable {
                    code: "PGC-E21".to_owned(),
                    what: "on purpose".to_owned(),
                },
            ),
        ] {
            set(health);
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(node.dumps.replicas().await.unwrap()[0].health, wanted);
            assert_eq!(node.dumps.pull(&shop()).await.unwrap(), None);
        }
        set(Ok(ReplicaFacts::default()));
        assert_eq!(
            node.pull().await.extent,
            pages(8, 15),
            "it goes on by itself"
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_taken_away_gives_its_ranges_to_the_others() {
    on_local_set(async {
        let node = Node::start(24, &["r1", "r2"]).await;
        let id = node.create().await;
        let ticket = node.pull().await;
        let name = ticket.replica.clone();
        node.agreed.apply(Command::RemoveReplica { name }).unwrap();
        let error = node.dumps.open(&ticket, Lsn(1)).await.unwrap_err();
        assert_eq!(error.remedy, RangeRemedy::Elsewhere);
        let replica = ticket.replica.clone();
        node.dumps.give_up(ticket, GivenUp::Failed(error)).await;
        assert_ne!(node.pull().await.replica, replica);
        node.dumps.act(id, DumpAction::Cancel).await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_sent_back_for_ever_holds_up_no_other_range_and_is_shown() {
    on_local_set(async {
        let node = Node::start(64, &["r1"]).await;
        let id = node.create().await;
        let (poisoned, mut finished) = (pages(8, 15), 0);
        for _ in 0..40 {
            let ticket = node.pull().await;
            if ticket.extent == poisoned {
                let reason = GivenUp::Requeued("no such customer".to_owned());
                node.dumps.give_up(ticket, reason).await;
            } else {
                node.finish(ticket, 8).await.unwrap();
                finished += 1;
            }
        }
        assert_eq!(finished, 7, "all others");
        let status = node.dumps.status(id).await.unwrap();
        assert_eq!(status.state, DumpState::Active);
        assert_eq!(status.retries[0].try_count, 33);
        assert_eq!(status.retries[0].reason, "sent back: no such customer");
    })
    .await;
}
