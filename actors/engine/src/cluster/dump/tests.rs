//! Commands about dumps do what they say, in any order, any number of times.

use proptest::prelude::*;

use super::*;
use crate::{
    cluster::{Answer, Command, Refusal, State, tests::source},
    codes,
    dump::TableName,
};

mod limits;

const AT: PgTime = PgTime(7);

fn pages(first: u32, last: u32) -> PageRange {
    PageRange { first, last }
}

fn table(name: &str, oid: u32, wanted: WantedPages) -> PlannedTable {
    let name = TableName {
        schema: "public".to_owned(),
        table: name.to_owned(),
    };
    PlannedTable {
        heap: Heap {
            label: name.clone(),
            name,
            oid,
            filenode: oid,
        },
        wanted,
        layout: TableLayout {
            filenode: oid,
            pages_end: 100,
            bytes: 100 << 13,
            row_estimate: 1_000,
            since_xid: 700,
            planned_at: Lsn(5),
        },
        needs_sweep: true,
    }
}

fn new_dump(uri: &str, tables: Vec<PlannedTable>) -> NewDump {
    NewDump {
        uri: uri.to_owned(),
        stream: "shop".to_owned(),
        consumer: uri.to_owned(),
        source: "shop".to_owned(),
        options: DumpOptions::default(),
        created_at: PgTime(1),
        tables,
    }
}

fn shop() -> State {
    let mut state = State::default();
    let add = Command::AddSource(Box::new(source("shop")));
    state.apply(add).unwrap();
    state
}

fn apply(state: &mut State, command: DumpCommand) -> Result<Answer, Refusal> {
    state.apply(Command::Dump(command))
}

fn create(state: &mut State, dump: NewDump, rule: DumpRule) -> Result<Answer, Refusal> {
    let dump = Box::new(dump);
    apply(state, DumpCommand::Create { dump, rule })
}

fn orders(state: &mut State) -> DumpId {
    let dump = new_dump("shop", vec![table("orders", 1, WantedPages::Whole)]);
    match create(state, dump, DumpRule::NoSharedTable) {
        Ok(Answer::DumpCreated(id)) => id,
        other => panic!("{other:?}"),
    }
}

fn act(state: &mut State, id: DumpId, action: DumpAction) -> Result<Answer, Refusal> {
    apply(state, DumpCommand::Act { id, action, at: AT })
}

fn finish(state: &mut State, id: DumpId, generation: u32, extent: Extent) -> Answer {
    let range = FinishedRange {
        dump: id,
        table: 0,
        generation,
        extent,
        row_count: 10,
        bytes: 1_000,
    };
    let ranges = vec![range];
    apply(state, DumpCommand::FinishRanges { ranges, at: AT }).unwrap()
}

fn read(state: &mut State, id: DumpId, first: u32, last: u32) -> Answer {
    let generation = state.dumps[&id].tables[0].generation;
    finish(state, id, generation, Extent::Pages(pages(first, last)))
}

fn sweep(state: &mut State, id: DumpId) -> Answer {
    let generation = state.dumps[&id].tables[0].generation;
    let extent = Extent::Sweep { since_xid: 700 };
    finish(state, id, generation, extent)
}

fn fail(state: &mut State, id: DumpId, generation: u32) -> Result<Answer, Refusal> {
    let failure = TableFailure {
        code: "PGC-E19".to_owned(),
        text: "no".to_owned(),
    };
    let command = DumpCommand::FailTable {
        dump: id,
        table: 0,
        generation,
        failure,
        at: AT,
    };
    apply(state, command)
}

fn replan(state: &mut State, id: DumpId, generation: u32) -> Result<Answer, Refusal> {
    let command = DumpCommand::ReplanTable {
        dump: id,
        table: 0,
        generation,
        plan: Box::new(NewLayout {
            heap: Heap {
                filenode: 99,
                ..table("orders", 1, WantedPages::Whole).heap
            },
            layout: TableLayout::default(),
            needs_sweep: true,
        }),
        at: AT,
    };
    apply(state, command)
}

fn state_of(state: &State, id: DumpId) -> DumpState {
    state.dumps[&id].state
}

