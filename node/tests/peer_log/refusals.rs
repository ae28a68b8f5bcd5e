//! What a node answers that does not have the log, or not all of it.

use std::time::Duration;

use pgcapture_actors::log::{ChangeLog, LogError, Start};
use pgcapture_engine::checkpoint::Checkpoint;
use pgcapture_node::peer_log::RemoteLog;
use pgcapture_proto::peer::v1::{
    LogName, OpenLog, ReadLogRequest, log_refusal, open_log, peer_log_client::PeerLogClient,
    read_log_answer, read_log_request,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    cluster::{CLUSTER, Cluster, SOURCE, log_name},
    rows::{append_all, commit_lsn},
};

async fn refused(cluster: &Cluster, owner: &str, name: LogName) -> String {
    let address = cluster.node(owner).address.to_string();
    let channel = cluster.node("b").peers.channel(&address).unwrap();
    let refused = RemoteLog::connect(channel, owner, name).await.unwrap_err();
    assert!(matches!(refused, LogError::Away { .. }), "{refused:?}");
    refused.to_string()
}

#[tokio::test]
async fn who_is_not_the_owner_says_who_is() {
    let cluster = Cluster::start(&["a", "b"]).await;
    cluster.log("a");
    cluster.assign("b");
    let told = refused(&cluster, "a", log_name(1)).await;
    assert!(told.contains("that is b under epoch 2"), "{told}");
    // The owner under an older epoch is not the owner that was meant.
    cluster.assign("a");
    let told = refused(&cluster, "a", log_name(2)).await;
    assert!(told.contains("epoch 3"), "{told}");
    let other = LogName {
        cluster: "c2".to_owned(),
        ..log_name(3)
    };
    let told = refused(&cluster, "a", other).await;
    assert!(
        told.contains(&format!("another cluster, \"{CLUSTER}\"")),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_knows_more_is_let_wait() {
    let cluster = Cluster::start(&["a", "b"]).await;
    cluster.log("a");
    let connecting = cluster.remote(("b", "a"), 2);
    let (connected, ()) = tokio::join!(connecting, async {
        tokio::task::yield_now().await;
        cluster.assign("a");
    });
    connected.unwrap();
    let told = refused(&cluster, "a", log_name(9)).await;
    assert!(told.contains("epoch 2"), "it waited in vain: {told}");
}

#[tokio::test]
async fn streams_end_with_the_right_to_serve_them() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let mut writer = cluster.writer("a").await;
    append_all(&mut writer, 1..=2, 1).await;
    let remote = cluster.remote(("b", "a"), 1).await.unwrap();
    let mut reader = remote.open_reader(Start::Latest).await.unwrap();
    cluster.assign("b");
    let error = reader.next().await.unwrap_err();
    assert!(error.to_string().contains("that is b"), "{error}");
    let ended = tokio::time::timeout(Duration::from_secs(20), remote.ended()).await;
    assert!(ended.unwrap().contains("that is b"));
    assert!(reader.next().await.is_err(), "and stays so");
    assert!(remote.open_reader(Start::Earliest).await.is_err());
    let written = remote.open_writer(cluster.epoch()).await;
    assert!(matches!(written, Err(LogError::Fenced { .. })));
}

#[tokio::test]
async fn a_removed_position_arrives_with_the_earliest_one() {
    let cluster = Cluster::start_keeping(&["a", "b"], 128 << 10).await;
    let mut writer = cluster.writer("a").await;
    let log = cluster.log("a");
    let mut number = 0;
    let begin = Checkpoint::new(commit_lsn(1), 0);
    while log
        .extent()
        .earliest
        .is_none_or(|earliest| earliest <= begin)
    {
        number += 1;
        append_all(&mut writer, [number], 100).await;
    }
    let routed = cluster.node("b").routes.log(SOURCE);
    routed.ready(Duration::from_secs(20)).await.unwrap();
    let wanted = log.extent().earliest.unwrap();
    match routed.open_reader(Start::After(begin)).await {
        Err(LogError::Removed { asked, earliest }) => {
            assert_eq!((asked, earliest), (begin.to_string(), wanted));
        }
        other => panic!("{:?}", other.err()),
    }
}

#[tokio::test]
async fn no_more_is_sent_than_was_granted() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let mut writer = cluster.writer("a").await;
    append_all(&mut writer, 1..=3, 100).await;
    let address = cluster.node("a").address.to_string();
    let channel = cluster.node("b").peers.channel(&address).unwrap();
    let (requests, outbound) = mpsc::channel(4);
    let open = OpenLog {
        log: Some(log_name(1)),
        credit: 1,
        start: Some(open_log::Start::Latest(open_log::Latest {})),
    };
    let send = |kind| {
        let request = ReadLogRequest { kind: Some(kind) };
        requests.try_send(request).unwrap();
    };
    send(read_log_request::Kind::Open(open));
    let mut client = PeerLogClient::new(channel);
    let answers = client.read_log(ReceiverStream::new(outbound)).await;
    let mut answers = answers.unwrap().into_inner();
    let mut kinds = Vec::new();
    let opened = answers.message().await.unwrap().unwrap().kind;
    assert!(matches!(opened, Some(read_log_answer::Kind::Opened(_))));
    for number in 4..=6 {
        append_all(&mut writer, [number], 100).await;
    }
    let batch = answers.message().await.unwrap().unwrap().kind;
    assert!(matches!(batch, Some(read_log_answer::Kind::Batch(_))));
    // One batch overdrew the credit: the next message is the end.
    cluster.assign("b");
    while let Some(answer) = answers.message().await.unwrap() {
        kinds.push(answer.kind.unwrap());
    }
    match &kinds[..] {
        [read_log_answer::Kind::Refusal(refusal)] => assert!(matches!(
            refusal.kind,
            Some(log_refusal::Kind::NotOwner(log_refusal::NotOwner {
                epoch: 2,
                ..
            }))
        )),
        other => panic!("{other:?}"),
    }
}
