//! Looks at a server, shared by all agents of a node that watch slots there.
//!
//! A look costs the server a process, and a login; five hundred slots on one server would cost it more
//! than their changes. So one look brings all slots and publications of a database, and serves whoever
//! asks within a second. It never serves somebody who began to watch after it: what he has seen himself
//! is newer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::time::Instant;
use tracing::debug;

use crate::postgres::{
    Config, Connection, Host, PgError, Replication,
    catalog::{self, Watched},
};

/// A look serves others for this long. Together with the pause between two looks of one agent it stays
/// below the five seconds within which a dropped publication is to be noticed.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// A server that has not answered by then is not looked at now: all who watch it wait for one look.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// The servers that agents of a node look at. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    servers: Arc<Mutex<BTreeMap<Place, Weak<ServerLooks>>>>,
}

/// A database as one user sees it: of several hosts, on the one that is chosen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    hosts: Vec<Host>,
    read_write: bool,
    database: String,
    user: String,
}

/// Looks at one database. Forgotten with the last agent that watches it.
#[derive(Debug, Default)]
pub struct ServerLooks {
    /// Held during a look: who asks meanwhile waits for it.
    last: tokio::sync::Mutex<Option<Look>>,
    /// When running transactions were noted last.
    noted: Mutex<Option<Instant>>,
}

#[derive(Clone, Debug)]
struct Look {
    began: Instant,
    /// `None`: it failed.
    found: Option<Arc<Watched>>,
}

impl Looks {
    /// Returns the looks at the database that a configuration leads to.
    #[must_use]
    pub fn of(&self, config: &Config) -> Arc<ServerLooks> {
        let place = Place {
            hosts: config.hosts().to_vec(),
            read_write: config.read_write(),
            database: config.database().to_owned(),
            user: config.user().to_owned(),
        };
        // A panic under the lock leaves the map as it was: go on.
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(looks) = servers.get(&place).and_then(Weak::upgrade) {
            return looks;
        }
        servers.retain(|_, looks| looks.strong_count() > 0);
        let looks = Arc::new(ServerLooks::default());
        servers.insert(place, Arc::downgrade(&looks));
        looks
    }
}

impl ServerLooks {
    /// Returns what was found a moment ago, though not before `since`, or looks; `None` when the server
    /// cannot be looked at now.
    pub async fn look(&self, config: &Config, since: Instant) -> Option<Arc<Watched>> {
        // Whoever waits for a look has what it brings, however long it takes.
        let asked = Instant::now();
        let since = asked
            .checked_sub(FRESH_FOR)
            .map_or(since, |at| since.max(at));
        let mut last = self.last.lock().await;
        if let Some(look) = last.as_ref().filter(|look| look.began >= since) {
            return look.found.clone();
        }
        let began = Instant::now();
        let found = match tokio::time::timeout(LOOK_MAX, look_at(config)).await {
            Ok(Ok(found)) => Some(Arc::new(found)),
            Ok(Err(error)) => {
                debug!(%error, "could not look at the slots of a server");
                None
            }
            Err(_) => {
                debug!("a server does not tell of its slots in {LOOK_MAX:?}");
                None
            }
        };
        *last = Some(Look {
            began,
            found: found.clone(),
        });
        found
    }

    /// Has the server note which transactions run, unless that was done a moment ago.
    ///
    /// # Errors
    ///
    /// A lost connection.
    pub(super) async fn note_running(
        &self,
        config: &Config,
        watched: &Watched,
    ) -> Result<(), PgError> {
        if watched.version < catalog::NOTES_FROM || !self.is_note_due() {
            return Ok(());
        }
        let mut connection = Connection::connect(config, Replication::Off).await?;
        catalog::log_running_transactions(&mut connection).await
    }

    /// Tells whether nobody has tried a moment ago: a server that takes no sessions is not asked by all.
    fn is_note_due(&self) -> bool {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = noted.is_none_or(|at| at.elapsed() >= FRESH_FOR);
        if is_due {
            *noted = Some(Instant::now());
        }
        is_due
    }
}

async fn look_at(config: &Config) -> Result<Watched, PgError> {
    let mut connection = Connection::connect(config, Replication::Off).await?;
    catalog::watched(&mut connection).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Config {
        Config::parse(url).unwrap()
    }

    #[test]
    fn one_database_is_looked_at_by_all_who_watch_it() {
        let looks = Looks::default();
        let first = looks.of(&config("postgres://me@h:1/a"));
        let again = looks.of(&config("postgres://me@h:1/a").with_application_name("x"));
        assert!(Arc::ptr_eq(&first, &again));
        for other in [
            "postgres://me@h:1/b",
            "postgres://me@h:2/a",
            "postgres://you@h:1/a",
            "postgres://me@h:1/a?target_session_attrs=read-write",
        ] {
            assert!(!Arc::ptr_eq(&first, &looks.of(&config(other))), "{other}");
        }
        drop((first, again));
        let _other = looks.of(&config("postgres://me@h:3/a"));
        assert_eq!(
            looks.servers.lock().unwrap().len(),
            1,
            "the others are gone"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_cannot_be_looked_at_is_tried_once_for_all() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = gone.local_addr().unwrap().port();
        drop(gone);
        let config = config(&format!("postgres://me@127.0.0.1:{port}/a"));
        let looks = Looks::default().of(&config);
        let since = Instant::now();
        assert!(looks.look(&config, since).await.is_none());
        let began = looks.last.lock().await.as_ref().unwrap().began;
        tokio::time::advance(FRESH_FOR / 2).await;
        assert!(looks.look(&config, since).await.is_none());
        assert_eq!(looks.last.lock().await.as_ref().unwrap().began, began);
        tokio::time::advance(FRESH_FOR * 2).await;
        assert!(looks.look(&config, since).await.is_none());
        assert_ne!(looks.last.lock().await.as_ref().unwrap().began, began);
    }

    /// One look of it takes longer than a look is fresh.
    #[tokio::test(start_paused = true)]
    async fn all_who_wait_for_a_silent_server_wait_for_one_look() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port();
        let config = config(&format!("postgres://me@127.0.0.1:{port}/a"));
        let looks = Looks::default().of(&config);
        let since = Instant::now();
        let looked = futures_util::future::join_all((0..50).map(|_| looks.look(&config, since)));
        assert!(looked.await.iter().all(Option::is_none));
        assert!(since.elapsed() > FRESH_FOR && since.elapsed() <= LOOK_MAX * 2);
    }
}
