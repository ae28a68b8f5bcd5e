//! The throw-away servers of `dev`: a PostgreSQL, and standbys that existing rows are read from.

use std::net::SocketAddr;

use pgcapture_actors::postgres::{
    LocalServer, LocalServerError, LocalServerOptions, StandbyOptions, StopMode,
};
use pgcapture_engine::{
    cluster::{DEFAULT_LAG_MAX, DEFAULT_RANGES_MAX, ReplicaKind},
    codes,
};
use pgcapture_proto::admin::v1 as proto;

use super::{DevArgs, STREAM, cluster::api, source_failure};
use crate::{
    app::Node,
    cli::Failure,
    config::ReplicaSection,
    replicas::{AddedReplica, ReplicaDefinition},
    units::Span,
};

/// Name of the replica that is the source itself, when there is no standby.
const SELF_NAME: &str = "self";

/// Where replicas are registered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Registrar<'a> {
    /// The node in this process.
    Node(&'a Node),
    /// A node of a cluster.
    Address(SocketAddr),
}

/// The servers that are ours.
#[derive(Debug, Default)]
pub(super) struct Servers {
    /// The source; `None` when the user named one.
    pub(super) primary: Option<LocalServer>,
    standbys: Vec<LocalServer>,
}

impl Servers {
    /// Starts the source, unless the user named one.
    pub(super) async fn start(args: &DevArgs) -> Result<Self, Failure> {
        if args.pg.is_some() {
            return Ok(Self::default());
        }
        let options = LocalServerOptions {
            bin_dir: args.pg_bin.clone(),
            ..LocalServerOptions::default()
        };
        let primary = LocalServer::start(options).await;
        Ok(Self {
            primary: Some(primary.map_err(|error| server_failure(&error))?),
            standbys: Vec::new(),
        })
    }

    /// Starts standbys of the source and registers them; without any, the source itself.
    pub(super) async fn add_replicas(
        &mut self,
        at: Registrar<'_>,
        count: u8,
        source_url: &str,
    ) -> Result<(), Failure> {
        if count == 0 {
            return register(at, SELF_NAME, source_url, ReplicaKind::Source).await;
        }
        for number in 1..=count {
            let Some(primary) = &self.primary else {
                return Err(Failure::usage("standbys are made of our own server only"));
            };
            let options = StandbyOptions {
                hot_standby_feedback: true,
                ..StandbyOptions::default()
            };
            let standby = primary.start_standby(options).await;
            let standby = standby.map_err(|error| server_failure(&error))?;
            let url = standby.url("postgres");
            self.standbys.push(standby);
            register(at, &format!("r{number}"), &url, ReplicaKind::Standby).await?;
        }
        Ok(())
    }

    /// What existing rows are read from, in words.
    pub(super) fn replicas_text(&self) -> String {
        if self.standbys.is_empty() {
            return "the source itself (--replicas 1 makes a standby)".to_owned();
        }
        let standbys = self.standbys.iter().zip(1..);
        let standbys = standbys.map(|(standby, number)| {
            let port = standby.port();
            format!("r{number} on :{port} (standby)")
        });
        standbys.collect::<Vec<_>>().join(", ")
    }

    /// Stops the standbys, then the source.
    pub(super) async fn stop(mut self) {
        let standbys = self.standbys.iter_mut();
        for server in standbys.chain(self.primary.as_mut()) {
            if let Err(error) = server.stop(StopMode::Fast).await {
                tracing::warn!(%error, "PostgreSQL did not stop by itself and is killed");
            }
        }
    }
}

fn server_failure(error: &LocalServerError) -> Failure {
    let text = format!("{error} ({})", error.explanation().code);
    Failure::new(1, &codes::node::NO_POSTGRES, text)
}

async fn register(
    at: Registrar<'_>,
    name: &str,
    url: &str,
    kind: ReplicaKind,
) -> Result<(), Failure> {
    let node = match at {
        Registrar::Node(node) => node,
        Registrar::Address(address) => {
            let definition = proto::ReplicaDefinition {
                name: name.to_owned(),
                source: STREAM.to_owned(),
                url: url.to_owned(),
                kind: kind.as_str().to_owned(),
                ..proto::ReplicaDefinition::default()
            };
            return api::add_replica(address, definition).await;
        }
    };
    let section = ReplicaSection {
        source: STREAM.to_owned(),
        url: url.to_owned(),
        password: None,
        kind: kind.as_str().to_owned(),
        max_ranges: DEFAULT_RANGES_MAX,
        max_lag: Span(DEFAULT_LAG_MAX),
    };
    let definition = ReplicaDefinition::new(name, section, "");
    let definition = definition.map_err(|error| source_failure(&error))?;
    let added = node.replicas.add(definition, false).await;
    let AddedReplica { checks, replica } = added.map_err(|error| source_failure(&error))?;
    if replica.is_some() {
        return Ok(());
    }
    let failed = checks
        .into_iter()
        .find(|check| check.problem.is_some() && !check.is_warning);
    Err(match failed {
        Some(check) => Failure {
            exit: 1,
            code: check.problem.map_or("", |problem| problem.code).to_owned(),
            text: format!("replica {name}: {}", check.text),
            next: check.next,
        },
        None => Failure::new(1, &codes::dump::BAD_REPLICA, format!("replica {name}")),
    })
}
