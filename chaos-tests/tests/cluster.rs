//! The promise of the cluster, in small: two nodes of three are struck in turn, once in each way, and
//! the stream of the third has everything once and in order. The full run is `pgcapture-chaos cluster`,
//! with ten minutes of it.

#[path = "harness/run.rs"]
mod harness;

#[test]
fn a_stream_has_everything_once_while_the_other_nodes_are_struck() {
    let mut args = vec!["cluster", "--kills", "4", "--seed", "11"];
    // Other tests share the machine: less load than in a run of its own, but not none.
    args.extend(["--rate", "150", "--min-rate", "20", "--large", "1000"]);
    args.extend(["--seconds-between", "0.3-1"]);
    let verdict = harness::passes(&args);
    let struck = ["kills", "restarts", "freezes"].map(|kind| verdict[kind].as_u64());
    assert_eq!(struck, [Some(2), Some(1), Some(1)], "{verdict}");
    for none in ["lost", "doubled", "out_of_order"] {
        assert_eq!(verdict[none], 0, "{verdict}");
    }
    assert_eq!(verdict["sessions"], 1, "{verdict}");
    assert_eq!(verdict["committed"], verdict["delivered"], "{verdict}");
    assert!(verdict["committed"].as_u64() > Some(300), "{verdict}");
}
