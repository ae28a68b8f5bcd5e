//! Sizes and durations as people write them: `8GiB`, `30s`.
//!
//! Used by the configuration, by command line flags and by output; prints what it parses.

use std::{fmt, str::FromStr, time::Duration};

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

const SIZES: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

const TIMES: [(&str, u64); 6] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
];

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct Size(pub u64);

/// Bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub u64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is no rate; write it like 50MiB/s");
        let size = text.strip_suffix("/s").unwrap_or(text);
        let Size(bytes) = size.parse().map_err(|_| bad())?;
        if bytes == 0 {
            return Err(format!("{}; nothing is read at a rate of 0", bad()));
        }
        Ok(Self(bytes))
    }
}

/// A part of a whole, 1 to 100 percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct Percent(pub u8);

impl FromStr for Percent {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim().strip_suffix('%').map(str::trim_end);
        let number = digits.and_then(|digits| digits.parse().ok());
        let percent = number.filter(|number| (1..=100).contains(number));
        percent.map(Self).ok_or_else(|| ParseUnitError {
            text: text.to_owned(),
            what: "percentage from 1% to 100%",
            example: "50%",
        })
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Size {
    /// Returns the bytes as a length in memory.
    #[must_use]
    pub fn as_len(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// A length of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct Span(pub Duration);

impl Span {
    /// Makes a span of whole seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

/// The text is no size or duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a {what}; write it like {example}")]
pub struct ParseUnitError {
    text: String,
    what: &'static str,
    example: &'static str,
}

impl FromStr for Size {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // `8G` and `8GB` mean what most people mean by them: powers of 1,024.
        let known = |unit: &str| {
            let unit = unit.to_ascii_lowercase();
            let is_unit = |name: &str| {
                let name = name.to_ascii_lowercase();
                unit == name
                    || unit == name.replace("ib", "b")
                    || (name != "b" && unit == name.replace("ib", ""))
            };
            let found = SIZES.iter().find(|(name, _)| is_unit(name));
            found.map(|(_, factor)| *factor)
        };
        parse(text, known).map(Self).ok_or_else(|| ParseUnitError {
            text: text.to_owned(),
            what: "size",
            example: "64MiB or 8GiB",
        })
    }
}

impl FromStr for Span {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = |unit: &str| {
            let found = TIMES.iter().find(|(name, _)| *name == unit);
            found.map(|(_, factor)| *factor)
        };
        parse(text, known)
            .map(|nanos| Self(Duration::from_nanos(nanos)))
            .ok_or_else(|| ParseUnitError {
                text: text.to_owned(),
                what: "duration",
                example: "500ms, 30s or 72h",
            })
    }
}

fn parse(text: &str, factor_of: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '_' && c != '.')?;
    let (number, unit) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let factor = factor_of(unit.trim())?;
    let whole: u64 = whole.replace('_', "").parse().ok()?;
    let part = if fraction.is_empty() {
        0
    } else {
        let digits = u32::try_from(fraction.len()).ok().filter(|len| *len <= 3)?;
        fraction.parse::<u64>().ok()?.checked_mul(factor)? / 10_u64.checked_pow(digits)?
    };
    whole.checked_mul(factor)?.checked_add(part)
}

/// Prints the largest unit that divides the value.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, self.0, &SIZES, "B")
    }
}

/// Prints the largest unit that divides the value.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        print(f, nanos, &TIMES, "s")
    }
}

fn print(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)], zero: &str) -> fmt::Result {
    let fits = |(_, factor): &&(&str, u64)| value != 0 && value.is_multiple_of(*factor);
    match units.iter().find(fits) {
        Some((name, factor)) => write!(f, "{}{name}", value / factor),
        None => write!(f, "{value}{zero}"),
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Prints bytes for people: `412 MiB`, three digits at most.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    let unit = SIZES.iter().find(|(_, factor)| bytes >= *factor);
    let Some((name, factor)) = unit else {
        return "0 B".to_owned();
    };
    let tenths = u128::from(bytes) * 10 / u128::from(*factor);
    if tenths < 100 && tenths % 10 != 0 {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    } else {
        format!("{} {name}", tenths / 10)
    }
}

/// Prints a count for people, in few digits: `1.32 M`, `164 k`.
#[must_use]
pub fn human_count(count: u64) -> String {
    let units = [(1_000_000_000, "G"), (1_000_000, "M")];
    let Some((factor, name)) = units.into_iter().find(|(factor, _)| count >= *factor) else {
        return match count {
            10_000.. => format!("{} k", count / 1_000),
            _ => count.to_string(),
        };
    };
    let hundredths = u128::from(count) * 100 / u128::from(factor);
    format!("{}.{:02} {name}", hundredths / 100, hundredths % 100)
}

/// Prints a length of time for people: `40ms`, `2m10s`.
#[must_use]
pub fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{}.{}s", seconds, duration.subsec_millis() / 100),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_as_written() {
        for (text, bytes) in [
            ("0B", 0),
            ("8GiB", 8 << 30),
            ("64MB", 64 << 20),
            ("64M", 64 << 20),
            ("1.5 KiB", 1_536),
            ("10_000B", 10_000),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for bad in [
            "",
            "8",
            "GiB",
            "8XB",
            "-1B",
            "1.2.3KiB",
            "99999999999TiB",
            "1.2345KiB",
        ] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_parse_as_written() {
        for (text, millis) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("1.5s", 1_500),
            ("72h", 259_200_000),
            ("3d", 259_200_000),
        ] {
            assert_eq!(
                text.parse(),
                Ok(Span(Duration::from_millis(millis))),
                "{text}"
            );
        }
        for bad in ["", "5", "s", "5 parsecs", "-5s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn percentages_are_parts_of_a_whole() {
        for (text, wanted) in [
            ("50%", Some(50)),
            ("100 %", Some(100)),
            ("0%", None),
            ("101%", None),
            ("50", None),
            ("half", None),
        ] {
            assert_eq!(text.parse().ok(), wanted.map(Percent), "{text}");
        }
    }

    #[test]
    fn what_is_printed_parses_to_the_same() {
        for size in [0, 1, 1_023, 1_024, 3 << 20, (1 << 30) + 1, 5 << 40] {
            assert_eq!(Size(size).to_string().parse(), Ok(Size(size)));
        }
        for millis in [0, 1, 1_500, 60_000, 86_400_000] {
            let span = Span(Duration::from_millis(millis));
            assert_eq!(span.to_string().parse(), Ok(span));
        }
    }

    #[test]
    fn people_read_three_digits() {
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(1_234), "1.2 KiB");
        assert_eq!(human_bytes(412 << 20), "412 MiB");
        let counts = [0, 9_999, 164_321, 1_320_000, 2_000_000_000].map(human_count);
        assert_eq!(counts, ["0", "9999", "164 k", "1.32 M", "2.00 G"]);
        assert_eq!(human_duration(Duration::from_millis(40)), "40ms");
        assert_eq!(human_duration(Duration::from_secs(130)), "2m10s");
    }

    #[test]
    fn rates_parse_as_written() {
        assert_eq!("50MiB/s".parse(), Ok(Rate(50 << 20)));
        assert_eq!("1GiB".parse(), Ok(Rate(1 << 30)));
        for bad in ["", "fast", "0B/s", "50"] {
            assert!(bad.parse::<Rate>().unwrap_err().contains("write it like"));
        }
    }
}
