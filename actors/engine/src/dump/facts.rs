//! What a replica says about itself, in the words that scheduling needs.

use std::time::Duration;

use super::ReplicaHealth;

/// How a replica is, as far as dumps care.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaFacts {
    /// How old the transaction is that it replayed last, while there is more to replay; else zero.
    pub lag: Duration,
    /// Somebody has paused replay.
    pub is_replay_paused: bool,
    /// Sessions of others that wait for a lock now.
    pub waiting_count: u32,
}

impl ReplicaFacts {
    /// Judges whether ranges may be read. A wait for a lock is everyday; one that was there at the
    /// last look as well (`before`) is not: the replica's own users come first then.
    #[must_use]
    pub fn judge(&self, lag_max: Duration, before: Option<&Self>) -> ReplicaHealth {
        let lag = self.lag;
        if lag > lag_max {
            return ReplicaHealth::Behind { lag };
        }
        let waited_before = before.is_some_and(|before| before.waiting_count > 0);
        if self.waiting_count > 0 && waited_before {
            let what = format!("{} of its sessions wait for locks", self.waiting_count);
            return ReplicaHealth::Busy { lag, what };
        }
        ReplicaHealth::Ready { lag }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_spared_while_it_lags_or_its_users_wait() {
        let facts = |seconds, waiting_count| ReplicaFacts {
            lag: Duration::from_secs(seconds),
            is_replay_paused: false,
            waiting_count,
        };
        let limit = Duration::from_secs(30);
        for (now, before, word) in [
            (facts(0, 0), None, "ready"),
            (facts(30, 0), None, "ready"),
            (facts(31, 0), None, "behind"),
            (facts(0, 3), None, "ready"),
            (facts(0, 3), Some(facts(0, 0)), "ready"),
            (facts(0, 3), Some(facts(0, 1)), "busy"),
            (facts(31, 3), Some(facts(0, 1)), "behind"),
            (facts(0, 0), Some(facts(0, 1)), "ready"),
        ] {
            let health = now.judge(limit, before.as_ref());
            assert_eq!(health.as_str(), word, "{now:?} after {before:?}");
        }
    }
}
