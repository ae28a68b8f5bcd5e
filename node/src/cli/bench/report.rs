//! What a measurement found, as a table for people and as one JSON object.

use std::{borrow::Cow, io};

use serde::Serialize;

use super::{Format, Global, histogram::Bucket, measure::Spread, output, output::View};

/// The result of a measurement. Fields that do not apply are left out. Spreads are for people: they
/// stand in the table only, so that a program finds one number a figure.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Report {
    /// Which measurement.
    pub(super) benchmark: &'static str,
    /// What was run.
    #[serde(flatten)]
    pub(super) what: What,
    /// Changes, messages or sessions a second, median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rate: Option<f64>,
    /// The same with its spread.
    #[serde(skip)]
    pub(super) rate_spread: Option<Spread>,
    /// What was measured beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) peer: Option<&'static str>,
    /// Its rate, median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) peer_rate: Option<f64>,
    /// The same with its spread.
    #[serde(skip)]
    pub(super) peer_rate_spread: Option<Spread>,
    /// Ours over the peer's of the same round, median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ratio: Option<f64>,
    /// The same with its spread.
    #[serde(skip)]
    pub(super) ratio_spread: Option<Spread>,
    /// Processor seconds of the node, all threads, for a million changes; median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu_seconds_per_million: Option<f64>,
    /// The same of the consumer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) consumer_cpu_seconds_per_million: Option<f64>,
    /// The same of the server that was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) server_cpu_seconds_per_million: Option<f64>,
    /// The same of the peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) peer_cpu_seconds_per_million: Option<f64>,
    /// The same of the server while the peer read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) peer_server_cpu_seconds_per_million: Option<f64>,
    /// Processors that node, consumer and server kept busy; beside a dump, the node alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) processors_busy: Option<f64>,
    /// Processors that peer and server kept busy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) peer_processors_busy: Option<f64>,
    /// Median latency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p50_ms: Option<f64>,
    /// Latency that 99 of 100 stay below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p99_ms: Option<f64>,
    /// The largest latency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_ms: Option<f64>,
    /// The latencies themselves, where they are few.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) histogram: Vec<Bucket>,
    /// What 99 of 100 stayed below without a dump.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p99_alone_ms: Option<f64>,
    /// Median latency without a dump.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p50_alone_ms: Option<f64>,
    /// Median latency beside a dump over without, of the same round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p50_ratio: Option<Spread>,
    /// Beside a dump over without, of the same round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p99_ratio: Option<Spread>,
    /// Without a dump over without a dump: what the machine alone does to the ratio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p99_noise: Option<Spread>,
    /// Changes that came more than once, as those that were not acknowledged do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) redelivered: Option<u64>,
    /// Resident memory of the node at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rss_mib: Option<f64>,
    /// Resident memory of the node before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rss_before_mib: Option<f64>,
    /// Whether this was a debug build: the figures mean nothing then.
    pub(super) debug_build: bool,
}

/// What was run. Fields that do not apply are left out.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct What {
    /// `follow`, `catch-up`, `end-to-end`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mode: Option<&'static str>,
    /// `single` or `batch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) delivery: Option<&'static str>,
    /// `generated` or `raw`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client: Option<&'static str>,
    /// `narrow` or `wide`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) table: Option<&'static str>,
    /// Changes of one run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rows: Option<u64>,
    /// Changes of one transaction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) transaction_rows: Option<u64>,
    /// Bytes of WAL of one run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) wal_bytes: Option<u64>,
    /// Bytes of log of one run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) log_bytes: Option<u64>,
    /// Transactions a second that were written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) written_rate: Option<f64>,
    /// Seconds that were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seconds: Option<u64>,
    /// Ranges that were read at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) workers: Option<u32>,
    /// Servers that were read; workers are processes then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) instances: Option<u32>,
    /// Rows were read no faster than so many MiB a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) limit_mib: Option<u64>,
    /// `standby` or `source`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<&'static str>,
    /// Whether the node that failed led the Raft group as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) with_raft_leader: Option<bool>,
    /// Sessions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sessions: Option<u64>,
    /// `tcp`, `unix` or `url`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) socket: Option<&'static str>,
    /// Version of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) server_version: Option<String>,
    /// Rounds.
    pub(super) runs: u32,
    /// Processors of this machine.
    pub(super) processors: usize,
}

