//! Proof that this node still leads, got once for all who need it.
//!
//! A leader that was deposed may not know it for a while. What it tells other nodes about their leases
//! must therefore rest on a round in which a majority said that it leads; one round serves everybody
//! who asks for one that began late enough.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pgcapture_actors::consensus::Consensus;
use tokio::time::Instant;

/// The rounds of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Confirmations {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    consensus: Arc<dyn Consensus>,
    known: Mutex<Known>,
    /// Held during a round.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    /// When the last round that succeeded began.
    began: Option<Instant>,
    /// When the last round that failed ended, and why.
    failed: Option<(Instant, String)>,
}

impl Confirmations {
    /// Makes them over how nodes agree.
    #[must_use]
    pub fn new(consensus: Arc<dyn Consensus>) -> Self {
        Self {
            inner: Arc::new(Inner {
                consensus,
                known: Mutex::default(),
                turn: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// Returns once a majority has confirmed that this node leads, in a round that began at `at` or later.
    ///
    /// # Errors
    ///
    /// Why no majority did.
    pub async fn since(&self, at: Instant) -> Result<(), String> {
        if self.is_known_since(at) {
            return Ok(());
        }
        let asked = Instant::now();
        let _turn = self.inner.turn.lock().await;
        // Whoever had the turn before may have asked for this one as well, or in vain.
        if self.is_known_since(at) {
            return Ok(());
        }
        if let Some((ended, reason)) = &self.known().failed
            && *ended >= asked
        {
            return Err(reason.clone());
        }
        let began = Instant::now();
        let confirmed = self.inner.consensus.confirm_leadership().await;
        let mut known = self.known();
        match confirmed {
            Ok(()) => {
                known.began = known.began.max(Some(began));
                Ok(())
            }
            Err(error) => {
                let reason = error.to_string();
                known.failed = Some((Instant::now(), reason.clone()));
                Err(reason)
            }
        }
    }

    fn is_known_since(&self, at: Instant) -> bool {
        self.known().began.is_some_and(|began| began >= at)
    }

    /// A panic under the lock leaves what was known before: go on.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.inner
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
