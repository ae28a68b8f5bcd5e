//! The gateway's metrics, resolved once a subscription: counting costs an addition a batch.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use pgcapture_engine::{ledger::Applied, lsn::PgTime, splice::RowsSent};

use crate::{clock::now, cursors::SubscriptionId, dump::GivenUp};

/// The metrics of one subscription.
#[derive(Debug)]
pub(super) struct Meters {
    stream: String,
    consumer: String,
    delivered_events: Counter,
    delivered_bytes: Counter,
    acked_events: Counter,
    latency: Histogram,
    dump_rows: Counter,
    dump_bytes: Counter,
    dump_hold: Histogram,
    unacked: Gauge,
    lag_bytes: Gauge,
    lag_seconds: Gauge,
}

impl Meters {
    pub(super) fn new(id: &SubscriptionId) -> Self {
        let labels = || {
            [
                ("stream", id.stream.clone()),
                ("consumer", id.consumer.clone()),
            ]
        };
        Self {
            stream: id.stream.clone(),
            consumer: id.consumer.clone(),
            delivered_events: counter!("pgcapture_delivered_events_total", &labels()),
            delivered_bytes: counter!("pgcapture_delivered_bytes_total", &labels()),
            acked_events: counter!("pgcapture_acked_events_total", &labels()),
            latency: histogram!("pgcapture_event_latency_seconds", "stage" => "deliver"),
            dump_rows: counter!("pgcapture_dump_rows_delivered_total", &labels()),
            dump_bytes: counter!("pgcapture_dump_bytes_delivered_total", &labels()),
            dump_hold: histogram!("pgcapture_dump_hold_seconds"),
            unacked: gauge!("pgcapture_consumer_unacked_events", &labels()),
            lag_bytes: gauge!("pgcapture_consumer_lag_bytes", &labels()),
            lag_seconds: gauge!("pgcapture_consumer_lag_seconds", &labels()),
        }
    }

    /// Records messages that were handed to the transport, and how old the newest one is.
    pub(super) fn delivered(&self, events: usize, bytes: usize, commit_time: PgTime) {
        self.delivered_events.increment(events as u64);
        self.delivered_bytes.increment(bytes as u64);
        if commit_time != PgTime(0) {
            self.latency.record(age(commit_time).as_secs_f64());
        }
    }

    /// Records rows of a dump that were handed to the transport.
    pub(super) fn rows_delivered(&self, rows: RowsSent) {
        self.dump_rows.increment(rows.row_count);
        self.dump_bytes.increment(rows.bytes);
    }

    /// Records how long changes waited for a range.
    pub(super) fn held(&self, hold: Duration) {
        self.dump_hold.record(hold.as_secs_f64());
    }

    /// Records that a range was given up.
    pub(super) fn given_up(&self, reason: &GivenUp) {
        let reason = match reason {
            GivenUp::Disconnected => "disconnected",
            GivenUp::Requeued(_) => "requeued",
            GivenUp::Stalled => "stalled",
            GivenUp::TooOld => "too_old",
            GivenUp::Failed(_) => "failed",
        };
        let labels = [
            ("stream", self.stream.clone()),
            ("consumer", self.consumer.clone()),
            ("reason", reason.to_owned()),
        ];
        counter!("pgcapture_dump_ranges_given_up_total", &labels).increment(1);
    }

    pub(super) fn applied(&self, applied: &Applied) {
        self.acked_events.increment(applied.acked_count);
        if applied.requeued_count > 0 {
            self.redelivered("requeue", applied.requeued_count);
        }
    }

    /// Records messages that will be delivered again.
    pub(super) fn redelivered(&self, cause: &'static str, events: u64) {
        let labels = [
            ("stream", self.stream.clone()),
            ("consumer", self.consumer.clone()),
            ("cause", cause.to_owned()),
        ];
        counter!("pgcapture_redelivered_events_total", &labels).increment(events);
    }

    #[expect(clippy::cast_precision_loss, reason = "metrics are floating point")]
    pub(super) fn stand(&self, unacked: usize, lag_bytes: u64, lag: Duration) {
        self.unacked.set(unacked as f64);
        self.lag_bytes.set(lag_bytes as f64);
        self.lag_seconds.set(lag.as_secs_f64());
    }
}

/// Records how a stream opened: `ok` or the code of the error.
pub(super) fn opened(result: &'static str) {
    counter!("pgcapture_session_opens_total", "result" => result).increment(1);
}

/// Records how many sessions are served, and how many stand by for an ordered one.
#[expect(clippy::cast_precision_loss, reason = "metrics are floating point")]
pub(super) fn sessions(active: usize, standby: usize) {
    gauge!("pgcapture_sessions", "state" => "active").set(active as f64);
    gauge!("pgcapture_sessions", "state" => "standby").set(standby as f64);
}

fn age(commit_time: PgTime) -> Duration {
    let micros = now().0.saturating_sub(commit_time.0);
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}
