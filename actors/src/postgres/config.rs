//! Where a PostgreSQL is and how to get in.
//!
//! A [`Config`] is made from a URL as libpq reads them (`config/url.rs`) and is a plain value: it
//! resolves no name and opens no file. It owns the password as a [`Secret`]; whatever is printed
//! from here has none.

mod url;

use std::{fmt, path::PathBuf, time::Duration};

use pgcapture_engine::codes::{Explanation, source};

use super::secret::Secret;

/// Port when the URL names none.
const DEFAULT_PORT: u16 = 5432;
/// Time to reach one host when the URL sets none: long enough for a slow TLS handshake over a
/// continent, short enough that a dead first host of several does not look like a hang.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// `application_name` when the URL sets none.
const DEFAULT_APPLICATION_NAME: &str = "pgcapture";

/// How to connect to one PostgreSQL database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub(super) hosts: Vec<Host>,
    pub(super) user: String,
    pub(super) password: Option<Secret>,
    pub(super) database: String,
    pub(super) ssl_mode: SslMode,
    pub(super) ssl_root_cert: Option<PathBuf>,
    pub(super) connect_timeout: Duration,
    pub(super) application_name: String,
    pub(super) read_write: bool,
}

/// One place where the server may be; they are tried in order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// A name or address.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// A directory with a unix socket.
    Unix {
        /// The directory.
        directory: PathBuf,
        /// The number in the socket's name.
        port: u16,
    },
}

impl Host {
    fn new(host: &str, port: u16) -> Self {
        if host.starts_with('/') {
            let directory = PathBuf::from(host);
            Self::Unix { directory, port }
        } else {
            let host = host.to_owned();
            Self::Tcp { host, port }
        }
    }

    /// Returns the path of the unix socket.
    #[must_use]
    pub fn socket_path(&self) -> Option<PathBuf> {
        match self {
            Self::Tcp { .. } => None,
            Self::Unix { directory, port } => Some(directory.join(format!(".s.PGSQL.{port}"))),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix { directory, port } => {
                write!(f, "{}/.s.PGSQL.{port}", directory.display())
            }
        }
    }
}

/// What TLS is asked for; the words and meanings of libpq.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SslMode {
    /// Never.
    Disable,
    /// If the server offers it; the certificate is not checked.
    #[default]
    Prefer,
    /// Always; the certificate is not checked (unless `sslrootcert` is given).
    Require,
    /// Always, with a certificate of a known authority.
    VerifyCa,
    /// Always, with a certificate of a known authority for this host.
    VerifyFull,
}

impl SslMode {
    /// Returns the word of the URL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// The URL of a source cannot be used. Never carries a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It does not start with `postgres://` or `postgresql://`.
    #[error("a source's URL starts with postgres:// or postgresql://")]
    Scheme,
    /// No user.
    #[error("the URL names no user")]
    NoUser,
    /// A port is not a number from 1 to 65535.
    #[error("a port is not a number from 1 to 65535")]
    Port,
    /// An `@` after the host: most likely a password that was not percent-encoded.
    #[error("an @ stands after the host; in a password write %2F for /, %3F for ?, %40 for @")]
    BareAt,
    /// More ports than hosts, or fewer (but not one).
    #[error("{hosts} hosts but {ports} ports")]
    PortCount {
        /// Number of hosts.
        hosts: usize,
        /// Number of ports.
        ports: usize,
    },
    /// A `%` that is not followed by two hexadecimal digits, or that makes no UTF-8.
    #[error("the {0} is not percent-encoded UTF-8")]
    Encoding(&'static str),
    /// A parameter that is not known.
    #[error("unknown parameter \"{0}\"")]
    UnknownParameter(String),
    /// A parameter with a value that is not known.
    #[error("{name} cannot be \"{value}\"; expected {expected}")]
    BadValue {
        /// Name of the parameter.
        name: &'static str,
        /// What was given.
        value: String,
        /// What may be given.
        expected: &'static str,
    },
}

impl ConfigError {
    /// Returns the stable code.
    #[must_use]
    pub const fn explanation(&self) -> &'static Explanation {
        &source::BAD_URL
    }
}

impl Config {
    /// Reads a URL: `postgres://user:password@host:port,host2/database?sslmode=verify-full`. A
    /// directory as host (`?host=/var/run/postgresql`, or percent-encoded) means a unix socket.
    ///
    /// Parameters: `host`, `port`, `user`, `password`, `dbname`, `sslmode`, `sslrootcert`,
    /// `connect_timeout` (seconds), `application_name`, `target_session_attrs` (`any`,
    /// `read-write`, `primary`).
    ///
    /// # Errors
    ///
    /// [`ConfigError`] says which part of the URL cannot be read.
    pub fn parse(url: &str) -> Result<Self, ConfigError> {
        url::parse(url)
    }

    /// Makes one from its parts, all else by default.
    pub(super) fn at(
        host: Host,
        user: &str,
        database: &str,
        password: Option<Secret>,
        ssl_mode: SslMode,
    ) -> Self {
        Self {
            hosts: vec![host],
            user: user.to_owned(),
            password,
            database: database.to_owned(),
            ssl_mode,
            ssl_root_cert: None,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            application_name: DEFAULT_APPLICATION_NAME.to_owned(),
            read_write: false,
        }
    }

    /// Returns the URL with `***` for the password. Safe to print.
    #[must_use]
    pub fn redacted(&self) -> String {
        url::write_redacted(self)
    }

    /// Sets the password.
    #[must_use]
    pub fn with_password(mut self, password: Secret) -> Self {
        self.password = Some(password);
        self
    }

    /// Takes the password out, so that the rest can be stored in the open.
    pub fn take_password(&mut self) -> Option<Secret> {
        self.password.take()
    }

    /// Sets the name by which the server shows the connection.
    #[must_use]
    pub fn with_application_name(mut self, name: impl Into<String>) -> Self {
        self.application_name = name.into();
        self
    }

    /// Sets the database.
    #[must_use]
    pub fn with_database(mut self, database: impl Into<String>) -> Self {
        self.database = database.into();
        self
    }

    /// Returns the database.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Returns the user.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Returns the name by which the server shows the connection.
    #[must_use]
    pub fn application_name(&self) -> &str {
        &self.application_name
    }

    /// Whether only a server that takes writes is connected to.
    #[must_use]
    pub const fn read_write(&self) -> bool {
        self.read_write
    }

    /// Returns the hosts in the order they are tried.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }
}
