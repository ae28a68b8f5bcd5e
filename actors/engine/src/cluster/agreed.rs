//! Everything that nodes agree on, and how an entry of their common log changes it.
//!
//! [`Agreed::apply`] is deterministic: equal entries in equal order make equal values on every node.
//! It tells what an entry touched, so that a store writes that and nothing else.

use std::{collections::BTreeSet, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    Answer, Answered, Command, Cursor, CursorCommand, CursorTable, Proposal, Refusal, RequestId,
    State,
};
use crate::checkpoint::Checkpoint;

/// How a request ended: both are equal on every node.
pub type Outcome = Result<Answer, Refusal>;

/// An entry of the common log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Names it, however often it is sent.
    pub id: RequestId,
    /// What shall change.
    pub proposal: Proposal,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.proposal {
            Proposal::State(_) => "state",
            Proposal::Cursors(_) => "cursors",
        };
        write!(f, "{kind} {:032x}", self.id.0)
    }
}

/// What nodes agree on. A clone shares what did not change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Sources, replicas, dumps, nodes.
    pub state: Arc<State>,
    /// Cursors of subscriptions.
    pub cursors: CursorTable,
    /// What was answered lately.
    pub answered: Answered,
}

/// What one entry touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Whether the state is another one.
    pub state: bool,
    /// Cursors that were saved.
    pub saved: Vec<(super::SubscriptionId, Arc<Cursor>)>,
    /// The cursor that was removed.
    pub removed: Option<super::SubscriptionId>,
    /// The answer that is remembered, with its place.
    pub answered: Option<(u64, RequestId, Answer)>,
    /// The place of the answer that was forgotten.
    pub forgotten: Option<u64>,
}

impl Agreed {
    /// Applies an entry. One that was applied before changes nothing and is answered as then.
    pub fn apply(&mut self, request: Request) -> (Outcome, Touched) {
        let mut touched = Touched::default();
        let Request { id, proposal } = request;
        if let Some(answer) = self.answered.find(id) {
            return (Ok(answer), touched);
        }
        let answer = match proposal {
            Proposal::State(command) => {
                let done = self.done_without_consumers(&command);
                // A refused command may not leave a trace: it works on a copy, which shares dumps.
                let mut state = State::clone(&self.state);
                let answer = match state.apply(command) {
                    Ok(answer) => answer,
                    Err(refusal) => return (Err(refusal), touched),
                };
                let is_reached = done.is_some_and(|(stream, at)| state.reach(&stream, at));
                if answer != Answer::Unchanged || is_reached {
                    touched.state = true;
                    self.state = Arc::new(state);
                }
                answer
            }
            Proposal::Cursors(mut command) => {
                self.keep_to_home(&mut command);
                touched.state = self.note_reached(&command);
                let ids = named(&command);
                self.cursors.apply(command);
                for id in ids {
                    match self.cursors.get(&id) {
                        Some(cursor) => touched.saved.push((id, Arc::clone(cursor))),
                        None => touched.removed = Some(id),
                    }
                }
                Answer::Done
            }
        };
        let (place, forgotten) = self.answered.record(id, answer);
        touched.answered = Some((place, id, answer));
        touched.forgotten = forgotten;
        (Ok(answer), touched)
    }
}

impl Agreed {
    /// Keeps how far the consumers of a stream have come before one of them goes back: the slot may
    /// be there. Returns whether that was news.
    fn note_reached(&mut self, command: &CursorCommand) -> bool {
        let CursorCommand::Save { cursors, .. } = command else {
            return false;
        };
        let back = cursors.iter();
        let back = back.filter(|(id, cursor)| self.cursors.falls_back(id, cursor));
        let streams: BTreeSet<&str> = back.map(|(id, _)| id.stream.as_str()).collect();
        let mut is_news = false;
        for stream in streams {
            let floor = self.cursors.floor(stream);
            // A state that stays the same keeps its pointer.
            if let Some(floor) = floor.filter(|floor| self.state.is_further(stream, *floor)) {
                is_news |= Arc::make_mut(&mut self.state).reach(stream, floor);
            }
        }
        is_news
    }

    /// What is attested while a stream has no consumer was done with by all that ever come: returns
    /// the stream and the last entry before it.
    fn done_without_consumers(&self, command: &Command) -> Option<(String, Checkpoint)> {
        let Command::Attest { name, origin, .. } = command else {
            return None;
        };
        let stream = &self.state.sources.get(name)?.stream;
        let is_unread = self.cursors.floor(stream).is_none();
        Some((stream.clone(), origin.previous?)).filter(|_| is_unread)
    }

    /// Takes out the cursors of subscriptions that are at home on another node than the one that
    /// saves them.
    fn keep_to_home(&self, command: &mut CursorCommand) {
        if let CursorCommand::Save { by, cursors } = command {
            let homes = &self.state.homes;
            cursors.retain(|(id, _)| homes.get(id).is_none_or(|home| home == by));
        }
    }
}

