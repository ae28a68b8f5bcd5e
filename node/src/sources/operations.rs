//! What an operator does with sources: plan, add, pause, resume, remove.
//!
//! Each works step by step so that a failure in the middle leaves what can be tried again: the
//! state knows a source only after its slot exists, and forgets it only after the slot is gone.

use std::{sync::Arc, time::Duration};

use pgcapture_actors::{
    agent::{AgentState, HostError},
    consensus::ProposeError,
    postgres::{self, PgError},
};
use pgcapture_engine::{
    cluster::{Answer, Command, Origin, Refusal, ReplicaRefusal, Source, State},
    codes::{self, Explanation},
    lsn::PgTime,
    wal_guard::WalWish,
};

use super::{
    Definition, SourcePlan, Sources,
    setup::{self, Made},
    status::{chain, unix_now_micros},
};
use crate::config::SourceSection;

/// `source add` answers after this long even when the agent is not reading yet.
pub(crate) const FIRST_STATUS_MAX: Duration = Duration::from_secs(5);

/// Why an operation on a source failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// The agreed state refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The wish makes no sense.
    #[error("{text}")]
    Invalid {
        /// What to correct.
        text: String,
    },
    /// PostgreSQL, or the way to it.
    #[error("{text}")]
    Postgres {
        /// What it means.
        explanation: &'static Explanation,
        /// What happened.
        text: String,
    },
    /// The checks found something that must be mended first.
    #[error("{text}")]
    Checks {
        /// The first of them.
        explanation: &'static Explanation,
        /// All of them.
        text: String,
        /// What to do about the first.
        next: String,
    },
    /// There is no gap to accept.
    #[error("source \"{name}\" has not halted at a gap: it is {state}")]
    NoGap {
        /// The source.
        name: String,
        /// What it does.
        state: &'static str,
    },
    /// The nodes did not agree.
    #[error("{text}")]
    NotAgreed {
        /// What it means.
        explanation: &'static Explanation,
        /// What happened.
        text: String,
    },
    /// Whether the nodes agreed is not known.
    #[error("{text}")]
    Unsettled {
        /// What it means.
        explanation: &'static Explanation,
        /// What happened, and what was left.
        text: String,
        /// How to find out and go on.
        next: String,
    },
    /// The node's own disk.
    #[error("{text}")]
    Store {
        /// What happened.
        text: String,
    },
}

impl SourceError {
    /// Returns what the error means.
    #[must_use]
    pub const fn explanation(&self) -> &'static Explanation {
        match self {
            Self::Refused(Refusal::UnknownSource { .. }) => &codes::node::NOT_FOUND,
            Self::Refused(
                Refusal::SourceExists { .. }
                | Refusal::StreamTaken { .. }
                | Refusal::SlotTaken { .. }
                | Refusal::TooManySources
                | Refusal::EpochMoved { .. }
                | Refusal::Protocol { .. }
                | Refusal::NodeExists { .. }
                | Refusal::NodeNumber { .. }
                | Refusal::TooManyNodes
                | Refusal::Replica(ReplicaRefusal::Exists { .. }),
            )
            | Self::NoGap { .. } => &codes::node::CONFLICT,
            Self::Refused(Refusal::InvalidName(_)) | Self::Invalid { .. } => {
                &codes::node::BAD_REQUEST
            }
            Self::Refused(Refusal::Replica(refusal)) => refusal.explanation(),
            Self::Refused(Refusal::Dump(refusal)) => refusal.explanation(),
            Self::Postgres { explanation, .. }
            | Self::Checks { explanation, .. }
            | Self::Unsettled { explanation, .. }
            | Self::NotAgreed { explanation, .. } => explanation,
            Self::Store { .. } => &codes::node::STORE_FAILED,
        }
    }

    /// Returns what to do.
    #[must_use]
    pub fn next(&self) -> &str {
        match self {
            Self::Checks { next, .. } | Self::Unsettled { next, .. } => next,
            Self::NoGap { .. } => "Look at what it does: pgcapture source show",
            Self::Refused(_)
            | Self::Invalid { .. }
            | Self::NotAgreed { .. }
            | Self::Postgres { .. }
            | Self::Store { .. } => self.explanation().next,
        }
    }
}

