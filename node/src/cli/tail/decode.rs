//! PostgreSQL's binary values as JSON, for people who look into a stream.
//!
//! Knows the common types and arrays of them. A value that it does not know is shown as text when
//! it is text (enums are), else as `\x…`. Never fails: a value that does not have the form of its
//! type is shown in hexadecimal.

use pgcapture_engine::lsn::PgTime;
use pgcapture_proto::pgcapture::{Field, field};
use serde_json::{Number, Value};

/// Days from 1970-01-01 to 2000-01-01.
const UNIX_TO_POSTGRES_DAYS: i64 = 10_957;

/// The deepest array that PostgreSQL makes.
const DIMENSIONS_MAX: usize = 6;

/// Returns a column's value.
pub(super) fn value(field: &Field) -> Value {
    match &field.value {
        None => Value::Null,
        Some(field::Value::Text(text)) => Value::String(text.clone()),
        Some(field::Value::Binary(bytes)) => binary(field.oid, bytes),
    }
}

fn binary(oid: u32, bytes: &[u8]) -> Value {
    known(oid, bytes).unwrap_or_else(|| unknown(bytes))
}

fn known(oid: u32, bytes: &[u8]) -> Option<Value> {
    Some(match oid {
        16 => Value::Bool(*bytes.first()? != 0),
        17 => Value::String(hex(bytes)),
        21 => i16::from_be_bytes(bytes.try_into().ok()?).into(),
        23 => i32::from_be_bytes(bytes.try_into().ok()?).into(),
        20 => i64::from_be_bytes(bytes.try_into().ok()?).into(),
        26 => u32::from_be_bytes(bytes.try_into().ok()?).into(),
        700 => float(
            f64::from(f32::from_be_bytes(bytes.try_into().ok()?)),
            || f32::from_be_bytes(bytes.try_into().unwrap_or_default()).to_string(),
        ),
        701 => {
            let number = f64::from_be_bytes(bytes.try_into().ok()?);
            float(number, || number.to_string())
        }
        18 | 19 | 25 | 142 | 1042 | 1043 => Value::String(text(bytes)?),
        114 => json(bytes)?,
        3802 => match bytes.split_first()? {
            (1, json_bytes) => json(json_bytes)?,
            _ => return None,
        },
        1082 => date(i32::from_be_bytes(bytes.try_into().ok()?))?,
        1083 => time(i64::from_be_bytes(bytes.try_into().ok()?))?,
        1114 => timestamp(i64::from_be_bytes(bytes.try_into().ok()?), false)?,
        1184 => timestamp(i64::from_be_bytes(bytes.try_into().ok()?), true)?,
        1700 => Value::String(numeric(bytes)?),
        2950 => Value::String(uuid(bytes)?),
        199
        | 1000..=1009
        | 1014..=1016
        | 1021
        | 1022
        | 1028
        | 1115
        | 1182
        | 1183
        | 1185
        | 1231
        | 2951
        | 3807 => array(bytes)?,
        _ => return None,
    })
}

fn unknown(bytes: &[u8]) -> Value {
    let readable = text(bytes).filter(|text| !text.chars().any(char::is_control));
    Value::String(readable.unwrap_or_else(|| hex(bytes)))
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

/// JSON keeps what it can; a document too large or deep for the parser stays text.
fn json(bytes: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(bytes).ok()?;
    Some(serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())))
}

/// JSON has no infinity and no NaN: those become text. `shown` is the shortest exact form.
fn float(number: f64, shown: impl Fn() -> String) -> Value {
    let exact = shown().parse().unwrap_or(number);
    Number::from_f64(exact).map_or_else(|| Value::String(shown()), Value::Number)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    format!("\\x{}", digits.collect::<String>())
}

fn uuid(bytes: &[u8]) -> Option<String> {
    let number = u128::from_be_bytes(bytes.try_into().ok()?);
    let text = format!("{number:032x}");
    let part = |from, to| text.get(from..to);
    Some(format!(
        "{}-{}-{}-{}-{}",
        part(0, 8)?,
        part(8, 12)?,
        part(12, 16)?,
        part(16, 20)?,
        part(20, 32)?
    ))
}