impl What {
    /// What every measurement tells.
    pub(super) fn of_runs(runs: u32) -> Self {
        Self {
            runs,
            processors: super::processors(),
            ..Self::default()
        }
    }
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Line {
    what: Cow<'static, str>,
    median: String,
    spread: String,
}

impl View for Line {
    const COLUMNS: &'static [output::Column] =
        &[("FIGURE", false), ("MEDIAN", false), ("MIN..MAX", false)];

    fn cells(&self) -> Vec<String> {
        vec![
            self.what.clone().into_owned(),
            self.median.clone(),
            self.spread.clone(),
        ]
    }
}

impl Report {
    /// Fills in the rates of the rounds and their ratios.
    pub(super) fn with_rates(mut self, ours: &[f64], peer: &[f64]) -> Self {
        self.rate_spread = Spread::of(ours.iter().copied());
        self.rate = self.rate_spread.map(|spread| spread.median);
        self.peer_rate_spread = Spread::of(peer.iter().copied());
        self.peer_rate = self.peer_rate_spread.map(|spread| spread.median);
        let ratios = ours.iter().zip(peer).map(|(ours, peer)| ours / peer);
        self.ratio_spread = Spread::of(ratios);
        self.ratio = self.ratio_spread.map(|spread| spread.median);
        self
    }

    /// Prints the report.
    pub(super) fn print(&self, global: &Global) -> io::Result<()> {
        match global.output {
            Format::Table | Format::Wide => {
                output::talk(&format!("{}\n", self.headline()));
                output::list(global, &self.lines())
            }
            Format::Json | Format::Ndjson | Format::Yaml | Format::Env => {
                output::value(global, self)
            }
        }
    }

    fn headline(&self) -> String {
        let what = &self.what;
        let mut words = vec![self.benchmark.to_owned()];
        words.extend(what.mode.map(str::to_owned));
        words.extend(what.delivery.map(str::to_owned));
        words.extend(what.client.map(|client| format!("{client} client")));
        words.extend(what.table.map(|table| format!("{table} table")));
        words.extend(what.rows.map(|rows| format!("{rows} changes")));
        let rows = what.transaction_rows;
        words.extend(rows.map(|rows| format!("{rows} rows a transaction")));
        words.extend(
            what.wal_bytes
                .map(|bytes| format!("{} MiB of WAL", bytes >> 20)),
        );
        let bytes = what.log_bytes;
        words.extend(bytes.map(|bytes| format!("{} MiB of log", bytes >> 20)));
        words.extend(
            what.written_rate
                .map(|rate| format!("{rate:.0} transactions/s")),
        );
        words.extend(what.seconds.map(|seconds| format!("{seconds} s")));
        words.extend(what.workers.map(|count| format!("{count} workers")));
        words.extend(what.instances.map(|count| format!("{count} servers")));
        let limit = what.limit_mib;
        words.extend(limit.map(|mib| format!("at most {mib} MiB/s")));
        words.extend(what.from.map(|from| format!("from the {from}")));
        let leader = what.with_raft_leader.filter(|leads| *leads);
        words.extend(leader.map(|_| "the Raft leader as well".to_owned()));
        words.extend(what.sessions.map(|count| format!("{count} sessions")));
        words.extend(what.socket.map(|socket| format!("socket {socket}")));
        let version = what.server_version.as_ref();
        words.extend(version.map(|version| format!("PostgreSQL {version}")));
        words.push(format!(
            "{} runs, {} processors",
            what.runs, what.processors
        ));
        words.join(", ")
    }

