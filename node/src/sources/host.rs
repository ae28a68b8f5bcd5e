//! What a source's agent gets from this node: the way to PostgreSQL and the agreed state.

use std::sync::Arc;

use async_trait::async_trait;
use pgcapture_actors::{
    agent::{AgentHost, Behind, HostError, Looks},
    consensus::Consensus,
    postgres,
};
use pgcapture_engine::{
    checkpoint::Epoch,
    cluster::{Command, Gap, LetGo, PROTOCOL_SECOND, SecretRef, Source},
    codes,
    confirm::Origin,
};

/// The host of one source's agent.
#[derive(Debug)]
pub(super) struct SourceHost {
    consensus: Arc<dyn Consensus>,
    name: String,
    stream: String,
    url: String,
    password: Option<SecretRef>,
    looks: Looks,
}

impl SourceHost {
    pub(super) fn new(consensus: Arc<dyn Consensus>, looks: Looks, source: &Source) -> Self {
        Self {
            consensus,
            looks,
            name: source.name.clone(),
            stream: source.stream.clone(),
            url: source.url.clone(),
            password: source.password.clone(),
        }
    }
}

impl SourceHost {
    async fn agree(&self, what: &str, command: Command) -> Result<(), HostError> {
        match self.consensus.propose(command).await {
            Ok(_) => Ok(()),
            Err(error) => Err(HostError {
                explanation: error.explanation(),
                text: format!("{what} cannot be recorded: {}", error.text()),
            }),
        }
    }
}

#[async_trait]
impl AgentHost for SourceHost {
    async fn connection(&self) -> Result<postgres::Config, HostError> {
        connection(&self.url, None, self.password.as_ref())
    }

    fn looks(&self) -> Looks {
        self.looks.clone()
    }

    async fn record_gap(&self, gap: Gap) -> Result<(), HostError> {
        let name = self.name.clone();
        self.agree("a gap", Command::DeclareGap { name, gap }).await
    }

    /// This node's state contains the assignment of the agent's epoch, and so all before it.
    async fn attested(&self) -> Result<Option<Origin>, HostError> {
        let state = self.consensus.state();
        let attested = state.borrow().attested.get(&self.name).copied();
        Ok(attested)
    }

    async fn attest(&self, epoch: Epoch, origin: Origin) -> Result<(), HostError> {
        let attest = Command::Attest {
            name: self.name.clone(),
            epoch,
            origin,
        };
        self.agree("what was consumed", attest).await
    }

    async fn behind(&self) -> Result<Behind, HostError> {
        let state = self.consensus.state();
        let state = state.borrow();
        Ok(Behind {
            reached: state.reached.get(&self.stream).copied(),
            let_go: state.let_go.get(&self.name).cloned(),
            open_gap: state.open_gap(&self.name).cloned(),
        })
    }

    async fn publication(&self) -> Result<Option<u32>, HostError> {
        let state = self.consensus.state();
        let oid = state.borrow().added.publications.get(&self.name).copied();
        Ok(oid)
    }

    async fn keep_publication(&self, epoch: Epoch, oid: u32) -> Result<bool, HostError> {
        // Nodes of the version before could not read what is proposed.
        if self.consensus.state().borrow().protocol() < PROTOCOL_SECOND {
            return Ok(false);
        }
        let name = self.name.clone();
        let command = Command::KeepPublication { name, epoch, oid };
        self.agree("the publication", command).await.map(|()| true)
    }

    async fn let_go(&self, epoch: Epoch, let_go: LetGo) -> Result<(), HostError> {
        let command = Command::LetGo {
            name: self.name.clone(),
            epoch,
            let_go,
        };
        self.agree("what is let go", command).await
    }
}

/// Returns how to connect, with the password that stood in the url, or the one that the reference
/// leads to now.
pub(crate) fn connection(
    url: &str,
    inline: Option<&postgres::Secret>,
    password: Option<&SecretRef>,
) -> Result<postgres::Config, HostError> {
    let config = postgres::Config::parse(url).map_err(|error| HostError {
        explanation: error.explanation(),
        text: error.to_string(),
    })?;
    if let Some(password) = inline {
        return Ok(config.with_password(password.clone()));
    }
    let Some(reference) = password else {
        return Ok(config);
    };
    let password = crate::config::read_secret(reference).map_err(|error| HostError {
        explanation: &codes::config::SECRET,
        text: error.to_string(),
    })?;
    Ok(config.with_password(postgres::Secret::new(password)))
}
