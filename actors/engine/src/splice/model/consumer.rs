//! What the consumer of the model does with what it gets, and how it answers.

use super::*;

impl World {
    /// In order no change comes after rows that show it, unless these come again.
    pub(super) fn check_order(&self, event: &Event) {
        let at = event.at.lsn;
        let is_after = |source: &&Source| source.is_begun && source.at > at;
        let after = self.sources.values().find(is_after);
        assert!(after.is_none(), "{event:?} comes after {after:?}");
        assert!(
            self.finished_at <= at,
            "{event:?} comes after a finished range"
        );
    }

    /// The consumer looks at the next message of a line.
    pub(super) fn apply(&mut self, session: u32) {
        let Some((_, line)) = self.sessions.get_mut(&session) else {
            return;
        };
        let Some(sent) = line.sent.pop_front() else {
            return;
        };
        line.applied.push_back(sent);
        let (key, at, value) = match sent {
            Sent::Change(event) => (event.key, event.at, event.value),
            Sent::Row { at, row, .. } => {
                // It shows what the last change before its position left.
                let shown = self.log.iter().rev().find(|event| event.at.lsn < at);
                let shown = shown.map(|event| event.at).unwrap_or_default();
                (row.0, shown, Some(row.1))
            }
        };
        let known = self.known.entry(key).or_default();
        if matches!(sent, Sent::Row { .. }) {
            assert!(
                *known <= at || self.is_ordered,
                "a row over newer data: {sent:?}"
            );
        } else if !self.is_ordered && at < *known {
            return;
        }
        *known = at.max(*known);
        match value {
            Some(value) => self.copy.insert(key, value),
            None => self.copy.remove(&key),
        };
    }

    pub(super) fn answer(&mut self, session: u32, kind: u8, pick: impl Fn(usize) -> usize) {
        let Some((id, line)) = self.sessions.get_mut(&session) else {
            return;
        };
        if line.applied.is_empty() {
            return;
        }
        let (id, index) = (*id, pick(line.applied.len()));
        // Cumulative answers are for those who answer in order. Who wants order answers changes in
        // order: what is done does not come again after what is not.
        let is_cumulative = self.is_ordered && kind >= 6;
        let is_change = matches!(line.applied.get(index), Some(Sent::Change(_)));
        let is_early = self.is_ordered && is_change && kind > 0 && !is_cumulative;
        let index = if is_early { 0 } else { index };
        let sent = if is_cumulative {
            line.applied.drain(..=index).next_back().unwrap()
        } else {
            line.applied.remove(index).unwrap()
        };
        let is_refused = kind == 0;
        match sent {
            Sent::Change(event) => {
                let kind = match (is_refused, is_cumulative) {
                    (true, _) => AckKind::Requeue,
                    (false, true) => AckKind::UpTo,
                    (false, false) => AckKind::Done,
                };
                let checkpoint = event.at;
                let acks = [Ack { checkpoint, kind }];
                self.ledger.apply(id, &acks, self.now).unwrap();
                if is_refused && self.is_ordered {
                    self.look_away(session, index);
                }
                if is_cumulative {
                    self.splice.ack_before(id, checkpoint.lsn, self.now);
                }
            }
            Sent::Row { number, .. } if is_refused => {
                self.splice.requeue(id, number, "no", self.now).unwrap();
            }
            Sent::Row {
                number,
                place,
                is_last,
                ..
            } => {
                let ack = match (is_cumulative, is_last) {
                    (false, _) => RowAck::One,
                    (true, false) => RowAck::UpTo(place),
                    (true, true) => RowAck::All,
                };
                let (_, before_lsn) = self.splice.ack(id, number, ack, self.now).unwrap();
                if let Some(lsn) = before_lsn {
                    let checkpoint = before(Checkpoint::new(lsn, 0)).min(self.ledger.admitted());
                    let kind = AckKind::UpTo;
                    let acks = [Ack { checkpoint, kind }];
                    self.ledger.apply(id, &acks, self.now).unwrap();
                }
            }
        }
    }

    /// An ordered consumer answers nothing of what comes again: from the `kept`th message on, which
    /// it has seen all the same.
    pub(super) fn look_away(&mut self, session: u32, kept: usize) {
        while self
            .sessions
            .get(&session)
            .is_some_and(|(_, line)| !line.sent.is_empty())
        {
            self.apply(session);
        }
        if let Some((_, line)) = self.sessions.get_mut(&session) {
            line.applied.truncate(kept);
        }
    }
}