fn date(days: i32) -> Option<Value> {
    let text = match days {
        i32::MAX => "infinity".to_owned(),
        i32::MIN => "-infinity".to_owned(),
        days => {
            let days = i64::from(days) + UNIX_TO_POSTGRES_DAYS;
            let moment = jiff::Timestamp::from_second(days.checked_mul(86_400)?).ok()?;
            moment.to_string().split_once('T')?.0.to_owned()
        }
    };
    Some(Value::String(text))
}

fn time(micros: i64) -> Option<Value> {
    let moment = jiff::Timestamp::from_microsecond(micros).ok()?.to_string();
    let time = moment.split_once('T')?.1.trim_end_matches('Z').to_owned();
    Some(Value::String(time))
}

fn timestamp(micros: i64, has_zone: bool) -> Option<Value> {
    let text = match micros {
        i64::MAX => "infinity".to_owned(),
        i64::MIN => "-infinity".to_owned(),
        micros => {
            let moment = jiff::Timestamp::from_microsecond(PgTime(micros).unix_micros());
            let text = moment.ok()?.to_string();
            if has_zone {
                text
            } else {
                text.trim_end_matches('Z').to_owned()
            }
        }
    };
    Some(Value::String(text))
}

/// `ndigits, weight, sign, dscale`, then digits of base 10,000.
fn numeric(bytes: &[u8]) -> Option<String> {
    let mut words = bytes
        .chunks_exact(2)
        .map(|pair| i16::from_be_bytes(pair.try_into().unwrap_or_default()));
    let (count, weight, sign, scale) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let digits: Vec<i16> = words.collect();
    if digits.len() != usize::try_from(count).ok()?
        || !digits.iter().all(|digit| (0..10_000).contains(digit))
    {
        return None;
    }
    let sign = match sign.cast_unsigned() {
        0x0000 => "",
        0x4000 => "-",
        0xC000 => return Some("NaN".to_owned()),
        0xD000 => return Some("Infinity".to_owned()),
        0xF000 => return Some("-Infinity".to_owned()),
        _ => return None,
    };
    let digit = |at: i32| {
        let digit = usize::try_from(at).ok().and_then(|at| digits.get(at));
        digit.copied().unwrap_or(0)
    };
    let weight = i32::from(weight);
    let mut whole: String = (0..=weight).map(|at| format!("{:04}", digit(at))).collect();
    whole.drain(..whole.len() - whole.trim_start_matches('0').len());
    if whole.is_empty() {
        whole.push('0');
    }
    let scale = usize::try_from(scale).ok()?;
    if scale == 0 {
        return Some(format!("{sign}{whole}"));
    }
    let groups = i32::try_from(scale.div_ceil(4)).ok()?;
    let mut fraction: String = (weight + 1..=weight + groups)
        .map(|at| format!("{:04}", digit(at)))
        .collect();
    fraction.truncate(scale);
    Some(format!("{sign}{whole}.{fraction}"))
}

/// `ndim, flags, element OID`, then length and lower bound of each dimension, then the elements.
fn array(bytes: &[u8]) -> Option<Value> {
    let mut rest = bytes;
    let dimensions = usize::try_from(take_i32(&mut rest)?).ok()?;
    let _flags = take_i32(&mut rest)?;
    let oid = take_i32(&mut rest)?.cast_unsigned();
    if dimensions > DIMENSIONS_MAX {
        return None;
    }
    let mut lengths = Vec::with_capacity(dimensions);
    for _ in 0..dimensions {
        lengths.push(usize::try_from(take_i32(&mut rest)?).ok()?);
        let _lower_bound = take_i32(&mut rest)?;
    }
    if lengths.is_empty() {
        return rest.is_empty().then(|| Value::Array(Vec::new()));
    }
    let value = array_level(&mut rest, oid, &lengths)?;
    rest.is_empty().then_some(value)
}

