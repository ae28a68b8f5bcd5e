//! The temporary directory of a throw-away server, and the user it belongs to.
//!
//! Owned by the user that the server runs as: us, or, when we are root, `postgres` or `nobody`.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::{
        fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use super::LocalServerError;
use crate::postgres::Secret;

/// Users to run the server as when we are root, the best first.
const USERS: &[&str] = &["postgres", "nobody"];
/// A unix socket's path may have 107 bytes; what PostgreSQL appends to the directory has 20.
const PATH_BYTES_MAX: usize = 80;

/// User and group id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Account {
    user: u32,
    group: u32,
}

/// The directory; removed when dropped.
#[derive(Debug)]
pub(super) struct Home {
    directory: TempDir,
    account: Option<Account>,
}

impl Home {
    pub(super) fn new() -> Result<Self, LocalServerError> {
        let account = if rustix::process::geteuid().is_root() {
            Some(account().ok_or(LocalServerError::NoUser)?)
        } else {
            None
        };
        let parent = parent(account);
        let directory = tempfile::Builder::new()
            .prefix("pgcapture-")
            .tempdir_in(&parent)
            .map_err(failed("make a directory in", &parent))?;
        let home = Self { directory, account };
        home.give_away(home.path())?;
        Ok(home)
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Returns a command that runs as the server's user, in the directory.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.path()).env("LC_ALL", "C");
        // What is meant for our own connections must not reach the server's tools.
        for name in [
            "PGDATA",
            "PGHOST",
            "PGPORT",
            "PGUSER",
            "PGDATABASE",
            "PGPASSWORD",
        ] {
            command.env_remove(name);
        }
        if let Some(Account { user, group }) = self.account {
            command.uid(user).gid(group);
        }
        command
    }

    fn give_away(&self, path: &Path) -> Result<(), LocalServerError> {
        match self.account {
            Some(Account { user, group }) => {
                chown(path, Some(user), Some(group)).map_err(failed("give away", path))
            }
            None => Ok(()),
        }
    }

    pub(super) fn append(&self, name: &str, lines: &[String]) -> Result<(), LocalServerError> {
        let path = self.path().join(name);
        let text = lines.join("\n");
        let mut file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(failed("open", &path))?;
        writeln!(file, "\n{text}").map_err(failed("write", &path))
    }

    pub(super) fn prepend(&self, name: &str, lines: &[String]) -> Result<(), LocalServerError> {
        let path = self.path().join(name);
        let old = fs::read_to_string(&path).map_err(failed("read", &path))?;
        let text = format!("{}\n{old}", lines.join("\n"));
        fs::write(&path, text).map_err(failed("write", &path))
    }

    pub(super) fn write_secret(
        &self,
        name: &str,
        secret: &Secret,
    ) -> Result<PathBuf, LocalServerError> {
        let path = self.path().join(name);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let mut file = file.map_err(failed("make", &path))?;
        writeln!(file, "{}", secret.expose()).map_err(failed("write", &path))?;
        self.give_away(&path)?;
        Ok(path)
    }

    pub(super) fn remove_secret(&self, name: &str) -> Result<(), LocalServerError> {
        let path = self.path().join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn log_for_writing(&self) -> Result<File, LocalServerError> {
        let path = self.path().join("server.log");
        let file = OpenOptions::new().append(true).create(true).open(&path);
        file.map_err(failed("open", &path))
    }

    pub(super) fn log(&self) -> String {
        let bytes = fs::read(self.path().join("server.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> LocalServerError {
    let path = path.to_owned();
    move |source| LocalServerError::Io {
        action,
        path: path.clone(),
        source,
    }
}

fn account() -> Option<Account> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    USERS.iter().find_map(|user| account_in(&passwd, user))
}

fn account_in(passwd: &str, user: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_user = fields.next() == Some(user);
        let (user, group) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        is_user.then_some(Account { user, group })
    })
}

/// The system's temporary directory, or `/tmp` when the server's user cannot get there or its name
/// is too long for a socket.
fn parent(account: Option<Account>) -> PathBuf {
    let wanted = env::temp_dir();
    let is_short = wanted.as_os_str().len() <= PATH_BYTES_MAX;
    let is_open = |directory: &Path| {
        fs::metadata(directory).is_ok_and(|metadata| {
            let is_owner = account.is_none_or(|account| account.user == metadata.uid());
            is_owner || metadata.permissions().mode() & 0o001 != 0
        })
    };
    if is_short && wanted.ancestors().all(is_open) {
        wanted
    } else {
        PathBuf::from("/tmp")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\npostgres2:x:7:8::/:/x\npostgres:x:105:112::/:/x\n";
        let wanted = Account {
            user: 105,
            group: 112,
        };
        assert_eq!(account_in(passwd, "postgres"), Some(wanted));
        assert_eq!(account_in(passwd, "nobody"), None);
    }
}
