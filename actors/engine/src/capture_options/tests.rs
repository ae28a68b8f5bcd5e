//! Tables of good and bad parameters.

use prost_types::ListValue;

use super::*;

fn parse(fields: &[(&str, Kind)]) -> Result<(CaptureOptions, Vec<String>), OptionError> {
    let fields = fields
        .iter()
        .map(|(name, kind)| {
            let value = Value {
                kind: Some(kind.clone()),
            };
            ((*name).to_owned(), value)
        })
        .collect();
    CaptureOptions::parse(&Struct { fields })
}

fn string(text: &str) -> Kind {
    Kind::StringValue(text.to_owned())
}

fn list(texts: &[&str]) -> Kind {
    let values = texts
        .iter()
        .map(|text| Value {
            kind: Some(string(text)),
        })
        .collect();
    Kind::ListValue(ListValue { values })
}

#[test]
fn no_parameters_mean_what_old_clients_expect() {
    let (options, unknown) = parse(&[]).unwrap();
    assert!(unknown.is_empty());
    assert!(!options.with_boundaries && !options.with_truncate && !options.with_gaps);
    assert_eq!(options.start, StartAt::Latest);
    assert_eq!(options.mode, Mode::Shared);
    assert_eq!((options.batch_size, options.credits), (0, None));
    assert_eq!(options.ack_timeout, None);
}

#[test]
fn every_parameter_is_understood() {
    let (options, unknown) = parse(&[
        ("TableRegex", string("^orders$")),
        ("Tables", list(&["public.*"])),
        ("ExcludeTables", string("public.audit")),
        ("Operations", list(&["insert", "DELETE"])),
        ("Start", string("earliest")),
        ("Boundaries", Kind::BoolValue(true)),
        ("Truncate", Kind::BoolValue(true)),
        ("LogicalMessages", Kind::BoolValue(true)),
        ("Gaps", Kind::BoolValue(true)),
        ("CommitTime", Kind::BoolValue(true)),
        ("BatchSize", Kind::NumberValue(1e6)),
        ("Credits", Kind::NumberValue(10.0)),
        ("Mode", string("ordered")),
        ("AckTimeout", string("30s")),
        ("MaxUnacked", Kind::NumberValue(7.0)),
        ("Peek", Kind::BoolValue(true)),
        ("End", string("tail")),
        ("DumpLoader", string("of another version")),
    ])
    .unwrap();
    assert_eq!(unknown, ["DumpLoader"]);
    assert!(options.table_regex.unwrap().is_match("orders"));
    assert!(options.operations.contains(0) && !options.operations.contains(1));
    assert_eq!(options.batch_size, BATCH_SIZE_MAX);
    assert_eq!(options.credits, Some(10));
    assert_eq!(options.ack_timeout, Some(Duration::from_secs(30)));
    assert_eq!(options.end, Some(EndAt::Tail));
}

#[test]
fn bad_values_name_the_parameter_and_what_is_expected() {
    for (name, value, expected) in [
        ("TableRegex", string("(oops"), "unclosed group"),
        ("TableRegex", Kind::NumberValue(1.0), "expected a text"),
        ("Tables", list(&[""]), "schema.table"),
        ("Operations", list(&["MERGE"]), "MERGE"),
        ("Operations", list(&[]), "empty"),
        ("Start", string("yesterday"), "earliest"),
        ("Start", string("-10x"), "duration"),
        ("Boundaries", string("yes"), "true or false"),
        ("BatchSize", Kind::NumberValue(-1.0), "whole number"),
        ("Credits", Kind::NumberValue(1.5), "whole number"),
        ("Credits", Kind::NumberValue(f64::NAN), "whole number"),
        ("Mode", string("both"), "neither"),
        ("AckTimeout", string("soon"), "duration"),
        ("End", string("tail"), "Peek"),
    ] {
        let error = parse(&[(name, value)]).unwrap_err();
        assert_eq!(error.name, name);
        assert!(error.reason.contains(expected), "{error}");
    }
}

#[test]
fn start_positions_are_read_in_every_form() {
    assert_eq!(start("0/10"), Ok(StartAt::Lsn(Lsn(16))));
    assert_eq!(
        start("2000-01-01T00:00:01Z"),
        Ok(StartAt::Time(PgTime(1_000_000)))
    );
    assert_eq!(start("-10m"), Ok(StartAt::Ago(Duration::from_mins(10))));
}

#[test]
fn durations_are_read_with_their_units() {
    for (text, expected) in [
        ("0", Some(Duration::ZERO)),
        ("250us", Some(Duration::from_micros(250))),
        ("500ms", Some(Duration::from_millis(500))),
        ("1.5s", Some(Duration::from_millis(1_500))),
        ("1h30m", Some(Duration::from_mins(90))),
        ("", None),
        ("5", None),
        ("s", None),
        ("1e9d", None),
        ("99999999999999999999d", None),
    ] {
        assert_eq!(duration(text).ok(), expected, "{text}");
    }
}
