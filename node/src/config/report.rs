//! What is wrong with a configuration, shown with the line it stands on.
//!
//! A problem carries a stable code, the place, what is wrong there and what to write instead.
//! Values of secrets never get here: their reader leaves them out.

use std::{borrow::Cow, fmt::Write as _};

use pgcapture_engine::codes::Explanation;

use super::document::Origin;

/// The text of a configuration file.
#[derive(Clone, Debug)]
pub struct SourceText {
    /// Its path as it was given.
    pub name: String,
    /// Its contents.
    pub text: String,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its code and long text.
    pub explanation: &'static Explanation,
    /// What is wrong, in one line.
    pub title: String,
    /// What stands at the marked place.
    pub label: String,
    /// What to write instead.
    pub help: Option<String>,
    /// Where.
    pub origin: Origin,
    /// Whether the key is meant and not the value.
    pub is_about_key: bool,
}

impl Problem {
    /// Makes a problem without a place.
    #[must_use]
    pub fn new(explanation: &'static Explanation, title: impl Into<String>) -> Self {
        Self {
            explanation,
            title: title.into(),
            label: String::new(),
            help: None,
            origin: Origin::Default,
            is_about_key: false,
        }
    }

    /// Says where.
    #[must_use]
    pub fn at(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }

    /// Says where: at the key.
    #[must_use]
    pub fn at_key(self, origin: Origin) -> Self {
        Self {
            is_about_key: true,
            ..self.at(origin)
        }
    }

    /// Says what stands at the place.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Says what to write instead.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Everything that is wrong, with the texts that the places point into.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", render(problems, files))]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
    /// The files.
    pub files: Vec<SourceText>,
}

/// Writes all problems for people.
fn render(problems: &[Problem], files: &[SourceText]) -> String {
    let mut out = String::new();
    for problem in problems {
        // Writing to a String does not fail.
        if render_one(&mut out, problem, files).is_err() {
            break;
        }
    }
    out.truncate(out.trim_end().len());
    out
}

fn render_one(out: &mut String, problem: &Problem, files: &[SourceText]) -> std::fmt::Result {
    let code = problem.explanation.code;
    writeln!(out, "Error {code}: {}", problem.title)?;
    match &problem.origin {
        Origin::File { file, key, value } => {
            let span = if problem.is_about_key { key } else { value };
            if let Some(text) = files.get(*file) {
                render_place(out, text, span.clone(), &problem.label)?;
            }
        }
        Origin::Env(name) => {
            writeln!(out, "   ╰── environment variable {name}: {}", problem.label)?;
        }
        Origin::Flag(flag) => writeln!(out, "   ╰── flag {flag}: {}", problem.label)?,
        Origin::Default if problem.label.is_empty() => (),
        Origin::Default => writeln!(out, "   ╰── {}", problem.label)?,
    }
    let help = problem.help.as_deref().unwrap_or(problem.explanation.next);
    writeln!(out, "  help: {help}")?;
    writeln!(out, "  next: pgcapture explain {code}\n")
}

fn render_place(
    out: &mut String,
    source: &SourceText,
    span: std::ops::Range<usize>,
    label: &str,
) -> std::fmt::Result {
    let text = &source.text;
    let start = floor_boundary(text, span.start.min(text.len()));
    let end = floor_boundary(text, span.end.clamp(start, text.len()));
    let before = text.get(..start).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line_number = before.matches('\n').count() + 1;
    let line = text.get(line_start..).unwrap_or_default();
    let line = line.lines().next().unwrap_or_default();
    let column = text.get(line_start..start).map_or(0, |t| t.chars().count());
    let marked = text.get(start..end).unwrap_or_default();
    let marked = marked.lines().next().unwrap_or_default().chars().count();
    let marked = marked.max(1);
    let width = line_number.to_string().len().max(2);
    let gutter = " ".repeat(width);
    writeln!(
        out,
        "{gutter} ╭─[{}:{line_number}:{}]",
        source.name,
        column + 1
    )?;
    if let Some(previous) = before
        .get(..line_start.saturating_sub(1))
        .and_then(|t| t.lines().last())
        .filter(|previous| line_number > 1 && !previous.trim().is_empty())
    {
        writeln!(out, "{:>width$} │ {}", line_number - 1, masked(previous))?;
    }
    writeln!(out, "{line_number:>width$} │ {}", masked(line))?;
    let (left, pad) = ((marked - 1) / 2, " ".repeat(column));
    let right = marked - 1 - left;
    writeln!(
        out,
        "{gutter} · {pad}{}┬{}",
        "─".repeat(left),
        "─".repeat(right)
    )?;
    writeln!(out, "{gutter} · {pad}{}╰── {label}", " ".repeat(left))?;
    writeln!(out, "{gutter} ╰────")
}

/// Hides what may be a secret: a mistake on one line must not print the password beside it.
fn masked(line: &str) -> Cow<'_, str> {
    let lower = line.to_ascii_lowercase();
    let names_secret = lower.contains("password") || lower.contains("token");
    let has_user_secret = lower
        .split_once("://")
        .and_then(|(_, rest)| rest.rsplit_once('@'))
        .is_some_and(|(user, _)| user.contains(':'));
    match line.split_once('=') {
        Some((key, _)) if names_secret || has_user_secret => Cow::Owned(format!("{key}= ***")),
        None if names_secret || has_user_secret => Cow::Borrowed("***"),
        _ => Cow::Borrowed(line),
    }
}

fn floor_boundary(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
