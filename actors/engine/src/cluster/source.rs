//! The definition of one source, as it lies in the replicated state.
//!
//! Holds where the password is, never the password; the url in it has none.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{checkpoint::Epoch, lsn::PgTime};

/// Names of sources and streams are at most this long: they are file names and label values.
const NAME_BYTES_MAX: usize = 63;

/// A captured PostgreSQL database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// The stream that it feeds; consumers know only this.
    pub stream: String,
    /// Where PostgreSQL is, without a password.
    pub url: String,
    /// Where the password is; `None` when none is needed.
    pub password: Option<SecretRef>,
    /// Replication slot.
    pub slot: String,
    /// Publication.
    pub publication: String,
    /// Patterns of captured tables, such as `public.*`.
    pub tables: Vec<String>,
    /// Patterns of tables left out.
    pub exclude: Vec<String>,
    /// Whether the agent rests; the slot then keeps WAL.
    pub paused: bool,
    /// The newest epoch; 0 before the first agent.
    pub epoch: Epoch,
    /// When it was added.
    pub created_at: PgTime,
    /// What to do when changes are lost.
    pub on_gap: OnGap,
    /// Who declared it.
    pub origin: Origin,
    /// Whether we made the publication, and so drop it with the source.
    pub owns_publication: bool,
}

impl Source {
    /// Tells whether both capture the same tables of the same database through the same slot.
    #[must_use]
    pub fn is_same_capture(&self, other: &Self) -> bool {
        self.name == other.name
            && self.stream == other.stream
            && self.url == other.url
            && self.slot == other.slot
            && self.publication == other.publication
            && self.tables == other.tables
            && self.exclude == other.exclude
    }
}

/// What to do when changes are lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnGap {
    /// Declare the gap and stop; an operator decides.
    #[default]
    Halt,
    /// Declare the gap and go on after it.
    Continue,
}

/// Who declared a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A command of the administration API.
    #[default]
    Command,
    /// A section of the configuration file.
    Config,
}

/// Where a secret is. The secret itself is read when it is used and never stored beside this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecretRef {
    /// In an environment variable.
    Env(String),
    /// In a file, without a trailing line end.
    File(String),
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{path}"),
        }
    }
}

/// The text is not a reference to a secret. Does not repeat the text: it may be the secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a secret is given by reference: env:NAME or file:/path")]
pub struct NotAReference;

impl FromStr for SecretRef {
    type Err = NotAReference;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unbraced = text
            .strip_prefix("${")
            .and_then(|rest| rest.strip_suffix('}'));
        match (text.split_once(':'), unbraced) {
            (Some(("env", name)), _) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            (Some(("file", path)), _) if !path.is_empty() => Ok(Self::File(path.to_owned())),
            (_, Some(name)) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            _ => Err(NotAReference),
        }
    }
}

/// A name breaks the rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error(
    "\"{name}\" cannot name a {what}: use 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, \"-\", \"_\" and \".\", beginning with a letter or a digit"
)]
pub struct InvalidName {
    /// `source` or `stream`.
    pub what: Cow<'static, str>,
    /// The name.
    pub name: String,
}

/// Checks a name of a source or stream.
///
/// # Errors
///
/// [`InvalidName`], which says the rule.
pub fn check_name(what: &'static str, name: &str) -> Result<(), InvalidName> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_valid = name.len() <= NAME_BYTES_MAX
        && name.bytes().all(is_plain)
        && name
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric());
    is_valid.then_some(()).ok_or_else(|| InvalidName {
        what: what.into(),
        name: name.to_owned(),
    })
}
