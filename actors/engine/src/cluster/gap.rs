//! Which holes the stream of a source is known to have.

use super::{Answer, GAPS_MAX, GAPS_TOTAL_MAX, Gap, Refusal, State, changed};

impl State {
    pub(super) fn declare_gap(&mut self, name: &str, gap: Gap) -> Result<Answer, Refusal> {
        self.source(name)?;
        let gaps = self.gaps.entry(name.to_owned()).or_default();
        let is_known = |known: &&mut Gap| known.from == gap.from && known.reason == gap.reason;
        if let Some(known) = gaps.iter_mut().find(is_known) {
            // An end that is known stays known: the same hole may be told late.
            let is_new = gap.to.is_some() && known.to != gap.to;
            known.to = gap.to.or(known.to);
            return Ok(changed(is_new));
        }
        gaps.push(gap);
        if gaps.len() > GAPS_MAX {
            gaps.remove(0);
        }
        self.bound_gaps();
        Ok(Answer::Done)
    }

    /// Forgets a gap when one too many is kept.
    fn bound_gaps(&mut self) {
        let total: usize = self.gaps.values().map(Vec::len).sum();
        if total > GAPS_TOTAL_MAX
            && let Some(most) = self.gaps.values_mut().max_by_key(|gaps| gaps.len())
        {
            most.remove(0);
        }
    }
}
