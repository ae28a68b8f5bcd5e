//! Steers when a replication socket is read next: by the clock while data flows fast, on readiness
//! otherwise.
//!
//! The walsender makes one `send()` for every message. A reader that waits for readiness on TCP
//! makes each of them a segment, a wake-up and an acknowledgement, and the server's core drowns in
//! them. A reader that comes by the clock lets its window fill; `send()` then only appends, and the
//! server is two to three times as fast. A unix socket has no segments, but a wake-up a message too;
//! it holds less than half a millisecond of a fast stream, so its naps are shorter than that. A nap
//! costs latency, so it is taken only while the stream is fast. Decides only: the caller reads, naps
//! and waits. Owns no clock, `now` is passed in.

use std::time::Duration;

/// How the pace is chosen. Rates are those of the replication stream's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadPaceOptions {
    /// Rate (bytes/s) from which the stream is read by the clock. 8 MB/s are some 30,000 one-row
    /// transactions a second, far above what needs its latency, and half of what the server sends to
    /// a reader on readiness, so that a backlog is always recognised.
    pub fast_from: u64,
    /// Rate (bytes/s) below which it is read on readiness again: half, so that it does not flap.
    pub slow_below: u64,
    /// The rate is measured over at least this long; also how long a burst goes unnoticed.
    pub window: Duration,
    /// A fast stream must be slow for this long to be read on readiness again. A server that was
    /// not scheduled for some milliseconds is no slow stream, and one that fell back to a segment a
    /// message takes long to recover (measured: a third of the rate for the rest of a backlog).
    pub patience: Duration,
    /// Shortest nap. Over TCP the window did not fill under 1.5 ms (measured).
    pub nap_min: Duration,
    /// Longest nap: what a fast stream pays in latency at most.
    pub nap_max: Duration,
    /// By how much a nap changes from read to read.
    pub nap_step: Duration,
    /// A nap that brought less was too short for the window to fill: the next one is longer.
    pub read_bytes_min: usize,
    /// A nap that brought more may have let the server wait: the next one is shorter.
    pub read_bytes_max: usize,
}

impl ReadPaceOptions {
    /// For TCP.
    pub const TCP: Self = Self {
        fast_from: 8_000_000,
        slow_below: 4_000_000,
        window: Duration::from_millis(4),
        patience: Duration::from_millis(20),
        nap_min: Duration::from_millis(2),
        nap_max: Duration::from_millis(5),
        nap_step: Duration::from_micros(500),
        read_bytes_min: 48 * 1024,
        read_bytes_max: 256 * 1024,
    };

    /// For unix sockets. The sender's buffer bounds what is on the way, counted in kernel memory:
    /// of 170-byte messages 277, some 48 KB, of 2 KB messages 100 KB. A nap should bring a quarter
    /// to a half of the former, so that the server never waits.
    pub const UNIX: Self = Self {
        nap_min: Duration::from_micros(50),
        nap_max: Duration::from_micros(400),
        nap_step: Duration::from_micros(25),
        read_bytes_min: 12 * 1024,
        read_bytes_max: 24 * 1024,
        ..Self::TCP
    };
}

/// What to do before the next read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Read again at once: there is more.
    Now,
    /// Sleep, then read what has come, without waiting for readiness.
    Nap(Duration),
    /// Wait until the socket is readable.
    OnReadiness,
}

/// The pace of one socket.
#[derive(Clone, Debug)]
pub struct ReadPace {
    options: ReadPaceOptions,
    is_fast: bool,
    nap: Duration,
    window_start: Option<Duration>,
    window_bytes: u64,
    /// Bytes since the last nap.
    nap_bytes: usize,
}

impl ReadPace {
    /// Starts on readiness.
    #[must_use]
    pub const fn new(options: ReadPaceOptions) -> Self {
        Self {
            options,
            is_fast: false,
            nap: options.nap_min,
            window_start: None,
            window_bytes: 0,
            nap_bytes: 0,
        }
    }

    /// Decides after a read. `bytes_read` is 0 when nothing was there; `buffer_was_filled` tells
    /// that the read ended because the buffer did. `now` is the time since any fixed moment.
    pub fn after_read(
        &mut self,
        bytes_read: usize,
        buffer_was_filled: bool,
        now: Duration,
    ) -> Pace {
        self.window_bytes += bytes_read as u64;
        self.nap_bytes = self.nap_bytes.saturating_add(bytes_read);
        self.measure(now);
        if buffer_was_filled && bytes_read > 0 {
            return Pace::Now;
        }
        if !self.is_fast {
            return Pace::OnReadiness;
        }
        if bytes_read > 0 {
            self.steer();
        }
        Pace::Nap(self.nap)
    }

    /// Tells whether the stream is read by the clock.
    #[must_use]
    pub const fn is_fast(&self) -> bool {
        self.is_fast
    }

    /// Closes a window that is long enough and compares its rate with the thresholds.
    fn measure(&mut self, now: Duration) {
        let Some(start) = self.window_start else {
            self.window_start = Some(now);
            return;
        };
        let elapsed = now.saturating_sub(start);
        let window = if self.is_fast {
            self.options.patience
        } else {
            self.options.window
        };
        if elapsed < window {
            return;
        }
        let rate = u128::from(self.window_bytes) * 1_000_000_000 / elapsed.as_nanos().max(1);
        let threshold = if self.is_fast {
            self.options.slow_below
        } else {
            self.options.fast_from
        };
        let was_fast = self.is_fast;
        self.is_fast = rate >= u128::from(threshold);
        if self.is_fast && !was_fast {
            self.nap = self.options.nap_min;
            self.nap_bytes = 0;
        }
        self.window_start = Some(now);
        self.window_bytes = 0;
    }

