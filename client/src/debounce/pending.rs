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
    /// Whether this, which arrived after `other`, belongs behind it.
    fn is_behind(&self, other: &Self) -> bool;
    /// Whether one can stand for both.
    fn can_merge(&self, later: &Self) -> bool;
    /// Joins what arrived later into what was there.
    fn merge(self, later: Self) -> Self;
    /// How many changes it stands for.
    fn weight(&self) -> usize;
}

#[derive(Debug)]
struct Slot<G> {
    /// Oldest first; more than one only where one cannot stand for the next.
    waiting: VecDeque<G>,
    /// The number of the group that is being worked on, and its weight.
    out: Option<(u64, usize)>,
    is_due: bool,
}

impl<G: Merge> Slot<G> {
    /// Puts a group before the waiting one at `place`, or merges it with one of its neighbours. Returns the
    /// weight that merging took away: repeated deliveries.
    fn join(&mut self, place: usize, group: G) -> usize {
        for neighbour in [place, place.wrapping_sub(1)] {
            let waiting = self.waiting.get(neighbour);
            if waiting.is_some_and(|waiting| waiting.can_merge(&group))
                && let Some(waiting) = self.waiting.remove(neighbour)
            {
                let before = waiting.weight() + group.weight();
                let merged = waiting.merge(group);
                let lost = before.saturating_sub(merged.weight());
                self.waiting.insert(neighbour, merged);
                return lost;
            }
        }
        self.waiting.insert(place, group);
        0
    }

    /// Puts a group that came back before all that wait, or merges the first into it. Returns as
    /// [`Self::join`].
    fn join_first(&mut self, group: G) -> usize {
        let first = self.waiting.pop_front();
        match first {
            Some(first) if group.can_merge(&first) => {
                let before = group.weight() + first.weight();
                let merged = group.merge(first);
                let lost = before.saturating_sub(merged.weight());
                self.waiting.push_front(merged);
                lost
            }
            first => {
                first
                    .into_iter()
                    .for_each(|first| self.waiting.push_front(first));
                self.waiting.push_front(group);
                0
            }
        }
    }
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
            waiting: VecDeque::new(),
            out: None,
            is_due: false,
        });
        if slot.waiting.is_empty() {
            slot.waiting.push_back(group);
            self.timers.push_back((now + self.interval, key));
            return;
        }
        let mut waiting = slot.waiting.iter();
        let place = waiting.position(|other| !group.is_behind(other));
        let place = place.unwrap_or(slot.waiting.len());
        self.waiting -= slot.join(place, group);
    }

    /// Makes what waits under a key due now.
    pub(super) fn release(&mut self, key: &K) {
        if let Some(slot) = self.slots.get_mut(key)
            && !slot.waiting.is_empty()
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
            let Some(group) = slot.waiting.pop_front() else {
                continue;
            };
            let id = self.next_id;
            self.next_id += 1;
            // What could not be merged follows as soon as this was answered.
            slot.is_due = !slot.waiting.is_empty();
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
            if slot.waiting.is_empty() {
                slot.waiting.push_back(group);
                slot.is_due = false;
            } else {
                self.waiting -= slot.join_first(group);
            }
            // A full interval passes before another attempt, whatever was due.
            if std::mem::take(&mut slot.is_due) || !self.timers.iter().any(|(_, k)| *k == key) {
                self.timers.push_back((now + self.interval, key));
            }
        } else if slot.waiting.is_empty() {
            self.slots.remove(&key);
        } else if slot.is_due {
            self.due.push_back(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of one hundred become one.
    impl Merge for Vec<u32> {
        fn is_behind(&self, other: &Self) -> bool {
            self.first() >= other.last()
        }

        fn can_merge(&self, later: &Self) -> bool {
            let hundred = |group: &Self| group.first().map(|number| number / 100);
            hundred(self) == hundred(later)
        }

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
    fn what_cannot_be_merged_follows_as_soon_as_the_first_was_answered() {
        let start = Instant::now();
        let mut pending = Pending::new(INTERVAL);
        for number in [1, 101, 2, 201, 102] {
            pending.add("a", vec![number], start);
        }
        assert_eq!(pending.held(), 5);
        let now = start + INTERVAL;
        let (first, group) = pending.next_due(now).unwrap();
        assert_eq!(group, [1, 2]);
        assert!(pending.next_due(now).is_none(), "one of a key at a time");
        pending.answered(first, None, now);
        let (second, group) = pending.next_due(now).unwrap();
        assert_eq!(group, [101, 102]);
        // It comes back, and before what is behind it.
        pending.answered(second, Some(group), now);
        assert!(pending.next_due(now).is_none());
        let now = now + INTERVAL;
        let (second, group) = pending.next_due(now).unwrap();
        assert_eq!(group, [101, 102]);
        pending.answered(second, None, now);
        let (third, group) = pending.next_due(now).unwrap();
        assert_eq!(group, [201]);
        pending.answered(third, None, now);
        assert!(pending.slots.is_empty() && pending.is_idle());
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
