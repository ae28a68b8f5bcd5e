//! Relations between values: each may be fine alone and wrong beside another.

use std::time::Duration;

use pgcapture_engine::{
    cluster::{DEFAULT_RANGES_MAX, RANGES_MAX_LIMIT, ReplicaKind, check_name},
    codes::{self, Explanation},
};

use super::{Config, Problem, reader::Reader};
use crate::units::{Size, Span};

/// The smallest segment: below, the header and the index of a file weigh more than its rows.
const SEGMENT_MIN: Size = Size(64 * 1024);

/// Heartbeats below cost more than they tell.
const HEARTBEAT_MIN: Duration = Duration::from_millis(10);

/// Lost heartbeats that must not look like a lost leader.
const HEARTBEATS_MIN: u32 = 3;

/// The largest gRPC message, so the largest row: the protocol ends at 2 GiB, PostgreSQL's rows at 1.
const ROW_MAX: Size = Size(1 << 30);

/// Reports what cannot work.
pub(super) fn relations(config: &Config, reader: &mut Reader) {
    let mut checker = Checker { reader };
    checker.agent(config);
    checker.log(config);
    checker.limits(config);
    checker.node(config);
    checker.raft(config);
    checker.sources(config);
    checker.replicas(config);
}

struct Checker<'a> {
    reader: &'a mut Reader,
}

