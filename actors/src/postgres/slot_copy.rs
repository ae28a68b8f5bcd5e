//! Catches up a backlog by COPY from the slot's SQL functions, many times as fast as a walsender.
//!
//! Works on a **temporary copy** of the slot: reading moves the copy, which ends with its session;
//! the real slot stays where it was until [`advance_slot`] moves it behind the log. The session
//! holds an advisory lock on the slot's name, so that two never catch up one slot together.
//!
//! PostgreSQL collects a chunk before it sends the first row: in memory up to `work_mem`, then in
//! temporary files. See [`SlotCopy::temp_bytes_max`]. [`SlotCopies`] has the next chunk collected
//! while one is sent. It would go on collecting for a client that has gone, with the lock, the copy
//! and the space: so it looks for us meanwhile, and [`SlotCopies::end`] ends it at once.

mod copies;
mod rows;

use std::time::Duration;

use pgcapture_engine::{
    codes::{Explanation, source},
    lsn::Lsn,
    read_pace::ReadPaceOptions,
};

use self::rows::{Scan, scan};
pub use self::{
    copies::{NextChunk, SlotCopies},
    rows::{Rows, SlotRow},
};
use super::{
    Config, Connection, PgError, Replication,
    connection::{copy, framing::FRAME_BYTES_MAX, reader::Reader, wire::Wire},
    quote_ident, quote_literal,
};

/// First half of the key of our advisory locks: "pgcp". The second is a hash of the slot's name.
const LOCK_CLASS: i32 = 0x7067_6370;
/// Silence after which the server is taken for dead. Nothing comes while it collects a chunk, and
/// a chunk that ends in a huge transaction takes long; TCP keepalive notices a vanished host.
const SILENCE_MAX: Duration = Duration::from_secs(3_600);

/// Why a backlog cannot be caught up by COPY.
#[derive(Debug, thiserror::Error)]
pub enum SlotCopyError {
    /// It cannot be had here: follow by walsender instead; nothing is lost.
    #[error("the backlog cannot be read by COPY: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// Another session catches this slot up.
    #[error("process {holder} catches up slot \"{slot}\" already")]
    Locked {
        /// The slot.
        slot: String,
        /// Its process id.
        holder: i32,
    },
    /// The connection or the slot.
    #[error(transparent)]
    Pg(#[from] PgError),
}

impl SlotCopyError {
    /// Returns what the error means.
    #[must_use]
    pub fn explanation(&self) -> &'static Explanation {
        match self {
            Self::Unavailable { .. } => &source::CATCH_UP_UNAVAILABLE,
            Self::Locked { .. } => &source::SLOT_IN_USE,
            Self::Pg(error) => error.explanation(),
        }
    }
}

/// What to read; see [`super::ReplicationOptions`].
#[derive(Clone, Debug)]
pub struct SlotCopyOptions {
    /// The real slot.
    pub slot: String,
    /// Publication.
    pub publication: String,
    /// Values in binary form.
    pub binary: bool,
    /// Messages of `pg_logical_emit_message` too.
    pub messages: bool,
    /// A larger message is an error.
    pub message_bytes_max: usize,
    /// Pace of reads over TCP.
    pub pace: ReadPaceOptions,
}

impl SlotCopyOptions {
    /// Makes the usual options: binary, with messages.
    #[must_use]
    pub fn new(slot: impl Into<String>, publication: impl Into<String>) -> Self {
        Self {
            slot: slot.into(),
            publication: publication.into(),
            binary: true,
            messages: true,
            message_bytes_max: FRAME_BYTES_MAX,
            pace: ReadPaceOptions::TCP,
        }
    }
}

/// A temporary copy of a slot and the session that owns it. Dropping it ends both.
#[derive(Debug)]
pub struct SlotCopy {
    reader: Reader,
    backend_pid: i32,
    name: String,
    options: SlotCopyOptions,
    position: Lsn,
    /// Whether a chunk was asked for that nobody has begun to read.
    is_requested: bool,
}

impl SlotCopy {
    /// Connects, takes the lock and copies the slot.
    ///
    /// # Errors
    ///
    /// [`SlotCopyError::Unavailable`] when there is no free slot, no such function or no right to
    /// it; [`SlotCopyError::Locked`]; or what the server says of the slot itself.
    pub async fn open(config: &Config, options: SlotCopyOptions) -> Result<Self, SlotCopyError> {
        let mut connection = connect(config).await?;
        take_lock(&mut connection, &options.slot).await?;
        let mut copy = Self::without_slot(connection, options);
        copy.copy_from(&copy.options.slot.clone()).await?;
        Ok(copy)
    }