impl From<PgError> for SourceError {
    fn from(error: PgError) -> Self {
        Self::Postgres {
            explanation: error.explanation(),
            text: chain(&error),
        }
    }
}

impl From<HostError> for SourceError {
    fn from(error: HostError) -> Self {
        Self::Postgres {
            explanation: error.explanation,
            text: error.text,
        }
    }
}

impl From<ProposeError> for SourceError {
    fn from(error: ProposeError) -> Self {
        // The code is shown by whoever shows the error.
        let (explanation, text) = (error.explanation(), error.text());
        match error {
            ProposeError::Refused(refusal) => Self::Refused(refusal),
            ProposeError::Store { .. } => Self::Store { text },
            ProposeError::Unavailable { .. }
            | ProposeError::TooLarge { .. }
            | ProposeError::StateFull { .. } => Self::NotAgreed { explanation, text },
        }
    }
}

impl Sources {
    /// Returns a source of the agreed state.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownSource`], which names those that exist.
    pub fn get(&self, name: &str) -> Result<Source, SourceError> {
        let state = Arc::clone(&self.consensus.state().borrow());
        Ok(state.source(name)?.clone())
    }

    /// Returns where a source connects to, with its password.
    pub(crate) fn connection_of(&self, source: &Source) -> Result<postgres::Config, SourceError> {
        Ok(super::connection(
            &source.url,
            None,
            source.password.as_ref(),
        )?)
    }

    /// Checks a database and says what adding it would run; changes nothing.
    ///
    /// # Errors
    ///
    /// When the database cannot be looked at; what is wrong with it is part of the plan.
    pub async fn plan(&self, definition: &Definition) -> Result<SourcePlan, SourceError> {
        if let Some(existing) = self.existing(definition) {
            existing?;
            let mut plan = SourcePlan::default();
            plan.passed("the source is captured already, exactly as asked");
            if self.is_other_wish(&definition.name, definition.wal) {
                plan.passed("its limit of kept WAL changes to what is asked");
            }
            return Ok(plan);
        }
        let config = definition.connection()?;
        Ok(setup::plan(definition, &config).await?)
    }

    /// Sets a source up and starts capturing. The same definition again changes nothing but the limit
    /// of kept WAL, when it names another one.
    ///
    /// # Errors
    ///
    /// [`SourceError`]; what was made in PostgreSQL for a failed attempt is dropped again, unless the
    /// source may have been added all the same.
    pub async fn add(&self, mut definition: Definition) -> Result<Source, SourceError> {
        if let Some(existing) = self.existing(&definition) {
            let source = existing?;
            self.limit_wal(&source.name, definition.wal).await?;
            return Ok(source);
        }
        self.refuse_own_secret(&definition)?;
        let config = definition.connection()?;
        let plan = setup::plan(&definition, &config).await?;
        setup::refuse_errors(&plan)?;
        if let Some(password) = definition.inline.take() {
            let kept = self.secrets.keep(&definition.name, password.expose());
            let store = |error: std::io::Error| SourceError::Store {
                text: format!("the password cannot be kept: {error}"),
            };
            definition.password = Some(kept.map_err(store)?);
        }
        setup::create(&definition, &config, &plan).await?;
        let now = PgTime::from_unix_micros(unix_now_micros());
        let wish = definition.wal;
        let source = definition.into_source(now, plan.makes_publication);
        let command = Command::AddGuardedSource {
            source: Box::new(source.clone()),
            wish,
        };
        if let Err(error) = self.consensus.propose(command).await {
            return Err(not_added(error, &source, &plan, &config).await);
        }
        tracing::info!(
            source = source.name,
            slot = source.slot,
            publication = source.publication,
            "added a source"
        );
        self.wait_for_first_status(&source.name).await;
        Ok(source)
    }

    /// Tells whether something else is said about a source's WAL than before; nothing said leaves it.
    fn is_other_wish(&self, name: &str, wish: WalWish) -> bool {
        let state = Arc::clone(&self.consensus.state().borrow());
        let known = state.wal_wishes.get(name).copied().unwrap_or_default();
        wish != WalWish::default() && wish != known
    }

