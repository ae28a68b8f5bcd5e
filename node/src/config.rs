//! What the user says about one node: files, environment variables, flags.
//!
//! Precedence: flag, then `PGCAPTURE__SECTION__KEY`, then files (the later wins), then default.
//! Every problem of all layers is reported at once, with its place. Reading changes nothing and
//! resolves no secret.

mod check;
mod document;
mod guard;
mod reader;
mod report;
mod secret;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use pgcapture_engine::cluster::{DEFAULT_LAG_MAX, DEFAULT_RANGES_MAX, ReplicaKind, SecretRef};
use schemars::JsonSchema;
use serde::Serialize;

pub(crate) use self::{check::parse_kind, guard::nearest_policy};
use self::{document::Document, reader::Reader};
pub use self::{
    document::Origin,
    guard::WalGuardSection,
    report::{ConfigError, Problem, SourceText},
    secret::{SecretError, read_secret},
};
use crate::units::{Size, Span};

/// The port of clients when none is given.
pub const DEFAULT_PORT: u16 = 7700;

/// The port of metrics and health over HTTP when none is given.
pub const DEFAULT_METRICS_PORT: u16 = 7790;

/// Everything a node is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Config {
    /// This node.
    pub node: Node,
    /// TLS of the gRPC listener.
    pub tls: Tls,
    /// Who may use the API.
    pub auth: Auth,
    /// How fast nodes notice that one is gone.
    pub raft: Raft,
    /// Every queue and every bound.
    pub limits: Limits,
    /// The embedded log.
    pub log: Log,
    /// The agents that read slots.
    pub agent: Agent,
    /// Sources as code: added at the start when they are not there yet.
    pub source: BTreeMap<String, SourceSection>,
    /// Replicas as code: added at the start when they are not there yet.
    pub replica: BTreeMap<String, ReplicaSection>,
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Node {
    /// Its name; default: the host name.
    pub name: String,
    /// Where logs, cursors and state lie; default: /var/lib/pgcapture.
    pub data_dir: PathBuf,
    /// Clients, health, reflection: one port.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// Metrics and health over HTTP; loopback only.
    #[schemars(with = "String")]
    pub metrics: SocketAddr,
    /// Where other nodes and clients reach this one, `host:port`; default: the address of listen.
    pub advertise: Option<String>,
    /// Nodes of the cluster, `host:port`; default: none, the node is alone. The first one begins the
    /// cluster once all have answered; a node with data does not ask.
    pub peers: Vec<String>,
    /// How long a stop may take before what is left is cut off.
    pub drain_timeout: Span,
}

/// How fast nodes notice that one is gone. Equal on all nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Raft {
    /// How often the leader shows that it lives.
    pub heartbeat: Span,
    /// A node that hears nothing for this long looks for a new leader.
    pub election: Span,
}

/// TLS of the gRPC listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Tls {
    /// Certificate chain, PEM.
    pub cert: Option<PathBuf>,
    /// Private key, PEM.
    pub key: Option<PathBuf>,
    /// Clients must show a certificate of this authority, PEM.
    pub client_ca: Option<PathBuf>,
}

/// Who may use the API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Auth {
    /// Where the token is that every call must carry: `env:NAME` or `file:/path`.
    #[serde(serialize_with = "reference")]
    #[schemars(with = "Option<String>")]
    pub token: Option<SecretRef>,
}

/// Every queue and every bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Limits {
    /// Consumers connected at once.
    pub sessions: u32,
    /// Subscriptions, connected or not.
    pub subscriptions: u32,
    /// Bytes of rows that all sessions together hold unacknowledged.
    pub in_flight: Size,
    /// Messages that one session may hold unacknowledged.
    pub max_unacked: u32,
    /// After this long without an acknowledgement a message is delivered again; default: never
    /// while its session lives.
    pub ack_timeout: Option<Span>,
    /// A larger row halts its source with a clear error.
    pub max_row: Size,
}

/// The embedded log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Log {
    /// Size of one segment file; the first ones of a log are smaller, from 1 MiB on.
    pub segment: Size,
    /// Bytes accepted and not yet durable before the publisher waits.
    pub queue: Size,
    /// How long and how much is kept.
    pub retention: Retention,
}

/// How long and how much of a log is kept; whichever is reached first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Retention {
    /// Older segments are removed.
    pub time: Span,
    /// Segments are removed from the oldest beyond this size, per source.
    pub size: Size,
}

