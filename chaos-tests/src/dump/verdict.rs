//! The verdict of the scenario: one line of JSON for all runs.

use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use super::world::Struck;
use crate::{checkers::findings::Violation, report};

/// One run, or all of them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// `pass`, `fail` or `error`.
    pub verdict: &'static str,
    /// Always `dump`.
    pub scenario: &'static str,
    /// Seed of the first run; each later one has the next.
    pub seed: u64,
    /// Runs that were judged.
    pub runs: u32,
    /// Of these, how many kept every promise.
    pub passed: u32,
    /// Rows that were compared, byte by byte.
    pub rows_compared: u64,
    /// Faults that took place while a dump ran.
    pub kills: Struck,
    /// Existing rows that the consumers got.
    pub existing_rows: u64,
    /// Existing rows that the consumers sent back.
    pub sent_back: u32,
    /// Changes of the table that the consumers got.
    pub changes: u64,
    /// Sessions of the consumers.
    pub sessions: u32,
    /// Rows that the writers committed.
    pub written: u64,
    /// Seconds that the dumps took.
    pub dump_seconds: u64,
    /// Everything that broke a promise.
    pub violations: Vec<Violation>,
    /// What went wrong in the harness.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Verdict {
    /// Begins a verdict of no runs.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            verdict: "error",
            scenario: "dump",
            seed,
            ..Self::default()
        }
    }

    /// Judges one run by what was found.
    #[must_use]
    pub fn of_run(seed: u64, violations: Vec<Violation>) -> Self {
        let is_good = violations.is_empty();
        Self {
            verdict: if is_good { "pass" } else { "fail" },
            runs: 1,
            passed: u32::from(is_good),
            violations,
            ..Self::new(seed)
        }
    }

    /// Adds a run.
    pub fn add(&mut self, run: Self) {
        let is_good = self.runs == self.passed && run.runs == run.passed;
        self.verdict = if is_good { "pass" } else { "fail" };
        self.runs += run.runs;
        self.passed += run.passed;
        self.rows_compared += run.rows_compared;
        self.kills.add(run.kills);
        self.existing_rows += run.existing_rows;
        self.sent_back += run.sent_back;
        self.changes += run.changes;
        self.sessions += run.sessions;
        self.written += run.written;
        self.dump_seconds += run.dump_seconds;
        self.violations.extend(run.violations);
    }

    /// Notes that the harness failed: the runs that were not judged say nothing.
    #[must_use]
    pub fn failed(mut self, error: &anyhow::Error) -> Self {
        if self.verdict != "fail" {
            self.verdict = "error";
        }
        self.error = Some(format!("{error:#}"));
        self
    }

    /// Returns the process's exit code: 0 pass, 1 fail, 2 neither.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        report::exit_code(self.verdict)
    }

    /// Returns the line, without an end of line.
    ///
    /// # Errors
    ///
    /// Never for a verdict of ours; serialising has an error type all the same.
    pub fn to_line(&self) -> Result<String> {
        serde_json::to_string(self).context("write the verdict")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_run_fails_all_and_an_error_of_the_harness_excuses_nothing() {
        let violation = Violation {
            kind: "copy/row_missing".to_owned(),
            count: 1,
            examples: Vec::new(),
        };
        let mut all = Verdict::new(7);
        all.add(Verdict::of_run(7, Vec::new()));
        assert_eq!((all.verdict, all.runs, all.passed), ("pass", 1, 1));
        let broken = all.clone().failed(&anyhow::anyhow!("no room"));
        assert_eq!(broken.verdict, "error");
        all.add(Verdict::of_run(8, vec![violation]));
        all.add(Verdict::of_run(9, Vec::new()));
        assert_eq!((all.verdict, all.runs, all.passed), ("fail", 3, 2));
        let broken = all.failed(&anyhow::anyhow!("no room"));
        assert_eq!(broken.verdict, "fail");
        assert!(broken.to_line().unwrap().contains("no room"));
    }
}
