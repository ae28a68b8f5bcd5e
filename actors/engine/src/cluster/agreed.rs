//! Everything that nodes agree on, and how an entry of their common log changes it.
//!
//! [`Agreed::apply`] is deterministic: equal entries in equal order make equal values on every node.
//! It tells what an entry touched, so that a store writes that and nothing else.

use std::{collections::BTreeSet, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    Answer, Answered, Command, Cursor, CursorCommand, CursorTable, Proposal, Refusal, RequestId,
    State, SubscriptionId,
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
    pub saved: Vec<(SubscriptionId, Arc<Cursor>)>,
    /// Cursors that were removed.
    pub removed: Vec<SubscriptionId>,
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
                let stream = self.stream_of(&command);
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
                    if let Some(stream) = stream {
                        touched.removed = self.cursors.remove_stream(&stream);
                    }
                }
                answer
            }
            Proposal::Cursors(mut command) => {
                self.keep_valid(&mut command);
                touched.state = self.note_reached(&command);
                let ids = named(&command);
                self.cursors.apply(command);
                for id in ids {
                    match self.cursors.get(&id) {
                        Some(cursor) => touched.saved.push((id, Arc::clone(cursor))),
                        None => touched.removed.push(id),
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
        let cursors = match command {
            CursorCommand::Save { cursors, .. } | CursorCommand::Seek { cursors, .. } => cursors,
            CursorCommand::Remove(_) => return false,
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

    /// Returns the stream that a command ends or begins. A position of an earlier stream of that name
    /// says nothing about the new one: whoever went on there could miss what the new one begins with.
    fn stream_of(&self, command: &Command) -> Option<String> {
        match command {
            // One that is there already keeps its consumers, whatever else the command changes.
            Command::AddSource(source) | Command::AddGuardedSource { source, .. } => {
                let is_new = !self.state.sources.contains_key(&source.name);
                is_new.then(|| source.stream.clone())
            }
            Command::RemoveSource { name } => Some(self.state.sources.get(name)?.stream.clone()),
            Command::SetPaused { .. }
            | Command::Assign { .. }
            | Command::SetConnection { .. }
            | Command::DeclareGap { .. }
            | Command::AddReplica(_)
            | Command::RemoveReplica { .. }
            | Command::Attest { .. }
            | Command::SetWalGuard { .. }
            | Command::LetGo { .. }
            | Command::Dump(_)
            | Command::AddNode(_)
            | Command::RemoveNode { .. }
            | Command::Home(_) => None,
        }
    }

    /// Takes out the cursors that may not be saved; see [`CursorCommand`].
    fn keep_valid(&self, command: &mut CursorCommand) {
        let state = self.state.as_ref();
        let streams = state.sources.values().map(|source| source.stream.as_str());
        let streams: BTreeSet<&str> = streams.collect();
        let is_known = |id: &SubscriptionId| streams.contains(id.stream.as_str());
        match command {
            CursorCommand::Save { by, cursors } => cursors.retain(|(id, cursor)| {
                let goes_back = |known: &Arc<Cursor>| cursor.floor < known.floor;
                is_known(id)
                    && state.keeps_books(by, id)
                    && !self.cursors.get(id).is_some_and(goes_back)
            }),
            CursorCommand::Seek { by, cursors } => cursors.retain(|(id, _)| {
                is_known(id) && state.homes.get(id).is_none_or(|home| home == by)
            }),
            CursorCommand::Remove(_) => {}
        }
    }
}

fn named(command: &CursorCommand) -> Vec<SubscriptionId> {
    match command {
        CursorCommand::Save { cursors, .. } | CursorCommand::Seek { cursors, .. } => {
            cursors.iter().map(|(id, _)| id.clone()).collect()
        }
        CursorCommand::Remove(id) => vec![id.clone()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkpoint::{Checkpoint, Epoch},
        cluster::{HomeClaim, HomeCommand, Node, tests::source},
        confirm::Origin,
        lsn::{Lsn, PgTime},
        wal_guard::WalWish,
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

    fn state(request: u128, command: Command) -> Request {
        Request {
            id: RequestId(request),
            proposal: Proposal::State(command),
        }
    }

    /// With one source, `shop`.
    fn agreed() -> Agreed {
        let mut agreed = Agreed::default();
        let add = Command::AddSource(Box::new(source("shop")));
        agreed.apply(state(100, add)).0.unwrap();
        agreed
    }

    fn subscription() -> SubscriptionId {
        SubscriptionId {
            stream: "shop".to_owned(),
            consumer: "a".to_owned(),
        }
    }

    fn cursor(lsn: u64) -> Vec<(SubscriptionId, Cursor)> {
        let cursor = Cursor {
            floor: Checkpoint::new(Lsn(lsn), 1),
            acked_above: Vec::new(),
        };
        vec![(subscription(), cursor)]
    }

    fn save(request: u128, lsn: u64) -> Request {
        save_by("n1", request, lsn)
    }

    fn save_by(node: &str, request: u128, lsn: u64) -> Request {
        Request {
            id: RequestId(request),
            proposal: Proposal::Cursors(CursorCommand::Save {
                by: node.to_owned(),
                cursors: cursor(lsn),
            }),
        }
    }

    fn seek_by(node: &str, request: u128, lsn: u64) -> Request {
        Request {
            id: RequestId(request),
            proposal: Proposal::Cursors(CursorCommand::Seek {
                by: node.to_owned(),
                cursors: cursor(lsn),
            }),
        }
    }

    fn claim(request: u128, node: &str, instead_of: Option<&str>) -> Request {
        let claim = HomeCommand::Claim {
            node: node.to_owned(),
            claims: vec![HomeClaim {
                id: subscription(),
                instead_of: instead_of.map(str::to_owned),
            }],
        };
        state(request, Command::Home(claim))
    }

    /// With two nodes as well.
    fn two_nodes() -> Agreed {
        let mut agreed = agreed();
        for (request, node) in [(101, "n1"), (102, "n2")] {
            let id = request as u64 - 100;
            agreed.apply(add_node(request, node, id)).0.unwrap();
        }
        agreed
    }

    #[test]
    fn a_request_that_comes_twice_counts_once() {
        let mut agreed = agreed();
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
        let mut agreed = agreed();
        let (_, touched) = agreed.apply(add_node(1, "n1", 1));
        assert!(touched.state && touched.saved.is_empty());
        let (_, touched) = agreed.apply(save(2, 5));
        assert!(!touched.state && touched.removed.is_empty());
        assert_eq!(touched.saved.len(), 1);
        let remove = Request {
            id: RequestId(3),
            proposal: Proposal::Cursors(CursorCommand::Remove(subscription())),
        };
        let (_, touched) = agreed.apply(remove);
        assert_eq!(touched.removed, [subscription()]);
        assert_eq!(touched.answered, Some((3, RequestId(3), Answer::Done)));
    }

    /// Applies all and returns where the cursor is then.
    fn position_after(agreed: &mut Agreed, requests: Vec<Request>) -> Option<u64> {
        for request in requests {
            agreed.apply(request).0.unwrap();
        }
        let cursor = agreed.cursors.get(&subscription())?;
        Some(cursor.floor.lsn.0)
    }

    #[test]
    fn how_far_all_had_come_is_kept_when_one_goes_back() {
        let mut agreed = agreed();
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
            let (_, touched) = agreed.apply(seek_by("n1", request, lsn));
            assert_eq!(touched.state, is_news, "{request}");
            let wanted = wanted.map(|lsn| Checkpoint::new(Lsn(lsn), 1));
            assert_eq!(reached(&agreed), wanted, "{request}");
        }
    }

    #[test]
    fn what_is_attested_without_consumers_was_reached_by_all_that_come() {
        let mut agreed = agreed();
        let attest = |lsn| Command::Attest {
            name: "shop".to_owned(),
            epoch: Epoch(0),
            origin: Origin {
                previous: Some(Checkpoint::new(Lsn(lsn), 1)),
                resume_lsn: Lsn(lsn + 10),
            },
        };
        agreed.apply(state(101, attest(5))).0.unwrap();
        let reached = Some(Checkpoint::new(Lsn(5), 1));
        assert_eq!(agreed.state.reached.get("shop").copied(), reached);
        // With a consumer its cursor counts.
        agreed.apply(save(1, 3)).0.unwrap();
        agreed.apply(state(102, attest(20))).0.unwrap();
        assert_eq!(agreed.state.reached.get("shop").copied(), reached);
    }

    #[test]
    fn a_source_that_is_added_again_with_another_limit_keeps_its_consumers() {
        let mut agreed = agreed();
        let add = |wish| {
            let source = Box::new(source("shop"));
            Command::AddGuardedSource { source, wish }
        };
        let wish = WalWish {
            limit_bytes: Some(1 << 30),
            ..WalWish::default()
        };
        let requests = vec![
            save(1, 5),
            state(2, add(wish)),
            state(3, add(WalWish::default())),
        ];
        assert_eq!(position_after(&mut agreed, requests), Some(5));
        // Saying nothing leaves what was said.
        assert_eq!(agreed.state.wal_wishes.get("shop"), Some(&wish));
    }

    #[test]
    fn a_late_save_of_an_old_home_changes_nothing() {
        let mut agreed = two_nodes();
        let requests = vec![claim(1, "n1", None), save(2, 9), claim(3, "n2", Some("n1"))];
        assert_eq!(position_after(&mut agreed, requests), Some(9));
        let (outcome, touched) = agreed.apply(save(5, 14));
        assert_eq!((outcome, touched.saved.len()), (Ok(Answer::Done), 0));
        assert_eq!(position_after(&mut agreed, vec![]), Some(9));
    }

    #[test]
    fn what_a_frozen_home_wakes_up_with_moves_no_cursor_back() {
        let mut agreed = two_nodes();
        let release = HomeCommand::Release {
            node: "n2".to_owned(),
            ids: vec![subscription()],
        };
        let requests = vec![
            claim(1, "n1", None),
            save(2, 5),
            claim(3, "n2", Some("n1")),
            save_by("n2", 4, 9),
            state(5, Command::Home(release)),
        ];
        assert_eq!(position_after(&mut agreed, requests), Some(9));
        // It is nobody's home now: nothing that it kept counts, old or not.
        let late = vec![save(6, 6), save(7, 12)];
        assert_eq!(position_after(&mut agreed, late), Some(9));
        // Nor does it once it is the home again, unless it goes on from there.
        let again = vec![claim(8, "n1", None), save(9, 6)];
        assert_eq!(position_after(&mut agreed, again), Some(9));
        assert_eq!(position_after(&mut agreed, vec![save(10, 12)]), Some(12));
    }

    #[test]
    fn an_operator_moves_a_cursor_where_he_wants_it() {
        let mut agreed = two_nodes();
        let seek = |agreed: &mut Agreed, node, request, lsn| {
            position_after(agreed, vec![seek_by(node, request, lsn)])
        };
        assert_eq!(seek(&mut agreed, "n2", 1, 9), Some(9));
        assert_eq!(seek(&mut agreed, "n1", 2, 4), Some(4));
        position_after(&mut agreed, vec![claim(3, "n1", None)]);
        assert_eq!(seek(&mut agreed, "n2", 4, 1), Some(4), "not its home");
        assert_eq!(seek(&mut agreed, "n1", 5, 2), Some(2));
    }

    #[test]
    fn a_node_without_others_needs_no_home() {
        let mut agreed = agreed();
        agreed.apply(add_node(1, "n1", 1)).0.unwrap();
        assert_eq!(position_after(&mut agreed, vec![save(2, 5)]), Some(5));
        let other = vec![save_by("n2", 3, 7)];
        assert_eq!(position_after(&mut agreed, other), Some(5));
    }

    #[test]
    fn a_source_takes_its_consumers_with_it_wherever_they_are() {
        let mut agreed = two_nodes();
        let remove = |request| {
            let name = "shop".to_owned();
            state(request, Command::RemoveSource { name })
        };
        let requests = vec![claim(3, "n1", None), save(4, 9)];
        assert_eq!(position_after(&mut agreed, requests), Some(9));
        let (outcome, touched) = agreed.apply(remove(5));
        assert_eq!(outcome, Ok(Answer::Done));
        assert_eq!(touched.removed, [subscription()]);
        assert_eq!(agreed.cursors, CursorTable::default());
        assert!(agreed.state.homes.is_empty());
        // Its home has not heard of it yet.
        let (_, touched) = agreed.apply(save(6, 10));
        assert!(touched.saved.is_empty());
        let add = Command::AddSource(Box::new(source("shop")));
        agreed.apply(state(7, add)).0.unwrap();
        assert_eq!(agreed.cursors.floor("shop"), None);
    }

    #[test]
    fn a_stream_begins_without_cursors_and_is_added_once() {
        let mut agreed = Agreed::default();
        // As an earlier version could leave it.
        let left = save(1, 9);
        if let Proposal::Cursors(command) = left.proposal {
            agreed.cursors.apply(command);
        }
        let add = || Command::AddSource(Box::new(source("shop")));
        let (_, touched) = agreed.apply(state(2, add()));
        assert_eq!(touched.removed, [subscription()]);
        agreed.apply(save(3, 4)).0.unwrap();
        let (outcome, touched) = agreed.apply(state(4, add()));
        assert_eq!((outcome, touched.removed), (Ok(Answer::Unchanged), vec![]));
        assert!(agreed.cursors.get(&subscription()).is_some());
    }
}
