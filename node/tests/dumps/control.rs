//! Existing schedulers and foreign gateways, as old clients speak.

use pgcapture_proto::pgcapture::{
    DumpInfoRequest, DumpInfoResponse, ScheduleRequest, SetScheduleCoolDownRequest,
    StopScheduleRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::{
    admin::orders,
    harness::{Node, PATIENCE, run},
    reader::PAGES,
};

fn info(page_begin: u32, page_end: u32) -> DumpInfoResponse {
    DumpInfoResponse {
        schema: "public".to_owned(),
        table: "orders".to_owned(),
        page_begin,
        page_end,
    }
}

impl Node {
    async fn schedule(&self, uri: &str, dumps: Vec<DumpInfoResponse>) -> Result<(), Status> {
        let uri = uri.to_owned();
        let request = ScheduleRequest { uri, dumps };
        self.control().schedule(request).await.map(drop)
    }

    async fn stop_schedule(&self, uri: &str) -> Result<(), Status> {
        let uri = uri.to_owned();
        self.control()
            .stop_schedule(StopScheduleRequest { uri })
            .await
            .map(drop)
    }

    async fn cool_down(&self, uri: &str, seconds: i64) -> Result<(), Status> {
        let request = SetScheduleCoolDownRequest {
            uri: uri.to_owned(),
            duration: Some(prost_types::Duration { seconds, nanos: 0 }),
        };
        self.control()
            .set_schedule_cool_down(request)
            .await
            .map(drop)
    }
}

/// A foreign gateway.
struct Puller {
    requests: mpsc::Sender<DumpInfoRequest>,
    ranges: Streaming<DumpInfoResponse>,
}

impl Puller {
    async fn open(node: &Node, uri: &str) -> Self {
        let (requests, outbound) = mpsc::channel(4);
        let ranges = node
            .control()
            .pull_dump_info(ReceiverStream::new(outbound))
            .await;
        let puller = Self {
            requests,
            ranges: ranges.unwrap().into_inner(),
        };
        let uri = uri.to_owned();
        let first = DumpInfoRequest {
            uri,
            ..DumpInfoRequest::default()
        };
        puller.requests.send(first).await.unwrap();
        puller
    }

    async fn next(&mut self) -> Result<(u32, u32), Status> {
        let range = tokio::time::timeout(PATIENCE, self.ranges.message()).await;
        let range = range.expect("something comes")?;
        let range = range.ok_or_else(|| Status::ok("the stream has ended"))?;
        assert_eq!(
            (range.schema.as_str(), range.table.as_str()),
            ("public", "orders")
        );
        Ok((range.page_begin, range.page_end))
    }

    /// Ends the range before: an empty reason is done.
    async fn answer(&self, requeue_reason: &str) {
        let requeue_reason = requeue_reason.to_owned();
        let answer = DumpInfoRequest {
            requeue_reason,
            ..DumpInfoRequest::default()
        };
        self.requests.send(answer).await.unwrap();
    }
}

#[test]
fn a_schedule_is_handed_out_exactly_as_given() {
    run(async {
        let node = Node::start().await;
        let ranges = vec![info(10, 19), info(7, 7), info(90, 5_000)];
        node.schedule("shop", ranges.clone()).await.unwrap();
        let refused = node.schedule("shop", ranges.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::AlreadyExists);
        // Another uri of the same stream has work of its own.
        node.schedule("shop/search", vec![info(1, 2)])
            .await
            .unwrap();

        let mut puller = Puller::open(&node, "shop").await;
        let mut pulled = Vec::new();
        for _ in &ranges {
            pulled.push(puller.next().await.unwrap());
            puller.answer("").await;
        }
        pulled.sort_unstable();
        assert_eq!(pulled, [(7, 7), (10, 19), (90, 5_000)]);

        let mut watched = node.watch("d-1").await;
        let ended = watched.ended().await;
        assert_eq!(
            (ended.state.as_str(), ended.uri.as_str()),
            ("finished", "shop")
        );
        node.schedule("shop", ranges).await.unwrap();
        assert_eq!(puller.next().await.unwrap().0, 10, "the stream goes on");
    });
}

/// Existing gateways count pages in signed numbers, and some ask for each of them.
#[test]
fn a_range_to_the_end_of_a_table_ends_behind_it() {
    run(async {
        let node = Node::start().await;
        let end = 2 * PAGES + 1_024;
        node.start_dump(orders("shop")).await.unwrap();
        let mut puller = Puller::open(&node, "shop").await;
        assert_eq!(puller.next().await.unwrap(), (0, end));
        puller.answer("").await;
        let ended = node.watch("d-1").await.ended().await;
        assert_eq!(ended.state, "finished", "it was the whole table");
        let to_the_end = info(50, u32::MAX);
        node.schedule("shop", vec![to_the_end]).await.unwrap();
        assert_eq!(puller.next().await.unwrap(), (50, end));
    });
}

#[test]
fn one_range_at_a_time_comes_and_comes_again() {
    run(async {
        let node = Node::start().await;
        node.schedule("shop", vec![info(0, 9)]).await.unwrap();
        let mut first = Puller::open(&node, "shop").await;
        assert_eq!(first.next().await.unwrap(), (0, 9));
        let mut second = Puller::open(&node, "shop").await;
        // A stream that ends gives its range back at once.
        drop(first);
        assert_eq!(second.next().await.unwrap(), (0, 9));
        // Sent back, it comes again after a pause.
        second.answer("not now").await;
        assert_eq!(second.next().await.unwrap(), (0, 9));
        assert_eq!(node.dump("d-1").await.progress.unwrap().retry_count, 2);
        second.answer("").await;
        assert_eq!(node.watch("d-1").await.ended().await.state, "finished");
    });
}

#[test]
fn a_stopped_schedule_lets_its_running_range_end() {
    run(async {
        let node = Node::start().await;
        node.schedule("shop", vec![info(0, 9), info(10, 19)])
            .await
            .unwrap();
        let mut puller = Puller::open(&node, "shop").await;
        puller.next().await.unwrap();
        node.stop_schedule("shop").await.unwrap();
        node.stop_schedule("shop").await.unwrap();
        puller.answer("").await;
        assert_eq!(node.watch("d-1").await.ended().await.state, "cancelled");
        node.schedule("shop", vec![info(50, 59)]).await.unwrap();
        assert_eq!(
            puller.next().await.unwrap(),
            (50, 59),
            "the new one, not the rest"
        );
    });
}

#[test]
fn a_node_that_stops_ends_its_pulls() {
    run(async {
        let node = Node::start().await;
        let mut puller = Puller::open(&node, "shop").await;
        node.stop.cancel();
        assert_eq!(puller.next().await.unwrap_err().code(), Code::Unavailable);
    });
}

#[test]
fn what_cannot_be_scheduled_is_refused() {
    run(async {
        let node = Node::start().await;
        let nameless = DumpInfoResponse {
            page_end: 9,
            ..DumpInfoResponse::default()
        };
        for (uri, range, code, word) in [
            (
                "nope",
                info(0, 9),
                Code::NotFound,
                "unknown uri \"nope\"; known streams: shop",
            ),
            ("", info(0, 9), Code::NotFound, "unknown uri"),
            (
                "shop",
                info(9, 3),
                Code::InvalidArgument,
                "pages 9-3 of public.orders",
            ),
            (
                "shop",
                nameless,
                Code::InvalidArgument,
                "no name of a table",
            ),
        ] {
            let refused = node.schedule(uri, vec![range]).await.unwrap_err();
            assert_eq!(refused.code(), code, "{refused:?}");
            assert!(refused.message().contains(word), "{refused:?}");
            assert!(refused.message().contains("; next: "), "{refused:?}");
        }
        let missing = DumpInfoResponse {
            table: "nope".to_owned(),
            ..info(0, 9)
        };
        let refused = node.schedule("shop", vec![missing]).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
        node.schedule("shop", Vec::new()).await.unwrap();

        let refused = node.stop_schedule("nope").await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        let refused = node.cool_down("shop", -1).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let refused = node.cool_down("nope", 1).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        node.cool_down("shop", 3).await.unwrap();
        node.cool_down("shop", 0).await.unwrap();

        let mut lost = Puller::open(&node, "nope").await;
        assert_eq!(lost.next().await.unwrap_err().code(), Code::NotFound);
        let mut early = Puller::open(&node, "shop").await;
        early.answer("").await;
        assert_eq!(
            early.next().await.unwrap_err().code(),
            Code::InvalidArgument
        );
    });
}
