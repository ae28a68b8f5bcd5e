//! One connection to PostgreSQL, of our own: tokio-postgres has no replication.
//!
//! Owns the socket, the login and the simple query protocol. A connection becomes a
//! [`super::ReplicationStream`] and comes back from it; `copy_out` borrows it for one COPY. Not for
//! use by several tasks: `&mut` everywhere. Dropping it closes the socket; the server ends the
//! session then.

mod auth;
pub(in crate::postgres) mod copy;
pub(in crate::postgres) mod framing;
mod nap;
pub(in crate::postgres) mod reader;
mod socket;
mod tls;
pub(in crate::postgres) mod transport;
pub(in crate::postgres) mod wire;

use std::{io, net::SocketAddr, time::Duration};

use socket2::SockAddr;

pub use self::copy::CopyOut;
use self::{
    auth::Login, framing::Inbound, socket::Socket, tls::negotiate, transport::Stream,
    transport::Transport, wire::Wire,
};
use super::{
    config::{Config, Host},
    error::PgError,
};

/// How often the server looks whether we are still there while a statement sends nothing. It costs
/// one system call; left alone the server would only notice when it next sends.
const LOOK_FOR_US_EVERY: &str = "1s";
/// How long the server waits for each session that it was told to end. One that decodes looks up
/// after every record.
const END_MAX: Duration = Duration::from_secs(2);

/// Which protocol a connection speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replication {
    /// Plain SQL.
    #[default]
    Off,
    /// SQL and replication commands on the database of the URL: a walsender.
    Database,
}

/// What the server told at login.
#[derive(Clone, Debug, Default)]
pub(in crate::postgres) struct Session {
    backend_pid: i32,
    server_version: u32,
    is_standby: Option<bool>,
    is_read_only: Option<bool>,
    pub(in crate::postgres) has_streamed: bool,
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    pub(in crate::postgres) wire: Wire,
    session: Session,
}

