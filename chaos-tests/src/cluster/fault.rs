//! What strikes a node. Pure: randomness comes in, nothing is executed here.

use rand::{Rng, rngs::StdRng};

/// Kinds of which the first faults of a run are one each, so that a short run has them all.
const FIRST: [Kind; 4] = [Kind::Kill, Kind::Restart, Kind::Freeze, Kind::KillStarting];

/// How long a node stays away, at most: longer than others take to notice.
const AWAY_MS: std::ops::Range<u64> = 0..3_000;

/// How long a node is frozen: some are noticed as dead, some are not.
const FROZEN_MS: std::ops::Range<u64> = 200..6_000;

/// How far into its start a node is killed again.
const STARTING_MS: std::ops::Range<u64> = 5..600;

/// What is done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SIGKILL, a while later a start.
    Kill,
    /// The same, and SIGKILL again while it starts.
    KillStarting,
    /// SIGTERM, then a start.
    Restart,
    /// SIGSTOP, a while later SIGCONT.
    Freeze,
}

/// A fault to be brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// To which node: 0 or 1, in turn. The third is the consumer's.
    pub victim: usize,
    /// Whether the source is first moved to the victim, so that its agent is struck.
    pub with_source: bool,
    /// How long the victim is away, frozen or starting, in milliseconds.
    pub lasts_ms: u64,
}

impl Kind {
    /// Returns its name in the history.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::KillStarting => "kill-starting",
            Self::Restart => "restart",
            Self::Freeze => "freeze",
        }
    }
}

impl Fault {
    /// Draws the fault of this number, counted from 0.
    pub fn draw(number: u32, rng: &mut StdRng) -> Self {
        let drawn = match rng.random_range(0..10) {
            0..5 => Kind::Kill,
            5 => Kind::KillStarting,
            6..8 => Kind::Restart,
            _ => Kind::Freeze,
        };
        let first = FIRST.get(number as usize);
        let kind = first.copied().unwrap_or(drawn);
        let lasts_ms = match kind {
            Kind::Kill => rng.random_range(AWAY_MS),
            Kind::KillStarting => rng.random_range(STARTING_MS),
            Kind::Restart => 0,
            Kind::Freeze => rng.random_range(FROZEN_MS),
        };
        Self {
            kind,
            victim: (number % 2) as usize,
            // Sources stay where they are: without this the third node would soon have it for good.
            with_source: number < 4 || rng.random_bool(0.8),
            lasts_ms,
        }
    }

    /// Returns its name in the history.
    #[must_use]
    pub fn name(&self, has_source: bool) -> String {
        let whom = if has_source { OWNER } else { "follower" };
        format!("{} n{} {whom}", self.kind.name(), self.victim + 1)
    }
}

/// The word at the end of the name of a fault that struck the node that read the source.
pub(super) const OWNER: &str = "owner";

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_seed_repeats_and_every_kind_strikes_both() {
        let draw = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            (0..60)
                .map(|number| Fault::draw(number, &mut rng))
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let struck = draw(7).into_iter();
        let struck: HashSet<_> = struck
            .map(|fault| (fault.kind.name(), fault.victim))
            .collect();
        assert_eq!(struck.len(), 8, "{struck:?}");
        let of_first: HashSet<_> = draw(9).iter().take(4).map(|it| it.kind.name()).collect();
        assert_eq!(of_first.len(), 4);
    }
}
