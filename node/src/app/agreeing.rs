//! Whether anything can be agreed on any more while this node stops.
//!
//! A stop hands over and saves what needs the others' word. When a majority is gone that word never comes,
//! and each wait for it would last to its own end. Waits for nothing itself but for that certainty: a node
//! that was without a leader for a while before it was told to stop knows it already.

use std::{sync::Arc, time::Duration};

use pgcapture_actors::{
    consensus::{Consensus, Leadership},
    supervise::{Task, TaskKind, spawn},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::liveness::probe::deserted;

/// A cluster that has a majority has a leader whom it confirms within this time, also on a busy machine, and
/// also while leadership is handed over.
const LEADERLESS_MAX: Duration = Duration::from_secs(4);

/// How often a leader that stops asks whether it still is one.
const CONFIRM_EVERY: Duration = Duration::from_millis(200);

/// Watches whether nobody has led the cluster for some time. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Leaderless {
    is_so: watch::Receiver<bool>,
    _task: Arc<Task<()>>,
}

impl Leaderless {
    pub(super) fn watch(consensus: &dyn Consensus) -> Self {
        let (tell, is_so) = watch::channel(false);
        let watching = watch_leaders(consensus.leadership(), tell);
        Self {
            is_so,
            _task: Arc::new(spawn(TaskKind::Liveness, "leaderless", watching)),
        }
    }

    /// Ends once nothing can be agreed on: all others are gone, nobody leads, or this node leads nobody.
    /// Never where nobody else votes: such a node needs nobody's word.
    pub(super) async fn for_good(&self, consensus: &dyn Consensus, node: &str, is_alone: bool) {
        if is_alone {
            return std::future::pending().await;
        }
        let mut is_so = self.is_so.clone();
        tokio::select! {
            _ = is_so.wait_for(|is_so| *is_so) => (),
            () = deserted(consensus, node) => (),
            () = unconfirmed(consensus) => (),
        }
    }
}

async fn watch_leaders(mut leadership: watch::Receiver<Leadership>, tell: watch::Sender<bool>) {
    loop {
        let lost = leadership.wait_for(|now| now.leader.is_none()).await;
        if lost.map(drop).is_err() {
            return;
        }
        let is_found = |now: &Leadership| now.leader.is_some();
        if timeout(LEADERLESS_MAX, leadership.wait_for(is_found))
            .await
            .is_ok_and(|found| found.is_ok())
        {
            continue;
        }
        tell.send_replace(true);
        if leadership.wait_for(is_found).await.map(drop).is_err() {
            return;
        }
        tell.send_replace(false);
    }
}

/// Ends once this node is shown as the leader, and no majority says so.
async fn unconfirmed(consensus: &dyn Consensus) {
    let leadership = consensus.leadership();
    let mut since = None;
    loop {
        let leads = || leadership.borrow().is_me;
        let is_refuted = leads() && consensus.confirm_leadership().await.is_err() && leads();
        if !is_refuted {
            since = None;
        } else if since.get_or_insert_with(Instant::now).elapsed() >= LEADERLESS_MAX {
            return;
        }
        sleep(CONFIRM_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use pgcapture_actors::consensus::ProposeError;
    use pgcapture_engine::{
        cluster::{Answer, Command, Node, State},
        lsn::PgTime,
    };
    use tokio::net::TcpListener;

    use super::*;

    /// A group of which only is known who leads.
    #[derive(Debug)]
    struct Group {
        state: watch::Sender<Arc<State>>,
        leadership: watch::Sender<Leadership>,
        is_confirmed: bool,
    }

    #[async_trait]
    impl Consensus for Group {
        async fn propose(&self, _: Command) -> Result<Answer, ProposeError> {
            Ok(Answer::Unchanged)
        }

        fn state(&self) -> watch::Receiver<Arc<State>> {
            self.state.subscribe()
        }

        fn leadership(&self) -> watch::Receiver<Leadership> {
            self.leadership.subscribe()
        }

        async fn confirm_leadership(&self) -> Result<(), ProposeError> {
            let reason = "nobody answers".to_owned();
            self.is_confirmed
                .then_some(())
                .ok_or(ProposeError::Unavailable { reason })
        }
    }

    fn led_by(leader: Option<&str>) -> Leadership {
        Leadership {
            term: 1,
            leader: leader.map(str::to_owned),
            is_me: leader == Some("n1"),
        }
    }

    /// `n1`, and `n2` at an address.
    fn group(other: Option<&str>, leader: Option<&str>, is_confirmed: bool) -> Group {
        let mut state = State::default();
        let nodes = [("n1", Some("127.0.0.1:1")), ("n2", other)];
        for (id, (name, address)) in (1..).zip(nodes) {
            let Some(address) = address else { continue };
            let node = Node {
                name: name.to_owned(),
                id,
                address: address.to_owned(),
                joined_at: PgTime(0),
            };
            state.apply(Command::AddNode(node)).unwrap();
        }
        Group {
            state: watch::Sender::new(Arc::new(state)),
            leadership: watch::Sender::new(led_by(leader)),
            is_confirmed,
        }
    }

    /// Tells whether it ends; the clock stands still until everybody waits.
    async fn ends(group: &Group) -> bool {
        let leaderless = Leaderless::watch(group);
        let is_alone = group.state.borrow().nodes.len() == 1;
        let waiting = leaderless.for_good(group, "n1", is_alone);
        timeout(Duration::from_secs(60), waiting).await.is_ok()
    }

    #[tokio::test]
    async fn a_node_whose_others_are_gone_waits_for_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = listener.local_addr().unwrap().to_string();
        drop(listener);
        assert!(ends(&group(Some(&other), Some("n2"), true)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_leader_or_a_majority_nothing_is_waited_for() {
        let silent = Some("255.255.255.255:1");
        assert!(ends(&group(silent, None, true)).await, "nobody leads");
        assert!(
            ends(&group(silent, Some("n1"), false)).await,
            "it leads nobody"
        );
        assert!(!ends(&group(silent, Some("n1"), true)).await, "it leads");
        assert!(
            !ends(&group(silent, Some("n2"), true)).await,
            "another leads"
        );
        assert!(!ends(&group(None, None, false)).await, "alone");
    }

    #[tokio::test(start_paused = true)]
    async fn an_election_is_waited_for() {
        let group = group(Some("255.255.255.255:1"), None, true);
        let leaderless = Leaderless::watch(&group);
        let waiting = leaderless.for_good(&group, "n1", false);
        let elected = async {
            sleep(LEADERLESS_MAX / 2).await;
            group.leadership.send_replace(led_by(Some("n2")));
            sleep(LEADERLESS_MAX * 2).await;
        };
        tokio::select! {
            () = waiting => panic!("there is a leader"),
            () = elected => (),
        }
    }
}
