//! A source with replicas, dumps and tables of any size, for the tests of dumps.

use std::time::Duration;

use crate::{
    checkpoint::Epoch,
    cluster::{
        Answer, Command, DumpAction, DumpCommand, DumpOptions, DumpRule, DumpTable, FinishedRange,
        NewDump, NewLayout, OnGap, Origin, PlannedTable, Replica, ReplicaKind, Source, State,
        TableFailure, TableLayout, WantedPages,
    },
    dump::{DumpId, Heap, TableName},
    lsn::{Lsn, PgTime},
};

/// A whole table of pages of 8 KiB each.
pub(crate) fn plan(oid: u32, pages_end: u32) -> PlannedTable {
    let name = TableName {
        schema: "public".to_owned(),
        table: format!("t{oid}"),
    };
    PlannedTable {
        heap: Heap {
            label: name.clone(),
            name,
            oid,
            filenode: oid,
        },
        wanted: WantedPages::Whole,
        layout: layout(pages_end),
        needs_sweep: true,
    }
}

pub(crate) fn layout(pages_end: u32) -> TableLayout {
    TableLayout {
        filenode: 1,
        pages_end,
        bytes: u64::from(pages_end) * 8_192,
        row_estimate: u64::from(pages_end) * 100,
        since_xid: 700,
        planned_at: Lsn(5),
    }
}

pub(crate) fn new_layout(oid: u32, pages_end: u32) -> NewLayout {
    NewLayout {
        heap: plan(oid, 0).heap,
        layout: layout(pages_end),
        needs_sweep: true,
    }
}

pub(crate) fn table(pages_end: u32) -> DumpTable {
    DumpTable::new(plan(1, pages_end))
}

/// Sources `shop` and `audit` with the named replicas, each for one range at once.
pub(crate) fn cluster(replicas: &[(&str, &str)]) -> State {
    let mut state = State::default();
    for name in ["shop", "audit"] {
        let source = Source {
            name: name.to_owned(),
            stream: name.to_owned(),
            url: format!("postgres://pgcapture@db/{name}"),
            password: None,
            slot: format!("{name}_pgcapture"),
            publication: format!("pgcapture_{name}"),
            tables: vec!["public.*".to_owned()],
            exclude: Vec::new(),
            paused: false,
            epoch: Epoch(0),
            created_at: PgTime(7),
            on_gap: OnGap::Halt,
            origin: Origin::Command,
            owns_publication: true,
        };
        apply(&mut state, Command::AddSource(Box::new(source)));
    }
    for (name, source) in replicas {
        apply(
            &mut state,
            Command::AddReplica(Box::new(replica(name, source, 1))),
        );
    }
    state
}

pub(crate) fn replica(name: &str, source: &str, ranges_max: u32) -> Replica {
    Replica {
        name: name.to_owned(),
        source: source.to_owned(),
        url: format!("postgres://pgcapture@{name}/shop"),
        password: None,
        kind: ReplicaKind::Standby,
        system_identifier: 7,
        ranges_max,
        lag_max: Duration::from_secs(30),
        created_at: PgTime(1),
    }
}

pub(crate) fn apply(state: &mut State, command: Command) -> Answer {
    state.apply(command).expect("the command fits the state")
}

/// Options for ranges of 64 KiB, eight pages each.
pub(crate) fn small(parallel: u32) -> DumpOptions {
    DumpOptions {
        parallel,
        range_bytes: 64 << 10,
        ..DumpOptions::default()
    }
}

pub(crate) fn create(
    state: &mut State,
    consumer: &str,
    options: DumpOptions,
    tables: Vec<PlannedTable>,
) -> DumpId {
    let dump = NewDump {
        uri: format!("shop/{consumer}"),
        stream: "shop".to_owned(),
        consumer: consumer.to_owned(),
        source: "shop".to_owned(),
        options,
        created_at: PgTime(1),
        tables,
    };
    let (dump, rule) = (Box::new(dump), DumpRule::NoSharedTable);
    let create = DumpCommand::Create { dump, rule };
    let Answer::DumpCreated(id) = apply(state, Command::Dump(create)) else {
        panic!("no dump was created");
    };
    id
}

pub(crate) fn act(state: &mut State, id: DumpId, action: DumpAction) {
    let at = PgTime(2);
    apply(state, Command::Dump(DumpCommand::Act { id, action, at }));
}

pub(crate) fn record(state: &mut State, range: FinishedRange) {
    let (ranges, at) = (vec![range], PgTime(3));
    let finish = DumpCommand::FinishRanges { ranges, at };
    apply(state, Command::Dump(finish));
}

pub(crate) fn failure(code: &str) -> TableFailure {
    TableFailure {
        code: code.to_owned(),
        text: "on purpose".to_owned(),
    }
}
