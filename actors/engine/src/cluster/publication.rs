//! Which publication a source is captured with, and which hole of it waits for a decision.
//!
//! A publication that is dropped and made again has the same name and another OID. What was written in
//! between is lost, and PostgreSQL 18 says so to nobody. So the OID is agreed on, as is a hole that an
//! owner has declared: the next owner must find both, whatever its own log holds.

use super::{Answer, Gap, PROTOCOL_SECOND, Refusal, State, changed};
use crate::{checkpoint::Epoch, lsn::Lsn};

impl State {
    /// Returns the hole of a source that nobody has decided on: the newest one when its end is not known,
    /// unless the slot was let go beyond it since. An owner with another log declares it again, or closes
    /// it, under another beginning; the furthest says what a decision must reach beyond.
    #[must_use]
    pub fn open_gap(&self, name: &str) -> Option<&Gap> {
        let gaps = self.gaps.get(name)?;
        let newest = gaps.last()?;
        let open = gaps.iter().rev().take_while(|gap| gap.to.is_none());
        let furthest = open.map(|gap| gap.from).max()?;
        let let_go = self.let_go.get(name).map_or(Lsn::ZERO, |let_go| let_go.to);
        (let_go <= furthest).then_some(newest)
    }

    pub(super) fn keep_publication(
        &mut self,
        name: &str,
        epoch: Epoch,
        oid: u32,
    ) -> Result<Answer, Refusal> {
        let source = self.source(name)?;
        if source.epoch != epoch {
            let (name, epoch) = (name.to_owned(), source.epoch);
            return Err(Refusal::EpochMoved { name, epoch });
        }
        self.check_agreed(PROTOCOL_SECOND)?;
        let before = self.added.publications.insert(name.to_owned(), oid);
        Ok(changed(before != Some(oid)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{Added, Command, LetGo, tests::source},
        lsn::PgTime,
    };

    fn shop() -> String {
        "shop".to_owned()
    }

    fn state() -> State {
        let mut state = State::default();
        let add = Command::AddSource(Box::new(source("shop")));
        state.apply(add).unwrap();
        state
    }

    fn keep(epoch: u64, oid: u32) -> Command {
        Command::KeepPublication {
            name: shop(),
            epoch: Epoch(epoch),
            oid,
        }
    }

    fn declare(from: u64, to: Option<u64>) -> Command {
        Command::DeclareGap {
            name: shop(),
            gap: Gap {
                from: Lsn(from),
                to: to.map(Lsn),
                reason: "publication_dropped".to_owned(),
                declared_at: PgTime(1),
            },
        }
    }

    #[test]
    fn the_publication_is_kept_under_the_newest_epoch_until_the_source_goes() {
        let mut state = state();
        let refused = state.apply(keep(0, 7));
        assert!(matches!(refused, Err(Refusal::Protocol { .. })));
        assert_eq!(state.added, Added::default(), "nothing of a later version");
        let nodes = [].into();
        let raise = Command::RaiseProtocol { to: 2, nodes };
        state.apply(raise).unwrap();
        assert_eq!(state.apply(keep(0, 7)), Ok(Answer::Done));
        assert_eq!(state.apply(keep(0, 7)), Ok(Answer::Unchanged));
        let refused = state.apply(keep(3, 8));
        assert!(matches!(refused, Err(Refusal::EpochMoved { .. })));
        assert_eq!(state.added.publications.get("shop"), Some(&7));
        state.apply(Command::RemoveSource { name: shop() }).unwrap();
        assert!(state.added.publications.is_empty());
        assert_eq!(state.protocol(), 2);
    }

    #[test]
    fn a_hole_is_open_until_it_has_an_end_or_the_slot_is_beyond_it() {
        let mut state = state();
        let open = |state: &State| state.open_gap("shop").map(|gap| gap.from.0);
        assert_eq!(open(&state), None);
        state.apply(declare(100, None)).unwrap();
        assert_eq!(open(&state), Some(100));
        state.apply(declare(100, Some(150))).unwrap();
        assert_eq!(open(&state), None);
        // The next owner knows less, and closes it from there.
        state.apply(declare(200, None)).unwrap();
        state.apply(declare(190, Some(260))).unwrap();
        assert_eq!(open(&state), None);
        // Told late, by a node that has slept since.
        state.apply(declare(210, None)).unwrap();
        assert_eq!(open(&state), Some(210));
        let let_go = LetGo {
            to: Lsn(260),
            reason: "publication_dropped".to_owned(),
        };
        let (name, epoch) = (shop(), Epoch(0));
        let command = Command::LetGo {
            name,
            epoch,
            let_go,
        };
        state.apply(command).unwrap();
        assert_eq!(open(&state), None);
    }
}
