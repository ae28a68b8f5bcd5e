//! What a consumer asks for when it opens a Capture stream.
//!
//! Turns the `parameters` of `CaptureInit` into a checked value. An empty struct is what old clients
//! send and means exactly what they expect; everything else is opt-in. Parameters nobody knows are
//! handed back by name, never refused: clients of other versions may send their own.

use std::time::Duration;

use prost_types::{Struct, Value, value::Kind};
use regex::Regex;

use crate::{
    filter::{TablePattern, go_regex},
    lsn::{Lsn, PgTime},
};

/// Most patterns in one list, so that a decision for a new table stays in microseconds.
pub const PATTERNS_MAX: usize = 1_000;

/// Most changes in one `CaptureBatch`; the log's own batches end at the same number.
pub const BATCH_SIZE_MAX: u32 = 1_024;

/// What a session wants.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// Deliver only tables whose name this matches anywhere.
    pub table_regex: Option<Regex>,
    /// Deliver only tables that one of these matches; empty means all.
    pub tables: Vec<TablePattern>,
    /// Deliver no table that one of these matches.
    pub exclude_tables: Vec<TablePattern>,
    /// Deliver only these operations.
    pub operations: Operations,
    /// Where a new subscription, or a peek, begins.
    pub start: StartAt,
    /// Deliver Begin and Commit.
    pub with_boundaries: bool,
    /// Deliver TRUNCATE.
    pub with_truncate: bool,
    /// Deliver `pg_logical_emit_message`.
    pub with_logical: bool,
    /// Deliver declared gaps.
    pub with_gaps: bool,
    /// Put the commit time on every message.
    pub with_commit_time: bool,
    /// Put up to this many messages into one; 0 sends them one by one.
    pub batch_size: u32,
    /// Deliver no more than this many messages until the consumer grants more.
    pub credits: Option<u64>,
    /// How the sessions of one subscription share it.
    pub mode: Mode,
    /// A message that is not acknowledged for this long is delivered again.
    pub ack_timeout: Option<Duration>,
    /// Most unacknowledged messages; the node's limit caps it.
    pub max_unacked: Option<u32>,
    /// Read only: no subscription, nothing to acknowledge.
    pub peek: bool,
    /// Where a peek ends.
    pub end: Option<EndAt>,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self {
            table_regex: None,
            tables: Vec::new(),
            exclude_tables: Vec::new(),
            operations: Operations::ALL,
            start: StartAt::Latest,
            with_boundaries: false,
            with_truncate: false,
            with_logical: false,
            with_gaps: false,
            with_commit_time: false,
            batch_size: 0,
            credits: None,
            mode: Mode::Shared,
            ack_timeout: None,
            max_unacked: None,
            peek: false,
            end: None,
        }
    }
}

/// How the sessions of one subscription share its messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Every session gets a part.
    #[default]
    Shared,
    /// The oldest session gets everything in order; the others take over when it ends.
    Ordered,
}

impl Mode {
    /// Returns the word that the parameter `Mode` uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Ordered => "ordered",
        }
    }
}

/// A set of row operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operations(u8);

impl Operations {
    /// INSERT, UPDATE and DELETE.
    pub const ALL: Self = Self(0b111);

    /// Tells whether the operation of this wire number is in the set.
    #[must_use]
    pub const fn contains(self, operation: u32) -> bool {
        operation < 8 && self.0 & (1 << operation) != 0
    }
}

/// Where to begin, as the consumer said it. The shell turns it into a position of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// The oldest entry.
    Earliest,
    /// Only what comes.
    Latest,
    /// The first transaction that commits at or after this LSN.
    Lsn(Lsn),
    /// The first transaction that committed at or after this moment.
    Time(PgTime),
    /// The same, counted back from now.
    Ago(Duration),
}

/// Where a peek ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndAt {
    /// At the durable end of the log as it is when the stream opens.
    Tail,
    /// After the last transaction that commits at or before this LSN.
    Lsn(Lsn),
}

/// A parameter cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parameter {name}: {reason}")]
pub struct OptionError {
    /// The parameter.
    pub name: String,
    /// What is wrong with it, and what is expected.
    pub reason: String,
}

impl CaptureOptions {
    /// Parses `parameters`; the second part names those that mean nothing to this version.
    ///
    /// # Errors
    ///
    /// [`OptionError`] for the first parameter with a bad value, or for a pair that cannot work.
    pub fn parse(parameters: &Struct) -> Result<(Self, Vec<String>), OptionError> {
        let mut options = Self::default();
        let mut unknown = Vec::new();
        for (name, value) in &parameters.fields {
            let wrap = |reason| OptionError {
                name: name.clone(),
                reason,
            };
            // An explicit null asks for the default.
            if matches!(value.kind, None | Some(Kind::NullValue(_))) {
                continue;
            }
            if !options.set(name, value).map_err(wrap)? {
                unknown.push(name.clone());
            }
        }
        options.check_relations()?;
        Ok((options, unknown))
    }