/// The agents that read slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Agent {
    /// Backlog of WAL from which the slot is read by COPY.
    pub catch_up_above: Size,
    /// Backlog below which the slot is followed by walsender again.
    pub follow_below: Size,
    /// WAL distance of one COPY call; bounds the temporary space on the source.
    pub catch_up_chunk: Size,
    /// How much WAL a source may keep for its slot, where the source does not say otherwise.
    pub wal_guard: WalGuardSection,
}

/// A source as code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SourceSection {
    /// Where PostgreSQL is; without a password.
    pub url: String,
    /// Where the password is: `env:NAME` or `file:/path`.
    #[serde(serialize_with = "reference")]
    #[schemars(with = "Option<String>")]
    pub password: Option<SecretRef>,
    /// Name of the stream; default: as the source.
    pub stream: String,
    /// Replication slot; default: `NAME_pgcapture`.
    pub slot: String,
    /// Publication; default: `pgcapture_NAME`.
    pub publication: String,
    /// Patterns of captured tables.
    pub tables: Vec<String>,
    /// Patterns of tables left out.
    pub exclude: Vec<String>,
    /// How much WAL it may keep for the slot; default: as `[agent]` says.
    pub wal_guard: WalGuardSection,
}

/// A replica as code: where existing rows of a source are read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ReplicaSection {
    /// The source whose rows it holds.
    pub source: String,
    /// Where PostgreSQL is; without a password.
    pub url: String,
    /// Where the password is: `env:NAME` or `file:/path`.
    #[serde(serialize_with = "reference")]
    #[schemars(with = "Option<String>")]
    pub password: Option<SecretRef>,
    /// `standby` (a physical standby) or `source` (the source itself).
    pub kind: String,
    /// Ranges that are read from it at a time.
    pub max_ranges: u32,
    /// No range is begun while it is further behind the source than this.
    pub max_lag: Span,
}

/// A flag that sets a key: the flag as typed, the path, the value.
pub type FlagSetting = (String, String, String);

impl Config {
    /// Reads files, the process's environment and flags.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with everything that is wrong.
    pub fn load(files: &[PathBuf], flags: &[FlagSetting]) -> Result<Self, ConfigError> {
        Self::load_from(files, std::env::vars(), flags)
    }

    /// As [`Self::load`], with the environment given.
    ///
    /// # Errors
    ///
    /// As for [`Self::load`].
    pub fn load_from(
        files: &[PathBuf],
        variables: impl Iterator<Item = (String, String)>,
        flags: &[FlagSetting],
    ) -> Result<Self, ConfigError> {
        let mut document = Document::default();
        let mut problems = Vec::new();
        for file in files {
            problems.extend(
                document
                    .add_file(Path::new(file))
                    .err()
                    .map(|problem| *problem),
            );
        }
        if !problems.is_empty() {
            let files = document.files;
            return Err(ConfigError { problems, files });
        }
        document.add_env(variables);
        document.add_flags(flags);
        Self::read(Reader::new(document))
    }

    /// Reads one text as a file.
    ///
    /// # Errors
    ///
    /// As for [`Self::load`].
    pub fn from_text(name: &str, text: &str) -> Result<Self, ConfigError> {
        let mut document = Document::default();
        if let Err(problem) = document.add_text(name.to_owned(), text.to_owned()) {
            let (problems, files) = (vec![*problem], document.files);
            return Err(ConfigError { problems, files });
        }
        Self::read(Reader::new(document))
    }

    /// Returns the JSON Schema of the file, for editors.
    #[must_use]
    pub fn schema() -> schemars::Schema {
        schemars::schema_for!(Self)
    }

