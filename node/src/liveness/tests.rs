//! Rounds that prove leadership are shared, and what the tests beside this one stand on.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use pgcapture_actors::consensus::{Consensus, Leadership, ProposeError};
use pgcapture_engine::{
    cluster::{Answer, Command, Node, State},
    lsn::PgTime,
};
use tokio::sync::Semaphore;

use super::*;

/// A group that has nodes at addresses and whose leader, this node, may have been deposed without
/// knowing it.
#[derive(Debug)]
pub(crate) struct Group {
    state: watch::Sender<Arc<State>>,
    leadership: watch::Sender<Leadership>,
    pub(crate) is_deposed: AtomicBool,
    /// Rounds so far.
    pub(crate) rounds: AtomicUsize,
    /// Each round takes one of these.
    pub(crate) may_answer: Semaphore,
}

impl Group {
    pub(crate) fn of(nodes: &[(&str, &str)]) -> Self {
        let mut state = State::default();
        for (name, address) in nodes {
            let node = Node {
                name: (*name).to_owned(),
                id: 1,
                address: (*address).to_owned(),
                joined_at: PgTime(0),
            };
            state.nodes.insert(node.name.clone(), node);
        }
        Self {
            state: watch::Sender::new(Arc::new(state)),
            leadership: watch::Sender::new(Leadership::alone("n1")),
            is_deposed: AtomicBool::new(false),
            rounds: AtomicUsize::new(0),
            may_answer: Semaphore::new(Semaphore::MAX_PERMITS),
        }
    }
}

#[async_trait]
impl Consensus for Group {
    async fn propose(&self, _: Command) -> Result<Answer, ProposeError> {
        Err(no_majority())
    }

    fn state(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    async fn confirm_leadership(&self) -> Result<(), ProposeError> {
        self.rounds.fetch_add(1, Ordering::SeqCst);
        let permit = self.may_answer.acquire().await;
        permit.unwrap().forget();
        if self.is_deposed.load(Ordering::SeqCst) {
            return Err(no_majority());
        }
        Ok(())
    }
}

fn no_majority() -> ProposeError {
    ProposeError::Unavailable {
        reason: "another node leads".to_owned(),
    }
}

#[tokio::test]
async fn one_round_serves_all_that_ask_and_an_older_one_does_not() {
    let group = Arc::new(Group::of(&[]));
    let confirmations = Confirmations::new(Arc::<Group>::clone(&group));
    let at = Instant::now();
    let asked = (0..8).map(|_| confirmations.since(at));
    for answer in futures_util::future::join_all(asked).await {
        answer.unwrap();
    }
    assert_eq!(group.rounds.load(Ordering::SeqCst), 1);
    confirmations.since(at).await.unwrap();
    assert_eq!(group.rounds.load(Ordering::SeqCst), 1, "known already");
    confirmations.since(Instant::now()).await.unwrap();
    assert_eq!(group.rounds.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn one_round_in_vain_serves_all_that_wait_and_the_next_one_is_asked_again() {
    let mut group = Group::of(&[]);
    group.may_answer = Semaphore::new(0);
    let group = Arc::new(group);
    group.is_deposed.store(true, Ordering::SeqCst);
    let confirmations = Confirmations::new(Arc::<Group>::clone(&group));
    let at = Instant::now();
    let asked = (0..8).map(|_| confirmations.since(at));
    let answered = async { group.may_answer.add_permits(1) };
    let (answers, ()) = tokio::join!(futures_util::future::join_all(asked), answered);
    for answer in answers {
        answer.unwrap_err();
    }
    assert_eq!(group.rounds.load(Ordering::SeqCst), 1);
    group.is_deposed.store(false, Ordering::SeqCst);
    group.may_answer.add_permits(1);
    confirmations.since(at).await.unwrap();
}
