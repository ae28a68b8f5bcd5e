//! Rows `(lsn, data)` of a binary COPY, borrowed from the read buffer.

use pgcapture_engine::lsn::Lsn;

use crate::postgres::{
    connection::framing::{
        FRAME_BYTES_MAX, HEADER_BYTES, Inbound, frame_bytes, malformed, read_i16, read_i32,
        read_u64,
    },
    error::PgError,
};

/// Start of a binary COPY: signature, flags, length of an extension (none).
const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
/// Bytes of signature, flags and extension length.
const FILE_HEADER_BYTES: usize = 11 + 4 + 4;
/// Bytes before the payload: number of columns, length and value of the LSN, length of the data.
const ROW_HEADER_BYTES: usize = 2 + 4 + 8 + 4;
/// Number of columns that ends a binary COPY.
const TRAILER: i16 = -1;

/// One message of the output plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRow<'a> {
    /// Position of the change, as `wal_start` of a walsender.
    pub lsn: Lsn,
    /// The bytes of pgoutput.
    pub payload: &'a [u8],
}

/// The rows that have arrived, in order.
#[derive(Clone, Debug)]
pub struct Rows<'a> {
    bytes: &'a [u8],
    has_header: bool,
}

impl<'a> Rows<'a> {
    /// Wraps complete, checked frames.
    pub(super) const fn new(bytes: &'a [u8], has_header: bool) -> Self {
        Self { bytes, has_header }
    }

    /// Returns how many bytes the rows take, headers included.
    #[must_use]
    pub const fn byte_count(&self) -> usize {
        self.bytes.len()
    }
}

impl<'a> Iterator for Rows<'a> {
    type Item = SlotRow<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            // The frames were checked by `scan`: nothing here fails.
            let size = frame_bytes(self.bytes, FRAME_BYTES_MAX).ok()??;
            let (frame, rest) = self.bytes.split_at_checked(size)?;
            self.bytes = rest;
            let mut body = frame.get(HEADER_BYTES..)?;
            if std::mem::take(&mut self.has_header) {
                body = body.get(FILE_HEADER_BYTES..)?;
            }
            if let Piece::Row(row) = piece(body)? {
                return Some(row);
            }
        }
    }
}

enum Piece<'a> {
    Row(SlotRow<'a>),
    /// The header alone, or the trailer.
    Nothing,
}

fn piece(body: &[u8]) -> Option<Piece<'_>> {
    if body.is_empty() || read_i16(body, 0)? == TRAILER {
        return Some(Piece::Nothing);
    }
    let lsn = Lsn(read_u64(body, 6)?);
    let is_shaped = read_i16(body, 0)? == 2 && read_i32(body, 2)? == 8;
    let payload = body.get(ROW_HEADER_BYTES..)?;
    let is_whole = usize::try_from(read_i32(body, 14)?).ok()? == payload.len();
    (is_shaped && is_whole).then_some(Piece::Row(SlotRow { lsn, payload }))
}

/// The complete rows at the front of the buffer.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Their size.
    pub(super) bytes: usize,
    /// Whether the first frame starts with the header of the file.
    pub(super) is_header: bool,
    /// Tag of the complete frame behind them, if it is no row.
    pub(super) other: Option<u8>,
}

/// Finds the complete rows and checks them.
pub(super) fn scan(inbound: &Inbound, is_first: bool) -> Result<Scan, PgError> {
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
        let mut body = frame.get(HEADER_BYTES..).unwrap_or_default();
        if is_first && scan.bytes == 0 {
            if !body.starts_with(SIGNATURE) || read_i32(body, 15) != Some(0) {
                return Err(malformed("header of COPY"));
            }
            scan.is_header = true;
            body = body.get(FILE_HEADER_BYTES..).unwrap_or_default();
        }
        if piece(body).is_none() {
            if scan.bytes > 0 {
                return Ok(scan);
            }
            return Err(malformed("row of COPY"));
        }
        scan.bytes += size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(body: &[u8]) -> Vec<u8> {
        let mut frame = vec![b'd'];
        frame.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        frame.extend(body);
        frame
    }

    fn row(lsn: u64, payload: &[u8]) -> Vec<u8> {
        let mut body = vec![0, 2, 0, 0, 0, 8];
        body.extend(lsn.to_be_bytes());
        body.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        body.extend(payload);
        body
    }

    fn header() -> Vec<u8> {
        [SIGNATURE.as_slice(), &[0; 8]].concat()
    }

    fn inbound(bytes: &[u8]) -> Inbound {
        let mut inbound = Inbound::new();
        inbound.room().unwrap()[..bytes.len()].copy_from_slice(bytes);
        inbound.filled(bytes.len());
        inbound
    }

    #[test]
    fn rows_are_found_with_the_header_before_or_alone() {
        let together = [
            frame(&[header(), row(1, b"a")].concat()),
            frame(&row(2, b"")),
        ]
        .concat();
        let apart = [frame(&header()), frame(&row(1, b"a")), frame(&row(2, b""))].concat();
        let trailer = frame(&[0xff, 0xff]);
        for bytes in [together, apart] {
            let bytes = [bytes, trailer.clone()].concat();
            let scan = scan(&inbound(&bytes), true).unwrap();
            assert_eq!(scan.bytes, bytes.len());
            let lsns: Vec<_> = Rows::new(&bytes, scan.is_header)
                .map(|row| row.lsn.0)
                .collect();
            assert_eq!(lsns, [1, 2]);
        }
    }

    #[test]
    fn a_damaged_row_is_an_error() {
        let mut long = row(1, b"abc");
        long[17] = 4;
        let three_columns = [&[0, 3], &row(1, b"")[2..]].concat();
        for damaged in [long, three_columns, row(1, b"abc")[..10].to_vec()] {
            assert!(scan(&inbound(&frame(&damaged)), false).is_err());
        }
        assert!(
            scan(&inbound(&frame(&row(1, b"a"))), true).is_err(),
            "no header"
        );
    }
}
