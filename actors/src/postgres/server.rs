//! A throw-away PostgreSQL: for trying, measuring and testing.
//!
//! Owns a temporary directory with data and socket, and the server's process; dropping it ends the
//! process at once and removes the directory, also in a panic; a caretaker does so when our process
//! is killed. When we are root the server runs as
//! another user, since PostgreSQL refuses root. Durability is off (`fsync`): nothing here is meant
//! to survive the machine.

mod binaries;
mod caretaker;
mod directory;
mod postmaster;
mod standby;
mod tools;

use std::{
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use pgcapture_engine::codes::{Explanation, source};
use rustix::process::Signal;

use self::{
    binaries::library_path,
    directory::Home,
    postmaster::Postmaster,
    tools::{free_port, run_to_end, tail},
};
pub use self::{caretaker::Caretaker, standby::StandbyOptions};
use super::{Config, Host, Secret, SslMode};

/// Time until the server takes connections. It needs 0.1 s; a loaded machine, or recovery after
/// a crash, needs more.
const START_MAX: Duration = Duration::from_secs(60);
/// Time for a stop. A client that does not read delays a fast stop by `wal_sender_timeout`.
const STOP_MAX: Duration = Duration::from_secs(90);
/// How often the process is looked at while it starts or stops: there is nothing to await.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Attempts to start, each with another free port, or after a crash until the old server's port is
/// free.
const ATTEMPT_COUNT_MAX: u32 = 40;
/// Time until the processes of a crashed server have let go of its memory. They do at once, but up
/// to 14 the autovacuum launcher may wait ten seconds for statistics from a process that is gone.
const LET_GO_MAX: Duration = Duration::from_secs(30);
/// Pause between attempts on the same port.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(100);
/// Superuser of the server.
const USER: &str = "postgres";

/// How to make a server.
#[derive(Clone, Debug, Default)]
pub struct LocalServerOptions {
    /// Where `initdb` and `postgres` lie; found by itself when `None`.
    pub bin_dir: Option<PathBuf>,
    /// TCP port; a free one when `None`.
    pub port: Option<u16>,
    /// Lines for `postgresql.conf`; they override the defaults.
    pub settings: Vec<(String, String)>,
    /// Every connection needs this password (SCRAM); none needs one when `None`.
    pub password: Option<Secret>,
    /// Lines to put at the top of `pg_hba.conf`.
    pub hba_lines: Vec<String>,
}

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Wait for clients to go.
    Smart,
    /// Send clients away; walsenders finish first.
    Fast,
    /// Stop as in a crash.
    Immediate,
}