    fn lines(&self) -> Vec<Line> {
        let of_spread = |what: &'static str, spread: Option<Spread>, digits: usize| {
            spread.map(|spread| Line {
                what: what.into(),
                median: format!("{:.digits$}", spread.median),
                spread: format!("{:.digits$}..{:.digits$}", spread.min, spread.max),
            })
        };
        let of_value = |what: &'static str, value: Option<f64>| {
            value.map(|value| Line {
                what: what.into(),
                median: format!("{value:.2}"),
                spread: String::new(),
            })
        };
        let peer = self.peer.unwrap_or("peer");
        let lines = [
            of_spread("ours, per second", self.rate_spread, 0),
            of_spread(peer, self.peer_rate_spread, 0),
            of_spread("ratio", self.ratio_spread, 2),
            of_value("CPU s per 1 M, ours", self.cpu_seconds_per_million),
            of_value("  consumer", self.consumer_cpu_seconds_per_million),
            of_value("  server", self.server_cpu_seconds_per_million),
            of_value("CPU s per 1 M, peer", self.peer_cpu_seconds_per_million),
            of_value("  its server", self.peer_server_cpu_seconds_per_million),
            of_value("processors busy, ours", self.processors_busy),
            of_value("processors busy, peer", self.peer_processors_busy),
            of_value("latency p50 ms", self.p50_ms),
            of_value("latency p99 ms", self.p99_ms),
            of_value("latency max ms", self.max_ms),
            of_value("latency p50 ms alone", self.p50_alone_ms),
            of_value("latency p99 ms alone", self.p99_alone_ms),
            of_spread("p50 ratio", self.p50_ratio, 2),
            of_spread("p99 ratio", self.p99_ratio, 2),
            of_spread("p99 ratio of nothing", self.p99_noise, 2),
            of_value("redelivered", self.redelivered.map(|count| count as f64)),
            of_value("RSS MiB before", self.rss_before_mib),
            of_value("RSS MiB", self.rss_mib),
        ];
        let highest = self.histogram.iter().map(|bucket| bucket.count).max();
        let buckets = self.histogram.iter().map(|bucket| Line {
            what: bucket.bounds().into(),
            median: bucket.count.to_string(),
            spread: bucket.bar(highest.unwrap_or_default()),
        });
        lines.into_iter().flatten().chain(buckets).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_of_rounds_and_what_does_not_apply_is_left_out() {
        let report = Report::default().with_rates(&[2.0, 9.0, 8.0], &[1.0, 3.0, 2.0]);
        assert_eq!(report.ratio, Some(3.0));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["peer_rate"], 2.0);
        assert!(json.get("p50_ms").is_none());
    }

    #[test]
    fn a_program_finds_the_figures_and_what_was_run_and_nothing_else() {
        let one = Some(1.0);
        let report = Report {
            peer: Some("peer"),
            cpu_seconds_per_million: one,
            peer_cpu_seconds_per_million: one,
            p50_ms: one,
            p99_ms: one,
            rss_mib: one,
            what: What {
                rows: Some(1),
                transaction_rows: Some(1),
                server_version: Some("15".to_owned()),
                ..What::of_runs(1)
            },
            ..Report::default()
        };
        let json = serde_json::to_value(report.with_rates(&[2.0], &[1.0])).unwrap();
        let names: Vec<&str> = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let (figures, run) = names.split_at(names.len() - 1);
        assert_eq!(run, ["debug_build"]);
        let expected = [
            "benchmark",
            "rows",
            "transaction_rows",
            "server_version",
            "runs",
            "processors",
            "rate",
            "peer",
            "peer_rate",
            "ratio",
            "cpu_seconds_per_million",
            "peer_cpu_seconds_per_million",
            "p50_ms",
            "p99_ms",
            "rss_mib",
        ];
        assert_eq!(figures, expected);
    }
}
