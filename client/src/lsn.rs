//! A position in PostgreSQL's write-ahead log, as PostgreSQL prints it.
//!
//! Owns the text form `16/B374D848` and the order. Never interprets the number.

use std::{fmt, str::FromStr};

/// A position in the write-ahead log of the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

/// The text is not an LSN such as `16/B374D848`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an LSN such as 16/B374D848")]
pub struct ParseLsnError;

impl Lsn {
    /// The position with this number.
    #[must_use]
    pub const fn new(position: u64) -> Self {
        Self(position)
    }

    /// The position as a number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (high, low) = text.split_once('/').ok_or(ParseLsnError)?;
        let part = |hex: &str| {
            if hex.is_empty() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(ParseLsnError);
            }
            u32::from_str_radix(hex, 16).map_err(|_| ParseLsnError)
        };
        Ok(Self(u64::from(part(high)?) << 32 | u64::from(part(low)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_junk_is_refused() {
        let lsn: Lsn = "16/B374D848".parse().unwrap();
        assert_eq!(lsn.to_string(), "16/B374D848");
        for junk in ["", "/", "1", "1/", "/1", "x/1", "+1/1", "1/123456789"] {
            assert_eq!(junk.parse::<Lsn>(), Err(ParseLsnError), "{junk}");
        }
    }
}
