//! What was answered lately: so that a proposal that is sent twice counts once.
//!
//! A node that forwards a proposal may lose the answer, not knowing whether the change happened. It
//! sends the same request again under the same id; the one that was applied finds its answer here.
//! The window is part of what nodes agree on: every node, and every new leader, knows the same ids.
//!
//! Refusals are not remembered. They changed nothing, so that applying the request for the first
//! time later is as good.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::Answer;

/// Answers that are remembered: a forwarder gives up within seconds, and a cluster agrees on some
/// hundred changes a second at most.
pub const ANSWERED_MAX: usize = 4_096;

/// Names one proposal, however often it is sent. Made at random by whoever proposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u128);

/// The last answers, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    answers: BTreeMap<RequestId, Answer>,
    order: VecDeque<RequestId>,
    /// Place of the oldest; places only grow.
    first: u64,
}

impl Answered {
    /// Rebuilds the window from what was stored: places in ascending order without a hole.
    #[must_use]
    pub fn restore(rows: impl IntoIterator<Item = (u64, RequestId, Answer)>) -> Self {
        let mut window = Self::default();
        for (place, id, answer) in rows {
            if window.order.is_empty() {
                window.first = place;
            }
            window.order.push_back(id);
            window.answers.insert(id, answer);
        }
        window
    }

    /// Returns what a request was answered, if that is remembered.
    #[must_use]
    pub fn find(&self, id: RequestId) -> Option<Answer> {
        self.answers.get(&id).copied()
    }

    /// Remembers an answer. Returns its place, and the place of the one that was forgotten for it.
    pub fn record(&mut self, id: RequestId, answer: Answer) -> (u64, Option<u64>) {
        let place = self.first + self.order.len() as u64;
        self.order.push_back(id);
        self.answers.insert(id, answer);
        if self.order.len() <= ANSWERED_MAX {
            return (place, None);
        }
        let forgotten = self.first;
        self.first += 1;
        if let Some(oldest) = self.order.pop_front() {
            self.answers.remove(&oldest);
        }
        (place, Some(forgotten))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_bounded_and_forgets_the_oldest() {
        let mut window = Answered::default();
        for id in 0..ANSWERED_MAX as u128 {
            let (place, forgotten) = window.record(RequestId(id), Answer::Done);
            assert_eq!((u128::from(place), forgotten), (id, None));
        }
        let (place, forgotten) = window.record(RequestId(u128::MAX), Answer::Unchanged);
        assert_eq!((place, forgotten), (ANSWERED_MAX as u64, Some(0)));
        assert_eq!(window.find(RequestId(0)), None);
        assert_eq!(window.find(RequestId(1)), Some(Answer::Done));
        assert_eq!(window.find(RequestId(u128::MAX)), Some(Answer::Unchanged));
    }

    #[test]
    fn a_restored_window_goes_on_where_it_was() {
        let rows = (7..10).map(|place| (place, RequestId(place.into()), Answer::Done));
        let mut window = Answered::restore(rows);
        assert_eq!(window.find(RequestId(8)), Some(Answer::Done));
        assert_eq!(window.record(RequestId(1), Answer::Done), (10, None));
    }
}
