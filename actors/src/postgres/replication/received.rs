//! The events of a replication stream, borrowed from the read buffer.

use pgcapture_engine::lsn::Lsn;

use crate::postgres::{
    connection::framing::{
        FRAME_BYTES_MAX, HEADER_BYTES, Inbound, frame_bytes, malformed, read_u64,
    },
    error::PgError,
};

/// Bytes before the payload of a change: kind, start, end, time.
const DATA_HEADER_BYTES: usize = 1 + 8 + 8 + 8;
/// Bytes of a keepalive: kind, end, time, whether an answer is wanted.
const KEEPALIVE_BYTES: usize = 1 + 8 + 8 + 1;

/// What a walsender sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicationEvent<'a> {
    /// One message of the output plugin.
    Data {
        /// Position of the change.
        wal_start: Lsn,
        /// End of the server's WAL, or what the server takes for it: for pgoutput the same.
        server_end: Lsn,
        /// The bytes of pgoutput.
        payload: &'a [u8],
    },
    /// Nothing to send, or a question whether we live.
    KeepAlive {
        /// Everything before was sent.
        server_end: Lsn,
        /// The server wants an answer; the status task gives it.
        reply_requested: bool,
    },
}

/// The events that have arrived, in order.
#[derive(Clone, Debug)]
pub struct Received<'a> {
    bytes: &'a [u8],
}

impl<'a> Received<'a> {
    /// Wraps complete, checked frames.
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Returns how many bytes the events take, headers included.
    #[must_use]
    pub const fn byte_count(&self) -> usize {
        self.bytes.len()
    }
}

impl<'a> Iterator for Received<'a> {
    type Item = ReplicationEvent<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        // The frames were checked by `scan`: nothing here fails.
        let size = frame_bytes(self.bytes, FRAME_BYTES_MAX).ok()??;
        let (frame, rest) = self.bytes.split_at_checked(size)?;
        self.bytes = rest;
        event(frame.get(HEADER_BYTES..)?)
    }
}

fn event(body: &[u8]) -> Option<ReplicationEvent<'_>> {
    match body.first()? {
        b'w' => Some(ReplicationEvent::Data {
            wal_start: Lsn(read_u64(body, 1)?),
            server_end: Lsn(read_u64(body, 9)?),
            payload: body.get(DATA_HEADER_BYTES..)?,
        }),
        b'k' => Some(ReplicationEvent::KeepAlive {
            server_end: Lsn(read_u64(body, 1)?),
            reply_requested: *body.get(KEEPALIVE_BYTES - 1)? != 0,
        }),
        _ => None,
    }
}

/// What [`scan`] saw in the events.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Last position.
    pub(super) received: Lsn,
    /// Whether the server wants an answer.
    pub(super) reply_requested: bool,
}

/// The complete events at the front of the buffer.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Their size.
    pub(super) bytes: usize,
    pub(super) seen: Seen,
    /// Tag of the complete frame behind them, if it is no event.
    pub(super) other: Option<u8>,
}

/// Finds the complete events and checks them.
pub(super) fn scan(inbound: &Inbound) -> Result<Scan, PgError> {
    let unread = inbound.unread();
    let mut scan = Scan::default();
    loop {
        let rest = unread.get(scan.bytes..).unwrap_or_default();
        let size = match frame_bytes(rest, inbound.frame_bytes_max()) {
            Ok(Some(size)) if size <= rest.len() => size,
            Ok(_) => return Ok(scan),
            // What came before is handed out first; the next call meets the error again.
            Err(_) if scan.bytes > 0 => return Ok(scan),
            Err(error) => return Err(error),
        };
        let frame = rest.get(..size).unwrap_or_default();
        if frame.first() != Some(&b'd') {
            scan.other = frame.first().copied();
            return Ok(scan);
        }
        match frame.get(HEADER_BYTES..).and_then(event) {
            Some(ReplicationEvent::Data { wal_start, .. }) => {
                scan.seen.received = scan.seen.received.max(wal_start);
            }
            Some(ReplicationEvent::KeepAlive {
                server_end,
                reply_requested,
            }) => {
                scan.seen.received = scan.seen.received.max(server_end);
                scan.seen.reply_requested |= reply_requested;
            }
            None if scan.bytes > 0 => return Ok(scan),
            None => return Err(malformed("replication message")),
        }
        scan.bytes += size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![tag];
        frame.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        frame.extend(body);
        frame
    }

    fn data(wal_start: u64, payload: &[u8]) -> Vec<u8> {
        let mut body = vec![b'w'];
        body.extend(wal_start.to_be_bytes());
        body.extend((wal_start + 1).to_be_bytes());
        body.extend([0; 8]);
        body.extend(payload);
        frame(b'd', &body)
    }

    fn keepalive(server_end: u64, reply: u8) -> Vec<u8> {
        let mut body = vec![b'k'];
        body.extend(server_end.to_be_bytes());
        body.extend([0; 8]);
        body.push(reply);
        frame(b'd', &body)
    }

    fn inbound(bytes: &[u8]) -> Inbound {
        let mut inbound = Inbound::new();
        inbound.room().unwrap()[..bytes.len()].copy_from_slice(bytes);
        inbound.filled(bytes.len());
        inbound
    }

    #[test]
    fn events_are_cut_at_any_byte_without_loss() {
        let bytes = [data(5, b"one"), keepalive(9, 1), data(7, b"")].concat();
        for cut in 0..=bytes.len() {
            let scan = scan(&inbound(&bytes[..cut])).unwrap();
            let events: Vec<_> = Received::new(&bytes[..scan.bytes]).collect();
            let complete = match cut {
                0..33 => 0,
                33..56 => 1,
                56..86 => 2,
                _ => 3,
            };
            assert_eq!(events.len(), complete, "cut at {cut}");
        }
        let events: Vec<_> = Received::new(&bytes).collect();
        let (server_end, reply_requested) = (Lsn(9), true);
        assert_eq!(
            events[1],
            ReplicationEvent::KeepAlive {
                server_end,
                reply_requested
            }
        );
    }

    #[test]
    fn what_is_no_event_waits_behind_the_events() {
        let bytes = [data(5, b"x"), frame(b'E', b"\0"), data(6, b"y")].concat();
        let scan = scan(&inbound(&bytes)).unwrap();
        assert_eq!((scan.bytes, scan.other), (31, Some(b'E')));
        assert_eq!(scan.seen.received, Lsn(5));
    }

    #[test]
    fn damaged_events_are_an_error_and_hide_nothing_before_them() {
        for damaged in [frame(b'd', b""), frame(b'd', b"w123"), frame(b'd', b"?")] {
            assert!(scan(&inbound(&damaged)).is_err());
            let bytes = [data(5, b"x"), damaged].concat();
            assert_eq!(scan(&inbound(&bytes)).unwrap().bytes, 31);
        }
    }
}
