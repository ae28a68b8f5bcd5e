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
            | Command::RaiseProtocol { .. }
            | Command::KeepPublication { .. }
            | Command::SetReplicaRate { .. }
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
mod tests;
