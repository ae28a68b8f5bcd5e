//! How far the slots of sources were let go, and how much WAL may be kept for them.
//!
//! A slot follows the slowest consumer of its stream. Two things are behind it on purpose: a consumer
//! that goes back, or begins, where the others are done; and what a decision has let go, of an
//! operator who accepted a gap or of the limit of kept WAL. Both are agreed on, so that the next owner
//! of the source tells them from changes that somebody else has taken.

use serde::{Deserialize, Serialize};

use super::{Answer, Refusal, State, changed};
use crate::{
    checkpoint::{Checkpoint, Epoch},
    lsn::Lsn,
    wal_guard::WalWish,
};

/// How far a slot was let go by a decision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetGo {
    /// Up to here.
    pub to: Lsn,
    /// The word of the gap that consumers get who lack something before it.
    pub reason: String,
}

impl State {
    pub(super) fn set_wal_guard(&mut self, name: &str, wish: WalWish) -> Result<Answer, Refusal> {
        self.source(name)?;
        let before = if wish == WalWish::default() {
            self.wal_wishes.remove(name)
        } else {
            self.wal_wishes.insert(name.to_owned(), wish)
        };
        Ok(changed(before.unwrap_or_default() != wish))
    }

    /// Keeps how far a slot was let go; what was let go stays so.
    pub(super) fn let_slot_go(
        &mut self,
        name: &str,
        epoch: Epoch,
        let_go: LetGo,
    ) -> Result<Answer, Refusal> {
        let source = self.source(name)?;
        if source.epoch != epoch {
            let (name, epoch) = (name.to_owned(), source.epoch);
            return Err(Refusal::EpochMoved { name, epoch });
        }
        let known = self.let_go.entry(name.to_owned()).or_default();
        let is_further = let_go.to > known.to;
        if is_further {
            *known = let_go;
        }
        Ok(changed(is_further))
    }

    /// Keeps how far all consumers of a stream have come, when one is about to be behind that.
    /// Returns whether that was news.
    pub(super) fn reach(&mut self, stream: &str, at: Checkpoint) -> bool {
        let is_news = self.is_further(stream, at);
        if is_news {
            self.reached.insert(stream.to_owned(), at);
        }
        is_news
    }

    /// Tells whether [`Self::reach`] would change something; a stream without a source has no slot.
    pub(super) fn is_further(&self, stream: &str, at: Checkpoint) -> bool {
        self.reached.get(stream).is_none_or(|known| *known < at)
            && self.source_of_stream(stream).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{Command, tests::source},
        wal_guard::WalPolicy,
    };

    fn state() -> State {
        let mut state = State::default();
        let add = Command::AddSource(Box::new(source("shop")));
        state.apply(add).unwrap();
        state
    }

    fn let_go(epoch: u64, to: u64) -> Command {
        Command::LetGo {
            name: "shop".to_owned(),
            epoch: Epoch(epoch),
            let_go: LetGo {
                to: Lsn(to),
                reason: "wal_guard".to_owned(),
            },
        }
    }

    #[test]
    fn what_was_let_go_only_grows_and_needs_the_newest_epoch() {
        let mut state = state();
        assert_eq!(state.apply(let_go(0, 50)), Ok(Answer::Done));
        assert_eq!(state.apply(let_go(0, 40)), Ok(Answer::Unchanged));
        let refused = state.apply(let_go(3, 90));
        assert!(matches!(refused, Err(Refusal::EpochMoved { .. })));
        assert_eq!(state.let_go["shop"].to, Lsn(50));
        let name = "shop".to_owned();
        state.apply(Command::RemoveSource { name }).unwrap();
        assert!(state.let_go.is_empty());
    }

    #[test]
    fn a_source_comes_with_what_is_said_of_its_wal() {
        let mut state = State::default();
        let wish = WalWish {
            limit_bytes: Some(20 << 30),
            policy: Some(WalPolicy::Spill),
            ..WalWish::default()
        };
        let add = |wish| Command::AddGuardedSource {
            source: Box::new(source("shop")),
            wish,
        };
        assert_eq!(state.apply(add(wish)), Ok(Answer::Done));
        assert_eq!(state.apply(add(wish)), Ok(Answer::Unchanged));
        assert_eq!(state.wal_wishes["shop"], wish);
        // The same source with another limit.
        let other = WalWish {
            limit_bytes: Some(1),
            ..wish
        };
        assert_eq!(state.apply(add(other)), Ok(Answer::Done));
        let set = |name: &str, wish| Command::SetWalGuard {
            name: name.to_owned(),
            wish,
        };
        let nothing = WalWish::default();
        assert_eq!(state.apply(set("shop", nothing)), Ok(Answer::Done));
        assert_eq!(state.apply(set("shop", nothing)), Ok(Answer::Unchanged));
        assert!(state.wal_wishes.is_empty());
        let unknown = state.apply(set("nope", wish));
        assert!(matches!(unknown, Err(Refusal::UnknownSource { .. })));
    }
}