impl Checker<'_> {
    fn require(&mut self, holds: bool, path: &str, label: String, help: String) {
        self.report(holds, &codes::config::RELATION, path, (label, help));
    }

    fn report(
        &mut self,
        holds: bool,
        code: &'static Explanation,
        path: &str,
        (label, help): (String, String),
    ) {
        if !holds {
            let title = format!("{path}: {}", code.title);
            let problem = Problem::new(code, title).label(label).help(help);
            let origin = self.reader.origin(path);
            self.reader.problems.push(problem.at(origin));
        }
    }

    fn agent(&mut self, config: &Config) {
        let agent = &config.agent;
        let (above, below) = (agent.catch_up_above, agent.follow_below);
        self.require(
            below < above,
            "agent.follow_below",
            format!("must be below agent.catch_up_above ({above})"),
            format!(
                "use \"{}\": with no distance the agent would switch back and forth",
                Size(above.0 / 8)
            ),
        );
        self.require(
            agent.catch_up_chunk.0 > 0,
            "agent.catch_up_chunk",
            "must be more than nothing".to_owned(),
            "use \"128MiB\"".to_owned(),
        );
    }

    fn log(&mut self, config: &Config) {
        let (log, row) = (&config.log, config.limits.max_row);
        self.require(
            log.segment >= SEGMENT_MIN,
            "log.segment",
            format!("must be at least {SEGMENT_MIN}"),
            "use \"64MiB\"".to_owned(),
        );
        self.require(
            log.retention.size.0 >= log.segment.0.saturating_mul(2),
            "log.retention.size",
            format!("must hold two segments ({} each)", log.segment),
            format!(
                "use at least \"{}\", or a smaller log.segment",
                Size(log.segment.0.saturating_mul(2))
            ),
        );
        self.require(
            log.retention.size >= row,
            "log.retention.size",
            format!("must hold the largest row (limits.max_row = {row})"),
            format!("use at least \"{row}\""),
        );
        self.require(
            log.queue.0 > 0,
            "log.queue",
            "must be more than nothing".to_owned(),
            "use \"8MiB\"".to_owned(),
        );
    }

    fn limits(&mut self, config: &Config) {
        let limits = &config.limits;
        for (path, value) in [
            ("limits.sessions", limits.sessions),
            ("limits.subscriptions", limits.subscriptions),
            ("limits.max_unacked", limits.max_unacked),
        ] {
            self.require(
                value > 0,
                path,
                "must be at least 1".to_owned(),
                "nobody could consume otherwise".to_owned(),
            );
        }
        self.require(
            limits.max_row <= ROW_MAX,
            "limits.max_row",
            format!("must be at most {ROW_MAX}, PostgreSQL's own limit"),
            format!("use \"{ROW_MAX}\""),
        );
        self.require(
            limits
                .ack_timeout
                .is_none_or(|timeout| !timeout.0.is_zero()),
            "limits.ack_timeout",
            "must be longer than nothing".to_owned(),
            "use \"60s\"".to_owned(),
        );
    }

    fn node(&mut self, config: &Config) {
        let (listen, metrics) = (config.node.listen, config.node.metrics);
        let overlap = listen == metrics && listen.port() != 0;
        self.require(
            !overlap,
            "node.metrics",
            "is the address of node.listen as well".to_owned(),
            format!("use \"127.0.0.1:{}\"", super::DEFAULT_METRICS_PORT),
        );
        self.require(
            metrics.ip().is_loopback(),
            "node.metrics",
            "must be a loopback address: metrics have no token".to_owned(),
            format!(
                "use \"127.0.0.1:{}\" and a proxy on this machine",
                metrics.port()
            ),
        );
        let is_pair = config.tls.cert.is_some() == config.tls.key.is_some();
        let present = if config.tls.cert.is_some() {
            "tls.cert"
        } else {
            "tls.key"
        };
        self.require(
            is_pair,
            present,
            "certificate and key are given together".to_owned(),
            "set both tls.cert and tls.key".to_owned(),
        );
        self.require(
            config.tls.client_ca.is_none() || config.tls.cert.is_some(),
            "tls.client_ca",
            "needs tls.cert and tls.key".to_owned(),
            "set both, or remove tls.client_ca".to_owned(),
        );
        let is_cluster = !config.node.peers.is_empty();
        self.require(
            config.tls.client_ca.is_some() || config.tls.cert.is_none() || !is_cluster,
            "tls.cert",
            "nodes of a cluster know each other by tls.client_ca".to_owned(),
            "set tls.client_ca to the authority that made the certificates of all nodes".to_owned(),
        );
    }

    fn raft(&mut self, config: &Config) {
        let (heartbeat, election) = (config.raft.heartbeat, config.raft.election);
        self.require(
            heartbeat.0 >= HEARTBEAT_MIN,
            "raft.heartbeat",
            format!("must be at least {}", Span(HEARTBEAT_MIN)),
            "use \"100ms\"".to_owned(),
        );
        self.require(
            election.0 >= heartbeat.0 * HEARTBEATS_MIN,
            "raft.election",
            format!("must be at least {HEARTBEATS_MIN} times raft.heartbeat ({heartbeat})"),
            format!(
                "use \"{}\": one lost heartbeat would depose a leader that works",
                Span(heartbeat.0 * HEARTBEATS_MIN)
            ),
        );
        for address in config.node.peers.iter().chain(&config.node.advertise) {
            let path = if config.node.peers.contains(address) {
                "node.peers"
            } else {
                "node.advertise"
            };
            let port = address
                .rsplit_once(':')
                .and_then(|(_, port)| port.parse::<u16>().ok());
            self.require(
                port.is_some_and(|port| port > 0),
                path,
                format!("\"{address}\" is no address of a node"),
                "write host:port, as in \"n1.example:7700\"".to_owned(),
            );
        }
        let own = config
            .node
            .advertise
            .clone()
            .unwrap_or_else(|| config.node.listen.to_string());
        self.require(
            config.node.peers.is_empty() || config.node.peers.contains(&own),
            "node.peers",
            format!("does not name this node, which the others reach at {own}"),
            "list all nodes in the same order on each, this one included, or set node.advertise"
                .to_owned(),
        );
    }

    fn sources(&mut self, config: &Config) {
        for (name, source) in &config.source {
            let code = &codes::config::BAD_VALUE;
            self.url("source", name, &source.url);
            for (what, key, value) in [
                ("source", "url", name),
                ("stream", "stream", &source.stream),
            ] {
                if let Err(error) = check_name(what, value) {
                    let rule = (error.to_string(), "choose another name".to_owned());
                    self.report(false, code, &format!("source.{name}.{key}"), rule);
                }
            }
        }
    }
    fn replicas(&mut self, config: &Config) {
        for (name, replica) in &config.replica {
            let code = &codes::config::BAD_VALUE;
            let key = |key: &str| format!("replica.{name}.{key}");
            self.url("replica", name, &replica.url);
            if let Err(error) = check_name("replica", name) {
                let rule = (error.to_string(), "choose another name".to_owned());
                self.report(false, code, &key("url"), rule);
            }
            self.report(
                !replica.source.is_empty(),
                code,
                &key("source"),
                (
                    "every replica names its source".to_owned(),
                    "source = \"NAME\", as in [source.NAME]".to_owned(),
                ),
            );
            self.report(
                parse_kind(&replica.kind).is_some(),
                code,
                &key("kind"),
                (
                    format!("\"{}\" is neither standby nor source", replica.kind),
                    "use \"standby\" for a physical standby".to_owned(),
                ),
            );
            self.report(
                (1..=RANGES_MAX_LIMIT).contains(&replica.max_ranges),
                code,
                &key("max_ranges"),
                (
                    format!("must be 1 to {RANGES_MAX_LIMIT}"),
                    format!("use {DEFAULT_RANGES_MAX}"),
                ),
            );
        }
    }

    /// A url that must be there and hold no password.
    fn url(&mut self, section: &str, name: &str, url: &str) {
        let path = format!("{section}.{name}.url");
        self.report(
            !url.is_empty(),
            &codes::config::BAD_VALUE,
            &path,
            (
                format!("every {section} needs a url"),
                "url = \"postgres://user@host/db\"".to_owned(),
            ),
        );
        let (_, password) = crate::redact::split_password(url);
        let help =
            format!("remove it and set {section}.{name}.password = \"env:NAME\" or \"file:/path\"");
        self.report(
            password.is_none(),
            &codes::config::SECRET,
            &path,
            ("a password stands in the url".to_owned(), help),
        );
    }
}

/// Reads the kind of a replica.
pub(crate) fn parse_kind(text: &str) -> Option<ReplicaKind> {
    let kinds = [ReplicaKind::Standby, ReplicaKind::Source];
    kinds.into_iter().find(|kind| kind.as_str() == text)
}
