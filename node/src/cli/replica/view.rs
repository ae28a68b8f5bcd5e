//! A replica as it is shown.

use std::time::Duration;

use pgcapture_proto::admin::v1::{Replica, Trouble};
use serde::Serialize;

use crate::{
    cli::{
        output::{Column, View},
        source::{TroubleView, trouble_text},
        watch::{Awaited, Until},
    },
    units::{human_bytes, human_duration},
};

/// A replica counts as caught up below this lag.
const CAUGHT_UP_SECONDS: f64 = 1.0;

/// A replica.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ReplicaView {
    pub(super) name: String,
    source: String,
    kind: String,
    state: String,
    url: String,
    lag_seconds: f64,
    running_ranges: u32,
    max_ranges: u32,
    max_lag_seconds: f64,
    bytes_per_second: Option<u64>,
    trouble: Option<TroubleView>,
    #[serde(skip)]
    told: Option<Trouble>,
}

impl From<Replica> for ReplicaView {
    fn from(replica: Replica) -> Self {
        let definition = replica.definition.unwrap_or_default();
        let seconds = |micros: i64| Duration::from_micros(micros.unsigned_abs()).as_secs_f64();
        Self {
            name: definition.name,
            source: definition.source,
            kind: definition.kind,
            state: replica.state,
            url: definition.url,
            lag_seconds: seconds(replica.lag_micros),
            running_ranges: replica.running_ranges,
            max_ranges: definition.max_ranges,
            max_lag_seconds: seconds(definition.max_lag_micros),
            bytes_per_second: definition.bytes_per_second,
            trouble: replica.trouble.clone().map(TroubleView::from),
            told: replica.trouble,
        }
    }
}

impl View for ReplicaView {
    const COLUMNS: &'static [Column] = &[
        ("REPLICA", false),
        ("SOURCE", false),
        ("KIND", false),
        ("STATE", false),
        ("BEHIND", false),
        ("RANGES", false),
        ("RATE", false),
        ("MAX LAG", true),
        ("URL", true),
    ];

    fn cells(&self) -> Vec<String> {
        let span = |seconds| human_duration(Duration::from_secs_f64(seconds));
        vec![
            self.name.clone(),
            self.source.clone(),
            self.kind.clone(),
            match self.state.as_str() {
                "behind" | "busy" | "unusable" => format!("! {}", self.state),
                state => state.to_owned(),
            },
            span(self.lag_seconds),
            format!("{}/{}", self.running_ranges, self.max_ranges),
            self.bytes_per_second.map_or_else(
                || "-".to_owned(),
                |bytes| format!("{}/s", human_bytes(bytes)),
            ),
            span(self.max_lag_seconds),
            self.url.clone(),
        ]
    }

    fn hint(&self) -> Option<String> {
        trouble_text(&self.name, self.told.as_ref())
    }
}

impl Awaited for ReplicaView {
    fn reaches(&self, until: Until) -> bool {
        let is_usable = self.state == "ready";
        match until {
            Until::Healthy => is_usable,
            Until::CaughtUp => is_usable && self.lag_seconds <= CAUGHT_UP_SECONDS,
            Until::Done => self.running_ranges == 0,
        }
    }
}