impl Connection {
    /// Connects to the first host that can be used, and logs in.
    ///
    /// # Errors
    ///
    /// [`PgError`]: the last host's, except that a server that refuses the login ends the search.
    pub async fn connect(config: &Config, replication: Replication) -> Result<Self, PgError> {
        let mut last = PgError::Connect {
            target: config.redacted(),
            source: io::Error::other("the URL names no host"),
        };
        for host in config.hosts() {
            let attempt = connect_host(host, config, replication);
            last = match tokio::time::timeout(config.connect_timeout, attempt).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) if is_about_this_host(&error) => error,
                Ok(Err(error)) => return Err(error),
                Err(_elapsed) => PgError::ConnectTimeout {
                    target: host.to_string(),
                    waited: config.connect_timeout,
                },
            };
        }
        Err(last)
    }

    /// Runs one or several statements and returns all rows as text; `None` is NULL. After an error
    /// of the server the connection can be used again. Not cancellation-safe: after a dropped call
    /// drop the connection.
    ///
    /// # Errors
    ///
    /// [`PgError::Server`] for what the server refuses, others when the connection is lost.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, PgError> {
        self.wire.query(sql).await
    }

    /// Has the server end this session soon after us, even in the middle of a statement that sends
    /// nothing for long: what the session holds is free then.
    ///
    /// # Errors
    ///
    /// A lost connection.
    pub async fn end_with_us(&mut self) -> Result<(), PgError> {
        let look = format!("SET client_connection_check_interval = '{LOOK_FOR_US_EVERY}'");
        match self.query(&look).await {
            // Some systems cannot tell; their servers refuse the setting.
            Ok(_) | Err(PgError::Server(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends other sessions of the same role at once, and waits until they are gone.
    ///
    /// # Errors
    ///
    /// [`PgError::Server`] when the role may not end them, or a lost connection.
    pub async fn end_sessions(&mut self, backend_pids: &[i32]) -> Result<(), PgError> {
        let pids: Vec<String> = backend_pids.iter().map(i32::to_string).collect();
        let (pids, wait) = (pids.join(","), END_MAX.as_millis());
        let sessions = format!("FROM unnest('{{{pids}}}'::int[]) AS session (pid)");
        let sql = format!(
            "SELECT pg_terminate_backend(pid) {sessions}; \
             SELECT pg_terminate_backend(pid, {wait}) {sessions}"
        );
        self.query(&sql).await.map(drop)
    }

    /// Starts `COPY … TO STDOUT`. Read it to the end, or drop the connection.
    ///
    /// # Errors
    ///
    /// As for [`Self::query`].
    pub async fn copy_out(&mut self, sql: &str) -> Result<CopyOut<'_>, PgError> {
        copy::start(&mut self.wire, sql).await
    }

    /// Returns the server's version as `server_version_num` counts: 150018.
    #[must_use]
    pub const fn server_version(&self) -> u32 {
        self.session.server_version
    }

    /// Returns the process id of the server's side.
    #[must_use]
    pub const fn backend_pid(&self) -> i32 {
        self.session.backend_pid
    }

    /// Tells whether the connection is a unix socket.
    #[must_use]
    pub const fn is_unix(&self) -> bool {
        self.wire.is_unix
    }

    /// Servers from 14 on tell it at login; a proxy in between may not.
    async fn is_read_only(&mut self) -> Result<bool, PgError> {
        if let (Some(standby), Some(read_only)) =
            (self.session.is_standby, self.session.is_read_only)
        {
            return Ok(standby || read_only);
        }
        let rows = self.query("SHOW transaction_read_only").await?;
        Ok(rows.first().and_then(|row| row.first()?.as_deref()) == Some("on"))
    }

    pub(in crate::postgres) fn into_parts(self) -> (Wire, Session) {
        (self.wire, self.session)
    }

    pub(in crate::postgres) const fn from_parts(wire: Wire, session: Session) -> Self {
        Self { wire, session }
    }
}

/// Tells whether another host may do better.
fn is_about_this_host(error: &PgError) -> bool {
    matches!(
        error,
        PgError::Connect { .. } | PgError::Io(_) | PgError::Closed | PgError::ReadOnly { .. }
    ) || error.has_sqlstate("57P03")
}

async fn connect_host(
    host: &Host,
    config: &Config,
    replication: Replication,
) -> Result<Connection, PgError> {
    let unreachable = |source| PgError::Connect {
        target: host.to_string(),
        source,
    };
    let socket = open(host).await.map_err(unreachable)?;
    let is_unix = socket.is_unix();
    let (stream, channel_binding) = negotiate(socket, host, config).await?;
    let is_private = is_unix || matches!(stream, Stream::Tls(_));
    let mut wire = Wire {
        transport: Transport::new(stream),
        inbound: Inbound::new(),
        is_unix,
    };
    let login = Login {
        config,
        host,
        replication,
        channel_binding,
        is_private,
    };
    let session = login.run(&mut wire).await?;
    let mut connection = Connection { wire, session };
    if config.read_write && connection.is_read_only().await? {
        let target = host.to_string();
        return Err(PgError::ReadOnly { target });
    }
    Ok(connection)
}

async fn open(host: &Host) -> io::Result<Socket> {
    if let Some(path) = host.socket_path() {
        return Socket::connect(&SockAddr::unix(path)?).await;
    }
    let Host::Tcp { host, port } = host else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host((host.as_str(), *port)).await? {
        match Socket::connect(&SockAddr::from(address)).await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = named(address, &error),
        }
    }
    Err(last)
}

fn named(address: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{address}: {error}"))
}

/// Quotes an identifier for SQL and replication commands.
#[must_use]
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a text for SQL and replication commands, whatever `standard_conforming_strings` is.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_cannot_be_broken_out_of() {
        assert_eq!(quote_ident("a\"; drop"), "\"a\"\"; drop\"");
        assert_eq!(quote_literal("a'b"), "'a''b'");
        assert_eq!(quote_literal("a\\'b"), "E'a\\\\''b'");
    }
}
