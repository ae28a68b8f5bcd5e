//! The promise of the first node, in small: the built binary is killed a few times under load, nothing
//! is lost, nothing is doubled. The full run is `pgcapture-chaos run`, with 50 kills.

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
fn five_kills_under_load_lose_nothing_and_double_nothing() {
    let output = Command::new(env!("CARGO_BIN_EXE_pgcapture-chaos"))
        .args(["run", "--scenario", "kill-node", "--kills", "5"])
        .args(["--seconds-between", "0.2-1.5", "--rate", "1000"])
        // Other tests share the machine: less load than in a run of its own, but not none.
        .args(["--min-rate", "150", "--large", "5000", "--binary"])
        .arg(node_binary())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{talk}");
    assert_eq!(said.lines().count(), 1, "one line: {said}");
    let verdict: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(verdict["verdict"], "pass");
    assert_eq!(verdict["kills"], 5);
    assert_eq!(
        (&verdict["lost"], &verdict["duplicated"]),
        (&0.into(), &0.into())
    );
    assert!(verdict["committed"].as_u64() > Some(500), "{said}");
}
