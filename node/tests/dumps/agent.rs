//! Gateways that ask an agent for rows.

use std::sync::atomic::Ordering;

use pgcapture_engine::codes::existing_rows;
use pgcapture_node::rpc::agent::SOURCE_KEY;
use pgcapture_proto::pgcapture::{AgentConfigRequest, AgentDumpRequest, Change, DumpInfoResponse};
use tonic::{Code, Request, Status};

use crate::{
    harness::{Node, run},
    reader::{ROWS_A_PAGE, id},
};

fn ask(table: &str, page_begin: u32, page_end: u32, min_lsn: u64) -> AgentDumpRequest {
    AgentDumpRequest {
        min_lsn,
        info: Some(DumpInfoResponse {
            schema: "public".to_owned(),
            table: table.to_owned(),
            page_begin,
            page_end,
        }),
    }
}

impl Node {
    async fn rows(&self, request: AgentDumpRequest) -> Result<Vec<Change>, Status> {
        Ok(self.agent().dump(request).await?.into_inner().change)
    }

    async fn refused(&self, request: AgentDumpRequest) -> Code {
        let refused = self.rows(request.clone()).await.unwrap_err();
        let streamed = self.agent().stream_dump(request).await.unwrap_err();
        assert_eq!(streamed.code(), refused.code(), "{refused:?} {streamed:?}");
        refused.code()
    }
}

#[test]
fn both_forms_bring_the_same_rows() {
    run(async {
        let node = Node::start().await;
        node.reader.at.store(50, Ordering::SeqCst);
        let rows = node.rows(ask("orders", 3, 4, 50)).await.unwrap();
        let first = i64::from(3 * ROWS_A_PAGE);
        let ids: Vec<_> = rows.iter().map(id).collect();
        assert_eq!(
            ids,
            (first..first + i64::from(2 * ROWS_A_PAGE)).collect::<Vec<_>>()
        );
        let mut stream = node
            .agent()
            .stream_dump(ask("orders", 3, 4, 50))
            .await
            .unwrap();
        let mut streamed = Vec::new();
        while let Some(row) = stream.get_mut().message().await.unwrap() {
            streamed.push(row);
        }
        assert_eq!(streamed, rows);
        assert!(
            node.rows(ask("orders", 500, 600, 0))
                .await
                .unwrap()
                .is_empty()
        );
    });
}

#[test]
fn each_refusal_has_its_old_status() {
    run(async {
        let node = Node::start().await;
        node.reader.at.store(50, Ordering::SeqCst);
        assert_eq!(node.refused(ask("nope", 0, 9, 0)).await, Code::NotFound);
        assert_eq!(
            node.refused(ask("orders", 0, 9, 51)).await,
            Code::FailedPrecondition
        );
        assert_eq!(
            node.refused(ask("orders", 9, 0, 0)).await,
            Code::InvalidArgument
        );
        assert_eq!(node.refused(ask("v", 0, 9, 0)).await, Code::InvalidArgument);
        assert_eq!(
            node.refused(ask("parts", 0, 9, 0)).await,
            Code::InvalidArgument
        );
        let away = &existing_rows::REPLICA_UNREACHABLE;
        node.reader.failures.lock().unwrap().extend([away, away]);
        assert_eq!(
            node.refused(ask("orders", 0, 9, 0)).await,
            Code::Unavailable
        );
        let configured = node.agent().configure(AgentConfigRequest::default()).await;
        assert_eq!(configured.unwrap_err().code(), Code::Unimplemented);
    });
}

#[test]
fn no_replica_means_no_dumper() {
    run(async {
        let node = Node::without_replica().await;
        assert_eq!(node.refused(ask("orders", 0, 9, 0)).await, Code::Aborted);
    });
}

#[test]
fn a_node_of_several_sources_wants_to_know_which() {
    run(async {
        let node = Node::start().await;
        node.add_source("stock").await;
        assert_eq!(
            node.refused(ask("orders", 0, 9, 0)).await,
            Code::FailedPrecondition
        );
        let named = |source: &str| {
            let mut request = Request::new(ask("orders", 0, 0, 0));
            request
                .metadata_mut()
                .insert(SOURCE_KEY, source.parse().unwrap());
            request
        };
        let rows = node.agent().dump(named("shop")).await.unwrap();
        assert_eq!(rows.into_inner().change.len(), ROWS_A_PAGE as usize);
        let lost = node.agent().dump(named("nope")).await.unwrap_err();
        assert_eq!(lost.code(), Code::NotFound);
        let without_replica = node.agent().dump(named("stock")).await.unwrap_err();
        assert_eq!(without_replica.code(), Code::Aborted);
    });
}
