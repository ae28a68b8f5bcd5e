//! How a command fails: a code, a text, a next step, an exit code.
//!
//! | exit code | meaning |
//! | --- | --- |
//! | 0 | ok |
//! | 1 | failed |
//! | 2 | usage |
//! | 3 | unhealthy, or a check found errors |
//! | 4 | not found |
//! | 5 | denied |
//! | 6 | unreachable or timed out |
//! | 7 | conflict, or needs `--yes` |
//! | 130 | interrupted |

use std::{fmt::Write as _, io, process::ExitCode};

use pgcapture_engine::codes::{Explanation, config, dump, node};
use tonic::{Code, Status};

use super::{Global, output};
use crate::tls;

/// Why a command ended without success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Exit code of the process.
    pub exit: u8,
    /// Stable code of the error; empty when the text carries its own.
    pub code: String,
    /// What happened; empty prints nothing.
    pub text: String,
    /// What to do.
    pub next: String,
}

impl Failure {
    /// Makes a failure of a known kind.
    #[must_use]
    pub fn new(exit: u8, explanation: &Explanation, text: impl Into<String>) -> Self {
        Self {
            exit,
            code: explanation.code.to_owned(),
            text: text.into(),
            next: explanation.next.to_owned(),
        }
    }

    /// Makes a failure that says nothing: everything was printed already.
    #[must_use]
    pub const fn silent(exit: u8) -> Self {
        Self {
            exit,
            code: String::new(),
            text: String::new(),
            next: String::new(),
        }
    }

    /// The user pressed Ctrl-C.
    #[must_use]
    pub const fn interrupted() -> Self {
        Self::silent(130)
    }

    /// A destructive command was not confirmed; `plan` says what it would do.
    #[must_use]
    pub fn needs_yes(plan: &str) -> Self {
        Self::new(7, &node::NEEDS_YES, format!("nothing was done; {plan}"))
    }

    /// The arguments make no sense.
    #[must_use]
    pub fn usage(text: impl Into<String>) -> Self {
        Self::new(2, &node::BAD_REQUEST, text)
    }

    /// Replaces the next step.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }

    /// Prints the failure to stderr and returns the exit code.
    #[must_use]
    pub fn report(&self, global: &Global) -> ExitCode {
        if !self.text.is_empty() || !self.code.is_empty() {
            let mut out = String::new();
            let red = output::style(global, "31;1", "Error");
            // Writing to a String does not fail.
            let written = if self.code.is_empty() {
                writeln!(out, "{red}: {}", self.text)
            } else {
                writeln!(out, "{red} {}: {}", self.code, self.text)
            };
            if written.is_ok() && !self.next.is_empty() {
                out.push_str("  next: ");
                out.push_str(&self.next);
                out.push('\n');
            }
            output::talk(&out);
        }
        ExitCode::from(self.exit)
    }
}

/// Maps an answer of the node to exit code and text. The node's own code and next step win.
impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        // A node that answered was trusted: what it says of certificates is about somebody else's.
        let is_answer = status
            .metadata()
            .contains_key(pgcapture_proto::status::CODE_KEY);
        let distrust = (!is_answer).then(|| tls::distrust(&status)).flatten();
        if let Some(said) = distrust {
            return Self::new(5, &config::UNTRUSTED, said);
        }
        let (exit, explanation) = match status.code() {
            Code::NotFound => (4, Some(&node::NOT_FOUND)),
            Code::Unauthenticated | Code::PermissionDenied => (5, Some(&node::DENIED)),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
                (6, Some(&node::UNREACHABLE))
            }
            Code::AlreadyExists | Code::Aborted => (7, Some(&node::CONFLICT)),
            Code::InvalidArgument => (2, Some(&node::BAD_REQUEST)),
            Code::FailedPrecondition => (3, None),
            Code::Ok
            | Code::Unknown
            | Code::ResourceExhausted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss => (1, None),
        };
        let told = |key: &str| {
            let value = status.metadata().get(key)?;
            Some(value.to_str().ok()?.to_owned())
        };
        let code = told(pgcapture_proto::status::CODE_KEY);
        // What exists is in a state for something else: to people that is a conflict.
        let is_conflict = code.as_deref() == Some(dump::WRONG_STATE.code);
        let exit = if is_conflict { 7 } else { exit };
        let known = code.as_deref().and_then(pgcapture_engine::codes::find);
        let explanation = known.or(explanation);
        let code = explanation.map_or("", |known| known.code);
        let next = explanation.map_or("look at the log of the node", |known| known.next);
        // The message of our own statuses is `CODE: what; next: step`.
        let message = status.message();
        let message = message.strip_prefix(code).unwrap_or(message);
        let message = message.strip_prefix(": ").unwrap_or(message);
        let (text, next) = message.rsplit_once("; next: ").unwrap_or((message, next));
        Self {
            exit,
            code: code.to_owned(),
            text: text.to_owned(),
            next: next.to_owned(),
        }
    }
}

/// A reader that left (`| head`) is no failure; anything else is.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(0);
        }
        Self {
            exit: 1,
            code: String::new(),
            text: format!("cannot write the output: {error}"),
            next: "check where the output goes".to_owned(),
        }
    }
}
