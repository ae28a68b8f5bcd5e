//! Existing rows into a live stream, in small: two dumps, one to an old consumer and one to a consumer
//! of batches, while the table is rewritten and node, standby and consumer are killed. The full run is
//! `pgcapture-chaos dump`, with 20 million rows.

use std::{env, path::PathBuf, process::Command};

use serde_json::Value;

/// Returns the node's binary: the one in `PGCAPTURE_BIN`, or the one built beside the harness.
fn node_binary() -> PathBuf {
    if let Some(given) = env::var_os("PGCAPTURE_BIN") {
        return given.into();
    }
    let beside = PathBuf::from(env!("CARGO_BIN_EXE_pgcapture-chaos")).with_file_name("pgcapture");
    assert!(
        beside.exists(),
        "{} is not built: cargo build -p pgcapture-node, or set PGCAPTURE_BIN",
        beside.display()
    );
    beside
}

#[test]
fn copies_built_from_the_stream_alone_equal_the_table_after_kills() {
    let output = Command::new(env!("CARGO_BIN_EXE_pgcapture-chaos"))
        .args(["dump", "--rows", "30000", "--runs", "2", "--kills", "3"])
        // Slow enough for all kills to strike while the dump runs.
        .args(["--pace", "6000", "--seconds-between", "0.2-0.8"])
        // Other tests share the machine: less load than in a run of its own, but not none.
        .args(["--rate", "600", "--min-rate", "50", "--within", "240"])
        .arg("--binary")
        .arg(node_binary())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{talk}");
    assert_eq!(said.lines().count(), 1, "one line: {said}");
    let verdict: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(verdict["verdict"], "pass");
    assert_eq!(
        (&verdict["runs"], &verdict["passed"]),
        (&2.into(), &2.into())
    );
    for who in ["node", "standby", "consumer"] {
        assert_eq!(
            verdict["kills"][who], 2,
            "each is killed in each run: {said}"
        );
    }
    assert!(verdict["rows_compared"].as_u64() > Some(50_000), "{said}");
}
