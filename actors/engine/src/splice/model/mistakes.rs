//! Before trusting the model: it finds a mistake that is planted in how the splice is used.

use proptest::test_runner::{Config, RngSeed, TestRunner};

use super::*;

/// Far more than it takes: the run ends with the first case that fails.
const CASES: u32 = 8_192;

/// Snapshots stand exactly at commits, where `<` and `<=` differ.
fn at_commits(mut act: Act) -> Act {
    if let Act::Open { late, .. } = &mut act {
        *late -= *late % STEP;
    }
    act
}

/// Runs the model with the mistake until it fails; returns how it failed.
fn found(is_ordered: bool) -> Option<String> {
    let mut runner = TestRunner::new(Config {
        cases: CASES,
        failure_persistence: None,
        max_shrink_iters: 0,
        rng_seed: RngSeed::Fixed(1),
        ..Config::default()
    });
    let all = prop::collection::vec(act().prop_map(at_commits), 0..160);
    let outcome = runner.run(&all, |acts| {
        let mut world = World::new(is_ordered);
        world.passes_limit = true;
        acts.iter().for_each(|act| world.act(act));
        world.come_to_rest();
        Ok(())
    });
    outcome.err().map(|error| error.to_string())
}

/// `<=` for `<`: the change at which a snapshot stands comes before the rows that do not have it.
#[test]
fn a_feed_that_goes_one_change_too_far_is_found() {
    let shared = found(false).unwrap();
    assert!(shared.contains("a row over newer data"), "{shared}");
    assert!(found(true).is_some());
}