    fn read(mut reader: Reader) -> Result<Self, ConfigError> {
        let config = Self::take(&mut reader);
        check::relations(&config, &mut reader);
        reader.report_unknown();
        if reader.problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError {
                problems: reader.problems,
                files: reader.document.files,
            })
        }
    }

    fn take(reader: &mut Reader) -> Self {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let node = Node {
            name: reader.get("node.name", host_name()),
            data_dir: reader.get("node.data_dir", PathBuf::from("/var/lib/pgcapture")),
            listen: reader.get("node.listen", loopback(DEFAULT_PORT)),
            metrics: reader.get("node.metrics", loopback(DEFAULT_METRICS_PORT)),
            advertise: reader.find("node.advertise"),
            peers: reader.get("node.peers", Vec::new()),
            drain_timeout: reader.get("node.drain_timeout", Span::from_secs(15)),
        };
        let raft = Raft {
            heartbeat: reader.get("raft.heartbeat", Span(Duration::from_millis(100))),
            election: reader.get("raft.election", Span(Duration::from_millis(300))),
        };
        let tls = Tls {
            cert: reader.find("tls.cert"),
            key: reader.find("tls.key"),
            client_ca: reader.find("tls.client_ca"),
        };
        let limits = Limits {
            sessions: reader.get("limits.sessions", 20_000),
            subscriptions: reader.get("limits.subscriptions", 20_000),
            in_flight: reader.get("limits.in_flight", Size(256 << 20)),
            max_unacked: reader.get("limits.max_unacked", 5_000),
            ack_timeout: reader.find("limits.ack_timeout"),
            max_row: reader.get("limits.max_row", Size(64 << 20)),
        };
        let log = Log {
            segment: reader.get("log.segment", Size(64 << 20)),
            queue: reader.get("log.queue", Size(32 << 20)),
            retention: Retention {
                time: reader.get("log.retention.time", Span::from_secs(7 * 86_400)),
                size: reader.get("log.retention.size", Size(16 << 30)),
            },
        };
        let agent = Agent {
            catch_up_above: reader.get("agent.catch_up_above", Size(256 << 20)),
            follow_below: reader.get("agent.follow_below", Size(32 << 20)),
            catch_up_chunk: reader.get("agent.catch_up_chunk", Size(128 << 20)),
            wal_guard: WalGuardSection::take(reader, "agent"),
        };
        let (sources, replicas) = (reader.sections("source"), reader.sections("replica"));
        Self {
            node,
            tls,
            auth: Auth {
                token: reader.find("auth.token"),
            },
            raft,
            limits,
            log,
            agent,
            source: sources
                .into_iter()
                .map(|name| {
                    let section = SourceSection::take(reader, &name);
                    (name, section)
                })
                .collect(),
            replica: replicas
                .into_iter()
                .map(|name| {
                    let section = ReplicaSection::take(reader, &name);
                    (name, section)
                })
                .collect(),
        }
    }
}

impl SourceSection {
    fn take(reader: &mut Reader, name: &str) -> Self {
        let key = |key: &str| format!("source.{name}.{key}");
        Self {
            url: reader.get(&key("url"), String::new()),
            password: reader.find(&key("password")),
            stream: reader.get(&key("stream"), name.to_owned()),
            slot: reader.get(&key("slot"), default_slot(name)),
            publication: reader.get(&key("publication"), default_publication(name)),
            tables: reader.get(&key("tables"), vec!["public.*".to_owned()]),
            exclude: reader.get(&key("exclude"), Vec::new()),
            wal_guard: WalGuardSection::take(reader, &format!("source.{name}")),
        }
    }
}

impl ReplicaSection {
    fn take(reader: &mut Reader, name: &str) -> Self {
        let key = |key: &str| format!("replica.{name}.{key}");
        Self {
            source: reader.get(&key("source"), String::new()),
            url: reader.get(&key("url"), String::new()),
            password: reader.find(&key("password")),
            kind: reader.get(&key("kind"), ReplicaKind::Standby.as_str().to_owned()),
            max_ranges: reader.get(&key("max_ranges"), DEFAULT_RANGES_MAX),
            max_lag: reader.get(&key("max_lag"), Span(DEFAULT_LAG_MAX)),
        }
    }
}

/// Returns the slot of a source that names none. PostgreSQL takes lower case, digits and `_`.
#[must_use]
pub fn default_slot(source: &str) -> String {
    format!("{}_pgcapture", plain(source))
}

/// Returns the publication of a source that names none.
#[must_use]
pub fn default_publication(source: &str) -> String {
    format!("pgcapture_{}", plain(source))
}

fn plain(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    lower
        .chars()
        .map(|c| if is_plain(c) { c } else { '_' })
        .take(50)
        .collect()
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "node".to_owned(),
        name => name.to_owned(),
    }
}

#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
fn reference<S: serde::Serializer>(
    secret: &Option<SecretRef>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => serializer.collect_str(secret),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests;
