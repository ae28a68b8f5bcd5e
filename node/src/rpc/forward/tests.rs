//! Who answers, what goes with a request, and what is told when nobody does.

use std::collections::BTreeMap;

use async_trait::async_trait;
use pgcapture_actors::consensus::{Leadership, ProposeError};
use pgcapture_engine::{
    cluster::{Answer, Command, Node},
    lsn::PgTime,
};
use pgcapture_proto::admin::v1::GetNodeRequest;
use tokio::sync::watch;

use super::*;
use crate::config::Config;

/// Holds a state and agrees to nothing.
#[derive(Debug)]
struct Fixed(watch::Sender<Arc<State>>);

#[async_trait]
impl Consensus for Fixed {
    async fn propose(&self, _: Command) -> Result<Answer, ProposeError> {
        Err(ProposeError::Store {
            reason: "fixed".to_owned(),
        })
    }

    fn state(&self) -> watch::Receiver<Arc<State>> {
        self.0.subscribe()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        watch::channel(Leadership::alone("n1")).1
    }

    async fn confirm_leadership(&self) -> Result<(), ProposeError> {
        Ok(())
    }
}

/// `n1`, which knows `n2` at `address`; `n2` owns shop, `n1` owns audit, `gone` owns old.
fn forward(address: &str) -> Forward {
    let mut state = State::default();
    for (name, address) in [("n1", "127.0.0.1:1"), ("n2", address)] {
        let node = Node {
            name: name.to_owned(),
            id: 1,
            address: address.to_owned(),
            joined_at: PgTime(0),
        };
        state.nodes.insert(name.to_owned(), node);
    }
    let owners = [("shop", "n2"), ("audit", "n1"), ("old", "gone")];
    let owners = owners.map(|(source, node)| (source.to_owned(), node.to_owned()));
    state.owners = BTreeMap::from(owners);
    let (sender, _) = watch::channel(Arc::new(state));
    let config = Config::from_text("test", "").unwrap();
    Forward {
        node: "n1".to_owned(),
        peers: Peers::new(&config).unwrap(),
        consensus: Arc::new(Fixed(sender)),
    }
}

#[tokio::test]
async fn a_source_of_another_node_goes_there_and_at_most_one_step() {
    let forward = forward("127.0.0.1:2");
    let request = Request::new(());
    let target = forward.owner(&request, "shop").unwrap();
    assert_eq!(target.name, "n2");
    for here in ["audit", "old", "unknown"] {
        assert_eq!(forward.owner(&request, here), None, "{here}");
    }
    let passed = passed_on(request, "n2");
    assert!(is_marked(&passed));
    assert_eq!(forward.owner(&passed, "shop"), None, "no loop");
    let others = forward.others();
    assert_eq!(others.len(), 1, "this node is not asked: {others:?}");
}

#[tokio::test]
async fn the_deadline_goes_along_and_nothing_else_of_the_caller() {
    let mut request = Request::new(());
    request.set_timeout(Duration::from_secs(3));
    let secret = MetadataValue::from_static("Bearer of the caller");
    request.metadata_mut().insert("authorization", secret);
    let passed = passed_on(request, "n1");
    assert_eq!(
        deadline::of(passed.metadata()),
        Some(Duration::from_secs(3))
    );
    assert!(passed.metadata().get("authorization").is_none());
    let endless = passed_on(Request::new(()), "n1");
    assert_eq!(deadline::of(endless.metadata()), Some(FORWARD_MAX));
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_told_by_name_with_a_next_step() {
    // A port that nobody listens on.
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let forward = forward(&address);
    let target = forward.owner(&Request::new(()), "shop").unwrap();
    let call = |mut admin: AdminClient<_>, request| async move { admin.get_node(request).await };
    let asked = forward.admin(&target, part(GetNodeRequest {}), call);
    let status = asked.await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let code = status.metadata().get(CODE_KEY).unwrap();
    assert_eq!(code.to_str().unwrap(), "PGC-N18");
    assert!(
        status.message().contains("node n2 at 127.0.0.1:"),
        "{status}"
    );
    assert!(status.message().contains("; next: "), "{status}");
}

#[tokio::test]
async fn a_refusal_of_the_other_node_stays_what_it_is() {
    let target = Target {
        name: "n2".to_owned(),
        address: String::new(),
    };
    let refused = || status("PGC-N04", "its disk is full", "free space");
    let kept = target.away(refused());
    assert_eq!(kept.message(), refused().message());
    let missing = target.away(Status::not_found("unknown source"));
    assert_eq!(missing.code(), Code::NotFound);
}
