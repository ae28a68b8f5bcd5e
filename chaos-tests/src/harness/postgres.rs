//! A throw-away PostgreSQL that can be crashed.
//!
//! Owns its directory and its postmaster; both are gone when it is dropped. PostgreSQL refuses to run
//! as root, so then everything runs as the system's user `postgres`.

use std::{
    env,
    fs::{self, File},
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Signal, geteuid};

use super::{
    ports::free_ports,
    process::{Process, send},
    sql::Sql,
    wait::{Look, until},
};

/// How long a start may take, crash recovery included.
const START_WITHIN: Duration = Duration::from_secs(300);

/// How long a shutdown may take before the harness calls it stuck.
const STOP_WITHIN: Duration = Duration::from_secs(90);

/// Settings beside the ports. `fsync` is off because processes are killed here, never the machine:
/// what was written stays in the system's cache, and more commits fit into a second. Checkpoints are
/// rare for the same reason.
const SETTINGS: [&str; 8] = [
    "wal_level=logical",
    "fsync=off",
    "max_wal_senders=10",
    "max_replication_slots=10",
    "max_connections=60",
    "max_wal_size=2GB",
    "listen_addresses=127.0.0.1",
    "logging_collector=off",
];

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    bin: PathBuf,
    dir: PathBuf,
    port: u16,
    user: Option<(u32, u32)>,
}

impl Postgres {
    /// Creates a cluster below `dir`, which every user can traverse, and starts it.
    ///
    /// # Errors
    ///
    /// When PostgreSQL is not installed or does not start; says why and shows its log.
    pub async fn start(bin: Option<&Path>, dir: &Path) -> Result<Self> {
        let bin = real(find_bin(bin)?);
        let dir = dir.join("postgres");
        let user = geteuid().is_root().then(postgres_user).transpose()?;
        fs::create_dir(&dir).context("create PostgreSQL's directory")?;
        if let Some((uid, gid)) = user {
            chown(&dir, Some(uid), Some(gid)).context("give it to the user postgres")?;
        }
        let mut initdb = Command::new(bin.join("initdb"));
        initdb
            .args(["--auth=trust", "--username=postgres", "--no-sync"])
            .args(["--encoding=UTF8", "--locale=C", "--pgdata"])
            .arg(dir.join("data"));
        run_as(&mut initdb, user, &dir);
        let output = initdb.output().context("run initdb")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "initdb failed: {complaint}");
        Self::run(bin, dir, user).await
    }

    /// Makes a physical standby of this server below `dir`, with a slot of its own, and starts it.
    ///
    /// # Errors
    ///
    /// When the base backup fails or the standby does not start; says why.
    pub async fn start_standby(&self, dir: &Path) -> Result<Self> {
        let dir = dir.join("standby");
        fs::create_dir(&dir).context("create the standby's directory")?;
        if let Some((uid, gid)) = self.user {
            chown(&dir, Some(uid), Some(gid)).context("give it to the user postgres")?;
        }
        let mut backup = Command::new(self.bin.join("pg_basebackup"));
        backup
            .args(["-h", "127.0.0.1", "-U", "postgres", "-p"])
            .arg(self.port.to_string())
            .args(["--checkpoint=fast", "--wal-method=stream", "--no-sync"])
            .args(["--create-slot", "--slot=standby", "--write-recovery-conf"])
            .arg("--pgdata")
            .arg(dir.join("data"));
        run_as(&mut backup, self.user, &dir);
        let output = backup.output().context("run pg_basebackup")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pg_basebackup failed: {complaint}");
        Self::run(self.bin.clone(), dir, self.user).await
    }

    async fn run(bin: PathBuf, dir: PathBuf, user: Option<(u32, u32)>) -> Result<Self> {
        let [port] = free_ports()?;
        let process = spawn(&bin, &dir, port, user)?;
        let mut postgres = Self {
            process,
            bin,
            dir,
            port,
            user,
        };
        postgres.accepts().await?;
        Ok(postgres)
    }

    /// Returns a connection string for tokio-postgres.
    #[must_use]
    pub fn dsn(&self) -> String {
        let port = self.port;
        format!("host=127.0.0.1 port={port} user=postgres dbname=postgres connect_timeout=5")
    }

    /// Returns the same as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Returns the postmaster's process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Kills the postmaster; its children notice and end. Does not start it again.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub async fn kill(&mut self) -> Result<()> {
        self.end_by(Signal::KILL).await
    }

    /// Immediate shutdown: no checkpoint, recovery at the next start. Does not start it again.
    ///
    /// # Errors
    ///
    /// When it does not run, or does not end.
    pub async fn stop_immediately(&mut self) -> Result<()> {
        self.end_by(Signal::QUIT).await
    }

    /// Fast shutdown: waits for its walsenders. Does not start it again.
    ///
    /// # Errors
    ///
    /// When it does not run, or does not end.
    pub async fn stop_fast(&mut self) -> Result<()> {
        self.end_by(Signal::INT).await
    }

    /// Starts it again and waits until it accepts connections.
    ///
    /// # Errors
    ///
    /// When it does not within a minute.
    pub async fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.bin, &self.dir, self.port, self.user)?;
        self.accepts().await
    }

    /// Kills one walsender with SIGKILL; the postmaster then restarts all of its backends. Returns
    /// false when there is none.
    ///
    /// # Errors
    ///
    /// When the server cannot be asked.
    pub async fn kill_walsender(&mut self) -> Result<bool> {
        let sql = Sql::connect_again(&self.dsn()).await?;
        let statement = "SELECT pid FROM pg_stat_replication LIMIT 1";
        let Some(row) = sql.client.query_opt(statement, &[]).await? else {
            return Ok(false);
        };
        let pid: i32 = row.try_get(0)?;
        send(u32::try_from(pid)?, Signal::KILL)?;
        Ok(true)
    }

    async fn end_by(&mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)?;
        self.process.ended(STOP_WITHIN).await?;
        Ok(())
    }

    /// Waits for a connection. A postmaster that starts while children of a killed one still hold the
    /// shared memory gives up; it is started once more.
    async fn accepts(&mut self) -> Result<()> {
        let dsn = self.dsn();
        let started = until(
            "PostgreSQL to accept connections",
            START_WITHIN,
            async || {
                if let Ok(Some(status)) = self.process.status() {
                    match spawn(&self.bin, &self.dir, self.port, self.user) {
                        Ok(process) => self.process = process,
                        Err(error) => return Look::NotYet(format!("{error:#}")),
                    }
                    return Look::NotYet(format!("ended with {status}"));
                }
                match Sql::connect(&dsn).await {
                    Ok(_) => Look::Ready(()),
                    Err(error) => Look::NotYet(error.to_string()),
                }
            },
        )
        .await;
        let log = self.dir.join("log");
        started.with_context(|| format!("its log ends:\n{}", tail(&log)))
    }
}

