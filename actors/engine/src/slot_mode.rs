//! Decides how a slot is read: followed by walsender, or its backlog caught up by COPY from the
//! slot's SQL functions, and in which chunks.
//!
//! Catching up is up to ten times as fast, but each call decodes from `restart_lsn` again and takes
//! temporary space on the source: it pays only for a backlog. Owns the present mode and when
//! catching up may be tried again. Decides only; the agent changes modes at transaction boundaries.

use std::time::Duration;

use crate::lsn::Lsn;

/// A chunk without any transaction doubles the next one at most up to this many chunks: every call
/// reads again from `restart_lsn`, so that many small ones would take quadratic time to reach the
/// end of one huge transaction, and endless ones would take endless space.
pub const CHUNK_GROWTH_MAX: u64 = 16;

/// How a slot is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotMode {
    /// By walsender.
    Follow,
    /// By COPY, in chunks.
    CatchUp,
}

/// When to change the mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotModeOptions {
    /// Backlog (bytes of WAL) above which catching up starts.
    pub catch_up_above: u64,
    /// Backlog below which the slot is followed again. A value above `catch_up_above` counts as
    /// that one.
    pub follow_below: u64,
    /// WAL distance of one chunk.
    pub chunk_bytes: u64,
    /// Catching up that failed (no free slot, no such function, no right) is tried again after
    /// this long.
    pub retry_after: Duration,
}

impl Default for SlotModeOptions {
    fn default() -> Self {
        Self {
            catch_up_above: 256 << 20,
            follow_below: 32 << 20,
            chunk_bytes: 128 << 20,
            retry_after: Duration::from_secs(300),
        }
    }
}

/// The mode of one slot.
#[derive(Clone, Debug)]
pub struct SlotModeSwitch {
    options: SlotModeOptions,
    mode: SlotMode,
    not_before: Option<Duration>,
    chunk_growth: u64,
}

impl SlotModeSwitch {
    /// Starts by following; the first [`Self::decide`] changes that if there is a backlog.
    #[must_use]
    pub fn new(options: SlotModeOptions) -> Self {
        let follow_below = options.follow_below.min(options.catch_up_above);
        Self {
            options: SlotModeOptions {
                follow_below,
                ..options
            },
            mode: SlotMode::Follow,
            not_before: None,
            chunk_growth: 1,
        }
    }

    /// Returns the present mode.
    #[must_use]
    pub const fn mode(&self) -> SlotMode {
        self.mode
    }

    /// Decides on the mode for what comes next. Inside a transaction it never changes. `backlog` is
    /// the WAL between the position read and the server's end; `now` the time since any fixed
    /// moment.
    pub fn decide(&mut self, backlog: u64, is_at_boundary: bool, now: Duration) -> SlotMode {
        if is_at_boundary {
            self.mode = match self.mode {
                SlotMode::Follow if self.may_catch_up(backlog, now) => {
                    self.chunk_growth = 1;
                    SlotMode::CatchUp
                }
                SlotMode::CatchUp if backlog < self.options.follow_below => SlotMode::Follow,
                SlotMode::Follow | SlotMode::CatchUp => self.mode,
            };
        }
        self.mode
    }

    /// Records that catching up is not to be had now; the slot is followed meanwhile.
    pub fn catch_up_failed(&mut self, now: Duration) {
        self.mode = SlotMode::Follow;
        self.not_before = Some(now.saturating_add(self.options.retry_after));
    }

    /// Returns up to where the next chunk that starts at `from` should read, or `None` when nothing
    /// is left before `server_end`.
    #[must_use]
    pub fn next_chunk(&self, from: Lsn, server_end: Lsn) -> Option<Lsn> {
        let distance = self.chunk_distance();
        let upto = Lsn(from.0.saturating_add(distance)).min(server_end);
        (upto > from).then_some(upto)
    }

    /// Returns up to where the chunk behind the one that is read should go, from `from` where that
    /// one ends; `None` when what is left is better followed.
    #[must_use]
    pub fn chunk_ahead(&self, from: Lsn, server_end: Lsn) -> Option<Lsn> {
        let is_worth_it = server_end.bytes_since(from) >= self.options.follow_below;
        let upto = self.next_chunk(from, server_end);
        upto.filter(|_| is_worth_it)
    }

