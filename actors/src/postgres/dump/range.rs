//! Reads the rows of one range as they come, encoded, and never more than a batch of them.
//!
//! The COPY and the end of its transaction go to the server together; the range is whole only
//! when it has said that both are complete. Until then whatever it reports ends the range with an
//! error, however many rows were right before.

use bytes::Bytes;
use pgcapture_engine::{
    copy_row::{CopyRowError, EncodedRows, RowColumn, RowEncoder},
    lsn::Lsn,
    read_pace::ReadPaceOptions,
};

use super::{
    RangeRequest, ReadError, Replica,
    position::{Place, Snapshot},
    session::{Lease, LeaseRest},
};
use crate::{
    dump::RowBatch,
    postgres::{
        PgError,
        connection::{
            copy,
            framing::{FRAME_BYTES_MAX, HEADER_BYTES, frame_bytes, malformed},
            reader::Reader,
            transport::Held,
            wire::error_in,
        },
    },
};

/// What a frame may have beyond the limit on a row: errors and notices of the server.
const FRAME_BYTES_MORE: usize = 1 << 20;

/// A range that is being read. Dropping it before its end cancels the reading: the connection is
/// closed.
#[derive(Debug)]
pub struct RangeReader {
    /// The session while the range is read.
    source: Option<Open>,
    encoder: RowEncoder,
    /// Bytes of the first unread frame that were encoded.
    body_used: usize,
    snapshot: Snapshot,
    request: RangeRequest,
    replica: Replica,
    /// What the server reported; it is told when the server is done.
    failed: Option<PgError>,
    row_count: u64,
    byte_count: u64,
}

#[derive(Debug)]
struct Open {
    reader: Reader,
    /// The session without its wire, which is in the reader.
    rest: LeaseRest,
}

/// What stands at the front of what was received.
enum Front {
    /// The batch is full.
    Full,
    /// No whole frame.
    Nothing,
    /// A whole frame that is no row.
    Other(u8),
}

impl RangeReader {
    /// Starts the COPY in an open snapshot.
    pub(super) async fn start(
        replica: Replica,
        lease: Lease,
        snapshot: Snapshot,
        request: RangeRequest,
    ) -> Result<Self, ReadError> {
        let limits = replica.options().limits;
        let (wire, rest) = lease.split();
        let held = if request.is_paced {
            Held::Little
        } else {
            Held::Much
        };
        let set = wire.transport.hold(held).map_err(PgError::Io);
        set.map_err(|source| ReadError::while_reading(&request.heap.name, source))?;
        let mut reader = Reader::new(wire, ReadPaceOptions::TCP, limits.silence_max);
        let frame_bytes_max = limits.row_bytes_max.saturating_add(FRAME_BYTES_MORE);
        reader.wire.inbound.limit_frames(frame_bytes_max);
        let sql = snapshot.facts.statement(&request);
        let began = copy::begin(&mut reader.wire, &sql).await;
        began.map_err(|source| ReadError::while_reading(&request.heap.name, source))?;
        let (label, columns) = (&request.heap.label, &snapshot.facts.columns);
        let encoder = RowEncoder::new(label, columns, limits.row_bytes_max);
        Ok(Self {
            source: Some(Open { reader, rest }),
            encoder,
            body_used: 0,
            snapshot,
            request,
            replica,
            failed: None,
            row_count: 0,
            byte_count: 0,
        })
    }

    /// Returns the position of the snapshot: everything that commits before it is in the rows, and
    /// what commits at or after it has to be delivered after them.
    #[must_use]
    pub const fn at(&self) -> Lsn {
        self.snapshot.at
    }

    /// Returns whether something that commits at or after [`Self::at`] may be in the rows. Such changes,
    /// of the last milliseconds before the snapshot, come again after the rows, which does no harm (see
    /// `position`).
    #[must_use]
    pub const fn place(&self) -> Place {
        self.snapshot.place
    }

    /// Returns how many snapshots were taken until one was exact, or good enough.
    #[must_use]
    pub const fn snapshot_tries(&self) -> u32 {
        self.snapshot.tries
    }

    /// Returns the columns of every row.
    #[must_use]
    pub fn columns(&self) -> &[RowColumn] {
        &self.snapshot.facts.columns
    }

    /// Returns how many rows were handed out.
    #[must_use]
    pub const fn row_count(&self) -> u64 {
        self.row_count
    }

    /// Returns how many encoded bytes were handed out.
    #[must_use]
    pub const fn byte_count(&self) -> u64 {
        self.byte_count
    }

