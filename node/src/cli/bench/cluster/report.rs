//! What was found, as a table for people and as one JSON object.

use std::{io, time::Duration};

use serde::Serialize;

use super::trio::{NodeCost, Window};
use crate::cli::{
    Global,
    bench::{Format, output, output::View},
};

/// Aims, as the table shows them.
const IDLE_AIM: &str = "60 MiB, 1 %";
const TAKE_OVER_AIM: &str = "3 s";

/// The result. Parts that were not run are left out.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct ClusterReport {
    /// `cluster`.
    pub(super) benchmark: &'static str,
    /// Nodes.
    pub(super) nodes: u8,
    /// Processors that all of them share.
    pub(super) processors: usize,
    /// Version of the server.
    pub(super) server_version: String,
    /// Nodes that do nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) idle: Vec<Idle>,
    /// Many sources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sources: Option<Many>,
    /// Changes that are written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) load: Vec<Load>,
    /// Whether this was a debug build: the figures mean nothing then.
    pub(super) debug_build: bool,
}

/// Idle nodes with so many sources.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Idle {
    /// Sources.
    pub(super) sources: u32,
    /// What they cost.
    #[serde(flatten)]
    pub(super) window: Window,
}

/// Many sources.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Many {
    /// Sources.
    pub(super) sources: u32,
    /// Subscriptions with a cursor.
    pub(super) subscriptions: u32,
    /// Of these, with an idle session.
    pub(super) sessions: u32,
    /// Seconds until all sources were added and read.
    pub(super) add_seconds: f64,
    /// How long each `source add` took.
    pub(super) adds: Spans,
    /// Seconds until all subscriptions had acknowledged a change.
    pub(super) subscribe_seconds: f64,
    /// What the nodes cost afterwards.
    pub(super) idle: Window,
    /// Processor time of the own server meanwhile, in parts of one core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) server_cpu_percent: Option<f64>,
    /// The death of a node.
    pub(super) take_over: TakeOver,
}

/// The death of a node, until others read its slots.
#[derive(Clone, Debug, Serialize)]
pub(super) struct TakeOver {
    /// The node.
    pub(super) node: String,
    /// Whether it led the Raft group.
    pub(super) with_raft_leader: bool,
    /// Sources that it had.
    pub(super) sources: u32,
    /// When each was read again.
    pub(super) times: Spans,
}

/// Changes at one rate.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Load {
    /// Changes a second as ordered.
    pub(super) wanted_per_second: u32,
    /// Changes a second as written.
    pub(super) changes_per_second: f64,
    /// Entries that the Raft group agreed on.
    pub(super) proposals_per_second: f64,
    /// Seconds from the last commit to the last acknowledgement.
    pub(super) behind_seconds: f64,
    /// What the nodes cost.
    pub(super) nodes: Vec<NodeCost>,
}

/// Some times, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Spans {
    /// The shortest.
    pub(super) first_ms: f64,
    /// The middle one.
    pub(super) median_ms: f64,
    /// The longest.
    pub(super) last_ms: f64,
}

impl Spans {
    /// Zeros when there are none.
    pub(super) fn of(spans: &[Duration]) -> Self {
        let mut spans = spans.to_vec();
        spans.sort();
        let ms = |span: Option<&Duration>| span.map_or(0.0, |span| span.as_secs_f64() * 1e3);
        Self {
            first_ms: ms(spans.first()),
            median_ms: ms(spans.get(spans.len() / 2)),
            last_ms: ms(spans.last()),
        }
    }

    /// In words.
    pub(super) fn text(&self) -> String {
        let Self {
            first_ms,
            median_ms,
            last_ms,
        } = self;
        format!("first {first_ms:.0} ms, median {median_ms:.0} ms, last {last_ms:.0} ms")
    }
}

impl Idle {
    /// What idle nodes cost, in words.
    pub(super) fn text(window: &Window) -> String {
        format!(
            "{}; {:.2} proposals/s",
            costs(&window.nodes),
            window.proposals_per_second
        )
    }
}

impl TakeOver {
    /// In words.
    pub(super) fn text(&self) -> String {
        let (node, sources) = (&self.node, self.sources);
        format!(
            "{node} died, its {sources} sources are read again: {}",
            self.times.text()
        )
    }
}

impl Load {
    /// In words.
    pub(super) fn text(&self) -> String {
        format!(
            "{:.0} changes/s: {:.2} proposals/s; the consumer is done {:.2} s after the last commit",
            self.changes_per_second, self.proposals_per_second, self.behind_seconds
        )
    }
}

fn costs(nodes: &[NodeCost]) -> String {
    let texts = nodes
        .iter()
        .map(|it| format!("{} {:.1} MiB {:.2} %", it.node, it.rss_mib, it.cpu_percent));
    texts.collect::<Vec<_>>().join(", ")
}

/// A line of the table.
#[derive(Serialize)]
struct Line {
    figure: String,
    value: String,
    aim: &'static str,
}

impl View for Line {
    const COLUMNS: &'static [output::Column] =
        &[("FIGURE", false), ("VALUE", false), ("AIM", false)];

    fn cells(&self) -> Vec<String> {
        let aim = self.aim.to_owned();
        vec![self.figure.clone(), self.value.clone(), aim]
    }
}

