//! Naps: by the runtime's timers, or by one of the kernel's where those are too coarse.
//!
//! The runtime's timers count in milliseconds. A unix socket holds less than that of a fast stream,
//! so that its naps are fractions of one. Owns the kernel's timer, which is made when it is first
//! needed. A nap that was begun and not awaited to its end goes on.

use std::{io, time::Duration};

use tokio::time::Instant;

/// Naps from here on are left to the runtime.
const COARSE_FROM: Duration = Duration::from_millis(1);

/// A nap that may be under way.
#[derive(Debug, Default)]
pub(super) struct Nap {
    until: Option<Instant>,
    #[cfg(target_os = "linux")]
    fine: fine::Timer,
}

impl Nap {
    /// Tells whether a nap was begun and is not over.
    pub(super) const fn is_begun(&self) -> bool {
        self.until.is_some()
    }

    /// Begins a nap of that length.
    pub(super) fn begin(&mut self, length: Duration) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if length < COARSE_FROM {
            self.fine.set(length)?;
        }
        self.until = Some(Instant::now() + length);
        Ok(())
    }

    /// Waits until the nap is over. Cancellation-safe.
    pub(super) async fn end(&mut self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if self.fine.is_set() {
            self.fine.wait().await?;
            self.until = None;
            return Ok(());
        }
        if let Some(until) = self.until {
            tokio::time::sleep_until(until).await;
            self.until = None;
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
mod fine {
    //! A timer of the kernel as a descriptor.

    use std::{io, os::fd::OwnedFd, time::Duration};

    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };
    use tokio::io::{Interest, unix::AsyncFd};

    use crate::postgres::connection::socket::register;

    #[derive(Debug, Default)]
    pub(super) struct Timer {
        descriptor: Option<AsyncFd<OwnedFd>>,
        is_set: bool,
    }

    impl Timer {
        pub(super) const fn is_set(&self) -> bool {
            self.is_set
        }

        pub(super) fn set(&mut self, length: Duration) -> io::Result<()> {
            let descriptor = match self.descriptor.take() {
                Some(descriptor) => descriptor,
                None => {
                    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
                    let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
                    register(timer, Interest::READABLE)?
                }
            };
            // Zero would stop the timer.
            let length = length.max(Duration::from_nanos(1));
            let once = Itimerspec {
                it_interval: Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                },
                it_value: Timespec {
                    tv_sec: 0,
                    tv_nsec: length.subsec_nanos().into(),
                },
            };
            timerfd_settime(&descriptor, TimerfdTimerFlags::empty(), &once)?;
            self.descriptor = Some(descriptor);
            self.is_set = true;
            Ok(())
        }

        pub(super) async fn wait(&mut self) -> io::Result<()> {
            if let Some(descriptor) = &self.descriptor {
                // Setting it anew forgets that it ran out: it need not be read.
                descriptor.readable().await?.clear_ready();
            }
            self.is_set = false;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn short_naps_are_not_rounded_up_to_a_millisecond() {
        let (mut nap, began) = (Nap::default(), Instant::now());
        let mut longest_sum = Duration::ZERO;
        for micros in [100, 200, 300] {
            let length = Duration::from_micros(micros);
            longest_sum += length;
            nap.begin(length).unwrap();
            assert!(nap.is_begun());
            nap.end().await.unwrap();
            assert!(!nap.is_begun());
        }
        assert!(began.elapsed() >= longest_sum);
    }

    #[tokio::test]
    async fn a_nap_that_was_not_awaited_goes_on() {
        for length in [Duration::from_micros(500), Duration::from_millis(2)] {
            let (mut nap, began) = (Nap::default(), Instant::now());
            nap.begin(length).unwrap();
            let cancelled = tokio::select! {
                biased;
                ended = nap.end() => ended.is_err(),
                () = std::future::ready(()) => true,
            };
            assert!(cancelled || began.elapsed() >= length);
            nap.end().await.unwrap();
            assert!(began.elapsed() >= length);
        }
    }
}
