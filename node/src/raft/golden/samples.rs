//! One value of every command, in an order in which each is accepted.

use std::time::Duration;

use pgcapture_engine::{
    checkpoint::{Checkpoint, Epoch},
    cluster::{
        Command, Cursor, CursorCommand, DumpAction, DumpCommand, DumpOptions, DumpRefusal,
        DumpRule, FinishedRange, Gap, HomeClaim, HomeCommand, LetGo, NewDump, NewLayout, Node,
        OnGap, Origin, PlannedTable, Proposal, Refusal, Replica, ReplicaKind, SecretRef, Source,
        SubscriptionId, TableFailure, TableLayout, WantedPages,
    },
    confirm,
    dump::{DumpId, Extent, Heap, PageRange, TableName},
    lsn::{Lsn, PgTime},
    wal_guard::{WalPolicy, WalWish},
};

/// Names of all kinds of requests. [`name`] does not build when there is a new one: it is named there
/// and here, and gets a sample.
pub(super) const NAMES: [&str; 29] = [
    "add_source",
    "remove_source",
    "set_paused",
    "assign",
    "set_connection",
    "declare_gap",
    "add_replica",
    "remove_replica",
    "attest",
    "dump_create",
    "dump_finish_ranges",
    "dump_replan_table",
    "dump_fail_table",
    "dump_act",
    "dump_remove",
    "dump_set_cool_down",
    "add_node",
    "remove_node",
    "add_guarded_source",
    "set_wal_guard",
    "let_go",
    "home_claim",
    "home_release",
    "cursors_save",
    "cursors_seek",
    "cursors_remove",
    "raise_protocol",
    "keep_publication",
    "set_replica_rate",
];

/// Returns the name of a kind of request.
pub(super) fn name(proposal: &Proposal) -> String {
    let name = match proposal {
        Proposal::Cursors(CursorCommand::Save { .. }) => "cursors_save",
        Proposal::Cursors(CursorCommand::Seek { .. }) => "cursors_seek",
        Proposal::Cursors(CursorCommand::Remove(_)) => "cursors_remove",
        Proposal::State(command) => match command {
            Command::AddSource(_) => "add_source",
            Command::RemoveSource { .. } => "remove_source",
            Command::SetPaused { .. } => "set_paused",
            Command::Assign { .. } => "assign",
            Command::SetConnection { .. } => "set_connection",
            Command::DeclareGap { .. } => "declare_gap",
            Command::AddReplica(_) => "add_replica",
            Command::RemoveReplica { .. } => "remove_replica",
            Command::Attest { .. } => "attest",
            Command::AddNode(_) => "add_node",
            Command::RemoveNode { .. } => "remove_node",
            Command::AddGuardedSource { .. } => "add_guarded_source",
            Command::SetWalGuard { .. } => "set_wal_guard",
            Command::LetGo { .. } => "let_go",
            Command::RaiseProtocol { .. } => "raise_protocol",
            Command::KeepPublication { .. } => "keep_publication",
            Command::SetReplicaRate { .. } => "set_replica_rate",
            Command::Home(HomeCommand::Claim { .. }) => "home_claim",
            Command::Home(HomeCommand::Release { .. }) => "home_release",
            Command::Dump(command) => match command {
                DumpCommand::Create { .. } => "dump_create",
                DumpCommand::FinishRanges { .. } => "dump_finish_ranges",
                DumpCommand::ReplanTable { .. } => "dump_replan_table",
                DumpCommand::FailTable { .. } => "dump_fail_table",
                DumpCommand::Act { .. } => "dump_act",
                DumpCommand::Remove { .. } => "dump_remove",
                DumpCommand::SetCoolDown { .. } => "dump_set_cool_down",
            },
        },
    };
    name.to_owned()
}

/// Returns every kind of request that came with version 2 of the protocol, accepted after
/// [`proposals`].
pub(super) fn proposals_of_2() -> Vec<Proposal> {
    state(vec![
        Command::RaiseProtocol {
            to: 2,
            nodes: [1, 2].into(),
        },
        Command::KeepPublication {
            name: "shop".to_owned(),
            epoch: Epoch(1),
            oid: 16_500,
        },
        Command::SetReplicaRate {
            name: "r1".to_owned(),
            rate: Some(50 << 20),
        },
    ])
}

/// Returns the refusals that came with version 2 of the protocol.
pub(super) fn refusals_of_2() -> Vec<Refusal> {
    vec![Refusal::Protocol {
        wanted: 3,
        agreed: 2,
    }]
}

/// Returns every kind of request of the first version of the protocol at least once.
pub(super) fn proposals() -> Vec<Proposal> {
    let mut all = nodes();
    all.extend(sources());
    all.extend(dumps());
    all.extend(cursors());
    all
}

