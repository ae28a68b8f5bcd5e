//! Two copies of a slot that take turns: the server collects a chunk for one while it sends the
//! rows of the other.
//!
//! PostgreSQL collects a chunk before it sends a row of it, and has moved the copy by then. So once
//! the first rows of a chunk are here, the other copy is made anew from the one that is read: it
//! stands at the end of this chunk, and nothing is decoded a second time to get there. Where there
//! is no slot for a second copy, one does alone.

use pgcapture_engine::lsn::Lsn;

use super::{ChunkReader, SlotCopy, SlotCopyError, SlotCopyOptions, copy_name, lsn, unavailable};
use crate::postgres::{
    Config, Connection, PgError, Replication, connection::reader::Reader, quote_literal,
};

/// One copy that is read, and one that is ahead of it. Dropping it ends both.
#[derive(Debug)]
pub struct SlotCopies {
    /// Holds the lock, whichever copy it is.
    current: SlotCopy,
    ahead: Option<Ahead>,
}

/// The other copy.
#[derive(Debug)]
struct Ahead {
    copy: SlotCopy,
    has_slot: bool,
}

impl SlotCopies {
    /// Takes the lock and makes the first copy; connects for the second one, which is made later.
    ///
    /// # Errors
    ///
    /// As for [`SlotCopy::open`].
    pub async fn open(config: &Config, options: SlotCopyOptions) -> Result<Self, SlotCopyError> {
        let current = SlotCopy::open(config, options.clone()).await?;
        let connection = Connection::connect(config, Replication::Off).await?;
        let name = copy_name(&options.slot, connection.backend_pid());
        let (wire, _session) = connection.into_parts();
        let copy = SlotCopy {
            reader: Reader::new(wire, options.pace, super::SILENCE_MAX),
            name,
            options,
            position: current.position(),
            is_requested: false,
        };
        let has_slot = false;
        let ahead = Some(Ahead { copy, has_slot });
        Ok(Self { current, ahead })
    }

    /// Returns where the copy that is read stands.
    #[must_use]
    pub const fn position(&self) -> Lsn {
        self.current.position()
    }

    /// Tells whether a chunk was asked for that was not read yet.
    #[must_use]
    pub const fn is_requested(&self) -> bool {
        self.current.is_requested
    }

    /// Returns how many chunks may take space on the source at a time.
    #[must_use]
    pub const fn chunk_count_max(&self) -> u64 {
        if self.ahead.is_some() { 2 } else { 1 }
    }

    /// Asks for the chunk up to `upto`; does not wait for it.
    ///
    /// # Errors
    ///
    /// A lost connection.
    pub async fn request(&mut self, upto: Lsn) -> Result<(), PgError> {
        self.current.request(upto).await
    }

    /// Waits for the chunk that was asked for. The second value asks for the one behind it.
    ///
    /// # Errors
    ///
    /// What the server reports; open others then.
    pub async fn begin(&mut self) -> Result<(ChunkReader<'_>, NextChunk<'_>), PgError> {
        let next = NextChunk {
            behind: self.current.name.clone(),
            from: self.current.position(),
            ahead: &mut self.ahead,
        };
        Ok((self.current.begin().await?, next))
    }

    /// Goes on to the chunk that was asked for behind the one that was just read, if one was.
    ///
    /// # Errors
    ///
    /// [`PgError::Protocol`] when it does not begin where the other one ended.
    pub fn turn(&mut self) -> Result<(), PgError> {
        let reached = self.current.position();
        let Some(ahead) = self.ahead.as_mut().filter(|ahead| ahead.copy.is_requested) else {
            return Ok(());
        };
        if ahead.copy.position() > reached {
            let begins = ahead.copy.position();
            let what = format!("a chunk begins at {begins}, the one before ended at {reached}");
            return Err(PgError::Protocol(what));
        }
        std::mem::swap(&mut self.current, &mut ahead.copy);
        ahead.has_slot = true;
        Ok(())
    }
}

/// The chunk behind the one that is read.
#[derive(Debug)]
pub struct NextChunk<'a> {
    behind: String,
    /// Where the chunk that is read began.
    from: Lsn,
    ahead: &'a mut Option<Ahead>,
}

impl NextChunk<'_> {
    /// Moves the other copy behind the chunk whose first rows have arrived, and returns where it
    /// stands; `None` when there is no second copy to be had: it is not asked for again.
    ///
    /// # Errors
    ///
    /// What the server reports.
    pub async fn place(&mut self) -> Result<Option<Lsn>, PgError> {
        let Some(ahead) = self.ahead.as_mut() else {
            return Ok(None);
        };
        match ahead.place(&self.behind).await {
            Ok(position) if position > self.from => Ok(Some(position)),
            // The server sends before it has collected: it would be the same chunk again.
            Ok(_) => Ok(None),
            Err(SlotCopyError::Pg(error)) => Err(error),
            Err(reason) => {
                tracing::debug!(%reason, "chunks are read one after the other");
                *self.ahead = None;
                Ok(None)
            }
        }
    }

    /// Asks for the chunk up to `upto` from where the copy was placed.
    ///
    /// # Errors
    ///
    /// A lost connection.
    pub async fn request(&mut self, upto: Lsn) -> Result<(), PgError> {
        match self.ahead.as_mut() {
            Some(ahead) => ahead.copy.request(upto).await,
            None => Ok(()),
        }
    }
}

impl Ahead {
    async fn place(&mut self, behind: &str) -> Result<Lsn, SlotCopyError> {
        let copy = &mut self.copy;
        let (wire, name) = (&mut copy.reader.wire, quote_literal(&copy.name));
        if std::mem::take(&mut self.has_slot) {
            let sql = format!("SELECT pg_drop_replication_slot({name})");
            wire.query(&sql).await?;
        }
        let behind = quote_literal(behind);
        let sql =
            format!("SELECT lsn FROM pg_copy_logical_replication_slot({behind}, {name}, true)");
        let rows = wire.query(&sql).await.map_err(unavailable)?;
        self.has_slot = true;
        copy.position = lsn(&rows, 0).unwrap_or_default();
        Ok(copy.position)
    }
}
