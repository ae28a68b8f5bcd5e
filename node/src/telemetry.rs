//! Logs of the process: text on a terminal, JSON elsewhere, always to stderr.
//!
//! stdout belongs to data. `PGCAPTURE_LOG` filters as `tracing` does: `info,pgcapture_actors=debug`.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

/// Environment variable of the filter.
const FILTER_VARIABLE: &str = "PGCAPTURE_LOG";

/// Starts logging; `default` is the filter when the environment names none. The second call does
/// nothing.
pub fn start(default: &str, is_plain: bool) {
    let filter = std::env::var(FILTER_VARIABLE)
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .with_span_events(FmtSpan::NONE);
    let is_terminal = io::stderr().is_terminal();
    let started = if is_terminal {
        builder.with_ansi(!is_plain).compact().try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
    // An error means that logging runs already, which is what was asked for.
    drop(started);
}
