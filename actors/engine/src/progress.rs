//! Decides which LSN may be confirmed to PostgreSQL, and when the log should hear of WAL in which
//! nothing was for it.
//!
//! Knows what was handed to the log, what the log has made durable and what the server's keepalives
//! said. Never talks to either: the agent feeds events in, appends the batch that comes out and
//! confirms [`Progress::confirmable`].
//!
//! A keepalive carries the position up to which the server has decoded and sent. Heard while the
//! decoder is quiet (no transaction open, everything taken), it says that nothing is missing up to
//! there: every transaction committed before was received, and every later one commits after.
//! Such a position is still not confirmed at once. It goes through the log like a change does, as
//! a batch without entries, so that the slot never stands past what the log can prove.
//!
//! # Invariants
//!
//! - `confirmable` never goes back and never passes what the log has reported as durable.
//! - A progress batch never lies before anything that was emitted.

use std::time::Duration;

use crate::{
    batch::Batch,
    checkpoint::Checkpoint,
    lsn::{Lsn, PgTime},
};

/// Progress batches come no closer than this: each costs a sync of the log, and one a second is
/// enough to keep an idle database from retaining WAL.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// What the server says in a keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// The position up to which the server has sent everything.
    pub server_end: Lsn,
    /// The server waits for an answer. It does so when it wants to shut down, and then waits until
    /// its last position is confirmed: progress is not held back by the interval.
    pub is_reply_requested: bool,
}

/// What was emitted, what is durable, what may be confirmed.
#[derive(Clone, Debug)]
pub struct Progress {
    emitted_last: Option<Checkpoint>,
    emitted_resume: Lsn,
    durable_last: Option<Checkpoint>,
    durable_resume: Lsn,
    commit_time: PgTime,
    /// Nothing is missing up to here.
    quiet_end: Lsn,
    is_urgent: bool,
    /// Readers of the log wait for this position.
    wanted: Lsn,
    interval: Duration,
    last_progress: Option<Duration>,
}

impl Progress {
    /// Starts at the durable end of the log: its last entry, its resume position and the commit
    /// time of its newest transaction.
    #[must_use]
    pub const fn new(last: Option<Checkpoint>, resume_lsn: Lsn, commit_time: PgTime) -> Self {
        Self {
            emitted_last: last,
            emitted_resume: resume_lsn,
            durable_last: last,
            durable_resume: resume_lsn,
            commit_time,
            quiet_end: Lsn::ZERO,
            is_urgent: false,
            wanted: Lsn::ZERO,
            interval: PROGRESS_INTERVAL,
            last_progress: None,
        }
    }

    /// Changes the interval between progress batches.
    #[must_use]
    pub const fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Records that a batch is handed to the log. Call it before the log can report it. `now` is the
    /// time since any fixed moment: a progress batch begins its interval.
    pub fn emitted(&mut self, batch: &Batch, now: Duration) {
        match batch.span {
            Some((_, last)) => self.emitted_last = self.emitted_last.max(Some(last)),
            None => {
                self.is_urgent = false;
                self.last_progress = Some(now);
            }
        }
        self.emitted_resume = self.emitted_resume.max(batch.resume_lsn);
        self.commit_time = self.commit_time.max(batch.commit_time);
    }

    /// Records the durable end of the log. Older reports than the last one change nothing.
    pub fn durable(&mut self, last: Option<Checkpoint>, resume_lsn: Lsn) {
        self.durable_last = self.durable_last.max(last);
        self.durable_resume = self.durable_resume.max(resume_lsn);
    }

    /// Records a keepalive and returns the progress batch that is due, if any; see [`Self::poll`].
    ///
    /// `is_quiet` is [`crate::decoder::Decoder::is_quiet`]; a keepalive in the middle of something
    /// says nothing. `now` is the time since any fixed moment.
    pub fn keepalive(
        &mut self,
        keepalive: Keepalive,
        is_quiet: bool,
        now: Duration,
    ) -> Option<Batch> {
        if is_quiet {
            self.passed(keepalive.server_end);
        }
        self.is_urgent |= keepalive.is_reply_requested;
        self.poll(now)
    }

    /// Records that everything up to `lsn` was read and all of it emitted, whoever says so: the end
    /// of a chunk that was read by COPY, or a run of empty transactions.
    pub fn passed(&mut self, lsn: Lsn) {
        self.quiet_end = self.quiet_end.max(lsn);
    }

    /// Records that readers of the log wait to hear that nothing is missing up to `lsn`: that is not
    /// held back by the interval. Tells whether the log does not say so yet.
    pub fn want(&mut self, lsn: Lsn) -> bool {
        self.wanted = self.wanted.max(lsn);
        self.wanted > self.emitted_resume
    }