    /// Waits for the next batch. `None` after the last, once the server has said that the command
    /// and its transaction are complete: only then is the range whole; a later call says so again.
    /// Cancellation-safe.
    ///
    /// # Errors
    ///
    /// [`ReadError`]; the rows before are right, but not all. The reader is of no use then.
    pub async fn next(&mut self) -> Result<Option<RowBatch>, ReadError> {
        loop {
            let Some(open) = &mut self.source else {
                return Ok(None);
            };
            let front = advance(&mut open.reader, &mut self.encoder, &mut self.body_used);
            match front.map_err(|fault| fault.about(&self.request))? {
                Front::Full => return Ok(self.take()),
                Front::Nothing => {
                    let filled = open.reader.fill().await;
                    filled.map_err(|error| self.broken(error))?;
                }
                Front::Other(tag) => {
                    let wire = &mut open.reader.wire;
                    // The frame is whole: nothing is waited for.
                    let frame = wire.inbound.next(&wire.transport).await;
                    let frame = frame.map_err(|source| self.request.while_reading(source))?;
                    match tag {
                        b'E' => self.failed = Some(error_in(frame)),
                        b'Z' => {
                            self.end()?;
                            return Ok(self.take());
                        }
                        b'N' | b'S' | b'A' | b'c' | b'C' => {}
                        _ => {
                            return Err(self.request.while_reading(malformed("message in a COPY")));
                        }
                    }
                }
            }
        }
    }

    /// A server that ends a session says why, and then the connection breaks.
    fn broken(&mut self, error: PgError) -> ReadError {
        self.request
            .while_reading(self.failed.take().unwrap_or(error))
    }

    /// The server is ready for the next command.
    fn end(&mut self) -> Result<(), ReadError> {
        if let Some(failed) = self.failed.take() {
            self.source = None;
            return Err(self.request.while_reading(failed));
        }
        let whole = self.encoder.finish().map_err(Fault::Row);
        whole.map_err(|fault| fault.about(&self.request))?;
        if let Some(Open { reader, rest }) = self.source.take() {
            let mut wire = reader.wire;
            wire.inbound.limit_frames(FRAME_BYTES_MAX);
            self.replica.pool().give_back(rest.join(wire));
        }
        Ok(())
    }

    fn take(&mut self) -> Option<RowBatch> {
        let EncodedRows { bytes, rows } = self.encoder.take()?;
        self.row_count += rows.len() as u64;
        self.byte_count += Bytes::len(&bytes) as u64;
        Some(RowBatch { bytes, rows })
    }
}

/// What can be wrong with what was received.
enum Fault {
    Pg(PgError),
    Row(CopyRowError),
}

impl Fault {
    fn about(self, request: &RangeRequest) -> ReadError {
        match self {
            Self::Pg(source) => request.while_reading(source),
            Self::Row(error @ (CopyRowError::TooLarge { .. } | CopyRowError::NotUtf8 { .. })) => {
                ReadError::RowUnreadable {
                    table: request.heap.name.clone(),
                    what: error.to_string(),
                }
            }
            Self::Row(error) => request.while_reading(malformed(&format!("COPY: {error}"))),
        }
    }
}

impl RangeRequest {
    fn while_reading(&self, source: PgError) -> ReadError {
        ReadError::while_reading(&self.heap.name, source)
    }
}

/// Encodes the rows at the front of what was received, until the batch is full or they end.
fn advance(
    reader: &mut Reader,
    encoder: &mut RowEncoder,
    body_used: &mut usize,
) -> Result<Front, Fault> {
    let inbound = &mut reader.wire.inbound;
    let limit = inbound.frame_bytes_max();
    let unread = inbound.unread();
    let mut used = 0;
    let front = loop {
        let rest = unread.get(used..).unwrap_or_default();
        let size = match frame_bytes(rest, limit).map_err(Fault::Pg)? {
            Some(size) if size <= rest.len() => size,
            Some(_) | None => break Front::Nothing,
        };
        let (tag, body) = (rest.first().copied(), rest.get(HEADER_BYTES..size));
        if tag != Some(b'd') {
            break Front::Other(tag.unwrap_or_default());
        }
        let body = body.unwrap_or_default();
        let left = body.get(*body_used..).unwrap_or_default();
        *body_used += encoder.feed(left).map_err(Fault::Row)?;
        if *body_used == body.len() {
            used += size;
            *body_used = 0;
        }
        if encoder.is_full() {
            break Front::Full;
        }
    };
    inbound.consume(used);
    Ok(front)
}
