//! A source and its slot as they are shown.

use std::time::Duration;

use pgcapture_engine::{codes::source, lsn::Lsn};
use pgcapture_proto::admin::v1::{Failover, Source, SourceStatus, Trouble, WalOutlook};
use serde::Serialize;

use crate::{
    cli::{
        output::{Column, View, joined},
        watch::{Awaited, Until},
    },
    sources::unix_now_micros,
    units::{human_bytes, human_duration},
};

/// A source counts as caught up below this lag: an idle PostgreSQL still writes some WAL.
const CAUGHT_UP_BYTES: u64 = 64 * 1024;

/// A source.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SourceView {
    pub(crate) name: String,
    stream: String,
    state: String,
    url: String,
    pub(crate) slot: String,
    publication: String,
    tables: Vec<String>,
    exclude: Vec<String>,
    paused: bool,
    pub(crate) epoch: u64,
    pub(crate) owner: String,
    pub(crate) last_failover: Option<FailoverView>,
    received_lsn: String,
    durable_lsn: String,
    confirmed_lsn: String,
    server_end_lsn: String,
    lag_bytes: u64,
    lag_seconds: f64,
    wal_retained_bytes: u64,
    wal_budget: Option<WalBudgetView>,
    source_temp_bytes_max: u64,
    rows: u64,
    transactions: u64,
    rebuilds: u64,
    trouble: Option<TroubleView>,
    gaps: Vec<GapView>,
    replicas: Vec<String>,
    #[serde(skip)]
    status: SourceStatus,
}

/// How kept WAL stands to its limit.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct WalBudgetView {
    level: String,
    limit_bytes: u64,
    seconds_to_limit: Option<u64>,
    alert_percent: u32,
    policy: String,
}

impl From<WalOutlook> for WalBudgetView {
    fn from(outlook: WalOutlook) -> Self {
        Self {
            level: outlook.level,
            limit_bytes: outlook.limit_bytes,
            seconds_to_limit: outlook.seconds_to_limit,
            alert_percent: outlook.alert_percent,
            policy: outlook.policy,
        }
    }
}

/// Returns the limit of kept WAL for people: how much, what happens there, and when.
fn budget_text(budget: Option<&WalBudgetView>) -> String {
    let Some(budget) = budget.filter(|budget| budget.limit_bytes > 0) else {
        return "–".to_owned();
    };
    let limit = format!("{} ({})", human_bytes(budget.limit_bytes), budget.policy);
    match (budget.level.as_str(), budget.seconds_to_limit) {
        ("reached", _) => format!("! {limit}, reached"),
        (_, Some(seconds)) => {
            let left = human_duration(Duration::from_secs(seconds));
            format!("{limit}, in {left}")
        }
        (_, None) => limit,
    }
}

/// Returns the lines that warn of kept WAL; `None` while it is within its limit.
fn budget_warning(name: &str, kept: u64, budget: Option<&WalBudgetView>) -> Option<String> {
    let budget = budget.filter(|budget| matches!(budget.level.as_str(), "warning" | "reached"))?;
    let code = source::WAL_GUARD.code;
    let next = source::WAL_GUARD.next.replace(source::NAME, name);
    let (kept, limit) = (human_bytes(kept), budget_text(Some(budget)));
    Some(format!(
        "! {name}: {code} PostgreSQL keeps {kept} of WAL for the slot; the limit is {}\n  next: {next}",
        limit.trim_start_matches("! ")
    ))
}

/// What is wrong and what to do.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TroubleView {
    pub(crate) code: String,
    pub(crate) text: String,
    pub(crate) next: String,
}

impl From<Trouble> for TroubleView {
    fn from(trouble: Trouble) -> Self {
        let Trouble { code, text, next } = trouble;
        Self { code, text, next }
    }
}

/// The last time that another node took the source over.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FailoverView {
    /// Microseconds since 1970.
    at: i64,
    from: String,
    to: String,
    took_seconds: f64,
}

impl From<Failover> for FailoverView {
    fn from(failover: Failover) -> Self {
        let took = Duration::from_micros(failover.took_micros.unsigned_abs());
        Self {
            at: failover.at,
            from: failover.from,
            to: failover.to,
            took_seconds: took.as_secs_f64(),
        }
    }
}

/// Returns the last take-over for people.
pub(crate) fn failover_text(failover: Option<&FailoverView>, now_micros: i64) -> String {
    let Some(failover) = failover else {
        return "–".to_owned();
    };
    let ago = now_micros.saturating_sub(failover.at).max(0);
    let ago = Duration::from_micros(ago.unsigned_abs());
    let took = human_duration(Duration::from_secs_f64(failover.took_seconds));
    format!(
        "{} ago, {took} (from {})",
        human_duration(ago),
        failover.from
    )
}

#[derive(Clone, Debug, Serialize)]
struct GapView {
    from_lsn: String,
    to_lsn: Option<String>,
    reason: String,
}