    fn set(&mut self, name: &str, value: &Value) -> Result<bool, String> {
        match name {
            // Old clients that filter nothing send the empty text.
            "TableRegex" => match text(value)? {
                "" => self.table_regex = None,
                pattern => self.table_regex = Some(go_regex::compile(pattern)?),
            },
            "Tables" => self.tables = patterns(value)?,
            "ExcludeTables" => self.exclude_tables = patterns(value)?,
            "Operations" => self.operations = operations(value)?,
            "Start" => self.start = start(text(value)?)?,
            "Boundaries" => self.with_boundaries = flag(value)?,
            "Truncate" => self.with_truncate = flag(value)?,
            "LogicalMessages" => self.with_logical = flag(value)?,
            "Gaps" => self.with_gaps = flag(value)?,
            "CommitTime" => self.with_commit_time = flag(value)?,
            "BatchSize" => {
                let size = count(value, u32::MAX)?;
                self.batch_size = size.min(BATCH_SIZE_MAX);
            }
            "Credits" => self.credits = Some(u64::from(count(value, u32::MAX)?)),
            "Mode" => {
                self.mode = match text(value)? {
                    "shared" => Mode::Shared,
                    "ordered" => Mode::Ordered,
                    other => return Err(format!("\"{other}\" is neither shared nor ordered")),
                }
            }
            "AckTimeout" => {
                let timeout = duration(text(value)?)?;
                self.ack_timeout = (!timeout.is_zero()).then_some(timeout);
            }
            "MaxUnacked" => {
                let most = count(value, u32::MAX)?;
                self.max_unacked = (most > 0).then_some(most);
            }
            "Peek" => self.peek = flag(value)?,
            "End" => {
                self.end = Some(match text(value)? {
                    "tail" => EndAt::Tail,
                    other => EndAt::Lsn(other.parse().map_err(|_| {
                        format!("\"{other}\" is neither \"tail\" nor an LSN such as 16/B374D848")
                    })?),
                });
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn check_relations(&self) -> Result<(), OptionError> {
        if self.end.is_some() && !self.peek {
            return Err(OptionError {
                name: "End".to_owned(),
                reason: "works only with Peek: a subscription has no end".to_owned(),
            });
        }
        Ok(())
    }
}

fn text(value: &Value) -> Result<&str, String> {
    match &value.kind {
        Some(Kind::StringValue(text)) => Ok(text),
        other => Err(format!(
            "expected a text, got {}",
            kind_name(other.as_ref())
        )),
    }
}

fn flag(value: &Value) -> Result<bool, String> {
    match &value.kind {
        Some(Kind::BoolValue(flag)) => Ok(*flag),
        other => Err(format!(
            "expected true or false, got {}",
            kind_name(other.as_ref())
        )),
    }
}

fn count(value: &Value, most: u32) -> Result<u32, String> {
    let Some(Kind::NumberValue(number)) = value.kind else {
        return Err(format!(
            "expected a number, got {}",
            kind_name(value.kind.as_ref())
        ));
    };
    if number.fract() != 0.0 || !(0.0..=f64::from(most)).contains(&number) {
        return Err(format!("{number} is not a whole number from 0 to {most}"));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked above: whole and within u32"
    )]
    Ok(number as u32)
}

fn texts(value: &Value) -> Result<Vec<&str>, String> {
    match &value.kind {
        Some(Kind::ListValue(list)) if list.values.len() > PATTERNS_MAX => {
            Err(format!("more than {PATTERNS_MAX} entries"))
        }
        Some(Kind::ListValue(list)) => list.values.iter().map(text).collect(),
        Some(Kind::StringValue(one)) => Ok(vec![one]),
        other => Err(format!(
            "expected a list of texts, got {}",
            kind_name(other.as_ref())
        )),
    }
}

fn patterns(value: &Value) -> Result<Vec<TablePattern>, String> {
    texts(value)?
        .into_iter()
        .map(|pattern| TablePattern::parse(pattern).map_err(|error| error.to_string()))
        .collect()
}

fn operations(value: &Value) -> Result<Operations, String> {
    let mut set = 0;
    for word in texts(value)? {
        set |= match word.to_ascii_uppercase().as_str() {
            "INSERT" => 1,
            "UPDATE" => 2,
            "DELETE" => 4,
            _ => return Err(format!("\"{word}\" is not INSERT, UPDATE or DELETE")),
        };
    }
    if set == 0 {
        return Err("the list is empty; leave it out to get every operation".to_owned());
    }
    Ok(Operations(set))
}

/// Parses a start position: `earliest`, `latest`, an LSN, an RFC 3339 time or `-10m`.
///
/// # Errors
///
/// With what is expected, when the text is none of these.
pub fn start(text: &str) -> Result<StartAt, String> {
    match text {
        "earliest" => return Ok(StartAt::Earliest),
        "latest" => return Ok(StartAt::Latest),
        _ => {}
    }
    if let Some(ago) = text.strip_prefix('-') {
        return duration(ago).map(StartAt::Ago);
    }
    if let Ok(lsn) = text.parse() {
        return Ok(StartAt::Lsn(lsn));
    }
    let moment = text.parse::<jiff::Timestamp>().map_err(|_| {
        format!(
            "\"{text}\" is not a start position; expected earliest, latest, an LSN such as \
             16/B374D848, a time such as 2026-01-31T08:00:00Z, or -10m"
        )
    })?;
    Ok(StartAt::Time(PgTime::from_unix_micros(
        moment.as_microsecond(),
    )))
}

/// Parses a duration: a number and one of `us`, `ms`, `s`, `m`, `h`, `d`; parts may follow each
/// other as in `1h30m`. A plain `0` is allowed.
///
/// # Errors
///
/// With what is expected, when the text is none of these.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("\"{text}\" is not a duration; expected one such as 500ms, 30s or 10m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(bad)?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let seconds = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return Err(bad()),
        };
        let number: f64 = number.parse().map_err(|_| bad())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())?;
        total = total.checked_add(part).ok_or_else(bad)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total).ok_or_else(bad)
}

fn kind_name(kind: Option<&Kind>) -> &'static str {
    match kind {
        None | Some(Kind::NullValue(_)) => "null",
        Some(Kind::NumberValue(_)) => "a number",
        Some(Kind::StringValue(_)) => "a text",
        Some(Kind::BoolValue(_)) => "true or false",
        Some(Kind::StructValue(_)) => "a struct",
        Some(Kind::ListValue(_)) => "a list",
    }
}

#[cfg(test)]
mod tests;
