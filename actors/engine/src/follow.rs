//! A reader that follows a log from node to node: what to do when it breaks off, moves or begins again.
//!
//! The same changes have the same checkpoints wherever they are decoded. So the only thing that a
//! reader must remember is the last checkpoint it has returned: at the next place it reads on after
//! that one, and leaves out what lies before. Owns that position and the number of failures; reads
//! nothing, waits for nothing, and never lets an entry through twice or over a hole.

use std::time::Duration;

use crate::{
    backoff::Backoff,
    checkpoint::{Checkpoint, Epoch},
    ledger::before,
};

/// Pause after the first failure: a restarted reader of a node that lives costs less than this.
pub const RETRY_FIRST: Duration = Duration::from_millis(5);

/// The longest pause. The place of a log is watched, and a change of it ends every pause; this is for a
/// node that is unreachable while nobody has taken over.
pub const RETRY_MAX: Duration = Duration::from_millis(250);

/// A log of this node that was closed is looked for again this often, together some two seconds; then
/// it is not about to be opened anew.
pub const CLOSED_TRIES_MAX: u32 = 12;

/// Why a reader broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The node cannot be reached, or does not run the source (any more).
    Away,
    /// The log was closed there.
    Closed,
    /// Retention has removed what comes after the reader's position; this is the first entry left.
    Removed {
        /// The first entry left.
        earliest: Checkpoint,
    },
    /// Damaged, or refused by the operating system: no better for being tried again.
    Definite,
}

/// Where the reader was when it broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether the log lies on this node.
    pub is_here: bool,
    /// The epoch under which the source was assigned to that node.
    pub assigned: Epoch,
    /// The epoch of the log's writer: behind `assigned` until the agent has taken the log over.
    pub written: Epoch,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait that long, or until the log has another place, and open again.
    Pause(Duration),
    /// Open at the earliest entry: nothing between the position and it is missing.
    FromEarliest,
    /// Tell whoever reads.
    Fail,
}

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Return it.
    Whole,
    /// Return what comes after this entry.
    After(Checkpoint),
    /// Return nothing of it.
    Nothing,
    /// Entries before it were removed meanwhile; this is the first one left.
    Removed(Checkpoint),
}

/// A reader's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follow {
    position: Option<Checkpoint>,
    /// The first batch must begin here or before.
    must_begin: Option<Checkpoint>,
    backoff: Backoff,
    has_moved: bool,
}

impl Follow {
    /// Begins after an entry; `None` when that is not known before the first batch.
    #[must_use]
    pub const fn new(position: Option<Checkpoint>) -> Self {
        Self {
            position,
            must_begin: None,
            backoff: Backoff::new(RETRY_FIRST, RETRY_MAX),
            has_moved: false,
        }
    }

    /// The last entry that was returned, or after which reading began.
    #[must_use]
    pub const fn position(&self) -> Option<Checkpoint> {
        self.position
    }

    /// The log has another place now.
    pub const fn moved(&mut self) {
        self.has_moved = true;
        self.must_begin = None;
        self.backoff.reset();
    }

    /// Decides what follows from a trouble; `jitter` is a random number from 0 to 1.
    pub fn on_trouble(&mut self, trouble: Trouble, standing: Standing, jitter: f64) -> Step {
        match trouble {
            Trouble::Away => self.pause(jitter),
            Trouble::Closed => {
                if standing.is_here && self.backoff.failure_count() >= CLOSED_TRIES_MAX {
                    return Step::Fail;
                }
                self.pause(jitter)
            }
            Trouble::Removed { earliest } => {
                if self.position.is_some_and(|at| before(earliest) <= at) {
                    self.must_begin = Some(earliest);
                    return Step::FromEarliest;
                }
                // A log that an earlier assignment left is told from the one that comes by its epoch;
                // who reads for the first time takes what it says.
                if self.has_moved && standing.written < standing.assigned {
                    return self.pause(jitter);
                }
                Step::Fail
            }
            Trouble::Definite => Step::Fail,
        }
    }

    /// Decides about the next batch, from its first to its last entry, and moves over it.
    pub fn admit(&mut self, first: Checkpoint, last: Checkpoint) -> Admission {
        if let Some(earliest) = self.must_begin.take()
            && first > earliest
        {
            return Admission::Removed(first);
        }
        self.backoff.reset();
        let admission = match self.position {
            Some(at) if last <= at => return Admission::Nothing,
            Some(at) if first <= at => Admission::After(at),
            Some(_) | None => Admission::Whole,
        };
        self.position = Some(last);
        admission
    }

