//! How long a caller waits: the header `grpc-timeout`, which tonic writes and does not show.

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// At most this many digits, by the protocol.
const DIGITS_MAX: usize = 8;

/// Returns how long the caller waits; `None` when it does not say.
pub(super) fn of(metadata: &MetadataMap) -> Option<Duration> {
    parse(metadata.get("grpc-timeout")?.to_str().ok()?)
}

fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let digits = text.strip_suffix(unit)?;
    if digits.len() > DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(number * 3_600)),
        'M' => Some(Duration::from_secs(number * 60)),
        'S' => Some(Duration::from_secs(number)),
        'm' => Some(Duration::from_millis(number)),
        'u' => Some(Duration::from_micros(number)),
        'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_of_the_protocol_is_read() {
        for (text, wanted) in [
            ("2H", Duration::from_secs(7_200)),
            ("3M", Duration::from_secs(180)),
            ("5S", Duration::from_secs(5)),
            ("250m", Duration::from_millis(250)),
            ("30000000u", Duration::from_secs(30)),
            ("99999999n", Duration::from_nanos(99_999_999)),
        ] {
            assert_eq!(parse(text), Some(wanted), "{text}");
        }
        for bad in ["", "S", "5", "-5S", "5s", "123456789S", "5 S", "äS"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_tonic_writes_is_read() {
        let mut request = tonic::Request::new(());
        request.set_timeout(Duration::from_secs(7));
        assert_eq!(of(request.metadata()), Some(Duration::from_secs(7)));
        assert_eq!(of(&MetadataMap::new()), None);
    }
}