    /// Returns a batch without entries that must be appended to the log next, when positions have
    /// moved, nothing is in flight and the interval is over. It is due until [`Self::emitted`] hears
    /// of it: one that is forgotten on the way comes again. Call it after [`Self::durable`] as well:
    /// what a keepalive said while something was in flight is due then.
    pub fn poll(&mut self, now: Duration) -> Option<Batch> {
        if self.quiet_end <= self.emitted_resume {
            self.is_urgent = false;
            return None;
        }
        let is_wanted = self.quiet_end >= self.wanted && self.wanted > self.emitted_resume;
        let is_due = self.is_urgent || is_wanted || self.is_interval_over(now);
        if self.is_in_flight() || !is_due {
            return None;
        }
        Some(Batch::progress(self.quiet_end, self.commit_time))
    }

    /// Tells whether something was emitted that is not durable yet.
    #[must_use]
    pub fn is_in_flight(&self) -> bool {
        self.emitted_last > self.durable_last || self.emitted_resume > self.durable_resume
    }

    /// Returns the LSN that may be confirmed to PostgreSQL as flushed: what the log holds durably.
    #[must_use]
    pub const fn confirmable(&self) -> Lsn {
        self.durable_resume
    }

    /// Returns the position up to which everything was handed to the log.
    #[must_use]
    pub const fn emitted_lsn(&self) -> Lsn {
        self.emitted_resume
    }

    fn is_interval_over(&self, now: Duration) -> bool {
        self.last_progress
            .is_none_or(|last| now.saturating_sub(last) >= self.interval)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry_batch(lsn: u64, resume: u64) -> Batch {
        let checkpoint = Checkpoint::new(Lsn(lsn), 1);
        Batch {
            span: Some((checkpoint, checkpoint)),
            entry_count: 1,
            ..Batch::progress(Lsn(resume), PgTime(7))
        }
    }

    fn progress() -> Progress {
        Progress::new(None, Lsn(10), PgTime(0))
    }

    const fn keepalive(server_end: u64) -> Keepalive {
        Keepalive {
            server_end: Lsn(server_end),
            is_reply_requested: false,
        }
    }

    const START: Duration = Duration::ZERO;

    /// What a keepalive makes due, handed to the log.
    fn hear(progress: &mut Progress, keepalive: Keepalive, now: Duration) -> Option<Batch> {
        let due = progress.keepalive(keepalive, true, now);
        if let Some(batch) = &due {
            progress.emitted(batch, now);
        }
        due
    }

    #[test]
    fn a_batch_that_was_not_handed_to_the_log_is_due_again() {
        let mut progress = progress();
        let waiting = Keepalive {
            is_reply_requested: true,
            ..keepalive(20)
        };
        assert!(progress.keepalive(waiting, true, START).is_some());
        // The next one overtakes it, as when several come in one read.
        let batch = progress.keepalive(keepalive(30), true, START).unwrap();
        assert_eq!(batch.resume_lsn, Lsn(30));
        assert!(!progress.is_in_flight(), "nobody was told of either");
        assert_eq!(progress.poll(START), Some(batch.clone()));
        progress.emitted(&batch, START);
        assert_eq!(progress.poll(START), None);
        progress.durable(None, Lsn(30));
        assert_eq!(progress.confirmable(), Lsn(30));
    }

    #[test]
    fn keepalive_does_not_pass_an_unacked_commit() {
        let mut progress = progress();
        progress.emitted(&entry_batch(20, 25), START);
        assert_eq!(progress.keepalive(keepalive(90), true, START), None);
        assert_eq!(progress.confirmable(), Lsn(10));
        progress.durable(Some(Checkpoint::new(Lsn(20), 1)), Lsn(25));
        assert_eq!(progress.confirmable(), Lsn(25));
        let batch = progress.poll(START).unwrap();
        assert_eq!(batch, Batch::progress(Lsn(90), PgTime(7)));
        progress.emitted(&batch, START);
        assert_eq!(progress.confirmable(), Lsn(25), "not durable yet");
        progress.durable(Some(Checkpoint::new(Lsn(20), 1)), Lsn(90));
        assert_eq!(progress.confirmable(), Lsn(90));
        assert!(!progress.is_in_flight());
    }

    #[test]
    fn keepalive_inside_a_transaction_says_nothing() {
        let mut progress = progress();
        assert_eq!(progress.keepalive(keepalive(90), false, START), None);
        assert_eq!(progress.poll(PROGRESS_INTERVAL), None);
    }

    #[test]
    fn progress_keeps_its_interval_unless_the_server_waits() {
        let mut progress = progress();
        assert!(hear(&mut progress, keepalive(20), START).is_some());
        progress.durable(None, Lsn(20));
        let soon = PROGRESS_INTERVAL / 2;
        assert_eq!(hear(&mut progress, keepalive(30), soon), None);
        let waiting = Keepalive {
            is_reply_requested: true,
            ..keepalive(30)
        };
        assert!(hear(&mut progress, waiting, soon).is_some());
        progress.durable(None, Lsn(30));
        assert_eq!(hear(&mut progress, waiting, soon), None, "no news");
        assert_eq!(hear(&mut progress, keepalive(40), soon), None);
        assert!(progress.poll(soon + PROGRESS_INTERVAL).is_some());
    }

    #[test]
    fn what_readers_wait_for_is_told_at_once_and_nothing_less() {
        let mut progress = progress();
        assert!(hear(&mut progress, keepalive(20), START).is_some());
        progress.durable(None, Lsn(20));
        assert!(!progress.want(Lsn(20)));
        assert!(progress.want(Lsn(40)));
        assert_eq!(hear(&mut progress, keepalive(39), START), None);
        let batch = hear(&mut progress, keepalive(45), START).unwrap();
        assert_eq!(batch.resume_lsn, Lsn(45));
        assert!(!progress.want(Lsn(40)));
        progress.durable(None, Lsn(45));
        let more = hear(&mut progress, keepalive(50), START);
        assert_eq!(more, None, "no more is wanted");
    }

    #[test]
    fn an_old_report_changes_nothing() {
        let mut progress = progress();
        progress.durable(None, Lsn(30));
        progress.durable(None, Lsn(20));
        assert_eq!(progress.confirmable(), Lsn(30));
    }

    #[derive(Clone, Debug)]
    enum Event {
        Transaction {
            length: u64,
        },
        Durable {
            count: usize,
        },
        Keepalive {
            ahead: u64,
            is_urgent: bool,
            is_quiet: bool,
        },
        Time {
            millis: u64,
        },
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (1_u64..100).prop_map(|length| Event::Transaction { length }),
            (0_usize..4).prop_map(|count| Event::Durable { count }),
            (0_u64..200, any::<bool>(), any::<bool>()).prop_map(|(ahead, is_urgent, is_quiet)| {
                Event::Keepalive {
                    ahead,
                    is_urgent,
                    is_quiet,
                }
            }),
            (0_u64..800).prop_map(|millis| Event::Time { millis }),
        ]
    }