fn named(command: &CursorCommand) -> Vec<super::SubscriptionId> {
    match command {
        CursorCommand::Save { cursors, .. } => cursors.iter().map(|(id, _)| id.clone()).collect(),
        CursorCommand::Remove(id) => vec![id.clone()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkpoint::Epoch,
        cluster::{HomeClaim, HomeCommand, Node, SubscriptionId, tests::source},
        confirm::Origin,
        lsn::{Lsn, PgTime},
    };

    fn add_node(request: u128, name: &str, id: u64) -> Request {
        Request {
            id: RequestId(request),
            proposal: Proposal::State(Command::AddNode(Node {
                name: name.to_owned(),
                id,
                address: format!("{name}:7700"),
                joined_at: PgTime(1),
            })),
        }
    }

    fn subscription() -> SubscriptionId {
        SubscriptionId {
            stream: "shop".to_owned(),
            consumer: "a".to_owned(),
        }
    }

    fn save(request: u128, lsn: u64) -> Request {
        let cursor = Cursor {
            floor: Checkpoint::new(Lsn(lsn), 1),
            acked_above: Vec::new(),
        };
        Request {
            id: RequestId(request),
            proposal: Proposal::Cursors(CursorCommand::Save {
                by: "n1".to_owned(),
                cursors: vec![(subscription(), cursor)],
            }),
        }
    }

    #[test]
    fn a_request_that_comes_twice_counts_once() {
        let mut agreed = Agreed::default();
        assert_eq!(agreed.apply(save(1, 5)).0, Ok(Answer::Done));
        assert_eq!(agreed.apply(save(2, 9)).0, Ok(Answer::Done));
        // The first one again, late: it must not move the cursor back.
        let before = agreed.clone();
        let (outcome, touched) = agreed.apply(save(1, 5));
        assert_eq!((outcome, touched), (Ok(Answer::Done), Touched::default()));
        assert_eq!(agreed, before);
    }

    #[test]
    fn a_refusal_leaves_no_trace_and_is_not_remembered() {
        let mut agreed = Agreed::default();
        assert_eq!(agreed.apply(add_node(1, "n1", 1)).0, Ok(Answer::Done));
        let before = agreed.clone();
        let (outcome, touched) = agreed.apply(add_node(2, "n1", 2));
        assert!(matches!(outcome, Err(Refusal::NodeExists { .. })));
        assert_eq!((touched, &agreed), (Touched::default(), &before));
    }

    #[test]
    fn it_tells_what_was_touched() {
        let mut agreed = Agreed::default();
        let (_, touched) = agreed.apply(add_node(1, "n1", 1));
        assert!(touched.state && touched.saved.is_empty());
        let (_, touched) = agreed.apply(save(2, 5));
        assert!(!touched.state && touched.removed.is_none());
        assert_eq!(touched.saved.len(), 1);
        let remove = Request {
            id: RequestId(3),
            proposal: Proposal::Cursors(CursorCommand::Remove(subscription())),
        };
        let (_, touched) = agreed.apply(remove);
        assert_eq!(touched.removed, Some(subscription()));
        assert_eq!(touched.answered, Some((2, RequestId(3), Answer::Done)));
    }

    #[test]
    fn how_far_all_had_come_is_kept_when_one_goes_back() {
        let mut agreed = Agreed::default();
        let add = Command::AddSource(Box::new(source("shop")));
        let add = Request {
            id: RequestId(100),
            proposal: Proposal::State(add),
        };
        agreed.apply(add).0.unwrap();
        let reached = |agreed: &Agreed| agreed.state.reached.get("shop").copied();
        for (request, lsn, is_news, wanted) in [
            (1, 5, false, None),
            (2, 9, false, None),
            (3, 4, true, Some(9)),
            (4, 7, false, Some(9)),
            (5, 6, false, Some(9)),
            (6, 12, false, Some(9)),
            (7, 1, true, Some(12)),
        ] {
            let (_, touched) = agreed.apply(save(request, lsn));
            assert_eq!(touched.state, is_news, "{request}");
            let wanted = wanted.map(|lsn| Checkpoint::new(Lsn(lsn), 1));
            assert_eq!(reached(&agreed), wanted, "{request}");
        }
    }

    #[test]
    fn what_is_attested_without_consumers_was_reached_by_all_that_come() {
        let mut agreed = Agreed::default();
        let apply = |agreed: &mut Agreed, id, command| {
            let proposal = Proposal::State(command);
            let id = RequestId(id);
            agreed.apply(Request { id, proposal }).0.unwrap();
        };
        let add = Command::AddSource(Box::new(source("shop")));
        apply(&mut agreed, 100, add);
        let attest = |lsn| Command::Attest {
            name: "shop".to_owned(),
            epoch: Epoch(0),
            origin: Origin {
                previous: Some(Checkpoint::new(Lsn(lsn), 1)),
                resume_lsn: Lsn(lsn + 10),
            },
        };
        apply(&mut agreed, 101, attest(5));
        let reached = Some(Checkpoint::new(Lsn(5), 1));
        assert_eq!(agreed.state.reached.get("shop").copied(), reached);
        // With a consumer its cursor counts.
        agreed.apply(save(1, 3)).0.unwrap();
        apply(&mut agreed, 102, attest(20));
        assert_eq!(agreed.state.reached.get("shop").copied(), reached);
    }

    #[test]
    fn a_late_save_of_an_old_home_changes_nothing() {
        let mut agreed = Agreed::default();
        for (request, node) in [(1, "n1"), (2, "n2")] {
            agreed
                .apply(add_node(request, node, request as u64))
                .0
                .unwrap();
        }
        agreed.apply(save(3, 9)).0.unwrap();
        let claim = HomeCommand::Claim {
            node: "n2".to_owned(),
            claims: vec![HomeClaim {
                id: subscription(),
                instead_of: None,
            }],
        };
        let claim = Request {
            id: RequestId(4),
            proposal: Proposal::State(Command::Home(claim)),
        };
        agreed.apply(claim).0.unwrap();
        let (outcome, touched) = agreed.apply(save(5, 4));
        assert_eq!((outcome, touched.saved.len()), (Ok(Answer::Done), 0));
        let kept = agreed.cursors.get(&subscription()).unwrap();
        assert_eq!(kept.floor.lsn, Lsn(9));
    }
}