#[test]
fn a_dump_is_finished_once_its_pages_and_its_sweep_are() {
    let mut state = shop();
    let id = orders(&mut state);
    assert_eq!(read(&mut state, id, 50, PageRange::OPEN), Answer::Done);
    assert_eq!(sweep(&mut state, id), Answer::Unchanged, "pages come first");
    assert_eq!(read(&mut state, id, 0, 49), Answer::Done);
    assert_eq!(state_of(&state, id), DumpState::Active);
    assert_eq!(sweep(&mut state, id), Answer::Done);
    assert_eq!(state_of(&state, id), DumpState::Finished);
    assert_eq!(state.dumps[&id].ended_at, Some(AT));
    let table = &state.dumps[&id].tables[0];
    assert_eq!(
        (table.row_count, table.bytes, table.range_count),
        (30, 3_000, 3)
    );
}

#[test]
fn what_is_finished_twice_counts_once() {
    let mut state = shop();
    let id = orders(&mut state);
    read(&mut state, id, 0, 9);
    let before = state.clone();
    assert_eq!(read(&mut state, id, 0, 9), Answer::Unchanged);
    assert_eq!(state, before);
    let unknown = finish(&mut state, DumpId(99), 0, Extent::Pages(PageRange::ALL));
    assert_eq!(unknown, Answer::Unchanged);
}

#[test]
fn one_snapshot_of_everything_needs_no_sweep() {
    for wanted in [WantedPages::Whole, WantedPages::Ranges(vec![pages(3, 9)])] {
        let only = match &wanted {
            WantedPages::Whole => PageRange::ALL,
            WantedPages::Ranges(ranges) => ranges[0],
        };
        let mut state = shop();
        let dump = new_dump("shop", vec![table("orders", 1, wanted)]);
        create(&mut state, dump, DumpRule::Idle).unwrap();
        read(&mut state, DumpId(1), only.first, only.last);
        assert_eq!(state_of(&state, DumpId(1)), DumpState::Finished);
    }
}

#[test]
fn explicit_ranges_are_done_when_each_is() {
    let mut state = shop();
    let wanted = WantedPages::Ranges(vec![pages(0, 4), pages(3, 9), pages(20, 29)]);
    let dump = new_dump("shop", vec![table("orders", 1, wanted)]);
    create(&mut state, dump, DumpRule::Idle).unwrap();
    read(&mut state, DumpId(1), 0, 4);
    read(&mut state, DumpId(1), 3, 9);
    read(&mut state, DumpId(1), 20, 29);
    assert_eq!(state_of(&state, DumpId(1)), DumpState::Active);
    sweep(&mut state, DumpId(1));
    assert_eq!(state_of(&state, DumpId(1)), DumpState::Finished);
}

#[test]
fn a_new_plan_begins_anew_and_old_generations_do_not_count() {
    let mut state = shop();
    let id = orders(&mut state);
    read(&mut state, id, 0, 49);
    assert_eq!(replan(&mut state, id, 0), Ok(Answer::Done));
    assert_eq!(replan(&mut state, id, 0), Ok(Answer::Unchanged));
    let old = finish(&mut state, id, 0, Extent::Pages(pages(50, 59)));
    assert_eq!(old, Answer::Unchanged);
    assert_eq!(fail(&mut state, id, 0), Ok(Answer::Unchanged));
    let table = &state.dumps[&id].tables[0];
    assert!(table.done.is_empty());
    assert_eq!((table.generation, table.heap.filenode), (1, 99));
}

#[test]
fn a_table_that_is_rewritten_for_ever_fails() {
    let mut state = shop();
    let id = orders(&mut state);
    for generation in 0..=REPLANS_MAX {
        assert_eq!(state_of(&state, id), DumpState::Active);
        replan(&mut state, id, generation).unwrap();
    }
    assert_eq!(state_of(&state, id), DumpState::Failed);
    let failure = state.dumps[&id].tables[0].failure.clone().unwrap();
    assert_eq!(failure.code, codes::dump::REWRITTEN_TOO_OFTEN.code);
    assert_eq!(act(&mut state, id, DumpAction::Retry), Ok(Answer::Done));
    assert_eq!(replan(&mut state, id, REPLANS_MAX + 1), Ok(Answer::Done));
    assert_eq!(state_of(&state, id), DumpState::Active);
}

