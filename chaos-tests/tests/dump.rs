//! Existing rows into a live stream, in small: two dumps, one to an old consumer and one to a consumer
//! of batches, while the table is rewritten and node, standby and consumer are killed. The full run is
//! `pgcapture-chaos dump`, with 20 million rows.

#[path = "harness/run.rs"]
mod harness;

#[test]
fn copies_built_from_the_stream_alone_equal_the_table_after_kills() {
    let mut args = vec!["dump", "--rows", "30000", "--runs", "2", "--kills", "3"];
    // Slow enough for all kills to strike while the dump runs.
    args.extend(["--pace", "6000", "--seconds-between", "0.2-0.8"]);
    // Other tests share the machine: less load than in a run of its own, but not none.
    args.extend(["--rate", "600", "--min-rate", "50", "--within", "240"]);
    let verdict = harness::passes(&args);
    assert_eq!(
        (&verdict["runs"], &verdict["passed"]),
        (&2.into(), &2.into())
    );
    for who in ["node", "standby", "consumer"] {
        assert_eq!(
            verdict["kills"][who], 2,
            "each is killed in each run: {verdict}"
        );
    }
    let compared = verdict["rows_compared"].as_u64();
    assert!(compared > Some(50_000), "{verdict}");
}
