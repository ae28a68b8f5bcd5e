//! Positions and times as PostgreSQL counts them.
//!
//! Both are newtypes over the integer that travels on the wire, so that a byte position is never
//! mistaken for a time, nor either for a count. Neither reads a clock.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A byte position in PostgreSQL's write-ahead log.
///
/// Prints and parses as PostgreSQL's `pg_lsn` does: two hexadecimal halves, `16/B374D848`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Zero: before everything. PostgreSQL calls it invalid and never writes there.
    pub const ZERO: Self = Self(0);

    /// Returns how many bytes of WAL lie between `earlier` and `self`; 0 when `self` is not later.
    #[must_use]
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text is not `hexadecimal/hexadecimal`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an LSN; expected two hexadecimal numbers such as 16/B374D848")]
pub struct ParseLsnError(pub String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = |half: &str| {
            let is_plain =
                (1..=8).contains(&half.len()) && half.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_plain
                .then(|| u64::from_str_radix(half, 16).ok())
                .flatten()
        };
        let halves = text.split_once('/');
        halves
            .and_then(|(high, low)| Some(Self(parse(high)? << 32 | parse(low)?)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

/// Seconds from 1970-01-01 to 2000-01-01, both UTC.
const UNIX_TO_POSTGRES_SECONDS: i64 = 946_684_800;

/// A moment as PostgreSQL sends it: microseconds since 2000-01-01 UTC.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct PgTime(pub i64);

impl PgTime {
    /// Returns the moment as microseconds since 1970-01-01 UTC.
    #[must_use]
    pub const fn unix_micros(self) -> i64 {
        self.0.saturating_add(UNIX_TO_POSTGRES_SECONDS * 1_000_000)
    }

    /// Makes a moment from microseconds since 1970-01-01 UTC.
    #[must_use]
    pub const fn from_unix_micros(micros: i64) -> Self {
        Self(micros.saturating_sub(UNIX_TO_POSTGRES_SECONDS * 1_000_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_prints_and_parses_as_postgres_does() {
        for (number, text) in [
            (0, "0/0"),
            (0x16_B374_D848, "16/B374D848"),
            (u64::MAX, "FFFFFFFF/FFFFFFFF"),
        ] {
            assert_eq!(Lsn(number).to_string(), text);
            assert_eq!(text.parse(), Ok(Lsn(number)));
        }
        for bad in [
            "",
            "/",
            "1",
            "1/",
            "/1",
            "1/2/3",
            "+1/2",
            "123456789/0",
            "g/0",
            " 1/2",
        ] {
            assert_eq!(bad.parse::<Lsn>(), Err(ParseLsnError(bad.to_owned())));
        }
    }

    #[test]
    fn pg_time_counts_from_the_year_2000() {
        assert_eq!(PgTime(0).unix_micros(), 946_684_800_000_000);
        assert_eq!(PgTime::from_unix_micros(946_684_800_000_001), PgTime(1));
    }
}