/// Returns some refusals of different kinds.
pub(super) fn refusals() -> Vec<Refusal> {
    vec![
        Refusal::UnknownSource {
            name: "nope".to_owned(),
            known: "shop".to_owned(),
        },
        Refusal::EpochMoved {
            name: "shop".to_owned(),
            epoch: Epoch(4),
        },
        Refusal::TooManyNodes,
        Refusal::Dump(DumpRefusal::Unknown { id: DumpId(77) }),
    ]
}

fn state(commands: Vec<Command>) -> Vec<Proposal> {
    commands.into_iter().map(Proposal::State).collect()
}

fn nodes() -> Vec<Proposal> {
    let node = |id: u64| {
        Command::AddNode(Node {
            name: format!("n{id}"),
            id,
            address: format!("n{id}.internal:7700"),
            joined_at: PgTime(1_000 + id as i64),
        })
    };
    let gone = Command::RemoveNode {
        name: "n3".to_owned(),
    };
    state(vec![node(1), node(2), node(3), gone])
}

fn source(name: &str, origin: Origin) -> Command {
    Command::AddSource(definition(name, origin))
}

fn definition(name: &str, origin: Origin) -> Box<Source> {
    Box::new(Source {
        name: name.to_owned(),
        stream: format!("{name}-stream"),
        url: format!("postgres://pgcapture@db.internal/{name}"),
        password: Some(SecretRef::File("/run/secrets/shop".to_owned())),
        slot: format!("{name}_pgcapture"),
        publication: format!("pgcapture_{name}"),
        tables: vec!["public.*".to_owned(), "audit.log".to_owned()],
        exclude: vec!["public.tmp_*".to_owned()],
        paused: false,
        epoch: Epoch(0),
        created_at: PgTime(-5),
        on_gap: OnGap::Continue,
        origin,
        owns_publication: true,
    })
}

fn replica(name: &str, kind: ReplicaKind) -> Command {
    Command::AddReplica(Box::new(Replica {
        name: name.to_owned(),
        source: "shop".to_owned(),
        url: "postgres://pgcapture@standby.internal/shop".to_owned(),
        password: None,
        kind,
        system_identifier: u64::MAX,
        ranges_max: 3,
        lag_max: Duration::new(30, 500_000_000),
        created_at: PgTime(2_000),
    }))
}

fn gap(from: u64, to: Option<u64>) -> Command {
    Command::DeclareGap {
        name: "shop".to_owned(),
        gap: Gap {
            from: Lsn(from),
            to: to.map(Lsn),
            reason: "slot_lost".to_owned(),
            declared_at: PgTime(3_000),
        },
    }
}

fn sources() -> Vec<Proposal> {
    let shop = || "shop".to_owned();
    let old = || "old".to_owned();
    state(vec![
        source("shop", Origin::Command),
        source("old", Origin::Config),
        Command::Assign {
            name: old(),
            node: "n2".to_owned(),
            after: Epoch(0),
        },
        Command::RemoveSource { name: old() },
        Command::Assign {
            name: shop(),
            node: "n1".to_owned(),
            after: Epoch(0),
        },
        Command::SetPaused {
            name: shop(),
            paused: true,
        },
        Command::SetConnection {
            name: shop(),
            url: "postgres://pgcapture@db2.internal/shop".to_owned(),
            password: Some(SecretRef::Env("PASSWORD".to_owned())),
        },
        gap(10, Some(20)),
        gap(30, None),
        replica("r1", ReplicaKind::Standby),
        replica("r2", ReplicaKind::Source),
        Command::RemoveReplica {
            name: "r2".to_owned(),
        },
        Command::Attest {
            name: shop(),
            epoch: Epoch(1),
            origin: confirm::Origin {
                previous: Some(Checkpoint::new(Lsn(900), 4)),
                resume_lsn: Lsn(5_000_000_000),
            },
        },
        Command::AddGuardedSource {
            source: definition("guarded", Origin::Command),
            wish: WalWish {
                limit_bytes: Some(20 << 30),
                alert_percent: Some(80),
                policy: Some(WalPolicy::Alert),
            },
        },
        Command::SetWalGuard {
            name: shop(),
            wish: WalWish {
                limit_bytes: Some(1 << 30),
                ..WalWish::default()
            },
        },
        Command::LetGo {
            name: shop(),
            epoch: Epoch(1),
            let_go: LetGo {
                to: Lsn(4_999_999_999),
                reason: "wal_limit".to_owned(),
            },
        },
    ])
}

fn heap(oid: u32, filenode: u32) -> Heap {
    let name = |table: &str| TableName {
        schema: "public".to_owned(),
        table: table.to_owned(),
    };
    Heap {
        name: name("orders_2026"),
        label: name("orders"),
        oid,
        filenode,
    }
}

const LAYOUT: TableLayout = TableLayout {
    filenode: 16_400,
    pages_end: 1_000,
    bytes: 8_192_000,
    row_estimate: 70_000,
    since_xid: 731,
    planned_at: Lsn(4_000),
};

