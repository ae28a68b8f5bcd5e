//! Runs the built harness and reads its one line.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests: a panic is a failure"
)]

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

/// Runs a scenario against the built node and returns its verdict, which is a pass.
pub(crate) fn passes(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_pgcapture-chaos"))
        .args(args)
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
    verdict
}