    /// Fits the nap to what the last one brought.
    fn steer(&mut self) {
        let brought = std::mem::take(&mut self.nap_bytes);
        if brought < self.options.read_bytes_min {
            self.nap = (self.nap + self.options.nap_step).min(self.options.nap_max);
        } else if brought > self.options.read_bytes_max {
            self.nap = self
                .nap
                .saturating_sub(self.options.nap_step)
                .max(self.options.nap_min);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROS: fn(u64) -> Duration = Duration::from_micros;

    /// Feeds reads of `bytes` every `every` and returns the paces.
    fn feed(
        pace: &mut ReadPace,
        now: &mut Duration,
        count: u32,
        every: Duration,
        bytes: usize,
    ) -> Vec<Pace> {
        (0..count)
            .map(|_| {
                *now += every;
                pace.after_read(bytes, false, *now)
            })
            .collect()
    }

    #[test]
    fn five_thousand_small_transactions_a_second_stay_on_readiness() {
        let (mut pace, mut now) = (ReadPace::new(ReadPaceOptions::TCP), Duration::ZERO);
        let paces = feed(&mut pace, &mut now, 20_000, MICROS(200), 300);
        assert!(paces.iter().all(|pace| *pace == Pace::OnReadiness));
    }

    #[test]
    fn a_backlog_is_read_by_the_clock_within_two_windows() {
        let (mut pace, mut now) = (ReadPace::new(ReadPaceOptions::TCP), Duration::ZERO);
        // 150-byte messages, one a wake-up, as the slow regime has them: 15 MB/s.
        let paces = feed(&mut pace, &mut now, 1_000, MICROS(10), 150);
        let first_nap = paces.iter().position(|pace| matches!(pace, Pace::Nap(_)));
        assert!(first_nap.is_some_and(|place| place <= 800), "{first_nap:?}");
    }

    #[test]
    fn the_nap_grows_until_reads_are_large_and_shrinks_when_they_are_huge() {
        let (mut pace, mut now) = (ReadPace::new(ReadPaceOptions::TCP), Duration::ZERO);
        feed(&mut pace, &mut now, 1_000, MICROS(10), 150);
        let naps = feed(&mut pace, &mut now, 20, MICROS(1_500), 30_000);
        assert_eq!(naps.last(), Some(&Pace::Nap(ReadPaceOptions::TCP.nap_max)));
        let naps = feed(&mut pace, &mut now, 20, MICROS(1_500), 100_000);
        assert_eq!(
            naps.last(),
            Some(&Pace::Nap(ReadPaceOptions::TCP.nap_max)),
            "held"
        );
        let naps = feed(&mut pace, &mut now, 20, MICROS(1_500), 400_000);
        assert_eq!(naps.last(), Some(&Pace::Nap(ReadPaceOptions::TCP.nap_min)));
    }

    #[test]
    fn a_pause_of_some_milliseconds_does_not_end_the_clock() {
        let (mut pace, mut now) = (ReadPace::new(ReadPaceOptions::TCP), Duration::ZERO);
        feed(&mut pace, &mut now, 1_000, MICROS(10), 150);
        let naps = feed(&mut pace, &mut now, 4, MICROS(2_000), 0);
        assert!(naps.iter().all(|pace| matches!(pace, Pace::Nap(_))));
        let naps = feed(&mut pace, &mut now, 20, MICROS(2_000), 150_000);
        assert!(naps.iter().all(|pace| matches!(pace, Pace::Nap(_))));
    }

    #[test]
    fn a_stream_that_stays_idle_or_slow_goes_back_to_readiness() {
        for bytes in [0, 1_500] {
            let (mut pace, mut now) = (ReadPace::new(ReadPaceOptions::TCP), Duration::ZERO);
            feed(&mut pace, &mut now, 1_000, MICROS(10), 150);
            assert!(pace.is_fast());
            let paces = feed(&mut pace, &mut now, 21, MICROS(2_000), bytes);
            assert_eq!(
                paces.last(),
                Some(&Pace::OnReadiness),
                "{bytes} bytes a read"
            );
        }
    }

    #[test]
    fn a_filled_buffer_is_read_again_at_once() {
        for options in [ReadPaceOptions::TCP, ReadPaceOptions::UNIX] {
            let mut pace = ReadPace::new(options);
            assert_eq!(pace.after_read(65_536, true, MICROS(1)), Pace::Now);
        }
    }

    #[test]
    fn naps_of_a_unix_socket_end_before_the_server_must_wait() {
        let (mut pace, mut now) = (ReadPace::new(ReadPaceOptions::UNIX), Duration::ZERO);
        feed(&mut pace, &mut now, 1_000, MICROS(10), 150);
        assert!(pace.is_fast());
        // 100 MB/s, whatever the nap is: it settles where a read is neither small nor large.
        let mut nap = ReadPaceOptions::UNIX.nap_min;
        for _ in 0..50 {
            now += nap;
            let bytes = usize::try_from(nap.as_micros()).unwrap() * 100;
            let Pace::Nap(next) = pace.after_read(bytes, false, now) else {
                panic!("a fast stream is read by the clock");
            };
            nap = next;
        }
        assert!((MICROS(120)..=MICROS(250)).contains(&nap), "{nap:?}");
        let naps = feed(&mut pace, &mut now, 50, MICROS(500), 47_000);
        assert_eq!(naps.last(), Some(&Pace::Nap(ReadPaceOptions::UNIX.nap_min)));
    }

    #[test]
    fn a_slow_unix_socket_stays_on_readiness() {
        let (mut pace, mut now) = (ReadPace::new(ReadPaceOptions::UNIX), Duration::ZERO);
        let paces = feed(&mut pace, &mut now, 5_000, MICROS(200), 300);
        assert!(paces.iter().all(|pace| *pace == Pace::OnReadiness));
    }
}