    /// Makes a session into one that can have a copy.
    fn without_slot(connection: Connection, options: SlotCopyOptions) -> Self {
        let backend_pid = connection.backend_pid();
        let (wire, _session) = connection.into_parts();
        Self {
            reader: Reader::new(wire, options.pace, SILENCE_MAX),
            backend_pid,
            // The name of a temporary slot only has to be unique on this server, now.
            name: copy_name(&options.slot, backend_pid),
            options,
            position: Lsn::ZERO,
            is_requested: false,
        }
    }

    /// Copies a slot; returns where the copy stands.
    async fn copy_from(&mut self, slot: &str) -> Result<Lsn, SlotCopyError> {
        let (slot, name) = (quote_literal(slot), quote_literal(&self.name));
        let sql = format!("SELECT lsn FROM pg_copy_logical_replication_slot({slot}, {name}, true)");
        let rows = self.reader.wire.query(&sql).await.map_err(unavailable)?;
        self.position = lsn(&rows, 0).unwrap_or_default();
        Ok(self.position)
    }

    /// Returns where the copy stands: transactions that commit before are done.
    #[must_use]
    pub const fn position(&self) -> Lsn {
        self.position
    }

    /// Returns how much temporary space a chunk of `wal_bytes` may take on the source: the decoded
    /// rows and, beside them, a spilled transaction. Only a transaction that began before the
    /// chunk and commits in it may take more, as it does in the walsender.
    #[must_use]
    pub const fn temp_bytes_max(wal_bytes: u64) -> u64 {
        wal_bytes.saturating_mul(2)
    }

    /// Reads the transactions that commit before `upto` (and those the server decodes with them).
    /// Each call decodes from the slot's restart position again: keep chunks large.
    ///
    /// # Errors
    ///
    /// What the server reports; open another copy then.
    pub async fn chunk(&mut self, upto: Lsn) -> Result<ChunkReader<'_>, PgError> {
        self.request(upto).await?;
        self.begin().await
    }

    /// Asks for a chunk without waiting for it.
    async fn request(&mut self, upto: Lsn) -> Result<(), PgError> {
        let sql = self.command(upto);
        self.reader.restart_silence();
        self.reader.wire.send_query(&sql).await?;
        self.is_requested = true;
        Ok(())
    }

    /// Waits until the server has collected the chunk that was asked for.
    async fn begin(&mut self) -> Result<ChunkReader<'_>, PgError> {
        let wire = &mut self.reader.wire;
        wire.inbound.limit_frames(self.options.message_bytes_max);
        self.is_requested = false;
        copy::begun(wire).await?;
        self.reader.restart_silence();
        Ok(ChunkReader {
            copy: self,
            handed_out: 0,
            is_first: true,
            is_done: false,
        })
    }

    fn command(&self, upto: Lsn) -> String {
        let publications = quote_literal(&quote_ident(&self.options.publication));
        let mut arguments = format!(
            "{}, '{upto}', NULL, 'proto_version', '1', 'publication_names', {publications}",
            quote_literal(&self.name)
        );
        if self.options.binary {
            arguments.push_str(", 'binary', 'true'");
        }
        if self.options.messages {
            arguments.push_str(", 'messages', 'true'");
        }
        format!(
            "COPY (SELECT lsn, data FROM pg_logical_slot_get_binary_changes({arguments})) \
             TO STDOUT (FORMAT binary)"
        )
    }

    async fn ask_position(&mut self) -> Result<Lsn, PgError> {
        let sql = format!(
            "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = {}",
            quote_literal(&self.name)
        );
        let rows = self.reader.wire.query(&sql).await?;
        let what = "the temporary slot vanished";
        lsn(&rows, 0).ok_or_else(|| PgError::check(&source::CONNECTION_LOST, what))
    }
}

/// Connects a session that does not outlive us by much.
async fn connect(config: &Config) -> Result<Connection, PgError> {
    let mut connection = Connection::connect(config, Replication::Off).await?;
    connection.end_with_us().await?;
    Ok(connection)
}

/// The rows of one chunk.
#[derive(Debug)]
pub struct ChunkReader<'a> {
    copy: &'a mut SlotCopy,
    handed_out: usize,
    is_first: bool,
    is_done: bool,
}

