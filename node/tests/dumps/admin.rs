//! The administration of dumps.

use pgcapture_engine::codes::existing_rows;
use pgcapture_proto::admin::v1::{
    CancelDumpRequest, Dump, ListDumpsRequest, PageRange, PauseDumpRequest, ResumeDumpRequest,
    RetryDumpRequest, StartDumpRequest, WatchDumpRequest,
};
use tonic::{Code, Status, Streaming};

use crate::harness::{Node, PATIENCE, run};

/// A dump that is watched.
pub(crate) struct Watched(Streaming<Dump>);

impl Watched {
    async fn next(&mut self) -> Result<Option<Dump>, Status> {
        let told = tokio::time::timeout(PATIENCE, self.0.message()).await;
        told.expect("something is told")
    }

    /// Waits until it is as wanted.
    async fn until(&mut self, is_wanted: impl Fn(&Dump) -> bool) -> Dump {
        loop {
            let dump = self.next().await.unwrap().expect("it has not ended");
            if is_wanted(&dump) {
                return dump;
            }
        }
    }

    /// Waits for the last word.
    pub(crate) async fn ended(&mut self) -> Dump {
        let ended = self.until(|dump| dump.ended_at > 0).await;
        assert!(
            self.next().await.unwrap().is_none(),
            "the stream ends with it"
        );
        ended
    }
}

impl Node {
    pub(crate) async fn watch(&self, id: &str) -> Watched {
        let id = id.to_owned();
        let watched = self.admin().watch_dump(WatchDumpRequest { id }).await;
        Watched(watched.unwrap().into_inner())
    }

    pub(crate) async fn start_dump(&self, request: StartDumpRequest) -> Result<Dump, Status> {
        Ok(self.admin().start_dump(request).await?.into_inner())
    }
}

pub(crate) fn orders(uri: &str) -> StartDumpRequest {
    StartDumpRequest {
        uri: uri.to_owned(),
        tables: vec!["public.orders".to_owned()],
        ..StartDumpRequest::default()
    }
}

#[test]
fn a_dump_is_listed_paused_resumed_and_cancelled() {
    run(async {
        let node = Node::start().await;
        let started = node
            .start_dump(StartDumpRequest {
                parallel: 4,
                bytes_per_second: 1 << 20,
                priority: -3,
                cool_down_micros: 2_000_000,
                pages: Some(PageRange {
                    first: 5,
                    last: None,
                }),
                ..orders("shop/search")
            })
            .await
            .unwrap();
        assert_eq!(
            (started.id.as_str(), started.state.as_str()),
            ("d-1", "active")
        );
        assert_eq!(
            (started.uri.as_str(), started.source.as_str()),
            ("shop/search", "shop")
        );
        assert_eq!(started.tables, ["public.orders"]);
        assert_eq!(
            started.pages,
            Some(PageRange {
                first: 5,
                last: None
            })
        );
        assert_eq!((started.parallel, started.bytes_per_second), (4, 1 << 20));
        assert_eq!(
            (started.priority, started.cool_down_micros),
            (-3, 2_000_000)
        );
        it_obeys(&node).await;
    });
}

/// Watches the dump that nobody consumes through every order it takes.
async fn it_obeys(node: &Node) {
    let mut watched = node.watch("d-1").await;
    watched
        .until(|dump| {
            let missing = &dump.progress.as_ref().unwrap().waiting_for;
            missing == "a consumer of shop/search"
        })
        .await;
    let id = || "d-1".to_owned();
    for _ in 0..2 {
        let paused = node.admin().pause_dump(PauseDumpRequest { id: id() }).await;
        assert_eq!(paused.unwrap().into_inner().state, "paused");
    }
    let resumed = node
        .admin()
        .resume_dump(ResumeDumpRequest { id: id() })
        .await;
    assert_eq!(resumed.unwrap().into_inner().state, "active");
    let cancelled = node
        .admin()
        .cancel_dump(CancelDumpRequest { id: id() })
        .await;
    assert_eq!(cancelled.unwrap().into_inner().state, "cancelled");
    assert_eq!(watched.ended().await.state, "cancelled");
    let refused = node
        .admin()
        .pause_dump(PauseDumpRequest { id: id() })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    let refused = node
        .admin()
        .retry_dump(RetryDumpRequest { id: id() })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
}

