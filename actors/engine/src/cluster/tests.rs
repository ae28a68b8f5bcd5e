//! The agreed state changes only as commands say.

use super::*;

pub(super) fn source(name: &str) -> Source {
    Source {
        name: name.to_owned(),
        stream: name.to_owned(),
        url: format!("postgres://pgcapture@db/{name}"),
        password: Some(SecretRef::Env("PASSWORD".to_owned())),
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
    }
}

fn add(state: &mut State, source: Source) -> Result<Answer, Refusal> {
    state.apply(Command::AddSource(Box::new(source)))
}

fn assign(state: &mut State, name: &str) -> Result<Answer, Refusal> {
    let after = state.sources.get(name).map_or(Epoch(0), |it| it.epoch);
    assign_after(state, name, after)
}

fn assign_after(state: &mut State, name: &str, after: Epoch) -> Result<Answer, Refusal> {
    state.apply(Command::Assign {
        name: name.to_owned(),
        node: "n1".to_owned(),
        after,
    })
}

#[test]
fn the_same_source_is_added_once() {
    let mut state = State::default();
    assert_eq!(add(&mut state, source("shop")), Ok(Answer::Done));
    assert_eq!(add(&mut state, source("shop")), Ok(Answer::Unchanged));
    let other = Source {
        slot: "other".to_owned(),
        ..source("shop")
    };
    assert_eq!(
        add(&mut state, other),
        Err(Refusal::SourceExists {
            name: "shop".to_owned()
        })
    );
}

#[test]
fn epochs_grow_even_across_a_removal() {
    let mut state = State::default();
    add(&mut state, source("shop")).unwrap();
    assert_eq!(assign(&mut state, "shop"), Ok(Answer::Assigned(Epoch(1))));
    assert_eq!(assign(&mut state, "shop"), Ok(Answer::Assigned(Epoch(2))));
    let removal = Command::RemoveSource {
        name: "shop".to_owned(),
    };
    assert_eq!(state.apply(removal), Ok(Answer::Done));
    add(&mut state, source("shop")).unwrap();
    assert_eq!(assign(&mut state, "shop"), Ok(Answer::Assigned(Epoch(3))));
}

#[test]
fn a_recovery_keeps_one_node_and_makes_every_epoch_older() {
    let mut state = State::default();
    for name in ["shop", "audit"] {
        add(&mut state, source(name)).unwrap();
        assign(&mut state, name).unwrap();
    }
    let removal = Command::RemoveSource {
        name: "audit".to_owned(),
    };
    state.apply(removal).unwrap();
    for (name, id) in [("n1", 1), ("n2", 2), ("n3", 3)] {
        let node = Node {
            name: name.to_owned(),
            id,
            address: format!("{name}:7700"),
            joined_at: PgTime(7),
        };
        state.apply(Command::AddNode(node)).unwrap();
    }
    state.recover(3);
    assert_eq!(state.nodes.keys().collect::<Vec<_>>(), ["n3"]);
    assert_eq!(state.last_node, 3);
    assert_eq!(state.owner("shop"), None);
    let next = Epoch(RECOVERY_EPOCHS + 2);
    assert_eq!(assign(&mut state, "shop"), Ok(Answer::Assigned(next)));
    // A name that is used again goes on from there, too.
    add(&mut state, source("audit")).unwrap();
    assert_eq!(assign(&mut state, "audit"), Ok(Answer::Assigned(next)));
}

#[test]
fn streams_and_slots_have_one_reader() {
    let mut state = State::default();
    add(&mut state, source("shop")).unwrap();
    let same_stream = Source {
        stream: "shop".to_owned(),
        ..source("audit")
    };
    assert!(matches!(
        add(&mut state, same_stream),
        Err(Refusal::StreamTaken { .. })
    ));
    let same_slot = Source {
        url: source("shop").url,
        slot: source("shop").slot,
        ..source("audit")
    };
    assert!(matches!(
        add(&mut state, same_slot),
        Err(Refusal::SlotTaken { .. })
    ));
}

