//! What is too much, too small or too old.

use super::*;

#[test]
fn what_cannot_be_dumped_is_refused_unchanged() {
    let options = |change: fn(&mut DumpOptions)| {
        let mut dump = new_dump("shop", vec![table("t", 1, WantedPages::Whole)]);
        change(&mut dump.options);
        dump
    };
    let ranges = |ranges| new_dump("shop", vec![table("t", 1, WantedPages::Ranges(ranges))]);
    let many = |count| (0..count).map(|page| pages(page, page)).collect::<Vec<_>>();
    let limit = u32::try_from(DUMP_RANGES_MAX).unwrap();
    let mut state = shop();
    let before = state.clone();
    for dump in [
        new_dump("shop", vec![]),
        ranges(vec![]),
        ranges(vec![pages(9, 3)]),
        ranges(many(limit + 1)),
        options(|options| options.parallel = 0),
        options(|options| options.parallel = 65),
        options(|options| options.range_bytes = 1),
        options(|options| options.rate_bytes_per_second = Some(0)),
        options(|options| options.cool_down = Duration::from_hours(25)),
        NewDump {
            source: "nope".to_owned(),
            ..new_dump("shop", vec![table("t", 1, WantedPages::Whole)])
        },
    ] {
        create(&mut state, dump, DumpRule::Idle).unwrap_err();
    }
    assert_eq!(state, before);
    create(&mut state, ranges(many(limit)), DumpRule::Idle).unwrap();
}

#[test]
fn open_dumps_have_a_limit_and_old_ones_are_forgotten() {
    let mut state = shop();
    let uris = (0..DUMPS_OPEN_MAX).map(|number| format!("shop/{number}"));
    let dump = |uri: &str| new_dump(uri, vec![table("t", 1, WantedPages::Whole)]);
    for uri in uris {
        create(&mut state, dump(&uri), DumpRule::Idle).unwrap();
    }
    let refusal = create(&mut state, dump("more"), DumpRule::Idle).unwrap_err();
    assert!(
        refusal.to_string().starts_with("open dumps: 1001"),
        "{refusal}"
    );

    let oldest = DumpId(1);
    let ended_first = DumpId(7);
    let cancel = |state: &mut State, id, at| {
        let action = DumpAction::Cancel;
        apply(state, DumpCommand::Act { id, action, at }).unwrap();
    };
    cancel(&mut state, ended_first, PgTime(1));
    for id in (1..=1_000).map(DumpId).filter(|id| *id != ended_first) {
        cancel(&mut state, id, PgTime(2));
    }
    assert_eq!(state.dumps.len(), DUMPS_KEPT_MAX);
    create(&mut state, dump("more"), DumpRule::Idle).unwrap();
    cancel(&mut state, DumpId(1_001), PgTime(3));
    assert!(!state.dumps.contains_key(&ended_first));
    assert!(state.dumps.contains_key(&oldest));
    assert_eq!(state.last_dump, DumpId(1_001));
}

#[test]
fn numbers_of_dumps_are_never_given_twice() {
    let mut state = shop();
    let id = orders(&mut state);
    act(&mut state, id, DumpAction::Cancel).unwrap();
    apply(&mut state, DumpCommand::Remove { id }).unwrap();
    assert_eq!(orders(&mut state), DumpId(id.0 + 1));
}

#[test]
fn a_cool_down_belongs_to_a_subscription_until_it_is_zero() {
    let mut state = shop();
    let mut set = |seconds| {
        let set = DumpCommand::SetCoolDown {
            stream: "shop".to_owned(),
            consumer: "a".to_owned(),
            cool_down: Duration::from_secs(seconds),
        };
        apply(&mut state, set)
    };
    assert_eq!(set(5), Ok(Answer::Done));
    assert_eq!(set(5), Ok(Answer::Unchanged));
    assert!(set(100_000).is_err());
    assert_eq!(set(0), Ok(Answer::Done));
    assert_eq!(set(0), Ok(Answer::Unchanged));
}
