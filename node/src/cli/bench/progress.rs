//! Says what runs: a line that changes on a terminal, plain lines elsewhere. All of it on stderr.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::ProgressBar;

use super::{Global, output};

/// How often the line on a terminal moves.
const TICK: Duration = Duration::from_millis(100);

/// The progress of a measurement.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    is_quiet: bool,
}

impl Progress {
    /// Starts; says nothing when the user asked for silence.
    pub(super) fn new(global: &Global) -> Self {
        let is_terminal = io::stderr().is_terminal() && !global.quiet;
        let bar = is_terminal.then(ProgressBar::new_spinner);
        if let Some(bar) = &bar {
            bar.enable_steady_tick(TICK);
        }
        Self {
            bar,
            is_quiet: global.quiet,
        }
    }

    /// What runs now.
    pub(super) fn step(&self, text: impl Into<String>) {
        let text = text.into();
        match &self.bar {
            Some(bar) => bar.set_message(text),
            None => self.line(&text),
        }
    }

    /// A result, which stays on the screen.
    pub(super) fn result(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => self.line(text),
        }
    }

    fn line(&self, text: &str) {
        if !self.is_quiet {
            output::talk(&format!("{text}\n"));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
