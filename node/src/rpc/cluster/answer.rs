//! Fills the messages of the cluster's administration from the node's values.

use std::{collections::BTreeMap, time::Duration};

use pgcapture_engine::{cluster::State, codes};
use pgcapture_proto::admin::v1::{ClusterEvent, ClusterMember, ClusterStatus};

use crate::{
    events::{Event, EventKind},
    group::{GroupError, Life, Member, Standing},
};

/// Assignments and joins that two nodes remember within this time are one: every node sees the same
/// entry of the common log, a little earlier or later.
const SAME_WITHIN: Duration = Duration::from_secs(5);

/// The cluster as the node knows it; `lives` only when it leads.
pub(super) fn status(
    node: &str,
    state: &State,
    standing: Standing,
    lives: Option<&BTreeMap<String, Life>>,
) -> ClusterStatus {
    let member = |member: Member| {
        let owned = state
            .owners
            .iter()
            .filter(|(_, owner)| **owner == member.name);
        let life = lives.and_then(|lives| lives.get(&member.name));
        ClusterMember {
            id: member.id,
            address: member.address,
            role: if member.is_voter { "voter" } else { "learner" }.to_owned(),
            state: life.map_or("unknown", |life| life.as_str()).to_owned(),
            sources: owned.map(|(source, _)| source.clone()).collect(),
            lag_entries: member.lag,
            name: member.name,
        }
    };
    ClusterStatus {
        cluster: standing.cluster,
        term: standing.term,
        leader: standing.leader.unwrap_or_default(),
        committed_index: standing.committed,
        applied_index: standing.applied,
        stale: lives.is_none(),
        members: standing.members.into_iter().map(member).collect(),
        answered_by: node.to_owned(),
        protocol: standing.protocol,
        holding_back: standing.holding_back,
    }
}

/// What the removal of a node would do.
pub(super) fn removal(
    state: &State,
    standing: &Standing,
    name: &str,
) -> Result<Vec<String>, GroupError> {
    let member = standing.members.iter().find(|member| member.name == name);
    let Some(member) = member else {
        let known: Vec<&str> = standing.members.iter().map(|it| it.name.as_str()).collect();
        return Err(GroupError {
            explanation: &codes::node::NOT_FOUND,
            text: format!("unknown node \"{name}\"; known nodes: {}", known.join(", ")),
        });
    };
    let mut actions = Vec::new();
    for (source, _) in state.owners.iter().filter(|(_, owner)| *owner == name) {
        actions.push(format!("give source {source} to another node"));
    }
    if member.is_voter {
        let voters = standing.members.iter().filter(|member| member.is_voter);
        let left = voters.count().saturating_sub(1);
        actions.push(format!("take its vote; {left} voting nodes are left"));
    }
    actions.push(format!(
        "remove {name} ({}) from the cluster",
        member.address
    ));
    Ok(actions)
}

/// Events of one node.
pub(super) fn events(node: &str, events: Vec<Event>) -> Vec<ClusterEvent> {
    let event = |event: Event| ClusterEvent {
        at: event.at,
        node: node.to_owned(),
        kind: event.kind.as_str().to_owned(),
        subject: event.subject,
        text: event.text,
        took_micros: event.took.map_or(0, |took| {
            i64::try_from(took.as_micros()).unwrap_or(i64::MAX)
        }),
    };
    events.into_iter().map(event).collect()
}

/// Puts the events of all nodes in the order of their times and leaves out what several nodes saw;
/// at most `limit` of the newest, all when it is 0.
pub(super) fn merged(mut events: Vec<ClusterEvent>, limit: u32) -> Vec<ClusterEvent> {
    events.sort_by(|one, other| (one.at, &one.node).cmp(&(other.at, &other.node)));
    let within = i64::try_from(SAME_WITHIN.as_micros()).unwrap_or(i64::MAX);
    let own_kinds = [
        EventKind::TakenOver,
        EventKind::NodeGone,
        EventKind::NodeBack,
    ];
    let mut kept: Vec<ClusterEvent> = Vec::new();
    for event in events {
        let is_own = own_kinds.iter().any(|kind| kind.as_str() == event.kind);
        // One node leads in a term: whoever hears of it late says nothing new.
        let is_elected = event.kind == EventKind::Elected.as_str();
        let is_recent = |it: &&ClusterEvent| is_elected || event.at - it.at <= within;
        let recent = kept.iter().rev().take_while(is_recent);
        let is_known = !is_own
            && recent
                .into_iter()
                .any(|it| it.node != event.node && it.kind == event.kind && it.text == event.text);
        if !is_known {
            kept.push(event);
        }
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if limit > 0 && kept.len() > limit {
        kept.drain(..kept.len() - limit);
    }
    kept
}