fn line(figure: impl Into<String>, value: String, aim: &'static str) -> Line {
    let figure = figure.into();
    Line { figure, value, aim }
}

impl ClusterReport {
    /// Prints it.
    pub(super) fn print(&self, global: &Global) -> io::Result<()> {
        match global.output {
            Format::Table | Format::Wide => {
                output::talk(&format!(
                    "cluster, {} nodes, {} processors, PostgreSQL {}\n",
                    self.nodes, self.processors, self.server_version
                ));
                output::list(global, &self.lines())
            }
            Format::Json | Format::Ndjson | Format::Yaml | Format::Env => {
                output::value(global, self)
            }
        }
    }

    fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        for idle in &self.idle {
            let what = format!("idle, {} sources", idle.sources);
            lines.extend(window_lines(&what, &idle.window, IDLE_AIM));
        }
        if let Some(many) = &self.sources {
            lines.extend(many.lines());
        }
        for load in &self.load {
            let what = format!("{:.0} changes/s", load.changes_per_second);
            let proposals = format!("{:.2} proposals/s", load.proposals_per_second);
            lines.push(line(what, proposals, "flat"));
        }
        lines
    }
}

impl Many {
    fn lines(&self) -> Vec<Line> {
        let what = format!(
            "{} sources, {} subscriptions, {} sessions",
            self.sources, self.subscriptions, self.sessions
        );
        let mut lines = vec![
            line("source add, each", self.adds.text(), ""),
            line("  all", format!("{:.1} s", self.add_seconds), ""),
            line(
                "subscriptions",
                format!("{:.1} s", self.subscribe_seconds),
                "",
            ),
        ];
        lines.extend(window_lines(&what, &self.idle, ""));
        let kib = format!("{:.0} KiB", self.idle.state_bytes as f64 / 1024.0);
        lines.push(line("  agreed state", kib, ""));
        if let Some(cpu) = self.server_cpu_percent {
            lines.push(line("  PostgreSQL", format!("{cpu:.1} % of a core"), ""));
        }
        let what = format!("take-over of {}", self.take_over.sources);
        lines.push(line(what, self.take_over.times.text(), TAKE_OVER_AIM));
        lines
    }
}

fn window_lines(what: &str, window: &Window, aim: &'static str) -> Vec<Line> {
    let mut lines = vec![line(
        what,
        format!("{:.2} proposals/s", window.proposals_per_second),
        "",
    )];
    lines.extend(window.nodes.iter().map(|node| {
        let cost = format!(
            "{:.1} MiB, {:.2} % of a core",
            node.rss_mib, node.cpu_percent
        );
        line(format!("  {}", node.node), cost, aim)
    }));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window() -> Window {
        Window {
            nodes: vec![NodeCost {
                node: "n1".to_owned(),
                rss_mib: 40.0,
                cpu_percent: 0.5,
            }],
            proposals_per_second: 0.25,
            state_bytes: 2_048,
        }
    }

    #[test]
    fn times_have_a_first_a_middle_and_a_last_one() {
        let ms = Duration::from_millis;
        let spans = Spans::of(&[ms(9), ms(1), ms(4)]);
        assert_eq!(spans.text(), "first 1 ms, median 4 ms, last 9 ms");
        assert_eq!(Spans::of(&[]), Spans::default());
    }

    #[test]
    fn a_program_gets_one_object_with_the_parts_that_were_run() {
        let report = ClusterReport {
            benchmark: "cluster",
            nodes: 3,
            idle: vec![Idle {
                sources: 1,
                window: window(),
            }],
            ..ClusterReport::default()
        };
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["idle"][0]["sources"], 1);
        assert_eq!(json["idle"][0]["nodes"][0]["rss_mib"], 40.0);
        assert!(json.get("sources").is_none() && json.get("load").is_none());
    }

    #[test]
    fn the_table_shows_every_part() {
        let report = ClusterReport {
            sources: Some(Many {
                sources: 3,
                subscriptions: 9,
                sessions: 4,
                add_seconds: 1.0,
                adds: Spans::default(),
                subscribe_seconds: 1.0,
                idle: window(),
                server_cpu_percent: Some(3.0),
                take_over: TakeOver {
                    node: "n1".to_owned(),
                    with_raft_leader: false,
                    sources: 1,
                    times: Spans::of(&[Duration::from_millis(7)]),
                },
            }),
            load: vec![Load {
                wanted_per_second: 1_000,
                changes_per_second: 998.0,
                proposals_per_second: 1.5,
                behind_seconds: 0.1,
                nodes: Vec::new(),
            }],
            ..ClusterReport::default()
        };
        let cells: Vec<String> = report
            .lines()
            .iter()
            .map(|line| line.cells().join("|"))
            .collect();
        assert!(
            cells.contains(&"  agreed state|2 KiB|".to_owned()),
            "{cells:?}"
        );
        assert!(
            cells.contains(&"take-over of 1|first 7 ms, median 7 ms, last 7 ms|3 s".to_owned())
        );
        assert!(cells.contains(&"998 changes/s|1.50 proposals/s|flat".to_owned()));
    }
}