impl StopMode {
    const fn signal(self) -> Signal {
        match self {
            Self::Smart => Signal::TERM,
            Self::Fast => Signal::INT,
            Self::Immediate => Signal::QUIT,
        }
    }
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum LocalServerError {
    /// No `postgres` and `initdb` anywhere.
    #[error("no PostgreSQL programs in {}", list(searched))]
    NoBinaries {
        /// Where they were looked for.
        searched: Vec<PathBuf>,
    },
    /// We are root and there is no user to run the server as.
    #[error("PostgreSQL refuses to run as root and there is neither a user postgres nor nobody")]
    NoUser,
    /// A program failed.
    #[error("{program} failed ({status}): {output}")]
    Failed {
        /// Which.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote.
        output: String,
    },
    /// It is neither ready nor dead, or does not stop.
    #[error("the server did not {action} within {} s: {output}", waited.as_secs())]
    TooSlow {
        /// `start` or `stop`.
        action: &'static str,
        /// The limit.
        waited: Duration,
        /// The end of its log.
        output: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn list(paths: &[PathBuf]) -> String {
    let paths = paths.iter().map(|path| path.display().to_string());
    paths.collect::<Vec<_>>().join(", ")
}

impl LocalServerError {
    /// Returns what the error means.
    #[must_use]
    pub const fn explanation(&self) -> &'static Explanation {
        match self {
            Self::NoBinaries { .. } => &source::NO_BINARIES,
            Self::NoUser | Self::Failed { .. } | Self::TooSlow { .. } | Self::Io { .. } => {
                &source::LOCAL_SERVER
            }
        }
    }
}

/// A running (or stopped) throw-away server.
#[derive(Debug)]
pub struct LocalServer {
    // The process goes before its directory.
    postmaster: Option<Postmaster>,
    home: Home,
    _caretaker: Caretaker,
    bin_dir: PathBuf,
    port: u16,
    password: Option<Secret>,
}

impl LocalServer {
    /// Makes a data directory and starts a server in it; returns when it takes connections.
    ///
    /// # Errors
    ///
    /// [`LocalServerError`]; nothing is left behind.
    pub async fn start(options: LocalServerOptions) -> Result<Self, LocalServerError> {
        let bin_dir = binaries::find(options.bin_dir.as_deref())?;
        let mut home = Home::new()?;
        let caretaker = take_care(&home)?;
        initdb(&bin_dir, &mut home, &options).await?;
        let mut server = Self {
            postmaster: None,
            home,
            _caretaker: caretaker,
            bin_dir,
            port: 0,
            password: options.password.clone(),
        };
        server.configure(&options)?;
        server.launch_on(options.port).await?;
        Ok(server)
    }

    /// Starts on this port, or on a free one.
    async fn launch_on(&mut self, port: Option<u16>) -> Result<(), LocalServerError> {
        let mut attempt = 1;
        loop {
            self.port = match port {
                Some(port) => port,
                None => free_port(self.home.path())?,
            };
            match self.launch().await {
                // Somebody took the port in between; the log tells, in no fixed words.
                Err(LocalServerError::Failed { .. }) if attempt < 5 && port.is_none() => {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    fn configure(&self, options: &LocalServerOptions) -> Result<(), LocalServerError> {
        let mut lines = vec![
            "listen_addresses = '127.0.0.1'".to_owned(),
            format!("unix_socket_directories = '{}'", self.home.path().display()),
            "wal_level = logical".to_owned(),
            "fsync = off".to_owned(),
            "timezone = 'UTC'".to_owned(),
            "log_min_messages = warning".to_owned(),
        ];
        for (name, value) in &options.settings {
            lines.push(format!("{name} = '{}'", value.replace('\'', "''")));
        }
        self.home.append("data/postgresql.conf", &lines)?;
        self.home.prepend("data/pg_hba.conf", &options.hba_lines)
    }

    /// Starts `postgres` and waits until it is ready.
    async fn launch(&mut self) -> Result<(), LocalServerError> {
        let log = self.home.log_for_writing()?;
        let mut command = self.home.command(&self.bin_dir.join("postgres"));
        if let Some(path) = library_path(&self.bin_dir) {
            command.env("LD_LIBRARY_PATH", path);
        }
        // A Ctrl-C of the terminal is for us: we stop the server when its readers are done.
        command.process_group(0);
        command.arg("-D").arg(self.data_dir());
        command.arg("-p").arg(self.port.to_string());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = spawn(&mut command)?;
        self.postmaster = Some(Postmaster { child });
        let deadline = Instant::now() + START_MAX;
        while !self.is_ready() {
            if let Some(status) = self.postmaster.as_mut().and_then(Postmaster::ended) {
                self.postmaster = None;
                let output = self.log_tail();
                let program = "postgres";
                return Err(LocalServerError::Failed {
                    program,
                    status,
                    output,
                });
            }
            self.pause(deadline, "start", START_MAX).await?;
        }
        Ok(())
    }

    async fn pause(
        &self,
        deadline: Instant,
        action: &'static str,
        waited: Duration,
    ) -> Result<(), LocalServerError> {
        if Instant::now() > deadline {
            let output = self.log_tail();
            return Err(LocalServerError::TooSlow {
                action,
                waited,
                output,
            });
        }
        tokio::time::sleep(LOOK_EVERY).await;
        Ok(())
    }

    /// The last line of `postmaster.pid` is the server's state; the first its process.
    fn is_ready(&self) -> bool {
        let file = self.data_dir().join("postmaster.pid");
        let Ok(text) = std::fs::read_to_string(file) else {
            return false;
        };
        let is_ours = text.lines().next().and_then(|line| line.parse().ok()) == self.pid();
        is_ours
            && text
                .lines()
                .nth(7)
                .is_some_and(|state| state.trim() == "ready")
    }

    /// Stops the server; its directory stays. Stopping a stopped server does nothing.
    ///
    /// # Errors
    ///
    /// [`LocalServerError::TooSlow`] when it does not stop; it still runs then.
    pub async fn stop(&mut self, mode: StopMode) -> Result<(), LocalServerError> {
        let Some(postmaster) = &mut self.postmaster else {
            return Ok(());
        };
        postmaster.signal(mode.signal());
        let deadline = Instant::now() + STOP_MAX;
        while self
            .postmaster
            .as_mut()
            .is_some_and(|p| p.ended().is_none())
        {
            self.pause(deadline, "stop", STOP_MAX).await?;
        }
        self.postmaster = None;
        Ok(())
    }

    /// Starts the server again, on the same port, after [`Self::stop`] or
    /// [`Self::kill_postmaster`]. A running server is stopped fast before.
    ///
    /// # Errors
    ///
    /// As for [`Self::start`].
    pub async fn restart(&mut self) -> Result<(), LocalServerError> {
        self.stop(StopMode::Fast).await?;
        let deadline = Instant::now() + LET_GO_MAX;
        let mut attempt = 1;
        loop {
            match self.launch().await {
                // The crashed server's processes still hold its memory or its port.
                Err(LocalServerError::Failed { output, .. })
                    if attempt < ATTEMPT_COUNT_MAX
                        || output.contains("shared memory block") && Instant::now() < deadline =>
                {
                    attempt += 1;
                    tokio::time::sleep(ATTEMPT_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    /// Kills the postmaster as `kill -9` does; its children notice and end. A second call does
    /// nothing.
    pub fn kill_postmaster(&mut self) {
        if let Some(mut postmaster) = self.postmaster.take() {
            postmaster.signal(Signal::KILL);
            postmaster.wait();
        }
    }

    /// Returns the postmaster's process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.postmaster
            .as_ref()
            .map(|postmaster| postmaster.child.id())
    }

    /// Returns the TCP port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Returns where the server's programs lie.
    #[must_use]
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// Returns the data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// Returns the directory of the unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        self.home.path()
    }

    /// Returns how to connect over TCP.
    #[must_use]
    pub fn config(&self, database: &str) -> Config {
        let host = "127.0.0.1".to_owned();
        let port = self.port;
        self.config_of(Host::Tcp { host, port }, database)
    }

    /// Returns how to connect over the unix socket.
    #[must_use]
    pub fn unix_config(&self, database: &str) -> Config {
        let directory = self.home.path().to_owned();
        let port = self.port;
        self.config_of(Host::Unix { directory, port }, database)
    }

    fn config_of(&self, host: Host, database: &str) -> Config {
        Config::at(host, USER, database, self.password.clone(), SslMode::Prefer)
    }

    /// Returns the TCP URL, **without** the password (see [`Config::with_password`]).
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    /// Returns the URL of the unix socket, without the password.
    #[must_use]
    pub fn unix_url(&self, database: &str) -> String {
        let directory = self.home.path().display();
        format!(
            "postgres://{USER}@/{database}?host={directory}&port={}",
            self.port
        )
    }

    /// Returns the server's log.
    #[must_use]
    pub fn log(&self) -> String {
        self.home.log()
    }

    /// Returns the end of the server's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.log())
    }
}

fn take_care(home: &Home) -> Result<Caretaker, LocalServerError> {
    Caretaker::of(home.path()).map_err(|source| LocalServerError::Io {
        action: "take care of",
        path: home.path().to_owned(),
        source,
    })
}

async fn initdb(
    bin_dir: &Path,
    home: &mut Home,
    options: &LocalServerOptions,
) -> Result<(), LocalServerError> {
    let mut command = home.command(&bin_dir.join("initdb"));
    if let Some(path) = library_path(bin_dir) {
        command.env("LD_LIBRARY_PATH", path);
    }
    command.arg("-D").arg(home.path().join("data"));
    command.args(["-U", USER, "-E", "UTF8", "--locale=C", "--no-sync"]);
    match &options.password {
        Some(password) => {
            let file = home.write_secret("password", password)?;
            command.args(["-A", "scram-sha-256", "--pwfile"]).arg(file)
        }
        None => command.args(["-A", "trust"]),
    };
    let ended = run_to_end("initdb", command).await;
    home.remove_secret("password")?;
    ended
}

fn spawn(command: &mut Command) -> Result<Child, LocalServerError> {
    command.spawn().map_err(|source| LocalServerError::Io {
        action: "run",
        path: command.get_program().into(),
        source,
    })
}
