//! Before trusting the harness: whole runs against a stand-in for the node that is right, and against
//! the same one with a bug planted. The right one must pass, each wrong one must be caught.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
};

use serde_json::Value;

fn stand_in() -> PathBuf {
    let harness = PathBuf::from(env!("CARGO_BIN_EXE_pgcapture-chaos"));
    let stand_in = harness.with_file_name("examples").join("stand_in");
    assert!(
        stand_in.exists(),
        "{} is not built: cargo build -p pgcapture-chaos-tests --examples",
        stand_in.display()
    );
    stand_in
}

/// Runs a small scenario; returns the verdict and the exit code.
fn run(bug: &str, seed: &str) -> (Value, Option<i32>) {
    // A failing run keeps its files; they go with this directory, which PostgreSQL's user can enter.
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("it is ours");
    let output = Command::new(env!("CARGO_BIN_EXE_pgcapture-chaos"))
        .env("STAND_IN_BUG", bug)
        .env("TMPDIR", dir.path())
        .args(["run", "--kills", "4", "--seconds-between", "0.3-1"])
        .args(["--rate", "400", "--min-rate", "30", "--large", "500"])
        .args(["--seed", seed, "--binary"])
        .arg(stand_in())
        .output()
        .expect("the harness runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let verdict: Value = serde_json::from_str(&said).unwrap_or_else(|error| {
        let talk = String::from_utf8_lossy(&output.stderr);
        panic!("{error}: {said}\n{talk}")
    });
    assert_eq!(verdict.get("error"), None, "{verdict}");
    (verdict, output.status.code())
}

#[test]
fn a_right_node_passes() {
    let (verdict, code) = run("", "1");
    assert_eq!(code, Some(0), "{verdict}");
    assert_eq!(verdict["kills"], 4);
    assert_eq!(verdict["committed"], verdict["delivered"]);
}

#[test]
fn confirming_before_writing_is_caught() {
    let (verdict, code) = run("early", "2");
    assert_eq!(code, Some(1), "{verdict}");
    let kinds = verdict["violations"].to_string();
    assert!(kinds.contains("confirmed/ahead_of_durable"), "{verdict}");
}

#[test]
fn keeping_half_a_transaction_is_caught() {
    let (verdict, code) = run("torn", "3");
    assert_eq!(code, Some(1), "{verdict}");
    assert_ne!(verdict["lost"], 0, "{verdict}");
}
