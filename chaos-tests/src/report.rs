//! The verdict: one line of JSON on stdout, and the exit code.
//!
//! Three outcomes: pass (0), fail (1), and an error of the harness itself (2), which says nothing
//! about the product.

use std::{collections::HashSet, path::Path, process::ExitCode};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    checkers::{
        evidence::{Evidence, WriteKey},
        findings::{Findings, Violation},
        judge,
    },
    history::{
        event::{Event, FaultOutcome, Reader},
        recorder::read_history,
    },
    workload::journal::{Outcome, read_journal},
};

/// The one line.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// `pass`, `fail` or `error`.
    pub verdict: &'static str,
    /// Name of the scenario.
    pub scenario: String,
    /// Seed of all random choices.
    pub seed: u64,
    /// Faults that took place and killed the node.
    pub kills: u64,
    /// Faults that took place.
    pub faults: u64,
    /// Rows of the ledger that the source committed.
    pub committed: u64,
    /// Those of them that are in the log.
    pub delivered: u64,
    /// Those of them that are not.
    pub lost: u64,
    /// Positions or writes that are in the log twice.
    pub duplicated: u64,
    /// Rows that the consumer got once more, each after a cause unless a violation says otherwise.
    pub redelivered: u64,
    /// Transactions whose outcome even the source could not tell.
    pub unknown: u64,
    /// Times that the slot's position was compared with the log's.
    pub samples: u64,
    /// Everything that broke a promise.
    pub violations: Vec<Violation>,
    /// What went wrong in the harness.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Verdict {
    /// Judges the evidence.
    #[must_use]
    pub fn of(evidence: &Evidence) -> Self {
        let findings = judge(evidence);
        let mut verdict = Self {
            verdict: if findings.is_empty() { "pass" } else { "fail" },
            ..Self::empty()
        };
        verdict.scenario.clone_from(&evidence.header.scenario);
        verdict.seed = evidence.header.seed;
        verdict.count_writes(evidence);
        verdict.count_events(evidence);
        verdict.lost = findings.count("no_loss/lost");
        verdict.duplicated = doubles(&findings);
        verdict.violations = findings.violations();
        verdict
    }

    /// Reports that the harness failed.
    #[must_use]
    pub fn error(seed: u64, scenario: &str, error: &anyhow::Error) -> Self {
        Self {
            seed,
            scenario: scenario.to_owned(),
            error: Some(format!("{error:#}")),
            ..Self::empty()
        }
    }

    /// Returns the process's exit code: 0 pass, 1 fail, 2 neither.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        exit_code(self.verdict)
    }

    /// Returns the line, without an end of line.
    ///
    /// # Errors
    ///
    /// Never for a verdict of ours; serialising has an error type all the same.
    pub fn to_line(&self) -> Result<String> {
        serde_json::to_string(self).context("write the verdict")
    }

    fn empty() -> Self {
        Self {
            verdict: "error",
            scenario: String::new(),
            seed: 0,
            kills: 0,
            faults: 0,
            committed: 0,
            delivered: 0,
            lost: 0,
            duplicated: 0,
            redelivered: 0,
            unknown: 0,
            samples: 0,
            violations: Vec::new(),
            error: None,
        }
    }

    fn count_writes(&mut self, evidence: &Evidence) {
        for transaction in &evidence.journal {
            match transaction.outcome {
                Outcome::Unknown => self.unknown += 1,
                Outcome::RolledBack => continue,
                Outcome::Committed => self.committed += transaction.kept.len() as u64,
            }
            for write in &transaction.kept {
                let key = WriteKey::of_write(transaction.writer, write);
                self.delivered += u64::from(!evidence.sightings(&key).is_empty());
            }
        }
    }

    fn count_events(&mut self, evidence: &Evidence) {
        for entry in &evidence.entries {
            if matches!(entry.event, Event::Sampled { .. }) {
                self.samples += 1;
            } else if let Event::Fault {
                name,
                outcome: FaultOutcome::Installed,
                ..
            } = &entry.event
            {
                self.faults += 1;
                self.kills += u64::from(name.starts_with("kill-node"));
            }
        }
        let mut got = HashSet::new();
        for (place, ..) in evidence.changes(Reader::Consumer) {
            self.redelivered += u64::from(!got.insert(place.checkpoint()));
        }
    }
}

/// Judges the files of a run.
///
/// # Errors
///
/// When a file cannot be read, or the source itself broke its word.
pub fn judge_files(history: &Path, journal: &Path) -> Result<Verdict> {
    let evidence = Evidence::new(read_history(history)?, read_journal(journal)?);
    Ok(Verdict::of(&evidence))
}

/// Counts changes that stand twice.
pub(crate) fn doubles(findings: &Findings) -> u64 {
    let kinds = ["unique/position_twice", "unique/write_twice"];
    kinds.iter().map(|kind| findings.count(kind)).sum()
}

/// The exit code that a verdict has: 0 pass, 1 fail, 2 neither.
pub(crate) fn exit_code(verdict: &str) -> ExitCode {
    match verdict {
        "pass" => ExitCode::SUCCESS,
        "fail" => ExitCode::from(1),
        _ => ExitCode::from(2),
    }
}