    async fn limit_wal(&self, name: &str, wish: WalWish) -> Result<(), SourceError> {
        if self.is_other_wish(name, wish) {
            let name = name.to_owned();
            let command = Command::SetWalGuard { name, wish };
            self.consensus.propose(command).await?;
        }
        Ok(())
    }

    /// Adds what the configuration declares and is not there yet. What fails is logged with its
    /// next step and does not stop the node.
    pub async fn add_configured(&self, name: &str, section: &SourceSection) {
        let definition = Definition::new(name, section.clone(), "", Origin::Config);
        let added = match definition {
            Ok(definition) => self.add(definition).await,
            Err(error) => Err(error),
        };
        if let Err(error) = added {
            tracing::error!(
                source = name,
                code = error.explanation().code,
                next = error.next(),
                "cannot add a source of the configuration: {error}"
            );
        }
    }

    /// Pauses a source, or lets it go on; returns once its agent has ended or begun.
    ///
    /// # Errors
    ///
    /// [`SourceError`].
    pub async fn set_paused(&self, name: &str, paused: bool) -> Result<Source, SourceError> {
        let command = Command::SetPaused {
            name: name.to_owned(),
            paused,
        };
        let answer = self.consensus.propose(command).await?;
        if paused {
            self.wait_until_stopped(name).await;
        } else {
            self.wait_for_first_status(name).await;
        }
        if answer != Answer::Unchanged {
            tracing::info!(source = name, paused, "a source was paused or resumed");
        }
        self.get(name)
    }

    /// Lets a source that has halted at a gap go on after it, this once; returns once its agent
    /// reads or is in trouble again.
    ///
    /// # Errors
    ///
    /// [`SourceError::NoGap`] when it has not halted at one.
    pub async fn accept_gap(&self, name: &str) -> Result<(), SourceError> {
        let agent = self.running.borrow().get(name).cloned();
        let Some(agent) = agent.filter(|agent| agent.handle.accept_gap()) else {
            let (state, _) = self.status(&self.get(name)?);
            let name = name.to_owned();
            return Err(SourceError::NoGap { name, state });
        };
        tracing::warn!(source = name, "an operator has accepted a gap");
        let mut status = agent.handle.status();
        let goes_on = status.wait_for(|status| status.state != AgentState::Halted);
        // The caller shows whatever the status is by then.
        drop(tokio::time::timeout(FIRST_STATUS_MAX, goes_on).await);
        Ok(())
    }

    /// Says what [`Self::detach`] and [`Self::forget`] will do.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownSource`].
    pub fn removal_plan(&self, name: &str, keep_slot: bool) -> Result<Vec<String>, SourceError> {
        let source = self.get(name)?;
        let mut actions = vec![format!("stop the agent of source {name}")];
        if keep_slot {
            actions.push(format!(
                "leave slot {} in PostgreSQL: it goes on keeping WAL",
                source.slot
            ));
        } else {
            actions.push(format!("drop slot {}", source.slot));
            if source.owns_publication {
                actions.push(format!("drop publication {}", source.publication));
            }
        }
        actions.push(format!("remove the consumers of stream {}", source.stream));
        actions.push(format!("remove the log of stream {}", source.stream));
        Ok(actions)
    }

    /// Stops the agent and drops slot and publication; the source stays known, paused.
    ///
    /// # Errors
    ///
    /// When PostgreSQL cannot be reached: try again, or keep the slot.
    pub async fn detach(&self, name: &str, keep_slot: bool) -> Result<Source, SourceError> {
        let source = self.set_paused(name, true).await?;
        if !keep_slot {
            let config = self.connection_of(&source)?;
            let made = Made {
                slot: Some(&source.slot),
                publication: source.owns_publication.then_some(&source.publication),
            };
            setup::drop_objects(&config, &made).await?;
        }
        Ok(source)
    }

