//! Follows a slot by walsender: complete frames, borrowed from the read buffer.
//!
//! Owns the connection while it is in the state "copy both", the pace of its reads (decided by
//! [`ReadPace`]) and the task that reports positions (`replication/status.rs`), which never waits
//! for the reader. Decides nothing about positions: it reports what [`StatusHandle::confirm`] was
//! told. Dropping the stream cuts the connection at once, so that the slot is free.

mod received;
mod status;

use std::time::Duration;

use pgcapture_engine::{lsn::Lsn, read_pace::ReadPaceOptions};
use tokio_util::sync::CancellationToken;

pub use self::{
    received::{Received, ReplicationEvent},
    status::StatusHandle,
};
use self::{
    received::{Scan, scan},
    status::copy_done,
};
use super::{
    connection::{
        Connection, Session,
        framing::{FRAME_BYTES_MAX, malformed},
        reader::Reader,
        transport::Transport,
        wire::{Wire, error_in},
    },
    error::PgError,
    quote_ident, quote_literal,
};
use crate::supervise::Task;

/// Silence after which the server is taken for dead. It is asked to answer every second, but
/// answers late in the middle of a transaction whose tables are not published: at half of its
/// `wal_sender_timeout` (30 s by default), or not at all in early releases of 14. A host that
/// vanished is noticed sooner, by TCP.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Time for the server to end the stream when asked to. It decodes the current transaction to its
/// end first: ask between transactions.
const STOP_MAX: Duration = Duration::from_secs(10);
/// What to read.
#[derive(Clone, Debug)]
pub struct ReplicationOptions {
    /// Slot of plugin pgoutput.
    pub slot: String,
    /// Publication.
    pub publication: String,
    /// First position wanted; the server starts at the slot's confirmed position if that is later.
    pub start: Lsn,
    /// Values in binary form.
    pub binary: bool,
    /// Messages of `pg_logical_emit_message` too.
    pub messages: bool,
    /// A larger message is an error.
    pub message_bytes_max: usize,
    /// Silence after which the server is taken for dead.
    pub silence_max: Duration,
    /// Pace of reads over TCP; unix sockets have one of their own.
    pub pace: ReadPaceOptions,
}

impl ReplicationOptions {
    /// Makes the usual options: binary, with messages, from where the slot stands.
    #[must_use]
    pub fn new(slot: impl Into<String>, publication: impl Into<String>) -> Self {
        Self {
            slot: slot.into(),
            publication: publication.into(),
            start: Lsn::ZERO,
            binary: true,
            messages: true,
            message_bytes_max: FRAME_BYTES_MAX,
            silence_max: SILENCE_MAX,
            pace: ReadPaceOptions::TCP,
        }
    }

    /// Version 1 of the protocol on every server: a transaction comes whole, at its commit. The
    /// later versions add streams of open transactions.
    fn command(&self) -> String {
        let publications = quote_literal(&quote_ident(&self.publication));
        let mut options = format!("proto_version '1', publication_names {publications}");
        if self.binary {
            options.push_str(", binary 'true'");
        }
        if self.messages {
            options.push_str(", messages 'true'");
        }
        let (slot, start) = (quote_ident(&self.slot), self.start);
        format!("START_REPLICATION SLOT {slot} LOGICAL {start} ({options})")
    }
}

impl Connection {
    /// Starts to stream a slot. The connection must have been made with
    /// [`Replication::Database`](super::Replication).
    ///
    /// # Errors
    ///
    /// What the server refuses (slot missing, in use, invalidated …), or a lost connection. Errors
    /// of decoding come from [`ReplicationStream::receive`].
    pub async fn start_replication(
        self,
        options: &ReplicationOptions,
    ) -> Result<ReplicationStream, PgError> {
        let (mut wire, mut session) = self.into_parts();
        // Up to 18 a walsender does not forget that it was told to end, and a second stream of a
        // logical slot would end with its first message (measured on 15).
        if std::mem::replace(&mut session.has_streamed, true) {
            let what = "a connection follows a slot once; open another".to_owned();
            return Err(PgError::Protocol(what));
        }
        wire.send_query(&options.command()).await?;
        let frame = wire.frame().await?;
        // CopyBothResponse is a message that postgres-protocol does not know.
        if frame.tag != b'W' {
            return Err(error_in(frame));
        }
        wire.inbound.limit_frames(options.message_bytes_max);
        let cut = CutOnDrop(Some(wire.transport.clone()));
        let stop = CancellationToken::new();
        let status = StatusHandle::new(options.start);
        let status_task = status::spawn(&options.slot, status.clone(), &wire, stop.clone());
        Ok(ReplicationStream {
            reader: Reader::new(wire, options.pace, options.silence_max),
            handed_out: 0,
            status,
            status_task,
            stop,
            session,
            cut,
        })
    }
}