#[test]
fn a_refused_command_changes_nothing() {
    let mut state = State::default();
    add(&mut state, source("shop")).unwrap();
    let before = state.clone();
    for command in [
        Command::RemoveSource {
            name: "nope".to_owned(),
        },
        Command::SetPaused {
            name: "nope".to_owned(),
            paused: true,
        },
        Command::Assign {
            name: "nope".to_owned(),
            node: "n1".to_owned(),
            after: Epoch(0),
        },
        Command::AddSource(Box::new(source("../escape"))),
    ] {
        state.apply(command).unwrap_err();
    }
    assert_eq!(state, before);
}

#[test]
fn an_unknown_source_is_told_with_the_known_ones() {
    let mut state = State::default();
    assert!(
        state
            .source("nope")
            .unwrap_err()
            .to_string()
            .ends_with("none yet")
    );
    add(&mut state, source("shop")).unwrap();
    add(&mut state, source("audit")).unwrap();
    let refusal = assign(&mut state, "nope").unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "unknown source \"nope\"; known sources: audit, shop"
    );
}

#[test]
fn a_gap_is_declared_once_and_bounded() {
    let mut state = State::default();
    add(&mut state, source("shop")).unwrap();
    let gap = |from: u64, to: Option<u64>| Command::DeclareGap {
        name: "shop".to_owned(),
        gap: Gap {
            from: Lsn(from),
            to: to.map(Lsn),
            reason: "slot_lost".to_owned(),
            declared_at: PgTime(1),
        },
    };
    assert_eq!(state.apply(gap(1, None)), Ok(Answer::Done));
    assert_eq!(state.apply(gap(1, None)), Ok(Answer::Unchanged));
    assert_eq!(state.apply(gap(1, Some(9))), Ok(Answer::Done));
    assert_eq!(state.apply(gap(1, None)), Ok(Answer::Unchanged));
    assert_eq!(state.gaps["shop"][0].to, Some(Lsn(9)));
    for from in 2..2_000 {
        state.apply(gap(from, None)).unwrap();
    }
    assert_eq!(state.gaps["shop"].len(), GAPS_MAX);
    assert_eq!(state.gaps["shop"][GAPS_MAX - 1].from, Lsn(1_999));
}

#[test]
fn gaps_are_bounded_over_all_sources() {
    let mut state = State::default();
    let count = GAPS_TOTAL_MAX / GAPS_MAX;
    let declare = |state: &mut State, name: &str, from| {
        let gap = Gap {
            from: Lsn(from),
            to: None,
            reason: "slot_lost".to_owned(),
            declared_at: PgTime(1),
        };
        let name = name.to_owned();
        state.apply(Command::DeclareGap { name, gap })
    };
    for number in 0..count {
        let name = format!("s{number}");
        add(&mut state, source(&name)).unwrap();
        for from in 0..GAPS_MAX as u64 {
            declare(&mut state, &name, from).unwrap();
        }
    }
    add(&mut state, source("quiet")).unwrap();
    assert_eq!(declare(&mut state, "quiet", 7), Ok(Answer::Done));
    let total = |state: &State| state.gaps.values().map(Vec::len).sum::<usize>();
    assert_eq!(total(&state), GAPS_TOTAL_MAX);
    assert_eq!(state.gaps["quiet"].len(), 1, "the loud ones pay");
    declare(&mut state, "quiet", 8).unwrap();
    assert_eq!(total(&state), GAPS_TOTAL_MAX);
}

#[test]
fn secrets_are_given_by_reference_only() {
    for (text, wanted) in [
        ("env:PW", Some(SecretRef::Env("PW".to_owned()))),
        ("${PW}", Some(SecretRef::Env("PW".to_owned()))),
        (
            "file:/run/secrets/x",
            Some(SecretRef::File("/run/secrets/x".to_owned())),
        ),
        ("hunter2", None),
        ("env:", None),
        ("", None),
    ] {
        assert_eq!(text.parse().ok(), wanted, "{text}");
    }
    let error = "hunter2".parse::<SecretRef>().unwrap_err();
    assert!(!error.to_string().contains("hunter2"));
}

