//! What readers of the log wait to hear, and when the server should be asked about it.
//!
//! A reader that must know that nothing is missing up to a position has to wait, on an idle source,
//! for a progress record, and those come once a second. It asks through the log; then the server is
//! asked where it stands until it has got there. Never asks about anything else.

use std::time::Duration;

use pgcapture_engine::lsn::Lsn;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// Pause before the server is asked again: its walsender is behind its WAL for less than this,
/// and a question a hundred times a second is nothing beside a dump.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// After this long the position will not come soon; the usual keepalives bring it.
const ASK_FOR: Duration = Duration::from_secs(1);

/// Wishes of readers.
pub(crate) struct Asked {
    /// `None` when the log hears of none.
    positions: Option<watch::Receiver<Lsn>>,
    /// When to ask again, and until when.
    again: Option<(Instant, Instant)>,
}

impl Asked {
    pub(crate) fn new(mut positions: Option<watch::Receiver<Lsn>>) -> Self {
        if let Some(positions) = &mut positions {
            // What was asked of an earlier life of the pipeline is asked of this one.
            positions.mark_changed();
        }
        Self {
            positions,
            again: None,
        }
    }

    /// Waits until the server should be asked, and returns for which position. Cancellation-safe.
    pub(crate) async fn due(&mut self) -> Lsn {
        let Some(positions) = &mut self.positions else {
            return std::future::pending().await;
        };
        tokio::select! {
            changed = positions.changed() => {
                if changed.is_err() {
                    return std::future::pending().await;
                }
                let now = Instant::now();
                self.again = Some((now + ASK_AGAIN, now + ASK_FOR));
            }
            until = wait(self.again) => {
                let next = Instant::now() + ASK_AGAIN;
                self.again = (next < until).then_some((next, until));
            }
        }
        *positions.borrow_and_update()
    }

    /// The log says it; no need to ask again.
    pub(crate) fn answered(&mut self) {
        self.again = None;
    }
}

async fn wait(again: Option<(Instant, Instant)>) -> Instant {
    let Some((at, until)) = again else {
        return std::future::pending().await;
    };
    sleep_until(at).await;
    until
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_position_is_asked_for_until_it_is_answered_or_does_not_come() {
        let (sender, positions) = watch::channel(Lsn(7));
        let mut asked = Asked::new(Some(positions));
        assert_eq!(asked.due().await, Lsn(7), "asked before we came");
        let began = Instant::now();
        assert_eq!(asked.due().await, Lsn(7));
        assert_eq!(began.elapsed(), ASK_AGAIN);
        asked.answered();
        let quiet = tokio::time::timeout(ASK_FOR * 2, asked.due()).await;
        assert!(quiet.is_err());
        sender.send_replace(Lsn(9));
        let began = Instant::now();
        let mut count = 0;
        while let Ok(lsn) = tokio::time::timeout(ASK_FOR, asked.due()).await {
            assert_eq!(lsn, Lsn(9));
            count += 1;
        }
        assert!(began.elapsed() < ASK_FOR * 3 && count > 50, "{count}");
    }
}
