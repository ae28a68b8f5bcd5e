//! The wall clock, read by shells only: engine values take time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

use pgcapture_engine::lsn::PgTime;

/// Returns the present moment. A clock before 1970 counts as 1970.
pub(crate) fn now() -> PgTime {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    PgTime::from_unix_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// Returns the seconds since a moment of another machine's clock; 0 when that is ahead.
pub(crate) fn seconds_since(moment: PgTime) -> f64 {
    let micros = now().0.saturating_sub(moment.0).max(0);
    std::time::Duration::from_micros(micros.unsigned_abs()).as_secs_f64()
}