fn array_level(rest: &mut &[u8], oid: u32, lengths: &[usize]) -> Option<Value> {
    let (length, inner) = lengths.split_first()?;
    // Each element takes four bytes at least: a damaged length ends here.
    if *length > rest.len() {
        return None;
    }
    let mut items = Vec::with_capacity(*length);
    for _ in 0..*length {
        if !inner.is_empty() {
            items.push(array_level(rest, oid, inner)?);
            continue;
        }
        match usize::try_from(take_i32(rest)?) {
            Err(_) => items.push(Value::Null),
            Ok(length) => {
                let (element, after) = rest.split_at_checked(length)?;
                *rest = after;
                items.push(binary(oid, element));
            }
        }
    }
    Some(Value::Array(items))
}

fn take_i32(rest: &mut &[u8]) -> Option<i32> {
    let (head, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(i32::from_be_bytes(*head))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(words: &[i16]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    #[test]
    fn common_types_are_readable() {
        for (oid, bytes, wanted) in [
            (16, vec![1], json!(true)),
            (17, vec![0xDE, 0xAD], json!("\\xdead")),
            (21, vec![0xFF, 0xFE], json!(-2)),
            (23, vec![0, 0, 1, 0], json!(256)),
            (20, vec![0, 0, 0, 0, 0, 0, 0, 7], json!(7)),
            (700, 0.1_f32.to_be_bytes().to_vec(), json!(0.1)),
            (701, f64::NAN.to_be_bytes().to_vec(), json!("NaN")),
            (25, b"caf\xc3\xa9".to_vec(), json!("café")),
            (114, b"{\"b\":1,\"a\":2}".to_vec(), json!({"b": 1, "a": 2})),
            (3802, b"\x01[1]".to_vec(), json!([1])),
            (1082, 0_i32.to_be_bytes().to_vec(), json!("2000-01-01")),
            (1082, (-1_i32).to_be_bytes().to_vec(), json!("1999-12-31")),
            (1082, i32::MAX.to_be_bytes().to_vec(), json!("infinity")),
            (
                1114,
                1_500_000_i64.to_be_bytes().to_vec(),
                json!("2000-01-01T00:00:01.5"),
            ),
            (
                1184,
                0_i64.to_be_bytes().to_vec(),
                json!("2000-01-01T00:00:00Z"),
            ),
            (
                2950,
                (0..16).collect(),
                json!("00010203-0405-0607-0809-0a0b0c0d0e0f"),
            ),
            (99_999, b"shipped".to_vec(), json!("shipped")),
            (99_999, vec![0, 1], json!("\\x0001")),
        ] {
            assert_eq!(binary(oid, &bytes), wanted, "{oid}");
        }
    }

    #[test]
    fn numerics_keep_every_digit() {
        for (bytes, wanted) in [
            (words(&[2, 0, 0, 2, 912, 4_000]), "912.40"),
            (words(&[0, 0, 0, 2]), "0.00"),
            (words(&[1, -1, 0x4000, 4, 5]), "-0.0005"),
            (words(&[1, 1, 0, 0, 1]), "10000"),
            (words(&[1, -2, 0, 8, 7]), "0.00000007"),
            (words(&[0, 0, 0xC000_u16.cast_signed(), 0]), "NaN"),
        ] {
            assert_eq!(numeric(&bytes).as_deref(), Some(wanted));
        }
    }

    #[test]
    fn arrays_nest_and_hold_nulls() {
        let mut bytes = Vec::new();
        for word in [1_i32, 1, 23, 2, 1, 4, 5, -1] {
            bytes.extend(word.to_be_bytes());
        }
        assert_eq!(binary(1007, &bytes), json!([5, null]));
        let mut bytes = Vec::new();
        for word in [2_i32, 0, 23, 1, 1, 2, 1, 4, 5, 4, 6] {
            bytes.extend(word.to_be_bytes());
        }
        assert_eq!(binary(1007, &bytes), json!([[5, 6]]));
        let empty: Vec<u8> = [0_i32, 0, 25]
            .iter()
            .flat_map(|w| w.to_be_bytes())
            .collect();
        assert_eq!(binary(1009, &empty), json!([]));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(oid in 0_u32..4_000, bytes in proptest::collection::vec(0_u8..=255, 0..64)) {
            binary(oid, &bytes);
        }
    }
}
