//! Finds out what happened by comparing the agreed state with what it was before.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use pgcapture_actors::{
    consensus::Consensus,
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::{
    cluster::State,
    wal_guard::{WalLevel, WalOutlook},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{EventKind, Events};
use crate::{sources::Sources, units::human_bytes};

/// How often a source that was just given to this node is looked at until it is read: fine enough
/// for a figure in hundredths of a second, and nothing to do when no source moves.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How often kept WAL is compared with its limit; agents look every few seconds.
const LEVELS_EVERY: Duration = Duration::from_secs(1);

/// A take-over that is not done after this time is none to be proud of; the source's trouble says
/// why.
const TAKE_OVER_MAX: Duration = Duration::from_secs(300);

/// A source that this node was given and does not read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Coming {
    from: String,
    since: Instant,
}

/// Watches until `stop`.
#[must_use]
pub fn start(
    node: String,
    consensus: Arc<dyn Consensus>,
    sources: Arc<Sources>,
    events: Events,
    stop: CancellationToken,
) -> Task<()> {
    spawn(TaskKind::Sources, "events", async move {
        let mut state = consensus.state();
        let mut leadership = consensus.leadership();
        let mut known = Arc::clone(&state.borrow_and_update());
        let mut coming: BTreeMap<String, Coming> = BTreeMap::new();
        let mut levels = BTreeMap::new();
        loop {
            tokio::select! {
                changed = state.changed() => if changed.is_err() { return },
                changed = leadership.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = leadership.borrow_and_update().clone();
                    if let Some(leader) = now.leader {
                        events.elected(&leader, now.term);
                    }
                }
                () = tokio::time::sleep(LOOK_EVERY), if !coming.is_empty() => (),
                () = tokio::time::sleep(LEVELS_EVERY) => (),
                () = stop.cancelled() => return,
            }
            let new = Arc::clone(&state.borrow_and_update());
            if !Arc::ptr_eq(&known, &new) {
                compare(&events, &known, &new);
                follow(&mut coming, &node, &known, &new, Instant::now());
                known = new;
            }
            let owned = known.sources.values();
            let owned = owned.filter(|source| known.owner(&source.name) == Some(&node));
            let now =
                owned.map(|source| (source.name.clone(), sources.status(source).1.wal_outlook));
            note_levels(&events, &mut levels, now.collect());
            coming.retain(|name, coming| {
                let source = known.sources.get(name);
                let is_read = source.is_some_and(|source| {
                    matches!(sources.status(source).0, "following" | "catching_up")
                });
                if is_read {
                    events.taken_over(name, &coming.from, coming.since.elapsed());
                }
                !is_read && source.is_some() && coming.since.elapsed() < TAKE_OVER_MAX
            });
        }
    })
}

/// Records where the WAL that sources keep stands otherwise to its limit than at the last look.
fn note_levels(
    events: &Events,
    levels: &mut BTreeMap<String, WalLevel>,
    now: BTreeMap<String, WalOutlook>,
) {
    levels.retain(|name, _| now.contains_key(name));
    for (name, outlook) in now {
        let before = levels.insert(name.clone(), outlook.level);
        if before.unwrap_or_default() == outlook.level {
            continue;
        }
        let limit = human_bytes(outlook.limit_bytes);
        let text = match outlook.level {
            WalLevel::Within => format!("{name} keeps little WAL again; the limit is {limit}"),
            WalLevel::Warning => format!("{name} keeps much WAL; the limit is {limit}"),
            WalLevel::Reached => format!("{name} keeps as much WAL as it may: {limit}"),
        };
        events.record(EventKind::WalBudget, &name, text);
    }
}

/// Records what differs.
fn compare(events: &Events, old: &State, new: &State) {
    for (name, node) in &new.nodes {
        if !old.nodes.contains_key(name) {
            let text = format!("{name} has joined at {}", node.address);
            events.record(EventKind::NodeJoined, name, text);
        }
    }
    for name in old
        .nodes
        .keys()
        .filter(|name| !new.nodes.contains_key(*name))
    {
        events.record(EventKind::NodeLeft, name, format!("{name} was removed"));
    }
    for (source, owner) in &new.owners {
        let before = old.owner(source);
        // An agent that starts again takes a new epoch on its own node: nothing moved.
        if before != Some(owner.as_str()) {
            let epoch = new.epochs.get(source).map_or(0, |epoch| epoch.0);
            let from = before.map_or_else(String::new, |from| format!(" from {from}"));
            let text = format!("{source} goes{from} to {owner}, epoch {epoch}");
            events.record(EventKind::Assigned, source, text);
        }
    }
}

/// Keeps the list of the sources that `node` must read and does not yet.
fn follow(
    coming: &mut BTreeMap<String, Coming>,
    node: &str,
    old: &State,
    new: &State,
    now: Instant,
) {
    coming.retain(|source, _| new.owner(source) == Some(node));
    for (source, owner) in new.owners.iter().filter(|(_, owner)| *owner == node) {
        let before = old.owner(source).filter(|before| before != owner);
        if let Some(from) = before {
            let from = from.to_owned();
            coming.insert(source.clone(), Coming { from, since: now });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(owners: &[(&str, &str)]) -> State {
        let owners = owners.iter();
        State {
            owners: owners
                .map(|(source, node)| ((*source).to_owned(), (*node).to_owned()))
                .collect(),
            ..State::default()
        }
    }

    #[tokio::test]
    async fn what_moved_is_told_and_what_began_again_is_not() {
        let events = Events::default();
        let before = owned(&[("a", "n1"), ("b", "n1")]);
        let after = owned(&[("a", "n1"), ("b", "n2"), ("c", "n3")]);
        compare(&events, &before, &after);
        let told: Vec<String> = events.list().into_iter().map(|event| event.text).collect();
        assert_eq!(
            told,
            ["b goes from n1 to n2, epoch 0", "c goes to n3, epoch 0"]
        );
    }

    #[test]
    fn kept_wal_is_told_when_it_stands_otherwise_to_its_limit() {
        let events = Events::default();
        let mut levels = BTreeMap::new();
        for level in [
            WalLevel::Within,
            WalLevel::Reached,
            WalLevel::Reached,
            WalLevel::Within,
        ] {
            let outlook = WalOutlook {
                level,
                limit_bytes: 8 << 20,
                seconds_to_limit: None,
            };
            let now = BTreeMap::from([("shop".to_owned(), outlook)]);
            note_levels(&events, &mut levels, now);
        }
        let told: Vec<_> = events.list().into_iter().map(|event| event.text).collect();
        assert_eq!(
            told,
            [
                "shop keeps as much WAL as it may: 8 MiB",
                "shop keeps little WAL again; the limit is 8 MiB"
            ]
        );
    }

    #[tokio::test]
    async fn a_take_over_begins_with_the_assignment_and_ends_with_the_next() {
        let mut coming = BTreeMap::new();
        let now = Instant::now();
        let before = owned(&[("a", "n1"), ("b", "n2")]);
        let after = owned(&[("a", "n2"), ("b", "n2"), ("c", "n2")]);
        follow(&mut coming, "n2", &before, &after, now);
        // The first owner of a source takes nothing over.
        let names: Vec<&str> = coming.keys().map(String::as_str).collect();
        assert_eq!(names, ["a"]);
        assert_eq!(coming["a"].from, "n1");
        follow(&mut coming, "n2", &after, &before, now);
        assert_eq!(coming, BTreeMap::new());
    }
}