#[test]
fn names_are_file_names() {
    for good in ["a", "shop", "Shop-1_x.y", "9"] {
        assert_eq!(check_name("source", good), Ok(()), "{good}");
    }
    let long = "x".repeat(64);
    for bad in ["", ".", "..", "-a", "a/b", "a b", "ä", long.as_str()] {
        assert!(check_name("source", bad).is_err(), "{bad}");
    }
}

#[test]
fn of_two_who_act_on_the_same_knowledge_one_succeeds() {
    let mut state = State::default();
    add(&mut state, source("shop")).unwrap();
    let first = assign_after(&mut state, "shop", Epoch(0));
    assert_eq!(first, Ok(Answer::Assigned(Epoch(1))));
    assert_eq!(state.owner("shop"), Some("n1"));
    let second = assign_after(&mut state, "shop", Epoch(0));
    let moved = Refusal::EpochMoved {
        name: "shop".to_owned(),
        epoch: Epoch(1),
    };
    assert_eq!(second, Err(moved));
}

fn node(name: &str, id: u64) -> Node {
    Node {
        name: name.to_owned(),
        id,
        address: format!("{name}:7700"),
        joined_at: PgTime(1),
    }
}

#[test]
fn a_removed_node_owns_nothing() {
    let mut state = State::default();
    add(&mut state, source("shop")).unwrap();
    assert_eq!(
        state.apply(Command::AddNode(node("n1", 1))),
        Ok(Answer::Done)
    );
    let again = state.apply(Command::AddNode(node("n1", 1)));
    assert_eq!(again, Ok(Answer::Unchanged));
    assign(&mut state, "shop").unwrap();
    let name = || "n1".to_owned();
    let removal = Command::RemoveNode { name: name() };
    assert_eq!(state.apply(removal.clone()), Ok(Answer::Done));
    assert_eq!(state.apply(removal), Ok(Answer::Unchanged));
    assert_eq!(state.owner("shop"), None);
    assert_eq!(state.sources["shop"].epoch, Epoch(1));
}

#[test]
fn two_nodes_of_one_name_are_refused() {
    let mut state = State::default();
    state.apply(Command::AddNode(node("n1", 1))).unwrap();
    let refused = state.apply(Command::AddNode(node("n1", 2)));
    assert!(matches!(refused, Err(Refusal::NodeExists { .. })));
}

#[test]
fn two_nodes_never_get_one_number() {
    let mut state = State::default();
    for (name, id) in [("n1", 1), ("x", 2)] {
        state.apply(Command::AddNode(node(name, id))).unwrap();
    }
    let before = state.clone();
    for taken in [0, 1, 2, 4] {
        let refused = state.apply(Command::AddNode(node("y", taken)));
        let number = Refusal::NodeNumber {
            name: "y".to_owned(),
            id: taken,
            next: 3,
        };
        assert_eq!(refused, Err(number));
    }
    assert_eq!(state, before);
    // A removed node's number stays its own.
    let name = "x".to_owned();
    state.apply(Command::RemoveNode { name }).unwrap();
    state.apply(Command::AddNode(node("y", 2))).unwrap_err();
    state.apply(Command::AddNode(node("y", 3))).unwrap();
}

#[test]
fn a_node_that_was_always_alone_may_change_its_name() {
    let mut state = State::default();
    state.apply(Command::AddNode(node("old", 1))).unwrap();
    let name = "old".to_owned();
    state.apply(Command::RemoveNode { name }).unwrap();
    let added = state.apply(Command::AddNode(node("new", 1)));
    assert_eq!(added, Ok(Answer::Done));
    assert_eq!(state.last_node, 1);
}
