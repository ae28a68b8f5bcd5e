//! What a user said about a replica, with everything filled in and the password taken out.

use std::time::Duration;

use pgcapture_actors::postgres;
use pgcapture_engine::{
    cluster::{Replica, ReplicaKind, SecretRef, check_name},
    lsn::PgTime,
};

use crate::{
    config::{ReplicaSection, parse_kind},
    redact::split_password,
    sources::{SourceError, connection},
};

/// A checked wish. Its `Debug` shows no password: the url has none, the inline one is a `Secret`.
#[derive(Clone, Debug)]
pub struct ReplicaDefinition {
    /// Name of the replica.
    pub name: String,
    /// The source whose rows it holds.
    pub source: String,
    /// Where it is; no password.
    pub url: String,
    /// Where the password is.
    pub password: Option<SecretRef>,
    /// The password that stood in the url.
    pub(super) inline: Option<postgres::Secret>,
    /// What it is.
    pub kind: ReplicaKind,
    /// Ranges read from it at a time.
    pub ranges_max: u32,
    /// No range is begun while it is further behind.
    pub lag_max: Duration,
    /// Bytes of rows that all dumps together may read from it a second, 0 for no limit; `None` leaves what
    /// was said before.
    pub rate: Option<u64>,
}

impl ReplicaDefinition {
    /// Checks names and values; `password` is a reference or empty.
    ///
    /// # Errors
    ///
    /// [`SourceError::Invalid`] says what to correct, never repeating a secret.
    pub fn new(name: &str, section: ReplicaSection, password: &str) -> Result<Self, SourceError> {
        let invalid = |text: String| SourceError::Invalid { text };
        check_name("replica", name).map_err(|error| invalid(error.to_string()))?;
        let (url, inline) = split_password(section.url.trim());
        if url.is_empty() {
            return Err(invalid("a replica needs a url".to_owned()));
        }
        if section.source.is_empty() {
            return Err(invalid("a replica needs the name of its source".to_owned()));
        }
        let reference = match password.trim() {
            "" => section.password,
            text => Some(
                text.parse::<SecretRef>()
                    .map_err(|error| invalid(error.to_string()))?,
            ),
        };
        let kind = parse_kind(&section.kind).ok_or_else(|| {
            let kind = &section.kind;
            invalid(format!(
                "\"{kind}\" is no kind of replica; use standby or source"
            ))
        })?;
        Ok(Self {
            name: name.to_owned(),
            source: section.source,
            url,
            inline: inline
                .filter(|_| reference.is_none())
                .map(postgres::Secret::new),
            password: reference,
            kind,
            ranges_max: section.max_ranges,
            lag_max: section.max_lag.0,
            rate: None,
        })
    }

    /// Returns where to connect to, with the password.
    pub(super) fn connection(&self) -> Result<postgres::Config, SourceError> {
        Ok(connection(
            &self.url,
            self.inline.as_ref(),
            self.password.as_ref(),
        )?)
    }

    pub(super) fn into_replica(self, created_at: PgTime, system_identifier: u64) -> Replica {
        Replica {
            name: self.name,
            source: self.source,
            url: self.url,
            password: self.password,
            kind: self.kind,
            system_identifier,
            ranges_max: self.ranges_max,
            lag_max: self.lag_max,
            created_at,
        }
    }
}