    fn pause(&mut self, jitter: f64) -> Step {
        Step::Pause(self.backoff.next_delay(jitter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;

    fn at(lsn: u64, seq: u32) -> Checkpoint {
        Checkpoint::new(Lsn(lsn), seq)
    }

    const THERE: Standing = Standing {
        is_here: false,
        assigned: Epoch(3),
        written: Epoch(3),
    };

    const HERE: Standing = Standing {
        is_here: true,
        ..THERE
    };

    /// Its agent has not taken the log over.
    const TAKING_OVER: Standing = Standing {
        written: Epoch(1),
        ..HERE
    };

    #[test]
    fn a_node_that_is_away_is_tried_for_ever() {
        let mut follow = Follow::new(None);
        for _ in 0..1_000 {
            let step = follow.on_trouble(Trouble::Away, THERE, 1.0);
            assert!(matches!(step, Step::Pause(pause) if pause <= RETRY_MAX));
        }
    }

    #[test]
    fn a_closed_log_of_this_node_is_given_up_after_some_tries() {
        let mut follow = Follow::new(Some(at(1, 0)));
        for _ in 0..CLOSED_TRIES_MAX {
            let step = follow.on_trouble(Trouble::Closed, HERE, 0.0);
            assert!(matches!(step, Step::Pause(_)));
        }
        assert_eq!(follow.on_trouble(Trouble::Closed, HERE, 0.0), Step::Fail);
        assert!(matches!(
            follow.on_trouble(Trouble::Closed, THERE, 0.0),
            Step::Pause(_)
        ));
        follow.moved();
        let first = follow.on_trouble(Trouble::Closed, HERE, 1.0);
        assert_eq!(first, Step::Pause(RETRY_FIRST), "a new place is a new try");
    }

    #[test]
    fn removed_is_an_error_only_when_something_is_missing() {
        let removed = |seq| Trouble::Removed {
            earliest: at(9, seq),
        };
        let mut follow = Follow::new(Some(at(9, 3)));
        assert_eq!(
            follow.on_trouble(removed(4), THERE, 0.0),
            Step::FromEarliest,
            "nothing lies between"
        );
        assert_eq!(follow.on_trouble(removed(5), THERE, 0.0), Step::Fail);
        let mut unknown = Follow::new(None);
        assert_eq!(unknown.on_trouble(removed(5), THERE, 0.0), Step::Fail);
    }

    #[test]
    fn a_log_that_its_agent_has_not_taken_over_removes_nothing() {
        let trouble = Trouble::Removed { earliest: at(9, 5) };
        let mut follow = Follow::new(Some(at(3, 0)));
        assert_eq!(
            follow.on_trouble(trouble, TAKING_OVER, 0.0),
            Step::Fail,
            "who begins here takes what the log says"
        );
        follow.moved();
        assert!(matches!(
            follow.on_trouble(trouble, TAKING_OVER, 0.0),
            Step::Pause(_)
        ));
        assert_eq!(follow.on_trouble(trouble, HERE, 0.0), Step::Fail);
    }

    #[test]
    fn retention_that_goes_on_meanwhile_is_noticed() {
        let mut follow = Follow::new(Some(at(9, 3)));
        let trouble = Trouble::Removed { earliest: at(9, 4) };
        follow.on_trouble(trouble, THERE, 0.0);
        assert_eq!(
            follow.admit(at(12, 0), at(12, 5)),
            Admission::Removed(at(12, 0))
        );
        follow.on_trouble(trouble, THERE, 0.0);
        assert_eq!(follow.admit(at(9, 4), at(9, 5)), Admission::Whole);
    }

    #[test]
    fn every_entry_goes_through_once() {
        let mut follow = Follow::new(None);
        assert_eq!(follow.admit(at(5, 0), at(5, 3)), Admission::Whole);
        follow.moved();
        assert_eq!(follow.admit(at(4, 0), at(5, 2)), Admission::Nothing);
        assert_eq!(
            follow.admit(at(5, 2), at(6, 1)),
            Admission::After(at(5, 3)),
            "in the middle of a transaction"
        );
        assert_eq!(follow.admit(at(6, 2), at(6, 2)), Admission::Whole);
        assert_eq!(follow.position(), Some(at(6, 2)));
    }

    #[test]
    fn trouble_that_time_does_not_mend_is_told() {
        let mut follow = Follow::new(None);
        assert_eq!(follow.on_trouble(Trouble::Definite, THERE, 0.0), Step::Fail);
    }
}