    /// Forgets a detached source, its log and its password.
    ///
    /// # Errors
    ///
    /// [`SourceError::Store`] when the state or the files refuse.
    pub async fn forget(&self, source: &Source) -> Result<(), SourceError> {
        let name = source.name.clone();
        self.consensus
            .propose(Command::RemoveSource { name })
            .await?;
        let store = |error: std::io::Error| SourceError::Store {
            text: format!("files of the source cannot be removed: {error}"),
        };
        let is_former = |epoch| self.is_former_log(&source.name, epoch);
        let removed = self.logs.remove_former(&source.name, is_former).await;
        removed.map_err(|error| store(std::io::Error::other(error)))?;
        let forgotten = self.secrets.forget(&source.name, source.password.as_ref());
        forgotten.map_err(store)?;
        tracing::info!(source = source.name, slot = source.slot, "removed a source");
        Ok(())
    }

    /// A password in the url would lie in a file of this node, and the node that takes over would not
    /// find it.
    fn refuse_own_secret(&self, definition: &Definition) -> Result<(), SourceError> {
        let is_alone = self.consensus.state().borrow().nodes.len() <= 1;
        if is_alone || definition.inline.is_none() {
            return Ok(());
        }
        Err(SourceError::Invalid {
            text: "in a cluster a password is given as env:NAME or file:/path, which every node \
                   must be able to read: --password"
                .to_owned(),
        })
    }

    /// Answers for a source of that name that is there already.
    fn existing(&self, definition: &Definition) -> Option<Result<Source, SourceError>> {
        let state = Arc::clone(&self.consensus.state().borrow());
        let existing = state.sources.get(&definition.name)?;
        let wanted = definition.clone().into_source(existing.created_at, false);
        Some(if existing.is_same_capture(&wanted) {
            Ok(existing.clone())
        } else {
            let name = definition.name.clone();
            Err(Refusal::SourceExists { name }.into())
        })
    }

    /// Waits until the agent reads or is in trouble, but not for long, and not at all once the source is
    /// another node's, which alone knows how it does.
    async fn wait_for_first_status(&self, name: &str) {
        let mut state = self.consensus.state();
        let is_elsewhere = |state: &Arc<State>| {
            let owner = state.owner(name);
            owner.is_some_and(|owner| owner != self.node)
        };
        let wait = async {
            let mut running = self.running.subscribe();
            drop(running.wait_for(|all| all.contains_key(name)).await);
            let status = running.borrow().get(name).map(|it| it.handle.status());
            let Some(mut status) = status else {
                return;
            };
            let is_known = status.wait_for(|status| {
                status.state != AgentState::Starting || status.trouble.is_some()
            });
            drop(is_known.await);
        };
        // The caller shows whatever the status is by then.
        tokio::select! {
            _ = tokio::time::timeout(FIRST_STATUS_MAX, wait) => (),
            _ = state.wait_for(is_elsewhere) => (),
        }
    }
}

/// Drops what was made for a source that was not added. Where that is not known it stays: an agent may
/// read the slot already, and without it changes would be lost.
async fn not_added(
    error: ProposeError,
    source: &Source,
    plan: &SourcePlan,
    config: &postgres::Config,
) -> SourceError {
    match &error {
        ProposeError::Refused(_)
        | ProposeError::TooLarge { .. }
        | ProposeError::StateFull { .. } => {
            let made = Made {
                slot: plan.makes_slot.then_some(&source.slot),
                publication: plan.makes_publication.then_some(&source.publication),
            };
            setup::drop_made(config, &made).await;
            error.into()
        }
        ProposeError::Unavailable { .. } | ProposeError::Store { .. } => {
            let Source { name, slot, .. } = source;
            let error = SourceError::from(error);
            SourceError::Unsettled {
                explanation: error.explanation(),
                text: format!(
                    "{error}; source \"{name}\" may have been added all the same, and slot \"{slot}\" stays"
                ),
                next: format!(
                    "run the same source add again, which is safe: slot \"{slot}\" keeps WAL until \
                     somebody reads it. To give it up: pgcapture source rm {name}; if there is no such \
                     source, SELECT pg_drop_replication_slot('{slot}')"
                ),
            }
        }
    }
}
