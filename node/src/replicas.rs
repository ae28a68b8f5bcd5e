//! The replicas of this node's sources: where existing rows are read from.
//!
//! Checks a PostgreSQL before it is registered, keeps what the user said in the agreed state, and
//! knows how to connect. Reads no row and hands out no work: that is the worker's, which watches the
//! state.

mod checks;
mod definition;
mod login;

use std::sync::Arc;

use pgcapture_actors::consensus::Consensus;
use pgcapture_engine::{
    cluster::{Command, Dump, Proposal, Refusal, Replica, ReplicaRefusal, State},
    lsn::PgTime,
};

pub use self::{definition::ReplicaDefinition, login::reader};
use crate::{
    config::{Config, ReplicaSection},
    sources::{Check, Secrets, SourceError, SourcePlan, Sources, unix_now_micros},
};

/// What adding a replica found, and the replica when it was added.
#[derive(Clone, Debug)]
pub struct AddedReplica {
    /// Every fact that was looked at.
    pub checks: Vec<Check>,
    /// The replica; `None` when a check failed, or nothing was to be changed.
    pub replica: Option<Replica>,
}

/// The replicas of this node.
#[derive(Debug)]
pub struct Replicas {
    consensus: Arc<dyn Consensus>,
    sources: Arc<Sources>,
    secrets: Secrets,
}