#[test]
fn a_failed_table_does_not_hold_up_the_others() {
    let mut state = shop();
    let tables = vec![
        table("orders", 1, WantedPages::Whole),
        table("items", 2, WantedPages::Whole),
    ];
    create(&mut state, new_dump("shop", tables), DumpRule::Idle).unwrap();
    let id = DumpId(1);
    fail(&mut state, id, 0).unwrap();
    assert_eq!(state_of(&state, id), DumpState::Active);
    let mut range = FinishedRange {
        dump: id,
        table: 1,
        generation: 0,
        extent: Extent::Pages(PageRange::ALL),
        row_count: 1,
        bytes: 1,
    };
    let ranges = vec![range];
    apply(&mut state, DumpCommand::FinishRanges { ranges, at: AT }).unwrap();
    assert_eq!(state_of(&state, id), DumpState::Failed);

    assert_eq!(act(&mut state, id, DumpAction::Retry), Ok(Answer::Done));
    assert_eq!(state.dumps[&id].ended_at, None);
    range.table = 0;
    let ranges = vec![range];
    apply(&mut state, DumpCommand::FinishRanges { ranges, at: AT }).unwrap();
    assert_eq!(state_of(&state, id), DumpState::Finished);
}

#[test]
fn actions_fit_the_state_or_are_refused() {
    use DumpAction::{Cancel, Pause, Resume, Retry};
    use DumpState::{Active, Cancelled, Failed, Finished, Paused};
    let make = |wanted: DumpState| {
        let mut state = shop();
        let id = orders(&mut state);
        match wanted {
            Active => {}
            Paused => drop(act(&mut state, id, Pause).unwrap()),
            Cancelled => drop(act(&mut state, id, Cancel).unwrap()),
            Finished => drop(read(&mut state, id, 0, PageRange::OPEN)),
            Failed => drop(fail(&mut state, id, 0).unwrap()),
        }
        (state, id)
    };
    for (from, action, to) in [
        (Active, Pause, Some(Paused)),
        (Active, Resume, Some(Active)),
        (Active, Cancel, Some(Cancelled)),
        (Active, Retry, Some(Active)),
        (Paused, Pause, Some(Paused)),
        (Paused, Resume, Some(Active)),
        (Paused, Cancel, Some(Cancelled)),
        (Paused, Retry, Some(Paused)),
        (Cancelled, Pause, None),
        (Cancelled, Resume, None),
        (Cancelled, Cancel, Some(Cancelled)),
        (Cancelled, Retry, None),
        (Finished, Pause, None),
        (Finished, Resume, None),
        (Finished, Cancel, None),
        (Finished, Retry, None),
        (Failed, Pause, None),
        (Failed, Resume, None),
        (Failed, Cancel, None),
        (Failed, Retry, Some(Active)),
    ] {
        let (mut state, id) = make(from);
        assert_eq!(state_of(&state, id), from);
        let answer = act(&mut state, id, action);
        assert_eq!(answer.is_ok(), to.is_some(), "{from:?} {action:?}");
        assert_eq!(state_of(&state, id), to.unwrap_or(from), "{action:?}");
        let removal = apply(&mut state, DumpCommand::Remove { id });
        assert_eq!(
            removal.is_ok(),
            to.map_or(from, |to| to) != Active && to != Some(Paused)
        );
    }
    let unknown = act(&mut shop(), DumpId(5), Pause).unwrap_err();
    assert!(
        unknown.to_string().starts_with("unknown dump d-5"),
        "{unknown}"
    );
}

#[test]
fn ranges_that_run_when_a_dump_is_paused_or_cancelled_still_count() {
    for action in [DumpAction::Pause, DumpAction::Cancel] {
        let mut state = shop();
        let id = orders(&mut state);
        act(&mut state, id, action).unwrap();
        assert_eq!(read(&mut state, id, 0, 9), Answer::Done);
        let now = state_of(&state, id);
        read(&mut state, id, 0, PageRange::OPEN);
        let is_paused = now == DumpState::Paused;
        let wanted = if is_paused { DumpState::Finished } else { now };
        assert_eq!(state_of(&state, id), wanted);
    }
}

