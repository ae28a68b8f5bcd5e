//! What people may order, and what is refused.

use pgcapture_engine::codes::existing_rows;

use super::*;

async fn refusal(node: &Node, request: DumpRequest) -> &'static str {
    let refused = node.dumps.create(request).await.unwrap_err();
    refused.explanation.code
}

#[tokio::test(start_paused = true)]
async fn a_rate_holds_within_a_range() {
    on_local_set(async {
        let node = Node::start(8, &["r1"]).await;
        let options = DumpOptions {
            rate_bytes_per_second: Some(100),
            ..DumpOptions::default()
        };
        node.dumps.create(request(options)).await.unwrap();
        let ticket = node.pull().await;
        // Eight rows of three bytes.
        let mut reading = std::pin::pin!(node.read(&ticket));
        let early = tokio::time::timeout(Duration::from_millis(235), &mut reading).await;
        assert!(early.is_err());
        assert_eq!(reading.await.unwrap(), 8);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_range_that_was_read_is_followed_by_the_next_before_its_rows_are_acknowledged() {
    on_local_set(async {
        let node = Node::start(24, &["r1"]).await;
        let options = DumpOptions {
            parallel: 1,
            ..small()
        };
        let id = node.dumps.create(request(options)).await.unwrap();
        let first = node.pull().await;
        assert_eq!(node.dumps.pull(&shop()).await.unwrap(), None);
        let row_count = node.read(&first).await.unwrap();
        let second = node.pull().await;
        assert_ne!(second.extent, first.extent);
        assert_eq!(node.dumps.pull(&shop()).await.unwrap(), None);
        node.finish(first, row_count).await.unwrap();
        node.dumps.give_up(second, GivenUp::Disconnected).await;
        assert_eq!(node.serve(id).await.len(), 3, "two of pages and the sweep");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_dumped_is_refused_with_its_code() {
    on_local_set(async {
        let node = Node::start(24, &["r1"]).await;
        let with = |change: fn(&mut DumpRequest)| {
            let mut request = request(small());
            change(&mut request);
            request
        };
        for (request, code) in [
            (
                with(|request| request.subscription.stream = "nope".to_owned()),
                "PGC-E14",
            ),
            (
                with(|request| request.tables[0].pages = vec![PageRange { first: 9, last: 3 }]),
                "PGC-E02",
            ),
            (
                with(|request| {
                    let (first, last) = (24, 30);
                    request.tables[0].pages = vec![PageRange { first, last }];
                }),
                "PGC-E03",
            ),
            (with(|request| request.options.parallel = 0), "PGC-E07"),
            (
                with(|request| request.tables[0].pattern = "public.x*".to_owned()),
                "PGC-E07",
            ),
            (with(|request| request.tables.clear()), "PGC-E07"),
        ] {
            assert_eq!(refusal(&node, request).await, code);
        }
        let missing = DumpError {
            explanation: &existing_rows::TABLE_MISSING,
            what: "table public.nope does not exist".to_owned(),
            remedy: RangeRemedy::Fail,
        };
        node.script.problems.lock().unwrap().push(missing);
        assert_eq!(refusal(&node, request(small())).await, "PGC-E25");
        assert!(node.agreed.state().borrow().dumps.is_empty());

        let bare = Node::start(24, &[]).await;
        assert_eq!(refusal(&bare, request(small())).await, "PGC-E01");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn another_replica_is_asked_when_one_is_away() {
    on_local_set(async {
        let node = Node::start(24, &["r1", "r2"]).await;
        let away = || DumpError {
            explanation: &existing_rows::REPLICA_UNREACHABLE,
            what: "no route".to_owned(),
            remedy: RangeRemedy::Retry,
        };
        let add = |name: &str| {
            let name = name.to_owned();
            node.script.away.lock().unwrap().insert(name, away());
        };
        add("r1");
        node.create().await;
        add("r2");
        let error = node.dumps.create(request(small())).await.unwrap_err();
        assert_eq!(error.explanation.code, "PGC-E20");
        assert_eq!(error.what, "replica \"r2\": no route");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn two_dumps_of_one_table_or_a_busy_uri_are_refused() {
    on_local_set(async {
        let node = Node::start(24, &["r1"]).await;
        let first = node.create().await;
        assert_eq!(refusal(&node, request(small())).await, "PGC-E04");
        let ranges = [ScheduledRange {
            table: script::orders_name(),
            pages: PageRange { first: 0, last: 9 },
        }];
        let busy = node.dumps.schedule("shop", &shop(), &ranges).await;
        assert_eq!(busy.unwrap_err().explanation.code, "PGC-E04");
        assert_eq!(node.dumps.stop(&shop()).await.unwrap(), 1);
        assert_eq!(node.dumps.stop(&shop()).await.unwrap(), 0);
        assert_eq!(node.state_of(first), DumpState::Cancelled);
        let second = node.dumps.schedule("shop", &shop(), &ranges).await.unwrap();
        assert_eq!(node.serve(second).await, [pages(0, 9)]);
        assert_eq!(node.dumps.list().await.unwrap().len(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dump_is_paused_resumed_cancelled_and_forgotten() {
    on_local_set(async {
        let node = Node::start(24, &["r1"]).await;
        let id = node.create().await;
        let running = node.pull().await;
        node.dumps.act(id, DumpAction::Pause).await.unwrap();
        assert_eq!(node.dumps.pull(&shop()).await.unwrap(), None);
        node.finish(running, 8).await.unwrap();
        node.dumps.act(id, DumpAction::Resume).await.unwrap();
        let running = node.pull().await;
        let early = node.dumps.remove(id).await.unwrap_err();
        assert_eq!(early.explanation.code, "PGC-E06");
        node.dumps.act(id, DumpAction::Cancel).await.unwrap();
        node.finish(running, 8).await.unwrap();
        assert_eq!(node.dump(id).tables[0].row_count, 16, "what ran counts");
        let late = node.dumps.act(id, DumpAction::Resume).await.unwrap_err();
        assert_eq!(late.explanation.code, "PGC-E06");
        node.dumps.remove(id).await.unwrap();
        for error in [
            node.dumps.status(id).await.unwrap_err(),
            node.dumps.watch(id).await.unwrap_err(),
            node.dumps.act(id, DumpAction::Pause).await.unwrap_err(),
        ] {
            assert_eq!(error.explanation.code, "PGC-E05");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_cool_down_is_kept_and_survives_a_restart() {
    on_local_set(async {
        let node = Node::start(24, &["r1"]).await;
        let minute = Duration::from_mins(1);
        node.dumps.set_cool_down(&shop(), minute).await.unwrap();
        let node = node.kill().await;
        node.create().await;
        let first = node.pull().await;
        node.finish(first, 8).await.unwrap();
        let ended = tokio::time::Instant::now();
        node.pull().await;
        assert!(ended.elapsed() >= minute, "{:?}", ended.elapsed());
        let long = Duration::from_hours(48);
        let error = node.dumps.set_cool_down(&shop(), long).await.unwrap_err();
        assert_eq!(error.explanation.code, "PGC-E07");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_the_records_and_hands_out_nothing_more() {
    on_local_set(async {
        let node = Node::start(24, &["r1"]).await;
        let id = node.create().await;
        let (first, second) = (node.pull().await, node.pull().await);
        let finishing = [node.finish(first, 8), node.finish(second, 8)];
        let [first, second] = finishing;
        let (first, second, ()) = tokio::join!(first, second, node.dumps.drain());
        first.unwrap();
        second.unwrap();
        assert_eq!(node.dump(id).tables[0].row_count, 16);
        assert!(!matches!(node.dumps.pull(&shop()).await, Ok(Some(_))));
        node.dumps.drain().await;
    })
    .await;
}
