//! A connection to the source for writers and observers.

use std::{collections::HashMap, sync::Mutex, sync::PoisonError, time::Duration};

use anyhow::{Context, Result};
use tokio::{task::JoinSet, time::Instant};
use tokio_postgres::{Client, Error, NoTls, Statement, error::SqlState, types::ToSql};

/// How long a source that was crashed may take to accept connections again.
const BACK_WITHIN: Duration = Duration::from_secs(60);

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// A connection and the task that drives it; both end when it is dropped.
#[derive(Debug)]
pub struct Sql {
    /// The client.
    pub client: Client,
    prepared: Mutex<HashMap<String, Statement>>,
    _driver: JoinSet<Result<(), Error>>,
}

impl Sql {
    /// Connects once.
    ///
    /// # Errors
    ///
    /// When the server does not accept it.
    pub async fn connect(dsn: &str) -> Result<Self, Error> {
        let (client, connection) = tokio_postgres::connect(dsn, NoTls).await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(Self {
            client,
            prepared: Mutex::default(),
            _driver: driver,
        })
    }

    /// Connects, and tries again while the server is away.
    ///
    /// # Errors
    ///
    /// When it stays away.
    pub async fn connect_again(dsn: &str) -> Result<Self> {
        let deadline = Instant::now() + BACK_WITHIN;
        loop {
            match Self::connect(dsn).await {
                Ok(sql) => return Ok(sql),
                Err(error) if Instant::now() >= deadline => {
                    return Err(error).context("connect to the source");
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Executes a statement, prepared once per connection; returns the rows it changed.
    ///
    /// # Errors
    ///
    /// What the server says.
    pub async fn execute(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Error> {
        let known = {
            let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
            prepared.get(statement).cloned()
        };
        let ready = match known {
            Some(ready) => ready,
            None => {
                let ready = self.client.prepare(statement).await?;
                let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
                prepared.insert(statement.to_owned(), ready.clone());
                ready
            }
        };
        self.client.execute(&ready, parameters).await
    }
}

/// Returns whether an error means that the connection is gone, not that the statement was wrong.
#[must_use]
pub fn is_connection_lost(error: &Error) -> bool {
    const GOING_AWAY: [SqlState; 3] = [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
    ];
    match error.as_db_error() {
        Some(refusal) => GOING_AWAY.contains(refusal.code()),
        None => {
            let source = std::error::Error::source(error);
            error.is_closed() || source.is_some_and(|cause| cause.is::<std::io::Error>())
        }
    }
}