fn pages(first: u32, last: u32) -> PageRange {
    PageRange { first, last }
}

fn create(consumer: &str, rule: DumpRule) -> DumpCommand {
    let table = |oid: u32, wanted: WantedPages, needs_sweep: bool| PlannedTable {
        heap: heap(oid, 16_400),
        wanted,
        layout: LAYOUT,
        needs_sweep,
    };
    let ranges = WantedPages::Ranges(vec![pages(0, 9), pages(20, 29)]);
    DumpCommand::Create {
        dump: Box::new(NewDump {
            uri: format!("shop-stream/{consumer}"),
            stream: "shop-stream".to_owned(),
            consumer: consumer.to_owned(),
            source: "shop".to_owned(),
            options: DumpOptions {
                parallel: 3,
                rate_bytes_per_second: Some(1 << 20),
                priority: -2,
                cool_down: Duration::from_millis(250),
                range_bytes: 1 << 20,
            },
            created_at: PgTime(4_000),
            tables: vec![
                table(16_384, WantedPages::Whole, true),
                table(16_385, ranges, false),
                table(16_386, WantedPages::Whole, false),
            ],
        }),
        rule,
    }
}

fn finished(table: u32, extent: Extent) -> FinishedRange {
    FinishedRange {
        dump: DumpId(1),
        table,
        generation: 0,
        extent,
        row_count: 500,
        bytes: 40_000,
    }
}

fn dumps() -> Vec<Proposal> {
    let act = |id, action| DumpCommand::Act {
        id: DumpId(id),
        action,
        at: PgTime(6_000),
    };
    let failure = TableFailure {
        code: "PGC-E07".to_owned(),
        text: "public.orders is gone".to_owned(),
    };
    let ranges = vec![
        finished(0, Extent::Pages(pages(0, 99))),
        finished(1, Extent::Pages(pages(0, 9))),
        finished(0, Extent::Sweep { since_xid: 731 }),
    ];
    let replanned = NewLayout {
        heap: heap(16_386, 16_500),
        layout: LAYOUT,
        needs_sweep: true,
    };
    let commands = vec![
        create("search", DumpRule::NoSharedTable),
        create("audit", DumpRule::Idle),
        create("cache", DumpRule::Idle),
        DumpCommand::FinishRanges {
            ranges,
            at: PgTime(5_000),
        },
        DumpCommand::ReplanTable {
            dump: DumpId(1),
            table: 2,
            generation: 0,
            plan: Box::new(replanned),
            at: PgTime(5_500),
        },
        DumpCommand::FailTable {
            dump: DumpId(1),
            table: 1,
            generation: 0,
            failure,
            at: PgTime(5_600),
        },
        act(2, DumpAction::Pause),
        act(2, DumpAction::Resume),
        act(2, DumpAction::Cancel),
        act(3, DumpAction::Cancel),
        DumpCommand::Remove { id: DumpId(3) },
        DumpCommand::SetCoolDown {
            stream: "shop-stream".to_owned(),
            consumer: "search".to_owned(),
            cool_down: Duration::from_secs(2),
        },
    ];
    state(commands.into_iter().map(Command::Dump).collect())
}

fn subscription(consumer: &str) -> SubscriptionId {
    SubscriptionId {
        stream: "shop-stream".to_owned(),
        consumer: consumer.to_owned(),
    }
}

fn cursors() -> Vec<Proposal> {
    let claim = |consumer, instead_of: Option<&str>| HomeClaim {
        id: subscription(consumer),
        instead_of: instead_of.map(str::to_owned),
    };
    let homes = vec![
        Command::Home(HomeCommand::Claim {
            node: "n1".to_owned(),
            claims: vec![claim("search", None), claim("audit", Some("n2"))],
        }),
        Command::Home(HomeCommand::Release {
            node: "n1".to_owned(),
            ids: vec![subscription("audit")],
        }),
    ];
    let mut all = state(homes);
    let run = |lsn| {
        let at = |seq| Checkpoint::new(Lsn(lsn), seq);
        (at(1), at(9))
    };
    let cursor = Cursor {
        floor: Checkpoint::new(Lsn(1 << 40), u32::MAX),
        acked_above: vec![run((1 << 40) + 8), run((1 << 40) + 99)],
    };
    let both = vec![
        (subscription("search"), cursor.clone()),
        (subscription("audit"), cursor),
    ];
    all.push(Proposal::Cursors(CursorCommand::Save {
        by: "n1".to_owned(),
        cursors: both,
    }));
    all.push(Proposal::Cursors(CursorCommand::Seek {
        by: "n1".to_owned(),
        cursors: vec![(subscription("search"), Cursor::default())],
    }));
    all.push(Proposal::Cursors(CursorCommand::Remove(subscription(
        "audit",
    ))));
    all
}