impl From<Source> for SourceView {
    fn from(source: Source) -> Self {
        let definition = source.definition.unwrap_or_default();
        let status = source.status.unwrap_or_default();
        let lsn = |lsn| Lsn(lsn).to_string();
        Self {
            name: definition.name,
            stream: definition.stream,
            state: status.state.clone(),
            url: definition.url,
            slot: definition.slot,
            publication: definition.publication,
            tables: definition.tables,
            exclude: definition.exclude,
            paused: source.paused,
            epoch: source.epoch,
            owner: source.owner,
            last_failover: source.last_failover.map(FailoverView::from),
            received_lsn: lsn(status.received_lsn),
            durable_lsn: lsn(status.durable_lsn),
            confirmed_lsn: lsn(status.confirmed_lsn),
            server_end_lsn: lsn(status.server_end_lsn),
            lag_bytes: status.lag_bytes,
            lag_seconds: Duration::from_micros(status.lag_micros.unsigned_abs()).as_secs_f64(),
            wal_retained_bytes: status.wal_retained_bytes,
            wal_budget: status.wal.clone().map(WalBudgetView::from),
            source_temp_bytes_max: status.source_temp_bytes_max,
            rows: status.row_count,
            transactions: status.transaction_count,
            rebuilds: status.rebuild_count,
            trouble: status.trouble.clone().map(TroubleView::from),
            gaps: source
                .gaps
                .into_iter()
                .map(|gap| GapView {
                    from_lsn: lsn(gap.from_lsn),
                    to_lsn: (gap.to_lsn != 0).then(|| lsn(gap.to_lsn)),
                    reason: gap.reason,
                })
                .collect(),
            replicas: source.replicas,
            status,
        }
    }
}

impl View for SourceView {
    const COLUMNS: &'static [Column] = &[
        ("SOURCE", false),
        ("STREAM", false),
        ("OWNER", false),
        ("STATE", false),
        ("LAG", false),
        ("BEHIND", false),
        ("WAL KEPT", false),
        ("ROWS", false),
        ("SLOT", true),
        ("PUBLICATION", true),
        ("TABLES", true),
        ("EPOCH", true),
        ("DURABLE", true),
        ("CONFIRMED", true),
        ("REBUILDS", true),
        ("URL", true),
        ("REPLICAS", true),
        ("LAST FAILOVER", true),
        ("WAL BUDGET", true),
    ];

    fn cells(&self) -> Vec<String> {
        let (lag, behind) = lag_text(&self.status);
        vec![
            self.name.clone(),
            self.stream.clone(),
            owner_text(&self.owner),
            mark(&self.state),
            lag,
            behind,
            human_bytes(self.wal_retained_bytes),
            self.rows.to_string(),
            self.slot.clone(),
            self.publication.clone(),
            self.tables.join(","),
            self.epoch.to_string(),
            self.durable_lsn.clone(),
            self.confirmed_lsn.clone(),
            self.rebuilds.to_string(),
            self.url.clone(),
            joined(&self.replicas),
            failover_text(self.last_failover.as_ref(), unix_now_micros()),
            budget_text(self.wal_budget.as_ref()),
        ]
    }

    fn hint(&self) -> Option<String> {
        let budget = self.wal_budget.as_ref();
        let lines = [
            trouble_text(&self.name, self.status.trouble.as_ref()),
            budget_warning(&self.name, self.wal_retained_bytes, budget),
        ];
        let lines: Vec<_> = lines.into_iter().flatten().collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}

impl Awaited for SourceView {
    fn reaches(&self, until: Until) -> bool {
        let is_reading = matches!(self.state.as_str(), "following" | "catching_up");
        match until {
            Until::Healthy => is_reading,
            Until::CaughtUp | Until::Done => is_reading && self.lag_bytes <= CAUGHT_UP_BYTES,
        }
    }
}

/// Returns who owns it.
pub(crate) fn owner_text(owner: &str) -> String {
    if owner.is_empty() { "–" } else { owner }.to_owned()
}

/// Marks a state that needs attention.
pub(crate) fn mark(state: &str) -> String {
    match state {
        "blocked" | "halted" | "retrying" | "unreachable" => format!("! {state}"),
        _ => state.to_owned(),
    }
}

/// Returns lag in bytes and time for people.
pub(crate) fn lag_text(status: &SourceStatus) -> (String, String) {
    if status.server_end_lsn == 0 {
        return ("–".to_owned(), "–".to_owned());
    }
    let behind = Duration::from_micros(status.lag_micros.unsigned_abs());
    (human_bytes(status.lag_bytes), human_duration(behind))
}

/// Returns the lines under a table that say what is wrong and what to do.
pub(crate) fn trouble_text(name: &str, trouble: Option<&Trouble>) -> Option<String> {
    let trouble = trouble?;
    Some(format!(
        "! {name}: {} {}\n  next: {}",
        trouble.code, trouble.text, trouble.next
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_wal_is_shown_with_its_limit_and_warned_of_in_time() {
        let budget = |level: &str, seconds| WalBudgetView {
            level: level.to_owned(),
            limit_bytes: 20 << 30,
            seconds_to_limit: seconds,
            alert_percent: 50,
            policy: "alert".to_owned(),
        };
        let within = budget("within", None);
        assert_eq!(budget_text(Some(&within)), "20 GiB (alert)");
        assert_eq!(budget_text(None), "–");
        assert_eq!(budget_warning("shop", 1, Some(&within)), None);
        let soon = budget("warning", Some(130));
        let told = budget_warning("shop", 12 << 30, Some(&soon)).unwrap();
        assert!(told.starts_with("! shop: PGC-S51 "), "{told}");
        assert!(told.contains("20 GiB (alert), in 2m10s"), "{told}");
        assert!(told.contains("next: "), "{told}");
        let reached = budget("reached", Some(0));
        assert!(budget_text(Some(&reached)).starts_with("! "));
    }

    #[test]
    fn a_failover_is_told_with_its_age_its_time_and_whence() {
        let view = FailoverView::from(Failover {
            at: 1_000_000,
            from: "n1".to_owned(),
            to: "n2".to_owned(),
            took_micros: 310_000,
        });
        let text = failover_text(Some(&view), 181_000_000);
        assert_eq!(text, "3m00s ago, 310ms (from n1)");
        assert_eq!(failover_text(None, 0), "–");
        // A clock that was set back.
        assert!(failover_text(Some(&view), 0).starts_with("0ms ago"));
    }
}
