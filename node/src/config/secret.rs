//! Reads a secret from where its reference points, at the moment it is used.
//!
//! Never keeps, prints or logs what it read; errors name the reference only.

use std::io;

use pgcapture_engine::{cluster::SecretRef, codes};

/// A secret file is at most this long: a path to something else is noticed.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// A reference leads nowhere.
#[derive(Debug, thiserror::Error)]
#[error("{}: no secret at {reference}: {reason}", codes::config::SECRET.code)]
pub struct SecretError {
    /// Where it should be.
    pub reference: SecretRef,
    /// Why it is not.
    pub reason: String,
}

/// Reads a secret; a trailing line end is not part of it.
///
/// # Errors
///
/// [`SecretError`] when there is none or it is empty.
pub fn read_secret(reference: &SecretRef) -> Result<String, SecretError> {
    let read = match reference {
        SecretRef::Env(name) => std::env::var(name).map_err(|error| error.to_string()),
        SecretRef::File(path) => read_file(path).map_err(|error| error.to_string()),
    };
    let error = |reason| SecretError {
        reference: reference.clone(),
        reason,
    };
    let mut secret = read.map_err(error)?;
    secret.truncate(secret.trim_end_matches(['\r', '\n']).len());
    if secret.is_empty() {
        return Err(error("it is empty".to_owned()));
    }
    Ok(secret)
}

fn read_file(path: &str) -> io::Result<String> {
    let length = std::fs::metadata(path)?.len();
    if length > SECRET_BYTES_MAX {
        return Err(io::Error::other(format!(
            "{length} bytes are too many for a secret"
        )));
    }
    std::fs::read_to_string(path)
}
