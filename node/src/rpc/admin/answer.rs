//! Fills the messages of the administration API from the node's values.

use std::collections::BTreeMap;

use pgcapture_actors::log::{LogExtent, LogHealth};
use pgcapture_engine::{checkpoint::Checkpoint, cluster, lsn::PgTime};
use pgcapture_proto::admin::v1::{
    Check, Gap, Position, Source, SourceDefinition, SourcePlan, SourceStatus, Stream, Trouble,
    check::Severity,
};

use super::wal;
use crate::{
    logs::Logs,
    sources::{self, Definition, Sources},
};

/// A source with what its agent does.
pub(in crate::rpc) fn source(
    sources: &Sources,
    state: &cluster::State,
    source: &cluster::Source,
) -> Source {
    let (word, agent) = sources.status(source);
    let wal = wal::outlook(sources.guard_of(state, &source.name), &agent);
    let lag_micros = i64::try_from(sources::lag(&agent).as_micros()).unwrap_or(i64::MAX);
    let status = SourceStatus {
        state: word.to_owned(),
        received_lsn: agent.received_lsn.0,
        durable_lsn: agent.durable_lsn.0,
        confirmed_lsn: agent.confirmed_lsn.0,
        server_end_lsn: agent.server_end_lsn.0,
        lag_bytes: sources::lag_bytes(&agent),
        lag_micros,
        wal_retained_bytes: agent.wal_retained_bytes,
        source_temp_bytes_max: agent.source_temp_bytes_max,
        row_count: agent.row_count,
        transaction_count: agent.transaction_count,
        rebuild_count: agent.rebuild_count,
        trouble: agent.trouble.map(|trouble| Trouble {
            code: trouble.code.to_owned(),
            text: trouble.text,
            next: trouble.next,
        }),
        commit_time: unix_micros(agent.commit_time),
        wal,
    };
    let gaps = state.gaps.get(&source.name).map(Vec::as_slice);
    Source {
        definition: Some(source_definition(state, source)),
        paused: source.paused,
        epoch: source.epoch.0,
        created_at: unix_micros(source.created_at),
        status: Some(status),
        gaps: gaps.unwrap_or_default().iter().map(gap).collect(),
        replicas: state
            .replicas_of(&source.name)
            .map(|replica| replica.name.clone())
            .collect(),
        owner: state.owner(&source.name).unwrap_or_default().to_owned(),
        // What the node remembers is added by who has the memory.
        last_failover: None,
    }
}

fn source_definition(state: &cluster::State, source: &cluster::Source) -> SourceDefinition {
    SourceDefinition {
        name: source.name.clone(),
        stream: source.stream.clone(),
        url: source.url.clone(),
        password: reference(source.password.as_ref()),
        slot: source.slot.clone(),
        publication: source.publication.clone(),
        tables: source.tables.clone(),
        exclude: source.exclude.clone(),
        wal_guard: wal::guard(state.wal_wishes.get(&source.name)),
    }
}

/// Where a password is, as it was given.
pub(in crate::rpc) fn reference(password: Option<&cluster::SecretRef>) -> String {
    password.map(ToString::to_string).unwrap_or_default()
}

fn gap(gap: &cluster::Gap) -> Gap {
    Gap {
        from_lsn: gap.from.0,
        to_lsn: gap.to.map_or(0, |lsn| lsn.0),
        reason: gap.reason.clone(),
        declared_at: unix_micros(gap.declared_at),
    }
}

/// What adding a source would find and do.
pub(in crate::rpc) fn plan(definition: &Definition, plan: sources::SourcePlan) -> SourcePlan {
    SourcePlan {
        checks: plan.checks.into_iter().map(check).collect(),
        sql: plan.sql,
        tables: plan.tables,
        definition: Some(SourceDefinition {
            name: definition.name.clone(),
            stream: definition.stream.clone(),
            url: definition.url.clone(),
            password: reference(definition.password.as_ref()),
            slot: definition.slot.clone(),
            publication: definition.publication.clone(),
            tables: definition.tables.clone(),
            exclude: definition.exclude.clone(),
            wal_guard: wal::guard(Some(&definition.wal)),
        }),
    }
}

/// One fact that was looked at.
pub(in crate::rpc) fn check(check: sources::Check) -> Check {
    let severity = match (check.problem, check.is_warning) {
        (None, _) => Severity::Ok,
        (Some(_), true) => Severity::Warning,
        (Some(_), false) => Severity::Error,
    };
    Check {
        severity: severity.into(),
        code: check.problem.map_or("", |problem| problem.code).to_owned(),
        text: check.text,
        next: check.next,
    }
}

/// A stream with what its log holds.
pub(in crate::rpc) fn stream(
    logs: &Logs,
    source: &cluster::Source,
    consumer_counts: &BTreeMap<String, u32>,
) -> Stream {
    let log = logs.get(&source.name);
    let extent = log
        .as_ref()
        .map_or_else(LogExtent::default, |log| log.extent());
    let (health, health_reason) = match log.map(|log| log.health().borrow().clone()) {
        Some(LogHealth::Writable) => ("writable", String::new()),
        Some(LogHealth::Blocked { reason }) => ("blocked", reason),
        Some(LogHealth::Failed { reason }) => ("failed", reason),
        None => (
            "closed",
            "the log is not open; see `pgcapture source ls`".to_owned(),
        ),
    };
    Stream {
        name: source.stream.clone(),
        source: source.name.clone(),
        earliest: extent.earliest.map(position),
        earliest_time: unix_micros(extent.earliest_time),
        last: extent.tail.last.map(position),
        last_time: unix_micros(extent.tail.commit_time),
        bytes: extent.bytes,
        segments: extent.segments,
        health: health.to_owned(),
        health_reason,
        epoch: extent.tail.epoch.0,
        consumer_count: consumer_counts.get(&source.stream).copied().unwrap_or(0),
    }
}

pub(in crate::rpc) const fn position(checkpoint: Checkpoint) -> Position {
    Position {
        lsn: checkpoint.lsn.0,
        seq: checkpoint.seq,
    }
}

/// Zero stays zero: unknown.
pub(in crate::rpc) const fn unix_micros(time: PgTime) -> i64 {
    if time.0 == 0 { 0 } else { time.unix_micros() }
}