    /// Records how a chunk ended. One without any transaction lies inside a huge one, or in WAL of
    /// other databases: the next is twice as long, up to [`CHUNK_GROWTH_MAX`].
    pub fn chunk_finished(&mut self, has_transactions: bool) {
        self.chunk_growth = if has_transactions {
            1
        } else {
            (self.chunk_growth * 2).min(CHUNK_GROWTH_MAX)
        };
    }

    /// Returns the WAL distance of the next chunk, which bounds the temporary space it takes on the
    /// source, but for the one transaction that crosses its end.
    #[must_use]
    pub fn chunk_distance(&self) -> u64 {
        self.options
            .chunk_bytes
            .max(1)
            .saturating_mul(self.chunk_growth)
    }

    fn may_catch_up(&self, backlog: u64, now: Duration) -> bool {
        backlog > self.options.catch_up_above && self.not_before.is_none_or(|start| now >= start)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        SlotMode::{CatchUp, Follow},
        *,
    };

    fn switch() -> SlotModeSwitch {
        SlotModeSwitch::new(SlotModeOptions {
            catch_up_above: 100,
            follow_below: 20,
            chunk_bytes: 50,
            retry_after: Duration::from_secs(10),
        })
    }

    #[test]
    fn the_mode_follows_the_backlog_with_hysteresis() {
        let mut switch = switch();
        for (backlog, is_at_boundary, expected) in [
            (100, true, Follow),
            (101, false, Follow),
            (101, true, CatchUp),
            (21, true, CatchUp),
            (20, true, CatchUp),
            (19, false, CatchUp),
            (19, true, Follow),
            (99, true, Follow),
            (u64::MAX, true, CatchUp),
        ] {
            let mode = switch.decide(backlog, is_at_boundary, Duration::ZERO);
            assert_eq!(mode, expected, "{backlog} {is_at_boundary}");
        }
    }

    #[test]
    fn a_failed_catch_up_is_tried_again_later() {
        let mut switch = switch();
        assert_eq!(switch.decide(500, true, Duration::from_secs(1)), CatchUp);
        switch.catch_up_failed(Duration::from_secs(2));
        for (seconds, expected) in [(2, Follow), (11, Follow), (12, CatchUp)] {
            let mode = switch.decide(500, true, Duration::from_secs(seconds));
            assert_eq!(mode, expected, "{seconds}");
        }
    }

    #[test]
    fn chunks_are_bounded_by_distance_and_by_the_servers_end() {
        let switch = switch();
        for (from, end, expected) in [
            (0, 200, Some(50)),
            (170, 200, Some(200)),
            (200, 200, None),
            (300, 200, None),
            (u64::MAX - 1, u64::MAX, Some(u64::MAX)),
        ] {
            assert_eq!(
                switch.next_chunk(Lsn(from), Lsn(end)),
                expected.map(Lsn),
                "{from} {end}"
            );
        }
    }

    #[test]
    fn no_chunk_is_asked_for_ahead_of_what_is_better_followed() {
        let switch = switch();
        for (from, expected) in [(100, Some(150)), (180, Some(200)), (181, None), (200, None)] {
            let upto = switch.chunk_ahead(Lsn(from), Lsn(200));
            assert_eq!(upto, expected.map(Lsn), "{from}");
        }
    }

    #[test]
    fn chunks_without_transactions_grow_up_to_a_limit() {
        let mut switch = switch();
        let distances: Vec<_> = (0..6)
            .map(|_| {
                switch.chunk_finished(false);
                switch.chunk_distance()
            })
            .collect();
        assert_eq!(distances, [100, 200, 400, 800, 800, 800]);
        switch.chunk_finished(true);
        assert_eq!(switch.chunk_distance(), 50);
    }

    #[test]
    fn thresholds_in_the_wrong_order_do_not_flap() {
        let mut switch = SlotModeSwitch::new(SlotModeOptions {
            catch_up_above: 10,
            follow_below: 1_000,
            ..SlotModeOptions::default()
        });
        assert_eq!(switch.decide(500, true, Duration::ZERO), CatchUp);
        assert_eq!(switch.decide(500, true, Duration::ZERO), CatchUp);
        assert_eq!(switch.decide(9, true, Duration::ZERO), Follow);
    }
}
