//! Certificate and key as files: a key is readable by its owner alone from its first byte on, and is
//! never replaced by accident.
//!
//! Both are written under other names first and then renamed, so that a crash leaves a whole file or
//! none.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use pgcapture_engine::codes::config;
use tempfile::NamedTempFile;

use super::{authority::Issued, taken};
use crate::cli::Failure;

/// Everybody may read a certificate.
const CERT_MODE: u32 = 0o644;

/// Only its owner may read a key.
const KEY_MODE: u32 = 0o600;

/// Only its owner may look into the folder.
const FOLDER_MODE: u32 = 0o700;

/// The two files of a name.
pub(super) struct Pair {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    folder: PathBuf,
}

impl Pair {
    /// The files of a name in a folder; absolute, so that they can be pasted anywhere.
    pub(super) fn at(folder: &Path, name: &str) -> Result<Self, Failure> {
        let folder = std::path::absolute(folder).map_err(|error| failed("find", folder, &error))?;
        Ok(Self {
            cert: folder.join(format!("{name}.crt")),
            key: folder.join(format!("{name}.key")),
            folder,
        })
    }

    /// Refuses to replace what is there, unless it was asked for.
    pub(super) fn refuse_existing(&self, is_forced: bool) -> Result<(), Failure> {
        let found = [&self.key, &self.cert].into_iter().find(|it| it.exists());
        match found {
            Some(path) if !is_forced => Err(taken(format!("{} is there already", path.display()))),
            _ => Ok(()),
        }
    }

    /// Reads certificate and key.
    pub(super) fn read(&self) -> Result<(String, String), Failure> {
        let read =
            |path: &Path| fs::read_to_string(path).map_err(|error| failed("read", path, &error));
        Ok((read(&self.cert)?, read(&self.key)?))
    }

    /// Writes both, the key first: without it the certificate is worthless.
    pub(super) fn write(&self, issued: &Issued, is_forced: bool) -> Result<(), Failure> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(FOLDER_MODE)
            .create(&self.folder)
            .map_err(|error| failed("create", &self.folder, &error))?;
        self.put(&self.key, &issued.key, KEY_MODE, is_forced)?;
        self.put(&self.cert, &issued.cert, CERT_MODE, is_forced)
    }

    fn put(&self, path: &Path, text: &str, mode: u32, is_forced: bool) -> Result<(), Failure> {
        let write = || {
            // Made for its owner alone, whatever the umask is.
            let mut file = NamedTempFile::new_in(&self.folder)?;
            file.write_all(text.as_bytes())?;
            let permissions = fs::Permissions::from_mode(mode);
            file.as_file().set_permissions(permissions)?;
            file.as_file().sync_all()?;
            Ok(file)
        };
        let file: NamedTempFile =
            write().map_err(|error: io::Error| failed("write", path, &error))?;
        let kept = if is_forced {
            file.persist(path)
        } else {
            file.persist_noclobber(path)
        };
        match kept {
            Ok(_) => Ok(()),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                Err(taken(format!("{} is there already", path.display())))
            }
            Err(error) => Err(failed("write", path, &error.error)),
        }
    }
}

fn failed(action: &str, path: &Path, error: &io::Error) -> Failure {
    let text = format!("cannot {action} {}: {error}", path.display());
    Failure::new(1, &config::TLS, text).next("check the path given with --dir and its permissions")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issued(text: &str) -> Issued {
        Issued {
            cert: format!("cert {text}"),
            key: format!("key {text}"),
            hosts: Vec::new(),
            expires: String::new(),
        }
    }

    #[test]
    fn a_key_is_its_owners_alone_and_is_not_replaced_by_accident() {
        let folder = tempfile::tempdir().unwrap();
        let pair = Pair::at(&folder.path().join("certs"), "n1").unwrap();
        pair.refuse_existing(false).unwrap();
        pair.write(&issued("one"), false).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&pair.key), mode(&pair.cert)), (0o600, 0o644));
        assert_eq!(mode(&pair.folder), 0o700);

        assert_eq!(pair.refuse_existing(false).unwrap_err().exit, 7);
        // Somebody else wrote it between the look and the writing.
        assert_eq!(pair.write(&issued("two"), false).unwrap_err().exit, 7);
        let (cert, key) = pair.read().unwrap();
        assert_eq!((cert.as_str(), key.as_str()), ("cert one", "key one"));

        pair.refuse_existing(true).unwrap();
        pair.write(&issued("two"), true).unwrap();
        assert_eq!(pair.read().unwrap().1, "key two");
        assert_eq!(mode(&pair.key), 0o600);
        let left = fs::read_dir(&pair.folder).unwrap().count();
        assert_eq!(left, 2, "temporary files are left over");
    }
}