/// Returns the last lines of a file, for an error message.
#[must_use]
pub fn tail(path: &Path) -> String {
    const LINES: usize = 20;
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut lines: Vec<&str> = text.lines().rev().take(LINES).collect();
    lines.reverse();
    lines.join("\n")
}

fn spawn(bin: &Path, dir: &Path, port: u16, user: Option<(u32, u32)>) -> Result<Process> {
    let open = || {
        let log = File::options()
            .create(true)
            .append(true)
            .open(dir.join("log"));
        log.context("open PostgreSQL's log")
    };
    let mut command = Command::new(bin.join("postgres"));
    command.arg("-D").arg(dir.join("data"));
    command.arg("-k").arg(dir).arg("-p").arg(port.to_string());
    for setting in SETTINGS {
        command.arg("-c").arg(setting);
    }
    run_as(&mut command, user, dir);
    command.stdout(open()?).stderr(open()?);
    Process::spawn("postgres", &mut command, Signal::QUIT)
}

fn run_as(command: &mut Command, user: Option<(u32, u32)>, dir: &Path) {
    command.current_dir(dir);
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
}

/// Returns user and group id of the system's user `postgres`.
fn postgres_user() -> Result<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    for line in passwd.lines() {
        let mut fields = line.split(':');
        if fields.next() == Some("postgres") {
            let mut number = || fields.nth(1)?.parse().ok();
            let uid: Option<u32> = number();
            let gid = fields.next().and_then(|gid| gid.parse().ok());
            return uid.zip(gid).context("the line of postgres in /etc/passwd");
        }
    }
    bail!("PostgreSQL refuses to run as root, and there is no user postgres")
}

/// Follows links: a `postgres` on the path may stand alone, its other programs beside what it leads to.
fn real(bin: PathBuf) -> PathBuf {
    let program = fs::canonicalize(bin.join("postgres")).ok();
    let target = program.as_deref().and_then(Path::parent);
    target
        .filter(|real| real.join("pg_basebackup").exists())
        .map_or(bin.clone(), Path::to_owned)
}

/// Returns the directory of PostgreSQL's programs: the one that is given, the one that
/// `PGCAPTURE_PG_BIN` names, or the newest major that the system's packages have installed.
fn find_bin(given: Option<&Path>) -> Result<PathBuf> {
    let named = env::var_os("PGCAPTURE_PG_BIN").map(PathBuf::from);
    if let Some(given) = given.or(named.as_deref()) {
        let initdb = given.join("initdb");
        ensure!(initdb.exists(), "there is no {}", initdb.display());
        return Ok(given.to_owned());
    }
    let installed = fs::read_dir("/usr/lib/postgresql").context("no PostgreSQL; use --pg-bin")?;
    let major = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = installed
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.join("bin/initdb").exists())
        .max_by_key(major);
    let found = newest.context("no PostgreSQL in /usr/lib/postgresql; use --pg-bin")?;
    Ok(found.join("bin"))
}