/// A stream of changes of one slot.
#[derive(Debug)]
pub struct ReplicationStream {
    reader: Reader,
    /// Bytes that the last [`Received`] showed; forgotten by the next call.
    handed_out: usize,
    status: StatusHandle,
    status_task: Task<Result<(), PgError>>,
    stop: CancellationToken,
    session: Session,
    cut: CutOnDrop,
}

impl ReplicationStream {
    /// Returns the door to the reported positions.
    #[must_use]
    pub fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    /// Tells whether the socket is read by the clock now.
    #[must_use]
    pub const fn is_fast(&self) -> bool {
        self.reader.is_fast()
    }

    /// Waits for at least one complete event and returns all that have arrived, borrowed. What was
    /// returned before is forgotten. A request of the server for an answer is passed to the status
    /// task at once.
    ///
    /// Cancellation-safe: a dropped call loses nothing, and does not begin a nap anew.
    ///
    /// # Errors
    ///
    /// What the server reports, [`PgError::Silent`] when nothing arrives though answers are asked
    /// for, or a lost connection. After an error the stream is of no use.
    pub async fn receive(&mut self) -> Result<Received<'_>, PgError> {
        let done = std::mem::take(&mut self.handed_out);
        self.reader.wire.inbound.consume(done);
        loop {
            let Scan { bytes, seen, other } = scan(&self.reader.wire.inbound)?;
            if bytes > 0 {
                self.status.heard(&seen);
                self.handed_out = bytes;
                let unread = self.reader.wire.inbound.unread();
                return Ok(Received::new(unread.get(..bytes).unwrap_or_default()));
            }
            match other {
                None => self.reader.fill().await?,
                Some(tag) => self.take_other(tag).await?,
            }
        }
    }

    /// Handles the first unread frame, which is complete and is no event.
    async fn take_other(&mut self, tag: u8) -> Result<(), PgError> {
        let wire = &mut self.reader.wire;
        let frame = wire.inbound.next(&wire.transport).await?;
        match tag {
            b'N' | b'S' | b'A' => Ok(()),
            b'E' => Err(error_in(frame)),
            // A server that shuts down ends the stream in good order.
            b'c' | b'C' => Err(PgError::Closed),
            _ => Err(malformed("message in a replication stream")),
        }
    }

    /// Ends the stream and returns the connection, ready for SQL (another stream needs another
    /// connection); the slot is free then. Events on the
    /// way are thrown away: the server sends them again from the confirmed position. Call it
    /// between transactions; in the middle of a large one it may not end in time.
    ///
    /// # Errors
    ///
    /// [`PgError::Silent`] when the server does not end it in time, or what it reports. The
    /// connection is closed then.
    pub async fn stop(mut self) -> Result<Connection, PgError> {
        self.stop.cancel();
        match self.status_task.join().await {
            Ok(reported) => reported?,
            Err(end) => return Err(PgError::Protocol(format!("the status task {end}"))),
        }
        let wire = &mut self.reader.wire;
        wire.send(&copy_done()).await?;
        wire.inbound.consume(std::mem::take(&mut self.handed_out));
        let ended = tokio::time::timeout(STOP_MAX, until_ready(wire)).await;
        ended.map_err(|_elapsed| PgError::Silent { waited: STOP_MAX })??;
        self.cut.0 = None;
        let Self {
            reader, session, ..
        } = self;
        let mut wire = reader.wire;
        wire.inbound.limit_frames(FRAME_BYTES_MAX);
        Ok(Connection::from_parts(wire, session))
    }
}

async fn until_ready(wire: &mut Wire) -> Result<(), PgError> {
    loop {
        let frame = wire.frame().await?;
        match frame.tag {
            b'Z' => return Ok(()),
            b'd' | b'c' | b'C' => {}
            b'E' => return Err(error_in(frame)),
            _ => return Err(malformed("end of a replication stream")),
        }
    }
}

/// Cuts the connection when the stream is dropped, though the status task holds it as well.
#[derive(Debug)]
struct CutOnDrop(Option<Transport>);

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        if let Some(transport) = &self.0 {
            transport.shutdown();
        }
    }
}
