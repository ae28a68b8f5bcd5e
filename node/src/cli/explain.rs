//! `pgcapture explain CODE`: the long text of an error code.

use clap::Args;
use pgcapture_engine::codes::{self, Explanation, node};
use serde::Serialize;

use super::{
    Failure, Global,
    output::{self, Column, Format, View},
};

/// Arguments of `explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// A code such as PGC-S04; without one all are listed.
    code: Option<String>,
}

#[derive(Serialize)]
struct CodeView {
    code: &'static str,
    title: &'static str,
    text: &'static str,
    next: &'static str,
}

impl View for CodeView {
    const COLUMNS: &'static [Column] = &[
        ("CODE", false),
        ("TITLE", false),
        ("TEXT", true),
        ("NEXT", true),
    ];
    fn cells(&self) -> Vec<String> {
        [self.code, self.title, self.text, self.next]
            .map(str::to_owned)
            .into()
    }
}

impl From<&'static Explanation> for CodeView {
    fn from(known: &'static Explanation) -> Self {
        Self {
            code: known.code,
            title: known.title,
            text: known.text,
            next: known.next,
        }
    }
}

pub(super) fn run(global: &Global, args: &ExplainArgs) -> Result<(), Failure> {
    let Some(code) = &args.code else {
        let all: Vec<CodeView> = codes::all().map(CodeView::from).collect();
        return Ok(output::list(global, &all)?);
    };
    let known = codes::find(code).ok_or_else(|| {
        Failure::new(4, &node::NOT_FOUND, format!("\"{code}\" is no error code"))
            .next("`pgcapture explain` lists every code")
    })?;
    match global.output {
        Format::Table | Format::Wide => output::data(&format!(
            "{}: {}\n\n{}\n\nnext: {}\n",
            known.code,
            known.title,
            wrap(known.text),
            known.next
        ))?,
        Format::Json | Format::Ndjson | Format::Yaml | Format::Env => {
            output::value(global, &CodeView::from(known))?;
        }
    }
    Ok(())
}

/// Breaks a text into lines that fit a terminal.
fn wrap(text: &str) -> String {
    const WIDTH: usize = 88;
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("lines is never empty");
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines.join("\n")
}