impl Replicas {
    /// Makes the replicas of a node.
    #[must_use]
    pub fn new(config: &Config, consensus: Arc<dyn Consensus>, sources: Arc<Sources>) -> Self {
        // Not beside the passwords of sources: both are files by name.
        let directory = config.node.data_dir.join("replica_secrets");
        Self {
            consensus,
            sources,
            secrets: Secrets::new(directory),
        }
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.consensus.state().borrow())
    }

    /// Returns a replica of the agreed state.
    ///
    /// # Errors
    ///
    /// [`Refusal`] with the names of those that exist.
    pub fn get(&self, name: &str) -> Result<Replica, SourceError> {
        Ok(self.state().replica(name)?.clone())
    }

    /// Returns the replicas of a source by name; of all sources when it is empty.
    #[must_use]
    pub fn list(&self, source: &str) -> Vec<Replica> {
        let state = self.state();
        let replicas = state.replicas.values();
        let wanted = replicas.filter(|replica| source.is_empty() || replica.source == source);
        wanted.cloned().collect()
    }

    /// Checks a replica, and registers it unless a check failed or `dry_run`. The same definition
    /// again changes nothing.
    ///
    /// # Errors
    ///
    /// When the wish itself makes no sense or cannot be kept; what is wrong with the PostgreSQL is
    /// part of the answer.
    pub async fn add(
        &self,
        mut definition: ReplicaDefinition,
        dry_run: bool,
    ) -> Result<AddedReplica, SourceError> {
        let source = self.sources.get(&definition.source)?;
        self.check_rate(&definition)?;
        if let Some(existing) = self.existing(&definition) {
            let replica = Some(existing?);
            let mut plan = SourcePlan::default();
            plan.passed(match self.change_rate(&definition.name, definition.rate) {
                Some(_) => "the replica is registered already; its rate changes",
                None => "the replica is registered already, exactly as asked",
            });
            if !dry_run {
                self.agree_rate(&definition.name, definition.rate).await?;
            }
            let checks = plan.checks;
            return Ok(AddedReplica { checks, replica });
        }
        let config = definition.connection()?;
        let source_config = self.sources.connection_of(&source)?;
        let found = checks::run(&definition, &config, &source, &source_config).await;
        let is_good = !found.plan.has_errors();
        let checks = found.plan.checks;
        let Some(system_identifier) = found.system_identifier.filter(|_| is_good && !dry_run)
        else {
            let replica = None;
            return Ok(AddedReplica { checks, replica });
        };
        if let Some(password) = definition.inline.take() {
            let kept = self.secrets.keep(&definition.name, password.expose());
            let store = |error: std::io::Error| SourceError::Store {
                text: format!("the password cannot be kept: {error}"),
            };
            definition.password = Some(kept.map_err(store)?);
        }
        let now = PgTime::from_unix_micros(unix_now_micros());
        let rate = definition.rate;
        let replica = definition.into_replica(now, system_identifier);
        let command = Command::AddReplica(Box::new(replica.clone()));
        self.consensus.propose(command).await?;
        self.agree_rate(&replica.name, rate).await?;
        tracing::info!(
            replica = replica.name,
            source = replica.source,
            kind = replica.kind.as_str(),
            "added a replica"
        );
        let replica = Some(replica);
        Ok(AddedReplica { checks, replica })
    }

    /// Adds what the configuration declares and is not there yet. What fails is logged with its
    /// next step and does not stop the node.
    pub async fn add_configured(&self, name: &str, section: &ReplicaSection) {
        let definition = ReplicaDefinition::new(name, section.clone(), "");
        let added = match definition {
            Ok(definition) => self.add(definition, false).await,
            Err(error) => Err(error),
        };
        match added {
            Ok(AddedReplica {
                replica: Some(_), ..
            }) => (),
            Ok(AddedReplica { checks, .. }) => {
                let failed = checks.iter().filter(|check| !check.is_warning);
                for (problem, check) in failed.filter_map(|it| Some((it.problem?, it))) {
                    tracing::error!(
                        replica = name,
                        code = problem.code,
                        next = check.next,
                        "cannot add a replica of the configuration: {}",
                        check.text
                    );
                }
            }
            Err(error) => tracing::error!(
                replica = name,
                code = error.explanation().code,
                next = error.next(),
                "cannot add a replica of the configuration: {error}"
            ),
        }
    }

    /// Says what [`Self::remove`] will do.
    ///
    /// # Errors
    ///
    /// [`Refusal`] with the names of those that exist.
    pub fn removal_plan(&self, name: &str) -> Result<Vec<String>, SourceError> {
        let replica = self.get(name)?;
        let state = self.state();
        let is_reading = |dump: &&Arc<Dump>| dump.source == replica.source && !dump.is_over();
        let dumps: Vec<_> = state.dumps.values().filter(is_reading).collect();
        let mut actions = vec![format!("read no more rows from replica {name}")];
        let is_last = state.replicas_of(&replica.source).count() == 1;
        if is_last {
            let waiting = dumps.iter().map(|dump| dump.id.to_string());
            let waiting: Vec<_> = waiting.collect();
            actions.push(format!("leave source {} without a replica", replica.source));
            if !waiting.is_empty() {
                actions.push(format!("let dumps wait for one: {}", waiting.join(", ")));
            }
        }
        Ok(actions)
    }

    /// Forgets a replica and its password; ranges that run on it are read again elsewhere.
    ///
    /// # Errors
    ///
    /// [`SourceError`] when there is none, or the state or the files refuse.
    pub async fn remove(&self, name: &str) -> Result<(), SourceError> {
        let replica = self.get(name)?;
        let name = replica.name.clone();
        self.consensus
            .propose(Command::RemoveReplica { name })
            .await?;
        let forgotten = self
            .secrets
            .forget(&replica.name, replica.password.as_ref());
        forgotten.map_err(|error| SourceError::Store {
            text: format!("the password of the replica cannot be removed: {error}"),
        })?;
        tracing::info!(
            replica = replica.name,
            source = replica.source,
            "removed a replica"
        );
        Ok(())
    }

    /// Returns how many bytes of rows all dumps together may read from a replica a second.
    #[must_use]
    pub fn rate(&self, name: &str) -> Option<u64> {
        self.state().replica_rate(name)
    }

    /// Returns what must be agreed on for a replica to have this rate; `None` when it is as it shall be.
    fn change_rate(&self, name: &str, rate: Option<u64>) -> Option<Command> {
        let wanted = rate?;
        (wanted != self.rate(name).unwrap_or(0)).then(|| Command::SetReplicaRate {
            name: name.to_owned(),
            rate: (wanted > 0).then_some(wanted),
        })
    }

    /// Refuses a rate that could not be agreed on, before anything is done.
    fn check_rate(&self, definition: &ReplicaDefinition) -> Result<(), SourceError> {
        let Some(change) = self.change_rate(&definition.name, definition.rate) else {
            return Ok(());
        };
        self.state().check_readable(&Proposal::State(change))?;
        Ok(())
    }

    /// Agrees on the rate of a replica.
    async fn agree_rate(&self, name: &str, rate: Option<u64>) -> Result<(), SourceError> {
        if let Some(change) = self.change_rate(name, rate) {
            self.consensus.propose(change).await?;
        }
        Ok(())
    }

    /// Answers for a replica of that name that is there already.
    fn existing(&self, definition: &ReplicaDefinition) -> Option<Result<Replica, SourceError>> {
        let state = self.state();
        let existing = state.replicas.get(&definition.name)?;
        let wanted = definition.clone();
        let identity = existing.system_identifier;
        let mut wanted = wanted.into_replica(existing.created_at, identity);
        if definition.inline.is_some() {
            // A password in the url was moved to a file when the replica was added.
            wanted.password.clone_from(&existing.password);
        }
        Some(if existing.is_same_definition(&wanted) {
            Ok(existing.clone())
        } else {
            let name = definition.name.clone();
            Err(Refusal::from(ReplicaRefusal::Exists { name }).into())
        })
    }
}
