//! P3, at least once, and again only after a cause.
//!
//! - Every row of the log after the consumer's first one was delivered to the consumer.
//! - A row is delivered again in the same session only after the consumer sent it back.
//! - A row is delivered again in a later session only if it was not settled in the one before.
//!   *Settled*: acknowledged, and the session went on to deliver for `SETTLED_US` more. Acks have no
//!   answer in this protocol, so a shorter time proves nothing; counting only time in which the
//!   session delivered excludes a node that was frozen.

use std::collections::{HashMap, HashSet};

use super::{evidence::Evidence, findings::Findings};
use crate::history::event::{Entry, Event, Item, Place, Reader};

/// How long a session must have gone on after an ack for the ack to count as settled: 1 second. A node
/// makes its cursors durable ten times a second.
const SETTLED_US: u64 = 1_000_000;

/// What is known of one row's deliveries.
#[derive(Clone, Copy, Debug)]
struct Delivery {
    session: u32,
    acked_at: Option<u64>,
    is_sent_back: bool,
}

/// Looks for rows that never came, and for such that came again for nothing.
pub fn check(evidence: &Evidence, findings: &mut Findings) {
    never_delivered(evidence, findings);
    let mut judge = Redeliveries::default();
    for entry in &evidence.entries {
        judge.see(entry, findings);
    }
}

fn never_delivered(evidence: &Evidence, findings: &mut Findings) {
    let got: HashSet<_> = evidence
        .changes(Reader::Consumer)
        .map(|(place, ..)| place.checkpoint())
        .collect();
    let Some(first) = got.iter().min().copied() else {
        findings.add("at_least_once/nothing_delivered", || {
            "the consumer got no row at all".to_owned()
        });
        return;
    };
    for (place, op, row) in evidence.changes(Reader::Log) {
        let at = place.checkpoint();
        if at > first && !got.contains(&at) {
            findings.add("at_least_once/never_delivered", || {
                format!("{op:?} {row:?} at {at:?}")
            });
        }
    }
}

#[derive(Debug, Default)]
struct Redeliveries {
    deliveries: HashMap<(u64, u32), Delivery>,
    last_delivery_us: HashMap<u32, u64>,
    ended: HashSet<u32>,
}

impl Redeliveries {
    fn see(&mut self, entry: &Entry, findings: &mut Findings) {
        if let Event::Delivered { place, item } = &entry.event {
            if is_row(place, item) {
                self.delivered(entry.at_us, place, findings);
            }
        } else if let Event::Acked(place) = &entry.event {
            if let Some(delivery) = self.deliveries.get_mut(&place.checkpoint()) {
                delivery.acked_at = Some(entry.at_us);
            }
        } else if let Event::Nacked(place) = &entry.event {
            if let Some(delivery) = self.deliveries.get_mut(&place.checkpoint()) {
                delivery.is_sent_back = true;
            }
        } else if let Event::Ended {
            reader: Reader::Consumer,
            session,
            ..
        } = &entry.event
        {
            self.ended.insert(*session);
        }
    }

    fn delivered(&mut self, at_us: u64, place: &Place, findings: &mut Findings) {
        self.last_delivery_us.insert(place.session, at_us);
        let now = Delivery {
            session: place.session,
            acked_at: None,
            is_sent_back: false,
        };
        let Some(before) = self.deliveries.insert(place.checkpoint(), now) else {
            return;
        };
        if before.is_sent_back {
            return;
        }
        let is_after_the_end =
            before.session != place.session && self.ended.contains(&before.session);
        if !is_after_the_end {
            findings.add("at_least_once/again_without_cause", || {
                format!("{place:?}, before in session {}", before.session)
            });
            return;
        }
        let last = self.last_delivery_us.get(&before.session);
        let is_settled = (before.acked_at.zip(last.copied()))
            .is_some_and(|(acked, last)| last.saturating_sub(acked) > SETTLED_US);
        if is_settled {
            findings.add("at_least_once/again_after_ack", || {
                format!("{place:?}, acknowledged in session {}", before.session)
            });
        }
    }
}

fn is_row(place: &Place, item: &Item) -> bool {
    place.reader == Reader::Consumer && matches!(item, Item::Change { .. })
}
