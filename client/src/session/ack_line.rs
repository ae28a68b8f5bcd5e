//! How acknowledgements of an ordered session are joined.
//!
//! An acknowledgement that comes before its turn goes for itself, and is joined once more when all before
//! it came: so a slow change costs single answers only while it lasts, and rows with a place that were
//! counted one by one are named by their place in the end.
//!
//! Invariant: a cumulative acknowledgement covers only changes that were acknowledged, along with all
//! that was delivered before them.

use std::collections::BTreeMap;

use pgcapture_proto::pgcapture::{
    CaptureAck, CaptureRequest, capture_request::Type as RequestType,
};

use super::ACK_QUEUE;
use crate::checkpoint::Checkpoint;

/// Acknowledgements joined into one at most; those before a slow change wait no longer.
const JOINED_ACKS: u64 = 64;

/// Acknowledgements before their turn that are remembered: as many as may be queued. A consumer with
/// more behind one change leaves it unanswered, and answers are not joined again.
const EARLY_ACKS: usize = ACK_QUEUE;

/// Where a change stands in the order of its session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(super) index: u64,
    pub(super) ends_batch: bool,
}

/// Joins acknowledgements that come in the order of delivery.
#[derive(Debug, Default)]
pub(super) struct AckLine {
    /// The index that the next delivery gets.
    delivered: u64,
    /// Everything before this index was acknowledged in order.
    answered: u64,
    /// Acknowledged in order and not yet sent: how many, and the last.
    waiting: u64,
    last: Option<Checkpoint>,
    highest: Option<Checkpoint>,
    /// Acknowledged before their turn, and sent.
    early: BTreeMap<u64, Checkpoint>,
    /// Each for itself from here on.
    broken: bool,
}

impl AckLine {
    pub(super) fn deliver(&mut self, checkpoint: &Checkpoint) -> u64 {
        let ascends = self
            .highest
            .as_ref()
            .is_none_or(|highest| checkpoint > highest);
        // Rows of a dump stand between changes without a place in their order.
        if !checkpoint.is_dump() {
            self.broken |= !ascends;
            self.highest = Some(checkpoint.clone());
        }
        let index = self.delivered;
        self.delivered += 1;
        index
    }

    pub(super) fn acknowledge(
        &mut self,
        checkpoint: &Checkpoint,
        place: Place,
    ) -> [Option<CaptureRequest>; 2] {
        if self.broken || place.index != self.answered {
            if !self.broken && place.index > self.answered {
                self.early.insert(place.index, checkpoint.clone());
                self.broken = self.early.len() > EARLY_ACKS;
            }
            return [self.flush(), Some(ack(checkpoint, false))];
        }
        self.answered += 1;
        let caught_up = self.catch_up();
        if is_counted(checkpoint) {
            return [self.flush(), Some(ack(checkpoint, false))];
        }
        self.waiting += 1;
        // The end of the batch may be among those before their turn.
        let due = place.ends_batch || self.waiting >= JOINED_ACKS || caught_up.is_some();
        self.last = caught_up.or_else(|| Some(checkpoint.clone()));
        [if due { self.flush() } else { None }, None]
    }

    /// Takes into the line what was acknowledged before its turn and is next now; returns the last
    /// of them that a cumulative acknowledgement can name.
    fn catch_up(&mut self) -> Option<Checkpoint> {
        let mut last = None;
        while let Some(next) = self.early.remove(&self.answered) {
            self.answered += 1;
            last = Some(next).filter(|next| !is_counted(next)).or(last);
        }
        last
    }

    /// Sends what waits. Whoever breaks the line later is not covered: the cumulative
    /// acknowledgement ends before the first change without an answer.
    fn flush(&mut self) -> Option<CaptureRequest> {
        self.waiting = 0;
        self.last.take().map(|last| ack(&last, true))
    }

    pub(super) fn break_off(&mut self) -> Option<CaptureRequest> {
        self.broken = true;
        self.early.clear();
        self.flush()
    }
}

/// Whether a gateway can only count the answers to this: a row of a dump without its place.
fn is_counted(checkpoint: &Checkpoint) -> bool {
    checkpoint.is_dump() && checkpoint.data().is_empty()
}