impl ChunkReader<'_> {
    /// Waits for at least one row and returns all that have arrived, borrowed; what was returned
    /// before is forgotten. `None` after the last, once the server has said that the command was
    /// complete: only then is the chunk whole. Cancellation-safe until then.
    ///
    /// # Errors
    ///
    /// What the server reports, or a lost connection. Drop the copy then; the real slot has not
    /// moved.
    pub async fn receive(&mut self) -> Result<Option<Rows<'_>>, PgError> {
        let reader = &mut self.copy.reader;
        reader
            .wire
            .inbound
            .consume(std::mem::take(&mut self.handed_out));
        if self.is_done {
            return Ok(None);
        }
        loop {
            let Scan {
                bytes,
                other,
                is_header,
            } = scan(&self.copy.reader.wire.inbound, self.is_first)?;
            if bytes > 0 {
                self.handed_out = bytes;
                let was_first = std::mem::take(&mut self.is_first);
                let unread = self.copy.reader.wire.inbound.unread();
                let bytes = unread.get(..bytes).unwrap_or_default();
                return Ok(Some(Rows::new(bytes, was_first && is_header)));
            }
            match other {
                None => self.copy.reader.fill().await?,
                Some(b'N' | b'S' | b'A') => {
                    self.copy.reader.wire.peek_tag().await?;
                }
                Some(_) => {
                    let wire: &mut Wire = &mut self.copy.reader.wire;
                    copy::end(wire).await?;
                    self.is_done = true;
                    self.copy.position = self.copy.ask_position().await?;
                    return Ok(None);
                }
            }
        }
    }

    /// Returns the position that the chunk reached: known after the last row.
    #[must_use]
    pub const fn reached(&self) -> Option<Lsn> {
        if self.is_done {
            Some(self.copy.position)
        } else {
            None
        }
    }
}

/// Moves the real slot forward to `to`, which must be durable in the log. The server goes to the
/// end of its WAL at most, and never back; returns where the slot stands.
///
/// # Errors
///
/// [`PgError::Server`], for one when the slot is in use.
pub async fn advance_slot(
    connection: &mut Connection,
    slot: &str,
    to: Lsn,
) -> Result<Lsn, PgError> {
    let slot = quote_literal(slot);
    // The function refuses to go back; a slot that is further already is no error.
    let sql = format!(
        "SELECT CASE WHEN confirmed_flush_lsn >= '{to}' THEN confirmed_flush_lsn ELSE \
         (SELECT end_lsn FROM pg_replication_slot_advance(slot_name, '{to}')) END \
         FROM pg_replication_slots WHERE slot_name = {slot}"
    );
    let rows = connection.query(&sql).await?;
    lsn(&rows, 0)
        .ok_or_else(|| PgError::check(&source::SLOT_MISSING, format!("slot {slot} does not exist")))
}

/// How the names of all temporary copies of a slot begin: whoever takes the slot over finds them.
pub(super) fn copy_prefix(slot: &str) -> String {
    format!("pgcapture_tmp_{:08x}_", name_hash(slot))
}

/// The name of a temporary copy has to be unique on this server, now.
fn copy_name(slot: &str, backend_pid: i32) -> String {
    format!("{}{backend_pid}", copy_prefix(slot))
}

/// The key of the advisory lock that a session that catches up holds.
pub(super) fn lock_key(slot: &str) -> String {
    format!("{LOCK_CLASS}, {}", name_hash(slot).cast_signed())
}

/// FNV-1a: stable over versions and machines.
fn name_hash(slot: &str) -> u32 {
    slot.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

async fn take_lock(connection: &mut Connection, slot: &str) -> Result<(), SlotCopyError> {
    let key = lock_key(slot);
    let rows = connection
        .query(&format!("SELECT pg_try_advisory_lock({key})"))
        .await?;
    if text(&rows, 0) == Some("t") {
        return Ok(());
    }
    let sql = holder_query(slot);
    let rows = connection.query(&sql).await?;
    let slot = slot.to_owned();
    let holder = text(&rows, 0)
        .and_then(|pid| pid.parse().ok())
        .unwrap_or_default();
    Err(SlotCopyError::Locked { slot, holder })
}

/// Asks for the process that holds the lock.
pub(super) fn holder_query(slot: &str) -> String {
    let key = lock_key(slot);
    let (class, object) = key.split_once(", ").unwrap_or_default();
    format!(
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2 \
         AND classid::int4 = {class} AND objid::int8 = ({object}::int8 & 4294967295) \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
}

/// Sorts what stands in the way of every copy from what is wrong with this slot.
fn unavailable(error: PgError) -> SlotCopyError {
    let is_unavailable = error.server_error().is_some_and(|server| {
        // No free slot, no such function, no right, not supported.
        ["53400", "42883", "42501", "0A000"].contains(&server.sqlstate.as_str())
    });
    if is_unavailable {
        let reason = error.to_string();
        SlotCopyError::Unavailable { reason }
    } else {
        SlotCopyError::Pg(error)
    }
}

fn text(rows: &[Vec<Option<String>>], column: usize) -> Option<&str> {
    rows.first()?.get(column)?.as_deref()
}

fn lsn(rows: &[Vec<Option<String>>], column: usize) -> Option<Lsn> {
    text(rows, column)?.parse().ok()
}
