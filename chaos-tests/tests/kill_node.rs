//! The promise of the first node, in small: the built binary is killed a few times under load, nothing
//! is lost, nothing is doubled. The full run is `pgcapture-chaos run`, with 50 kills.

#[path = "harness/run.rs"]
mod harness;

#[test]
fn five_kills_under_load_lose_nothing_and_double_nothing() {
    let mut args = vec!["run", "--scenario", "kill-node", "--kills", "5"];
    args.extend(["--seconds-between", "0.2-1.5", "--rate", "1000"]);
    // Other tests share the machine: less load than in a run of its own, but not none.
    args.extend(["--min-rate", "150", "--large", "5000"]);
    let verdict = harness::passes(&args);
    assert_eq!(verdict["kills"], 5);
    assert_eq!(
        (&verdict["lost"], &verdict["duplicated"]),
        (&0.into(), &0.into())
    );
    assert!(verdict["committed"].as_u64() > Some(500), "{verdict}");
}
