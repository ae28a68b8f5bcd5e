//! When a key's changes are due.
//!
//! Pure: time comes in as an argument. Owns what waits per key and which keys are being worked
//! on. Invariants: at most one group of a key is out; nothing that was added is forgotten
//! before it was answered with `None`.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    time::Duration,
};

use tokio::time::Instant;

/// Changes of one key that become one.
pub(super) trait Merge: Sized {
    /// Joins what arrived later into what was there.
    fn merge(self, later: Self) -> Self;
    /// How many changes it stands for.
    fn weight(&self) -> usize;
}

#[derive(Debug)]
struct Slot<G> {
    waiting: Option<G>,
    /// The number of the group that is being worked on, and its weight.
    out: Option<(u64, usize)>,
    is_due: bool,
}

#[derive(Debug)]
pub(super) struct Pending<K, G> {
    interval: Duration,
    slots: HashMap<K, Slot<G>>,
    /// When a key's oldest waiting change is due; in order, because the interval is constant.
    timers: VecDeque<(Instant, K)>,
    /// Keys whose changes are to be delivered.
    due: VecDeque<K>,
    /// Keys of the groups that are out.
    out: HashMap<u64, K>,
    next_id: u64,
    waiting: usize,
}

impl<K: Clone + Eq + Hash, G: Merge> Pending<K, G> {
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            interval,
            slots: HashMap::new(),
            timers: VecDeque::new(),
            due: VecDeque::new(),
            out: HashMap::new(),
            next_id: 0,
            waiting: 0,
        }
    }

    /// Changes that wait to be delivered.
    pub(super) fn held(&self) -> usize {
        self.waiting
    }

    /// Whether nothing waits and nothing is being worked on.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting == 0 && self.out.is_empty()
    }

    pub(super) fn add(&mut self, key: K, group: G, now: Instant) {
        self.waiting += group.weight();
        let slot = self.slots.entry(key.clone()).or_insert(Slot {
            waiting: None,
            out: None,
            is_due: false,
        });
        let Some(earlier) = slot.waiting.take() else {
            slot.waiting = Some(group);
            self.timers.push_back((now + self.interval, key));
            return;
        };
        let before = earlier.weight() + group.weight();
        let merged = earlier.merge(group);
        // Merging drops repeated deliveries.
        self.waiting -= before.saturating_sub(merged.weight());
        slot.waiting = Some(merged);
    }

    /// Makes what waits under a key due now.
    pub(super) fn release(&mut self, key: &K) {
        if let Some(slot) = self.slots.get_mut(key)
            && slot.waiting.is_some()
            && !slot.is_due
        {
            slot.is_due = true;
            self.due.push_back(key.clone());
        }
    }

    pub(super) fn release_all(&mut self) {
        while let Some((_, key)) = self.timers.pop_front() {
            self.release(&key);
        }
    }

    /// When something is due next; `None` when nothing waits for time.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timers.front().map(|(at, _)| *at)
    }

    /// The next group that is due, with its number.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<(u64, G)> {
        while self.timers.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.timers.pop_front() {
                self.release(&key);
            }
        }
        while let Some(key) = self.due.pop_front() {
            let Some(slot) = self.slots.get_mut(&key) else {
                continue;
            };
            // A key that is being worked on becomes due again by its answer.
            if slot.out.is_some() {
                continue;
            }
            let Some(group) = slot.waiting.take() else {
                continue;
            };
            let id = self.next_id;
            self.next_id += 1;
            slot.is_due = false;
            slot.out = Some((id, group.weight()));
            self.waiting -= group.weight();
            self.out.insert(id, key);
            return Some((id, group));
        }
        None
    }

    /// A group was acknowledged (`None`) or comes back.
    pub(super) fn answered(&mut self, id: u64, returned: Option<G>, now: Instant) {
        let Some(key) = self.out.remove(&id) else {
            return;
        };
        let Some(slot) = self.slots.get_mut(&key) else {
            return;
        };
        slot.out = None;
        if let Some(group) = returned {
            self.waiting += group.weight();
            match slot.waiting.take() {
                Some(later) => {
                    let before = group.weight() + later.weight();
                    let merged = group.merge(later);
                    self.waiting -= before.saturating_sub(merged.weight());
                    slot.waiting = Some(merged);
                }
                None => {
                    slot.waiting = Some(group);
                    slot.is_due = false;
                }
            }
            // A full interval passes before another attempt, whatever was due.
            if std::mem::take(&mut slot.is_due) || !self.timers.iter().any(|(_, k)| *k == key) {
                self.timers.push_back((now + self.interval, key));
            }
        } else if slot.waiting.is_none() {
            self.slots.remove(&key);
        } else if slot.is_due {
            self.due.push_back(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Merge for Vec<u32> {
        fn merge(mut self, later: Self) -> Self {
            self.extend(later);
            self
        }

        fn weight(&self) -> usize {
            self.len()
        }
    }

    const INTERVAL: Duration = Duration::from_secs(1);

    #[test]
    fn a_key_is_due_one_interval_after_its_first_change() {
        let start = Instant::now();
        let mut pending = Pending::new(INTERVAL);
        pending.add("a", vec![1], start);
        pending.add("a", vec![2], start + INTERVAL / 2);
        pending.add("b", vec![9], start + INTERVAL / 2);
        assert!(pending.next_due(start + INTERVAL / 2).is_none());
        assert_eq!(pending.next_due(start + INTERVAL).unwrap().1, [1, 2]);
        assert!(pending.next_due(start + INTERVAL).is_none());
        assert_eq!(pending.next_due(start + INTERVAL * 2).unwrap().1, [9]);
        assert_eq!(pending.held(), 0);
    }

    #[test]
    fn changes_of_a_key_wait_while_it_is_worked_on() {
        let start = Instant::now();
        let mut pending = Pending::new(INTERVAL);
        pending.add("a", vec![1], start);
        let (id, _) = pending.next_due(start + INTERVAL).unwrap();
        pending.add("a", vec![2], start + INTERVAL);
        assert!(pending.next_due(start + INTERVAL * 5).is_none());
        pending.answered(id, None, start + INTERVAL * 5);
        assert_eq!(pending.next_due(start + INTERVAL * 5).unwrap().1, [2]);
    }

    #[test]
    fn what_comes_back_is_merged_with_what_came_since_and_waits_an_interval() {
        let start = Instant::now();
        let mut pending = Pending::new(INTERVAL);
        pending.add("a", vec![1], start);
        let (id, group) = pending.next_due(start + INTERVAL).unwrap();
        pending.add("a", vec![2], start + INTERVAL);
        pending.answered(id, Some(group), start + INTERVAL);
        assert!(pending.next_due(start + INTERVAL).is_none());
        let (id, group) = pending.next_due(start + INTERVAL * 2).unwrap();
        assert_eq!(group, [1, 2]);
        pending.answered(id, Some(group), start + INTERVAL * 3);
        assert!(pending.next_due(start + INTERVAL * 3).is_none());
        let (id, group) = pending.next_due(start + INTERVAL * 4).unwrap();
        assert_eq!(group, [1, 2]);
        pending.answered(id, None, start + INTERVAL * 4);
        assert!(pending.slots.is_empty() && pending.held() == 0);
        assert!(pending.deadline().is_none());
    }

    #[test]
    fn a_released_key_goes_first() {
        let start = Instant::now();
        let mut pending = Pending::new(INTERVAL);
        pending.add("a", vec![1], start);
        pending.add("b", vec![2], start);
        pending.release(&"b");
        assert_eq!(pending.next_due(start).unwrap().1, [2]);
        assert!(pending.next_due(start).is_none());
    }
}
