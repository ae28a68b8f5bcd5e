//! One judge per property. Each is a function of the evidence alone and names its definition in its
//! head. All of them run on every log that was read: a run that breaks one property is not excused
//! from the others.

pub mod at_least_once;
pub mod atomic;
pub mod bank;
pub mod confirmed;
pub mod durable;
pub mod evidence;
pub mod findings;
pub mod no_loss;
pub mod ordered;
pub mod sound;
pub mod unique;
pub mod values;

use evidence::Evidence;
use findings::Findings;

use crate::history::event::Reader;

/// Judges a run by every property.
#[must_use]
pub fn judge(evidence: &Evidence) -> Findings {
    let mut findings = Findings::default();
    sound::check(evidence, &mut findings);
    if evidence.delivered(Reader::Log).next().is_none() {
        // The log was never read: that is the finding. All else would be its echo.
        return findings;
    }
    for check in [
        no_loss::check,
        unique::check,
        ordered::check,
        atomic::check,
        values::check,
        bank::check,
        durable::check,
        at_least_once::check,
        confirmed::check,
    ] {
        check(evidence, &mut findings);
    }
    findings
}