    proptest! {
        /// A model log that makes batches durable in order, at any time.
        #[test]
        fn the_confirmed_position_is_monotonic_and_durable(events in prop::collection::vec(event(), 0..200)) {
            let mut progress = progress();
            let (mut appended, mut durable_count) = (Vec::<Batch>::new(), 0);
            let (mut server, mut now, mut confirmed) = (10, START, Lsn(10));
            let mut last = None;
            for event in events {
                let mut produced = None;
                match event {
                    Event::Transaction { length } => {
                        server += length;
                        produced = Some(entry_batch(server - 1, server));
                    }
                    Event::Durable { count } => {
                        for batch in appended.iter().skip(durable_count).take(count) {
                            durable_count += 1;
                            last = batch.span.map(|(_, last)| last).or(last);
                            progress.durable(last, batch.resume_lsn);
                        }
                    }
                    Event::Keepalive { ahead, is_urgent, is_quiet } => {
                        // While it is not quiet, a transaction may be half sent: the position
                        // must not be believed.
                        let server_end = if is_quiet { server += ahead; server } else { u64::MAX };
                        let keepalive = Keepalive { server_end: Lsn(server_end), is_reply_requested: is_urgent };
                        produced = progress.keepalive(keepalive, is_quiet, now);
                    }
                    Event::Time { millis } => {
                        now += Duration::from_millis(millis);
                        produced = progress.poll(now);
                    }
                }
                if let Some(batch) = produced {
                    progress.emitted(&batch, now);
                    let before = appended.last().map_or(Lsn(10), |batch| batch.resume_lsn);
                    prop_assert!(batch.resume_lsn > before, "the log takes batches in order");
                    if batch.span.is_none() {
                        prop_assert_eq!(durable_count, appended.len(), "nothing was in flight");
                    }
                    appended.push(batch);
                }
                let durable = durable_count.checked_sub(1).map_or(Lsn(10), |place| appended[place].resume_lsn);
                prop_assert!(progress.confirmable() >= confirmed);
                prop_assert_eq!(progress.confirmable(), durable);
                prop_assert_eq!(progress.is_in_flight(), durable_count < appended.len());
                confirmed = progress.confirmable();
            }
        }
    }
}
