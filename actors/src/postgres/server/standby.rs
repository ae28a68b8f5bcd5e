//! A physical standby of a throw-away server, for trying and testing dumps.
//!
//! Made by `pg_basebackup` into a directory of its own; it lives and dies as every [`LocalServer`]
//! does, and not with its primary. Two of them may be a cascade.

use super::{
    LOOK_EVERY, LocalServer, LocalServerError, LocalServerOptions, USER, binaries::library_path,
    directory::Home, take_care, tools::run_to_end,
};
use crate::postgres::{Connection, PgError, Replication};

/// How to make a standby.
#[derive(Clone, Debug, Default)]
pub struct StandbyOptions {
    /// Tell the primary which rows are still read here, so that it keeps them: no query is
    /// cancelled for rows that were vacuumed away.
    pub hot_standby_feedback: bool,
    /// Make this physical slot on the primary, so that it keeps the WAL that a stopped standby has
    /// not read. It stays when the standby is gone.
    pub slot: Option<String>,
    /// Lines for `postgresql.conf`; they override those of the primary.
    pub settings: Vec<(String, String)>,
}

impl LocalServer {
    /// Makes a standby of this running server and starts it; returns when it takes connections.
    ///
    /// # Errors
    ///
    /// [`LocalServerError`]; nothing is left behind but the slot, if one was asked for.
    pub async fn start_standby(&self, options: StandbyOptions) -> Result<Self, LocalServerError> {
        let home = Home::new()?;
        let caretaker = take_care(&home)?;
        self.base_backup(&home, &options).await?;
        let mut settings = options.settings;
        if options.hot_standby_feedback {
            settings.insert(0, ("hot_standby_feedback".to_owned(), "on".to_owned()));
        }
        let mut standby = Self {
            postmaster: None,
            home,
            _caretaker: caretaker,
            bin_dir: self.bin_dir.clone(),
            port: 0,
            password: self.password.clone(),
        };
        let options = LocalServerOptions {
            settings,
            ..LocalServerOptions::default()
        };
        standby.configure(&options)?;
        standby.launch_on(None).await?;
        Ok(standby)
    }

    async fn base_backup(
        &self,
        home: &Home,
        options: &StandbyOptions,
    ) -> Result<(), LocalServerError> {
        let mut command = home.command(&self.bin_dir.join("pg_basebackup"));
        if let Some(path) = library_path(&self.bin_dir) {
            command.env("LD_LIBRARY_PATH", path);
        }
        if let Some(password) = &self.password {
            command.env("PGPASSWORD", password.expose());
        }
        command.arg("-D").arg(home.path().join("data"));
        command.arg("-h").arg(self.socket_dir());
        command.args(["-p", &self.port.to_string(), "-U", USER]);
        command.args(["-R", "-X", "stream", "-c", "fast", "--no-sync"]);
        if let Some(slot) = &options.slot {
            command.args(["-C", "-S", slot]);
        }
        run_to_end("pg_basebackup", command).await
    }

    /// Makes a standby a primary of its own; returns when it is one.
    ///
    /// # Errors
    ///
    /// What PostgreSQL says, for one when it is no standby.
    pub async fn promote(&self) -> Result<(), PgError> {
        self.ask("SELECT pg_promote()").await.map(drop)
    }

    /// Pauses replay on a standby; returns when nothing is replayed any more.
    ///
    /// # Errors
    ///
    /// As for [`Self::promote`].
    pub async fn pause_replay(&self) -> Result<(), PgError> {
        let mut sql = self.connect().await?;
        sql.query("SELECT pg_wal_replay_pause()").await?;
        loop {
            let rows = sql.query("SELECT pg_get_wal_replay_pause_state()").await?;
            if rows == [[Some("paused".to_owned())]] {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Lets replay go on.
    ///
    /// # Errors
    ///
    /// As for [`Self::promote`].
    pub async fn resume_replay(&self) -> Result<(), PgError> {
        self.ask("SELECT pg_wal_replay_resume()").await.map(drop)
    }

    /// Waits until this standby has replayed all that `primary` has written by now.
    ///
    /// # Errors
    ///
    /// A lost connection.
    pub async fn catch_up_with(&self, primary: &Self) -> Result<(), PgError> {
        let rows = primary.ask("SELECT pg_current_wal_insert_lsn()").await?;
        let wanted = rows.first().and_then(|row| row.first()?.clone());
        let wanted = wanted.unwrap_or_default();
        let mut sql = self.connect().await?;
        let question = format!("SELECT pg_last_wal_replay_lsn() >= '{wanted}'");
        while sql.query(&question).await? != [[Some("t".to_owned())]] {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    async fn ask(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, PgError> {
        self.connect().await?.query(sql).await
    }

    async fn connect(&self) -> Result<Connection, PgError> {
        Connection::connect(&self.unix_config("postgres"), Replication::Off).await
    }
}