#[test]
fn the_rule_decides_which_dump_is_in_the_way() {
    let whole = |name: &str, oid| table(name, oid, WantedPages::Whole);
    for (uri, oid, rule, is_refused) in [
        ("shop", 1, DumpRule::NoSharedTable, true),
        ("shop", 2, DumpRule::NoSharedTable, false),
        ("shop", 2, DumpRule::Idle, true),
        ("other", 1, DumpRule::NoSharedTable, false),
        ("other", 1, DumpRule::Idle, false),
    ] {
        let mut state = shop();
        let id = orders(&mut state);
        let answer = create(&mut state, new_dump(uri, vec![whole("t", oid)]), rule);
        let is_active = matches!(&answer, Err(Refusal::Dump(DumpRefusal::Active { .. })));
        assert_eq!(is_active, is_refused, "{uri} {oid} {rule:?}: {answer:?}");
        act(&mut state, id, DumpAction::Cancel).unwrap();
        let answer = create(&mut state, new_dump("shop", vec![whole("t", oid)]), rule);
        assert_eq!(answer.is_ok(), is_refused || uri == "other", "{answer:?}");
    }
}

#[test]
fn a_retry_does_not_collide_with_a_newer_dump() {
    let mut state = shop();
    let first = orders(&mut state);
    fail(&mut state, first, 0).unwrap();
    let second = orders(&mut state);
    let refusal = act(&mut state, first, DumpAction::Retry).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        format!("dump {second} of \"shop\" is not over and has table public.orders")
    );
}

#[test]
fn a_change_copies_only_the_dump_and_the_table_it_is_about() {
    let mut state = shop();
    let tables = vec![
        table("orders", 1, WantedPages::Whole),
        table("items", 2, WantedPages::Whole),
    ];
    create(&mut state, new_dump("a", tables.clone()), DumpRule::Idle).unwrap();
    create(&mut state, new_dump("b", tables), DumpRule::Idle).unwrap();
    let before = state.clone();
    read(&mut state, DumpId(1), 0, 9);
    let is_same = |id| Arc::ptr_eq(&before.dumps[&id], &state.dumps[&id]);
    assert_eq!((is_same(DumpId(1)), is_same(DumpId(2))), (false, true));
    let (old, new) = (&before.dumps[&DumpId(1)], &state.dumps[&DumpId(1)]);
    assert!(!Arc::ptr_eq(&old.tables[0], &new.tables[0]));
    assert!(Arc::ptr_eq(&old.tables[1], &new.tables[1]));
}

proptest! {
    /// Whatever the order, repetition and overlap of what is finished: pages only become more, the
    /// dump ends when all is covered and swept, and the same commands make the same state.
    #[test]
    fn a_dump_ends_exactly_when_everything_was_finished(
        ranges in proptest::collection::vec((0_u32..30, 1_u32..10, 0_u32..3), 1..60)
    ) {
        let (mut state, mut twin) = (shop(), shop());
        let id = orders(&mut state);
        orders(&mut twin);
        let mut covered = PageSet::new();
        for (first, length, kind) in ranges {
            let last = if kind == 0 { PageRange::OPEN } else { first + length };
            let is_whole_before = covered.contains(PageRange::ALL);
            for state in [&mut state, &mut twin] {
                if kind == 1 {
                    sweep(state, id);
                } else {
                    read(state, id, first, last);
                }
            }
            if kind != 1 {
                covered.insert(pages(first, last));
            }
            let done = &state.dumps[&id].tables[0].done;
            prop_assert_eq!(done, &covered);
            let one_snapshot = kind != 1 && first == 0 && last == PageRange::OPEN;
            if kind == 1 && is_whole_before || one_snapshot && !is_whole_before {
                prop_assert_eq!(state_of(&state, id), DumpState::Finished);
            }
            if !covered.contains(PageRange::ALL) {
                prop_assert_eq!(state_of(&state, id), DumpState::Active);
            }
        }
        prop_assert_eq!(state, twin);
    }
}
