//! What a consumer asks of a stream, and how that is said on the wire.
//!
//! Pure: options in, `CaptureInit` out. Old gateways ignore parameters they do not know.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pgcapture_proto::pgcapture as proto;
use prost_types::{ListValue, Struct, Value, value::Kind};

use crate::{error::Error, lsn::Lsn, raw::Operation};

/// Where a consumer that is new to the stream begins. A known one goes on where its
/// acknowledgements ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// With the oldest change that is kept.
    Earliest,
    /// With the changes that commit from now on.
    Latest,
    /// With the first transaction that commits at or after this position.
    Lsn(Lsn),
    /// With the first transaction that commits at or after this time.
    Time(SystemTime),
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Earliest => f.write_str("earliest"),
            Self::Latest => f.write_str("latest"),
            Self::Lsn(lsn) => lsn.fmt(f),
            Self::Time(time) => f.write_str(&rfc3339(*time)),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) stream: String,
    pub(crate) consumer: Option<String>,
    pub(crate) table_regex: Option<String>,
    pub(crate) tables: Vec<String>,
    pub(crate) operations: Vec<Operation>,
    pub(crate) start: Option<Start>,
    pub(crate) ordered: bool,
    pub(crate) boundaries: bool,
    pub(crate) truncates: bool,
    pub(crate) logical_messages: bool,
    pub(crate) gaps: bool,
    pub(crate) commit_time: bool,
    pub(crate) batch_size: Option<u32>,
    pub(crate) credits: Option<u32>,
    pub(crate) max_in_flight: Option<u32>,
    pub(crate) ack_timeout: Option<Duration>,
    pub(crate) dedup: bool,
}

impl Options {
    /// The uri: the stream, and the consumer's name behind it when it has one.
    pub(crate) fn uri(&self) -> String {
        match &self.consumer {
            Some(consumer) => format!("{}/{consumer}", self.stream),
            None => self.stream.clone(),
        }
    }

    /// The first message of a session.
    pub(crate) fn init(&self) -> Result<proto::CaptureInit, Error> {
        if self.stream.is_empty() || self.consumer.as_deref() == Some("") {
            return Err(Error::Config(
                "a stream and a consumer have names".to_owned(),
            ));
        }
        if [self.batch_size, self.credits, self.max_in_flight].contains(&Some(0)) {
            return Err(Error::Config(
                "batch, credits and max_in_flight are at least 1".to_owned(),
            ));
        }
        let mut fields = BTreeMap::new();
        let mut put = |key: &str, kind| fields.insert(key.to_owned(), Value { kind: Some(kind) });
        if let Some(regex) = &self.table_regex {
            put("TableRegex", Kind::StringValue(regex.clone()));
        }
        if !self.tables.is_empty() {
            put("Tables", list(self.tables.iter().cloned()));
        }
        if !self.operations.is_empty() {
            put(
                "Operations",
                list(self.operations.iter().map(|op| name_of(*op).to_owned())),
            );
        }
        if let Some(start) = self.start {
            put("Start", Kind::StringValue(start.to_string()));
        }
        if self.ordered {
            put("Mode", Kind::StringValue("ordered".to_owned()));
        }
        let flags = [
            ("Boundaries", self.boundaries),
            ("Truncate", self.truncates),
            ("LogicalMessages", self.logical_messages),
            ("Gaps", self.gaps),
            ("CommitTime", self.commit_time),
        ];
        for (key, _) in flags.into_iter().filter(|(_, wanted)| *wanted) {
            put(key, Kind::BoolValue(true));
        }
        let numbers = [
            ("BatchSize", self.batch_size),
            ("Credits", self.credits),
            ("MaxUnacked", self.max_in_flight),
        ];
        for (key, number) in numbers {
            if let Some(number) = number {
                put(key, Kind::NumberValue(f64::from(number)));
            }
        }
        if let Some(timeout) = self.ack_timeout {
            put("AckTimeout", Kind::StringValue(duration(timeout)));
        }
        let parameters = (!fields.is_empty()).then_some(Struct { fields });
        Ok(proto::CaptureInit {
            uri: self.uri(),
            parameters,
        })
    }
}

fn list(texts: impl Iterator<Item = String>) -> Kind {
    let values = texts
        .map(|text| Value {
            kind: Some(Kind::StringValue(text)),
        })
        .collect();
    Kind::ListValue(ListValue { values })
}

fn name_of(op: Operation) -> &'static str {
    match op {
        Operation::Insert => "INSERT",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
    }
}

/// Whole seconds where that is exact, else milliseconds, never less than one.
fn duration(duration: Duration) -> String {
    if duration.subsec_nanos() == 0 && duration.as_secs() > 0 {
        format!("{}s", duration.as_secs())
    } else {
        format!("{}ms", duration.as_millis().max(1))
    }
}

/// Formats a time of the years 1970 to 9999; earlier ones become 1970.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, rest) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Howard Hinnant's civil_from_days, for days since 1970.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    let micros = since.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_style_consumer_sends_no_parameters() {
        let options = Options {
            stream: "orders".into(),
            ..Options::default()
        };
        assert_eq!(
            options.init().unwrap(),
            proto::CaptureInit {
                uri: "orders".into(),
                parameters: None
            }
        );
    }

    #[test]
    fn every_option_has_its_parameter() {
        let options = Options {
            stream: "orders".into(),
            consumer: Some("search".into()),
            table_regex: Some("^o".into()),
            tables: vec!["public.orders".into()],
            operations: vec![Operation::Insert, Operation::Delete],
            start: Some(Start::Lsn(Lsn::new(0x16_B374_D848))),
            ordered: true,
            boundaries: true,
            truncates: true,
            logical_messages: true,
            gaps: true,
            commit_time: true,
            batch_size: Some(500),
            credits: Some(9),
            max_in_flight: Some(1000),
            ack_timeout: Some(Duration::from_secs(60)),
            dedup: true,
        };
        let init = options.init().unwrap();
        assert_eq!(init.uri, "orders/search");
        let fields = init.parameters.unwrap().fields;
        let keys: Vec<_> = fields.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "AckTimeout",
                "BatchSize",
                "Boundaries",
                "CommitTime",
                "Credits",
                "Gaps",
                "LogicalMessages",
                "MaxUnacked",
                "Mode",
                "Operations",
                "Start",
                "TableRegex",
                "Tables",
                "Truncate"
            ]
        );
        let text = |key: &str| match &fields[key].kind {
            Some(Kind::StringValue(text)) => text.clone(),
            other => panic!("{key} is {other:?}"),
        };
        assert_eq!(text("AckTimeout"), "60s");
        assert_eq!(text("Start"), "16/B374D848");
        assert_eq!(text("Mode"), "ordered");
        assert_eq!(fields["BatchSize"].kind, Some(Kind::NumberValue(500.0)));
    }

    #[test]
    fn empty_names_and_zeros_are_refused_before_anything_is_sent() {
        assert!(Options::default().init().is_err());
        let zero = Options {
            stream: "orders".into(),
            batch_size: Some(0),
            ..Options::default()
        };
        assert!(zero.init().is_err());
    }

    #[test]
    fn times_are_written_as_rfc_3339() {
        let at = |seconds, micros| {
            rfc3339(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros))
        };
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_400, 0), "2000-02-29T00:00:00.000000Z");
        assert_eq!(at(1_795_500_000, 1), "2026-11-24T06:00:00.000001Z");
        assert_eq!(duration(Duration::from_millis(1500)), "1500ms");
    }
}
