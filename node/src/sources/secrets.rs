//! Passwords that came inside a url: each in a file of its own, readable by the node only.
//!
//! `data_dir/secrets/<source>` and `data_dir/replica_secrets/<replica>`, mode 0600. The state refers
//! to them as `file:…`.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
};

use pgcapture_engine::cluster::SecretRef;

/// The directory of secrets.
#[derive(Debug)]
pub(crate) struct Secrets {
    directory: PathBuf,
}

impl Secrets {
    pub(crate) const fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Keeps a password durably and returns its reference.
    pub(crate) fn keep(&self, name: &str, password: &str) -> io::Result<SecretRef> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)?;
        let path = self.path(name);
        let temporary = self.directory.join(format!("{name}.new"));
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(password.as_bytes())?;
                file.sync_all()
            });
        written.and_then(|()| fs::rename(&temporary, &path))?;
        fs::File::open(&self.directory)?.sync_all()?;
        Ok(self.reference(name))
    }

    /// Forgets a password that we kept; others' files are left alone. Idempotent.
    pub(crate) fn forget(&self, name: &str, reference: Option<&SecretRef>) -> io::Result<()> {
        if reference != Some(&self.reference(name)) {
            return Ok(());
        }
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn reference(&self, name: &str) -> SecretRef {
        SecretRef::File(self.path(name).display().to_string())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_kept_password_is_readable_by_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let secrets = Secrets::new(directory.path().join("secrets"));
        let reference = secrets.keep("shop", "hunter2").unwrap();
        assert_eq!(crate::config::read_secret(&reference).unwrap(), "hunter2");
        let path = directory.path().join("secrets/shop");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        secrets.keep("shop", "other").unwrap();
        assert_eq!(crate::config::read_secret(&reference).unwrap(), "other");
        secrets
            .forget("shop", Some(&SecretRef::Env("X".to_owned())))
            .unwrap();
        assert!(path.exists());
        secrets.forget("shop", Some(&reference)).unwrap();
        secrets.forget("shop", Some(&reference)).unwrap();
        assert!(!path.exists());
    }
}
