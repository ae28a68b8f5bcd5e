//! What a user asked to capture, with everything filled in and the password taken out.

use pgcapture_actors::postgres;
use pgcapture_engine::{
    checkpoint::Epoch,
    cluster::{OnGap, Origin, SecretRef, Source, check_name},
    lsn::PgTime,
    wal_guard::WalWish,
};

use super::{host, operations::SourceError};
use crate::{
    config::{SourceSection, default_publication, default_slot},
    redact::split_password,
};

/// Names of slots and publications end here in PostgreSQL.
const NAME_BYTES_MAX: usize = 63;

/// A checked wish. Its `Debug` shows no password: the url has none, the inline one is a `Secret`.
#[derive(Clone, Debug)]
pub struct Definition {
    /// Name of the source.
    pub name: String,
    /// Its stream.
    pub stream: String,
    /// Where it connects to; no password.
    pub url: String,
    /// Where the password is.
    pub password: Option<SecretRef>,
    /// The password that stood in the url.
    pub(super) inline: Option<postgres::Secret>,
    /// Replication slot.
    pub slot: String,
    /// Publication.
    pub publication: String,
    /// Captured tables.
    pub tables: Vec<String>,
    /// Tables left out.
    pub exclude: Vec<String>,
    /// Who asks.
    pub origin: Origin,
    /// What is said about the WAL that may be kept.
    pub wal: WalWish,
}

impl Definition {
    /// Fills in defaults and checks names; `password` is a reference or empty.
    ///
    /// # Errors
    ///
    /// [`SourceError::Invalid`] says what to correct, never repeating a secret.
    pub fn new(
        name: &str,
        section: SourceSection,
        password: &str,
        origin: Origin,
    ) -> Result<Self, SourceError> {
        let invalid = |text: String| SourceError::Invalid { text };
        check_name("source", name).map_err(|error| invalid(error.to_string()))?;
        let or = |text: String, default: String| if text.is_empty() { default } else { text };
        let stream = or(section.stream, name.to_owned());
        check_name("stream", &stream).map_err(|error| invalid(error.to_string()))?;
        let (url, inline) = split_password(section.url.trim());
        if url.is_empty() {
            return Err(invalid("a source needs a url".to_owned()));
        }
        let reference = match password.trim() {
            "" => section.password,
            text => Some(
                text.parse::<SecretRef>()
                    .map_err(|e| invalid(e.to_string()))?,
            ),
        };
        let definition = Self {
            name: name.to_owned(),
            stream,
            url,
            inline: inline
                .filter(|_| reference.is_none())
                .map(postgres::Secret::new),
            password: reference,
            slot: or(section.slot, default_slot(name)),
            publication: or(section.publication, default_publication(name)),
            tables: if section.tables.is_empty() {
                vec!["public.*".to_owned()]
            } else {
                section.tables
            },
            exclude: section.exclude,
            origin,
            wal: section.wal_guard.wish(),
        };
        definition.check_postgres_names()?;
        Ok(definition)
    }

    fn check_postgres_names(&self) -> Result<(), SourceError> {
        let is_slot = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !self.slot.chars().all(is_slot) || self.slot.len() > NAME_BYTES_MAX {
            return Err(SourceError::Invalid {
                text: format!(
                    "\"{}\" cannot name a slot: use up to {NAME_BYTES_MAX} of a-z, 0-9 and \"_\"",
                    self.slot
                ),
            });
        }
        if self.publication.len() > NAME_BYTES_MAX {
            return Err(SourceError::Invalid {
                text: format!("\"{}\" is too long for a publication", self.publication),
            });
        }
        Ok(())
    }

    /// Returns where to connect to, with the password.
    pub(super) fn connection(&self) -> Result<postgres::Config, SourceError> {
        Ok(host::connection(
            &self.url,
            self.inline.as_ref(),
            self.password.as_ref(),
        )?)
    }

    /// Returns the source as the state keeps it.
    pub(super) fn into_source(self, created_at: PgTime, owns_publication: bool) -> Source {
        Source {
            name: self.name,
            stream: self.stream,
            url: self.url,
            password: self.password,
            slot: self.slot,
            publication: self.publication,
            tables: self.tables,
            exclude: self.exclude,
            paused: false,
            epoch: Epoch(0),
            created_at,
            on_gap: OnGap::Halt,
            origin: self.origin,
            owns_publication,
        }
    }
}
