//! The controller of a node that leads others: who reads stands on the ticket.

use std::collections::BTreeMap;

use pgcapture_engine::{
    cluster::{Command, Node as Member},
    dump::{ReplicaFacts, schedule::NodeReach},
    lsn::PgTime,
};

use super::*;

/// What others say that reach replica `r1`.
fn others(names: &[&str]) -> OtherNodes {
    let reach = NodeReach {
        seats: 4,
        replicas: ["r1".to_owned()].into(),
    };
    let named = names.iter().map(|name| ((*name).to_owned(), reach.clone()));
    Arc::new(named.collect::<BTreeMap<_, _>>())
}

impl Node {
    /// Node `n1`, which leads and reads so many ranges at once, and the way to tell it of others.
    async fn leading(seats: u32) -> (Self, watch::Sender<OtherNodes>) {
        let (tell, known) = watch::channel(OtherNodes::default());
        let script = Arc::new(Script::new(24));
        let agreed = Arc::new(Agreed::new(&["r1"]));
        for (name, id) in [("n1", 1), ("n2", 2)] {
            let member = Member {
                name: name.to_owned(),
                id,
                address: format!("{name}:7701"),
                joined_at: PgTime(1),
            };
            agreed.apply(Command::AddNode(member)).unwrap();
        }
        let node = ReaderNode {
            name: "n1".to_owned(),
            seats,
            others: known,
        };
        let reader: Arc<dyn RowReader> = Arc::clone(&script) as _;
        let consensus: Arc<dyn crate::consensus::Consensus> = Arc::clone(&agreed) as _;
        let node = Self {
            dumps: DumpControllerHandle::start_on(node, consensus, reader),
            script,
            agreed,
        };
        node.until_replicas_were_asked().await;
        (node, tell)
    }
}

fn at(ticket: &RangeTicket) -> (&str, &str) {
    (&ticket.node, &ticket.address)
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_has_the_range_that_waits_and_one_that_fails_loses_it() {
    on_local_set(async {
        let (node, tell) = Node::leading(1).await;
        let id = node.create().await;
        let first = node.pull().await;
        assert_eq!(at(&first), ("n1", "n1:7701"));
        assert_eq!(first.at_least, Lsn(50), "the plan's position");
        assert_eq!(node.dumps.pull(&shop()).await.unwrap(), None, "no room");
        let waiting = node.pull();
        let coming = async { tell.send_replace(others(&["n2"])) };
        let (second, _) = tokio::join!(waiting, coming);
        assert_eq!(at(&second), ("n2", "n2:7701"));
        let readings = node.dumps.status(id).await.unwrap().readings;
        let told: Vec<_> = readings.iter().map(|it| it.node.as_str()).collect();
        assert_eq!(told, ["n1", "n2"]);

        node.finish(first, 8).await.unwrap();
        let lost = DumpError {
            explanation: &pgcapture_engine::codes::dump::READER_AWAY,
            what: "on purpose".to_owned(),
            remedy: RangeRemedy::Elsewhere,
        };
        let (number, extent) = (second.number, second.extent);
        node.dumps.give_up(second, GivenUp::Failed(lost)).await;
        let again = node.dumps.pull(&shop()).await.unwrap().unwrap();
        assert_eq!(
            (again.extent, again.node.as_str()),
            (extent, "n1"),
            "at once"
        );
        let late = RangeTicket {
            number,
            ..again.clone()
        };
        node.finish(late, 8).await.unwrap_err();
        node.finish(again, 8).await.unwrap();
        assert_eq!(node.dump(id).tables[0].range_count, 2);
        node.dumps.kill();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_node_says_which_replicas_it_may_read_from() {
    on_local_set(async {
        let node = Node::start(8, &["r1"]).await;
        let mut readable = node.dumps.readable();
        let is_r1 = |names: &Arc<std::collections::BTreeSet<String>>| names.contains("r1");
        readable.wait_for(is_r1).await.unwrap();
        let lag = Duration::from_hours(1);
        *node.script.health.lock().unwrap() = Ok(ReplicaFacts {
            lag,
            ..ReplicaFacts::default()
        });
        readable.wait_for(|names| names.is_empty()).await.unwrap();
        *node.script.health.lock().unwrap() = Ok(ReplicaFacts::default());
        readable.wait_for(is_r1).await.unwrap();
        let name = "r1".to_owned();
        node.agreed.apply(Command::RemoveReplica { name }).unwrap();
        readable.wait_for(|names| names.is_empty()).await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_reading_that_is_stopped_ends_without_an_end() {
    on_local_set(async {
        let node = Node::start(8, &["r1"]).await;
        node.create().await;
        let ticket = node.pull().await;
        for fault in [Fault::Silence, Fault::Hang] {
            let opens = matches!(fault, Fault::Silence);
            node.script.add(fault);
            let stop = tokio_util::sync::CancellationToken::new();
            let reading = node.dumps.read(ReadOrder {
                ticket: ticket.clone(),
                at_least: Lsn(60),
                stop: stop.clone(),
                on_read: Box::pin(async { panic!("it was not read") }),
            });
            let stopping = async { stop.cancel() };
            if opens {
                let mut opened = reading.await.unwrap();
                assert_eq!(opened.at, Lsn(60));
                stopping.await;
                assert!(opened.rows.recv().await.is_none());
            } else {
                let (refused, ()) = tokio::join!(reading, stopping);
                refused.unwrap_err();
            }
            node.script.until_nothing_is_read().await;
        }
    })
    .await;
}