/// The request that acknowledges this.
pub(super) fn ack(checkpoint: &Checkpoint, cumulative: bool) -> CaptureRequest {
    let ack = CaptureAck {
        checkpoint: Some(checkpoint.to_proto()),
        requeue_reason: String::new(),
        cumulative,
    };
    CaptureRequest {
        r#type: Some(RequestType::Ack(ack)),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::lsn::Lsn;

    fn at(seq: u32) -> Checkpoint {
        Checkpoint::new(Lsn::new(7), seq, Bytes::new())
    }

    fn sent(requests: [Option<CaptureRequest>; 2]) -> Vec<(u32, bool)> {
        let ack = |request: CaptureRequest| match request.r#type {
            Some(RequestType::Ack(ack)) => (ack.checkpoint.unwrap().seq, ack.cumulative),
            other => panic!("not an acknowledgement: {other:?}"),
        };
        requests.into_iter().flatten().map(ack).collect()
    }

    fn line_of(count: u32) -> AckLine {
        let mut line = AckLine::default();
        for seq in 0..count {
            assert_eq!(line.deliver(&at(seq)), u64::from(seq));
        }
        line
    }

    fn acknowledge(line: &mut AckLine, seq: u32, ends_batch: bool) -> Vec<(u32, bool)> {
        sent(line.acknowledge(
            &at(seq),
            Place {
                index: u64::from(seq),
                ends_batch,
            },
        ))
    }

    #[test]
    fn acknowledgements_in_order_become_one_at_the_end_of_the_batch() {
        let mut line = line_of(3);
        assert!(acknowledge(&mut line, 0, false).is_empty());
        assert!(acknowledge(&mut line, 1, false).is_empty());
        assert_eq!(acknowledge(&mut line, 2, true), [(2, true)]);
    }

    #[test]
    fn a_cumulative_acknowledgement_never_passes_an_unanswered_change() {
        let mut line = line_of(4);
        assert!(acknowledge(&mut line, 0, false).is_empty());
        assert_eq!(acknowledge(&mut line, 2, false), [(0, true), (2, false)]);
        assert_eq!(acknowledge(&mut line, 3, true), [(3, false)]);
    }

    #[test]
    fn what_came_before_its_turn_is_joined_once_all_before_it_came() {
        let mut line = line_of(6);
        assert_eq!(acknowledge(&mut line, 3, true), [(3, false)]);
        assert_eq!(acknowledge(&mut line, 1, false), [(1, false)]);
        assert_eq!(acknowledge(&mut line, 0, false), [(1, true)]);
        assert_eq!(acknowledge(&mut line, 2, false), [(3, true)]);
        assert!(acknowledge(&mut line, 4, false).is_empty());
        assert_eq!(acknowledge(&mut line, 5, true), [(5, true)]);
        assert!(line.early.is_empty());
    }

    #[test]
    fn a_change_without_an_answer_is_waited_for_with_bounded_memory() {
        let count = u32::try_from(EARLY_ACKS).unwrap() + 3;
        let mut line = line_of(count);
        for seq in 1..count {
            assert_eq!(acknowledge(&mut line, seq, true), [(seq, false)]);
        }
        assert!(line.early.len() <= EARLY_ACKS + 1);
        assert_eq!(acknowledge(&mut line, 0, true), [(0, false)]);
    }

    #[test]
    fn after_a_negative_one_each_goes_for_itself() {
        let mut line = line_of(4);
        assert!(acknowledge(&mut line, 0, false).is_empty());
        assert_eq!(sent([line.break_off(), None]), [(0, true)]);
        assert_eq!(acknowledge(&mut line, 2, false), [(2, false)]);
        assert_eq!(acknowledge(&mut line, 3, true), [(3, false)]);
    }

    #[test]
    fn repeated_changes_break_the_line() {
        let mut line = line_of(3);
        line.deliver(&at(1));
        assert_eq!(acknowledge(&mut line, 0, false), [(0, false)]);
    }

    /// A row of range 9.
    fn existing(data: &'static [u8]) -> Checkpoint {
        Checkpoint::new(Lsn::default(), 9, Bytes::from_static(data))
    }

    fn acknowledged_in_order(messages: &[Checkpoint]) -> Vec<(u32, bool)> {
        let mut line = AckLine::default();
        for (index, message) in (0..).zip(messages) {
            assert_eq!(line.deliver(message), index);
        }
        let mut all = Vec::new();
        for (index, message) in (0..).zip(messages) {
            let ends_batch = index + 1 == messages.len() as u64;
            all.extend(sent(line.acknowledge(message, Place { index, ends_batch })));
        }
        all
    }

    #[test]
    fn rows_without_a_place_go_one_by_one_and_changes_around_them_are_joined() {
        let rows = [existing(&[]), existing(&[])];
        let messages = [&[at(0), at(1)][..], &rows, &[at(2), at(3)]].concat();
        let expected = [(1, true), (9, false), (9, false), (3, true)];
        assert_eq!(acknowledged_in_order(&messages), expected);
    }

    #[test]
    fn rows_with_a_place_are_joined_with_what_is_around_them() {
        let rows = [existing(&[0, 0, 0, 1]), existing(&[1])];
        let messages = [&[at(0)][..], &rows, &[at(2)]].concat();
        assert_eq!(acknowledged_in_order(&messages), [(2, true)]);
        assert_eq!(acknowledged_in_order(&rows), [(9, true)]);
    }

    /// The gateway counts single answers, so that the place of a later one says more than they.
    #[test]
    fn rows_out_of_order_are_named_by_their_place_in_the_end() {
        let rows = [existing(&[0, 0, 0, 1]), existing(&[0, 0, 0, 2]), at(0)];
        let mut line = AckLine::default();
        for message in &rows {
            line.deliver(message);
        }
        let mut answer = |index: usize| {
            let place = Place {
                index: index as u64,
                ends_batch: index == 2,
            };
            sent(line.acknowledge(&rows[index], place))
        };
        assert_eq!(answer(1), [(9, false)]);
        assert_eq!(answer(0), [(9, true)]);
        assert_eq!(answer(2), [(0, true)]);
    }

    #[test]
    fn rows_without_a_place_out_of_order_stay_single_and_changes_behind_them_are_joined() {
        let messages = [existing(&[]), existing(&[]), at(0), at(1)];
        let mut line = AckLine::default();
        for message in &messages {
            line.deliver(message);
        }
        let mut answer = |index: usize| {
            let place = Place {
                index: index as u64,
                ends_batch: index == 3,
            };
            sent(line.acknowledge(&messages[index], place))
        };
        assert_eq!(answer(1), [(9, false)]);
        assert_eq!(answer(0), [(9, false)]);
        assert!(answer(2).is_empty());
        assert_eq!(answer(3), [(1, true)]);
    }

    #[test]
    fn a_change_behind_an_unanswered_existing_row_is_acknowledged_alone() {
        let messages = [at(0), existing(&[1]), at(1)];
        let mut line = AckLine::default();
        for message in &messages {
            line.deliver(message);
        }
        let place = |index| Place {
            index,
            ends_batch: true,
        };
        assert_eq!(sent(line.acknowledge(&at(0), place(0))), [(0, true)]);
        assert_eq!(sent(line.acknowledge(&at(1), place(2))), [(1, false)]);
    }
}
