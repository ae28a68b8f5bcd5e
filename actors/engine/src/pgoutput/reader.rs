//! Takes checked pieces off the front of a message. Owns only how far it came.

use super::ParseError;
use crate::lsn::{Lsn, PgTime};

/// The rest of one message; every method takes something off its front or fails.
pub(super) struct Reader<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(kind: u8, rest: &'a [u8]) -> Self {
        Self { kind, rest }
    }

    pub(super) const fn cut_short(&self, what: &'static str) -> ParseError {
        ParseError::CutShort {
            kind: self.kind,
            what,
        }
    }

    pub(super) const fn unexpected(&self, what: &'static str, found: u8) -> ParseError {
        ParseError::UnexpectedByte {
            kind: self.kind,
            what,
            found,
        }
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) const fn set_rest(&mut self, rest: &'a [u8]) {
        self.rest = rest;
    }

    #[inline]
    pub(super) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], ParseError> {
        let (array, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or_else(|| self.cut_short(what))?;
        self.rest = rest;
        Ok(*array)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, ParseError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, ParseError> {
        self.array(what).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, ParseError> {
        self.array(what).map(u32::from_be_bytes)
    }

    pub(super) fn lsn(&mut self) -> Result<Lsn, ParseError> {
        self.array("an LSN")
            .map(|bytes| Lsn(u64::from_be_bytes(bytes)))
    }

    pub(super) fn time(&mut self) -> Result<PgTime, ParseError> {
        self.array("a time")
            .map(|bytes| PgTime(i64::from_be_bytes(bytes)))
    }

    pub(super) fn bytes(
        &mut self,
        length: u64,
        what: &'static str,
    ) -> Result<&'a [u8], ParseError> {
        let (bytes, rest) = usize::try_from(length)
            .ok()
            .and_then(|length| self.rest.split_at_checked(length))
            .ok_or_else(|| self.cut_short(what))?;
        self.rest = rest;
        Ok(bytes)
    }

    /// Takes a string that ends with a zero byte.
    pub(super) fn name(&mut self, what: &'static str) -> Result<&'a str, ParseError> {
        let length = self.rest.iter().position(|byte| *byte == 0);
        let (name, rest) = length
            .and_then(|length| Some((self.rest.get(..length)?, self.rest.get(length + 1..)?)))
            .ok_or_else(|| self.cut_short(what))?;
        self.rest = rest;
        std::str::from_utf8(name).map_err(|_| ParseError::NotUtf8 {
            kind: self.kind,
            what,
        })
    }

    pub(super) const fn finish(&self) -> Result<(), ParseError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(ParseError::Trailing {
            kind: self.kind,
            count: self.rest.len(),
        })
    }
}
