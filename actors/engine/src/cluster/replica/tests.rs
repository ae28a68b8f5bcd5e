//! Replicas are added once, belong to a source, and go with it.

use super::*;
use crate::{
    cluster::{
        Command, DumpCommand, DumpOptions, DumpRule, NewDump, PlannedTable, TableLayout,
        WantedPages, tests::source,
    },
    dump::{Heap, TableName},
};

fn replica(name: &str) -> Replica {
    Replica {
        name: name.to_owned(),
        source: "shop".to_owned(),
        url: "postgres://pgcapture@standby/shop".to_owned(),
        password: None,
        kind: ReplicaKind::Standby,
        system_identifier: 7,
        ranges_max: DEFAULT_RANGES_MAX,
        lag_max: DEFAULT_LAG_MAX,
        created_at: PgTime(1),
    }
}

fn shop() -> State {
    let mut state = State::default();
    for name in ["shop", "audit"] {
        let add = Command::AddSource(Box::new(source(name)));
        state.apply(add).unwrap();
    }
    state
}

fn add(state: &mut State, replica: Replica) -> Result<Answer, Refusal> {
    state.apply(Command::AddReplica(Box::new(replica)))
}

#[test]
fn the_same_replica_is_added_once() {
    let mut state = shop();
    assert_eq!(add(&mut state, replica("r1")), Ok(Answer::Done));
    let later = Replica {
        created_at: PgTime(9),
        ..replica("r1")
    };
    assert_eq!(add(&mut state, later), Ok(Answer::Unchanged));
    let other = Replica {
        ranges_max: 7,
        ..replica("r1")
    };
    let refusal = add(&mut state, other).unwrap_err();
    assert!(refusal.to_string().contains("another definition"));
    assert_eq!(state.replica("r1").unwrap().created_at, PgTime(1));
}

#[test]
fn a_rate_is_agreed_on_once_all_nodes_can_and_goes_with_its_replica() {
    let mut state = shop();
    add(&mut state, replica("r1")).unwrap();
    let set = |state: &mut State, rate| {
        let name = "r1".to_owned();
        state.apply(Command::SetReplicaRate { name, rate })
    };
    let refusal = set(&mut state, Some(9)).unwrap_err();
    assert!(matches!(refusal, Refusal::Protocol { wanted: 2, .. }));
    state.added.protocol = PROTOCOL_SECOND;
    assert_eq!(set(&mut state, Some(9)), Ok(Answer::Done));
    assert_eq!(set(&mut state, Some(9)), Ok(Answer::Unchanged));
    assert_eq!(state.replica_rate("r1"), Some(9));
    assert_eq!(set(&mut state, None), Ok(Answer::Done));
    assert_eq!(state.replica_rate("r1"), None);
    for removal in [
        Command::RemoveReplica {
            name: "r1".to_owned(),
        },
        Command::RemoveSource {
            name: "shop".to_owned(),
        },
    ] {
        let mut state = state.clone();
        set(&mut state, Some(9)).unwrap();
        state.apply(removal).unwrap();
        assert!(state.added.replica_rates.is_empty());
    }
}

#[test]
fn what_is_wrong_with_a_replica_is_told() {
    let mut state = shop();
    for (wrong, word) in [
        (
            Replica {
                source: "nope".to_owned(),
                ..replica("r1")
            },
            "unknown source",
        ),
        (replica("../r1"), "cannot name a replica"),
        (
            Replica {
                ranges_max: 0,
                ..replica("r1")
            },
            "1 to 64",
        ),
    ] {
        let refusal = add(&mut state, wrong).unwrap_err().to_string();
        assert!(refusal.contains(word), "{refusal}");
    }
    assert_eq!(state, shop());
}

#[test]
fn a_replica_is_removed_by_name() {
    let mut state = shop();
    add(&mut state, replica("r1")).unwrap();
    let remove = |name: &str| Command::RemoveReplica {
        name: name.to_owned(),
    };
    let refusal = state.apply(remove("r2")).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "unknown replica \"r2\"; known replicas: r1"
    );
    assert_eq!(state.apply(remove("r1")), Ok(Answer::Done));
    assert!(state.apply(remove("r1")).is_err());
}

#[test]
fn replicas_have_a_limit() {
    let mut state = shop();
    for number in 0..REPLICAS_MAX {
        add(&mut state, replica(&format!("r{number}"))).unwrap();
    }
    let refusal = add(&mut state, replica("more")).unwrap_err();
    assert_eq!(refusal, ReplicaRefusal::TooMany.into());
}

#[test]
fn a_source_takes_its_replicas_and_dumps_with_it() {
    let mut state = shop();
    add(&mut state, replica("r1")).unwrap();
    let of_audit = Replica {
        source: "audit".to_owned(),
        ..replica("r2")
    };
    add(&mut state, of_audit).unwrap();
    for name in ["shop", "audit"] {
        let table = TableName {
            schema: "public".to_owned(),
            table: "t".to_owned(),
        };
        let dump = NewDump {
            uri: name.to_owned(),
            stream: name.to_owned(),
            consumer: name.to_owned(),
            source: name.to_owned(),
            options: DumpOptions::default(),
            created_at: PgTime(1),
            tables: vec![PlannedTable {
                heap: Heap {
                    name: table.clone(),
                    label: table,
                    oid: 1,
                    filenode: 1,
                },
                wanted: WantedPages::Whole,
                layout: TableLayout::default(),
                needs_sweep: true,
            }],
        };
        let (dump, rule) = (Box::new(dump), DumpRule::Idle);
        let create = DumpCommand::Create { dump, rule };
        state.apply(Command::Dump(create)).unwrap();
    }
    let name = "shop".to_owned();
    state.apply(Command::RemoveSource { name }).unwrap();
    assert_eq!(state.replicas.keys().collect::<Vec<_>>(), ["r2"]);
    let sources: Vec<_> = state.dumps.values().map(|dump| &dump.source).collect();
    assert_eq!(sources, ["audit"]);
}
