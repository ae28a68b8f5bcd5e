//! Reads a connection as the pace says: on readiness, or by the clock while data flows fast.
//!
//! The decision is [`ReadPace`]'s; here are the socket and the clock. During a nap the socket is
//! out of epoll, so that the server's sends wake nobody.

use std::time::Duration;

use pgcapture_engine::read_pace::{Pace, ReadPace, ReadPaceOptions};
use tokio::time::Instant;

use super::{nap::Nap, wire::Wire};
use crate::postgres::error::PgError;

/// Room in the read buffer below which what is there is handed out before more is read.
const ROOM_BYTES_MIN: usize = 64 * 1024;

/// The socket and when to read it.
#[derive(Debug)]
pub(in crate::postgres) struct Reader {
    pub(in crate::postgres) wire: Wire,
    pace: ReadPace,
    nap: Nap,
    started: Instant,
    last_arrival: Instant,
    silence_max: Duration,
}

impl Reader {
    pub(in crate::postgres) fn new(
        wire: Wire,
        pace: ReadPaceOptions,
        silence_max: Duration,
    ) -> Self {
        let pace = if wire.is_unix {
            ReadPaceOptions::UNIX
        } else {
            pace
        };
        Self {
            wire,
            pace: ReadPace::new(pace),
            nap: Nap::default(),
            started: Instant::now(),
            last_arrival: Instant::now(),
            silence_max,
        }
    }

    /// Begins to wait for an answer: silence counts from now.
    pub(in crate::postgres) fn restart_silence(&mut self) {
        self.last_arrival = Instant::now();
    }

    pub(in crate::postgres) const fn is_fast(&self) -> bool {
        self.pace.is_fast()
    }

    /// Reads once, as the pace says; may find nothing after a nap. Cancellation-safe.
    pub(in crate::postgres) async fn fill(&mut self) -> Result<(), PgError> {
        if self.nap.is_begun() {
            self.nap.end().await.map_err(PgError::Io)?;
            let (count, was_filled) = self.drain()?;
            return self.after_read(count, was_filled);
        }
        let transport = &self.wire.transport;
        let room = self.wire.inbound.room()?;
        let room_bytes = room.len();
        let deadline = self.last_arrival + self.silence_max;
        let count = match tokio::time::timeout_at(deadline, transport.read(room)).await {
            Ok(count) => count.map_err(PgError::Io)?,
            Err(_elapsed) => {
                let waited = self.silence_max;
                return Err(PgError::Silent { waited });
            }
        };
        if count == 0 {
            return Err(PgError::Closed);
        }
        self.wire.inbound.filled(count);
        self.after_read(count, count == room_bytes)
    }

    /// Reads what is there, until the buffer is full. TLS gives one record at a time.
    fn drain(&mut self) -> Result<(usize, bool), PgError> {
        let mut total = 0;
        loop {
            let room = self.wire.inbound.room()?;
            let room_bytes = room.len();
            if total > 0 && room_bytes < ROOM_BYTES_MIN {
                return Ok((total, true));
            }
            let Some(count) = self.wire.transport.try_read(room).map_err(PgError::Io)? else {
                return Ok((total, false));
            };
            if count == 0 {
                return Err(PgError::Closed);
            }
            self.wire.inbound.filled(count);
            total += count;
            if count < room_bytes && !self.wire.transport.is_tls() {
                return Ok((total, false));
            }
        }
    }

    fn after_read(&mut self, count: usize, was_filled: bool) -> Result<(), PgError> {
        let now = Instant::now();
        if count > 0 {
            self.last_arrival = now;
        }
        let pace = self.pace.after_read(count, was_filled, now - self.started);
        if let Pace::Nap(nap) = pace {
            // Counted from here: the time that the events take to be handled is part of the nap.
            self.nap.begin(nap).map_err(PgError::Io)?;
            self.wire.transport.ignore_wakeups();
        }
        Ok(())
    }
}