#[test]
fn lists_are_filtered_and_the_newest_comes_first() {
    run(async {
        let node = Node::start().await;
        for uri in ["shop", "shop/a", "shop/b"] {
            node.start_dump(orders(uri)).await.unwrap();
        }
        node.admin()
            .cancel_dump(CancelDumpRequest {
                id: "d-2".to_owned(),
            })
            .await
            .unwrap();
        let list = async |stream: &str, uri: &str, only_open| {
            let request = ListDumpsRequest {
                stream: stream.to_owned(),
                uri: uri.to_owned(),
                only_open,
            };
            let dumps = node.admin().list_dumps(request).await.unwrap();
            let dumps = dumps.into_inner().dumps.into_iter();
            dumps.map(|dump| dump.id).collect::<Vec<_>>()
        };
        assert_eq!(list("", "", false).await, ["d-3", "d-2", "d-1"]);
        assert_eq!(list("shop", "", true).await, ["d-3", "d-1"]);
        assert_eq!(list("", "shop/a", false).await, ["d-2"]);
        assert_eq!(
            list("", "shop/shop", false).await,
            ["d-1"],
            "the same consumer"
        );
        assert!(list("nope", "", false).await.is_empty());
        assert_eq!(node.newest().await.id, "d-3");
    });
}

/// What is wrong, with its code and a word of the answer.
fn bad_requests() -> Vec<(StartDumpRequest, Code, &'static str)> {
    let with = |tables: &[&str]| StartDumpRequest {
        tables: tables.iter().map(|table| (*table).to_owned()).collect(),
        ..orders("shop/x")
    };
    let pages = |first, last| {
        Some(PageRange {
            first,
            last: Some(last),
        })
    };
    vec![
        (orders("nope"), Code::NotFound, "unknown uri"),
        (orders("shop"), Code::AlreadyExists, "d-1"),
        (with(&[]), Code::InvalidArgument, "at least one table"),
        (
            with(&["public.nope"]),
            Code::NotFound,
            existing_rows::TABLE_MISSING.title,
        ),
        (
            with(&["public.v"]),
            Code::InvalidArgument,
            existing_rows::NO_HEAP.title,
        ),
        (
            StartDumpRequest {
                pages: pages(9, 3),
                ..orders("shop/x")
            },
            Code::InvalidArgument,
            "backwards",
        ),
        (
            StartDumpRequest {
                pages: pages(100, 200),
                ..orders("shop/x")
            },
            Code::InvalidArgument,
            "100",
        ),
        (
            StartDumpRequest {
                pages: pages(0, 9),
                ..with(&["public.orders", "public.parts"])
            },
            Code::InvalidArgument,
            "pages belong to one table",
        ),
        (
            StartDumpRequest {
                parallel: 5_000,
                ..orders("shop/x")
            },
            Code::InvalidArgument,
            "parallel",
        ),
    ]
}

#[test]
fn what_cannot_be_dumped_is_refused_with_the_next_step() {
    run(async {
        let node = Node::start().await;
        node.start_dump(orders("shop")).await.unwrap();
        for (request, code, word) in bad_requests() {
            let refused = node.start_dump(request.clone()).await.unwrap_err();
            assert_eq!(refused.code(), code, "{request:?}: {refused:?}");
            let said = refused.message();
            assert!(said.contains(word) && said.contains("; next: "), "{said}");
        }
        for id in ["d-99", "x"] {
            let id = id.to_owned();
            let watched = node.admin().watch_dump(WatchDumpRequest { id }).await;
            let code = watched.unwrap_err().code();
            assert!(
                matches!(code, Code::NotFound | Code::InvalidArgument),
                "{code:?}"
            );
        }
    });
}

#[test]
fn a_source_without_replica_says_how_to_add_one() {
    run(async {
        let node = Node::without_replica().await;
        let refused = node.start_dump(orders("shop")).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(
            refused.message().contains("pgcapture replica add"),
            "{refused:?}"
        );
    });
}

#[test]
fn a_node_that_stops_ends_its_watches() {
    run(async {
        let node = Node::start().await;
        node.start_dump(orders("shop")).await.unwrap();
        let mut watched = node.watch("d-1").await;
        watched.next().await.unwrap();
        node.stop.cancel();
        let end = loop {
            match watched.next().await {
                Ok(Some(_)) => (),
                Ok(None) => panic!("an open dump does not end"),
                Err(status) => break status,
            }
        };
        assert_eq!(end.code(), Code::Unavailable, "{end:?}");
    });
}
