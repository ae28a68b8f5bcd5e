//! The command line against a real `pgcapture dev`: outputs, exit codes, a clean end.

#[path = "cli/harness.rs"]
mod harness;

use std::{fs, net::TcpStream, os::unix::fs::PermissionsExt as _, time::Duration};

use harness::{PATIENCE, Running, free_directory, run};
use rustix::process::Signal;

/// Between two looks at a fact that nothing announces.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks again and again until something is so.
async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_shows_its_parts_and_leaves_nothing_behind() {
    let directory = free_directory();
    let data = directory.path().to_str().unwrap();
    let mut dev = Running::start(&[
        "dev",
        "--port",
        "0",
        "--data",
        data,
        "--load",
        "orders:100/s",
    ]);
    let dev_text = dev.wait_for("NOT FOR PRODUCTION").await;
    assert!(
        dev_text.contains("try:  pgcapture tail orders"),
        "{dev_text}"
    );
    let endpoint = dev.endpoint();
    let ask = |args: &[&str]| run(&endpoint, args);

    let status = ask(&["dev", "status", "-o", "env"]).expect(0);
    assert!(status.contains("PGCAPTURE_STREAM='orders'"), "{status}");
    assert!(status.contains("PGCAPTURE_READY=true"), "{status}");
    let sources = ask(&["source", "ls"]).expect(0);
    assert!(sources.starts_with("SOURCE  STREAM"), "{sources}");
    let slots: serde_json::Value =
        serde_json::from_str(&ask(&["slot", "ls", "-o", "json"]).expect(0)).unwrap();
    assert_eq!(slots[0]["slot"], "orders_pgcapture");
    ask(&["slot", "show", "nope"]).expect(4);
    ask(&["source", "show", "nope"]).expect(4);
    ask(&["stream", "show", "nope"]).expect(4);
    ask(&["consumer", "show", "nope"]).expect(4);
    ask(&["tail", "nope"]).expect(4);
    ask(&["tail", "orders", "-f", "%q"]).expect(2);
    let seen = ask(&[
        "tail", "orders", "--from", "earliest", "-n", "20", "--table", "orders",
    ])
    .expect(0);
    assert_eq!(seen.lines().count(), 20, "{seen}");
    assert!(seen.contains("INSERT public.orders id="), "{seen}");
    ask(&["slot", "ls", "--until", "healthy"]).expect(0);
    ask(&["tail", "orders", "--from", "earliest", "--exit-at-end"]).expect(0);
    ask(&["consumer", "seek", "orders/new", "--to", "nowhere", "--yes"]).expect(2);
    ask(&["consumer", "seek", "orders/new", "--to", "earliest"]).expect(7);

    let paused = ask(&["source", "pause", "orders", "-o", "json"]).expect(0);
    assert!(paused.contains("\"state\": \"paused\""), "{paused}");
    ask(&["source", "pause", "orders"]).expect(0);
    ask(&["source", "resume", "orders"]).expect(0);

    let refused = ask(&["source", "rm", "orders"]);
    assert!(
        refused.talk.contains("next: run it again with --yes"),
        "{}",
        refused.talk
    );
    refused.expect(7);
    let removed = ask(&["source", "rm", "orders", "--yes"]).expect(0);
    assert!(removed.contains("drop slot orders_pgcapture"), "{removed}");
    ask(&["source", "rm", "orders", "--yes"]).expect(4);

    assert_eq!(dev.stop().await, Some(0));
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    run(&endpoint, &["--timeout", "1s", "source", "ls"]).expect(6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_dev_leaves_no_server_and_no_folder() {
    let directory = free_directory();
    // The server's user passes through.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let entries = || fs::read_dir(directory.path()).unwrap().flatten();
    let args = ["dev", "--port", "0", "--load", "orders:100/s"];
    let mut dev = Running::start_in(directory.path(), &args);
    dev.wait_for("NOT FOR PRODUCTION").await;
    let pid_file = |entry: fs::DirEntry| entry.path().join("data/postmaster.pid");
    let pid_file = entries().map(pid_file).find(|file| file.exists()).unwrap();
    let text = fs::read_to_string(pid_file).unwrap();
    let port: u16 = text.lines().nth(3).unwrap().parse().unwrap();
    assert_eq!(entries().count(), 2, "one of the server, one of the node");
    let is_reachable = || TcpStream::connect(("127.0.0.1", port)).is_ok();
    assert!(is_reachable());
    dev.signal(Signal::KILL);
    eventually("the end of the server", || !is_reachable()).await;
    eventually("the end of the folders", || entries().count() == 0).await;
}

#[test]
fn commands_that_need_no_node_work_alone() {
    let alone = |args: &[&str]| run("127.0.0.1:1", args);
    assert!(
        alone(&["explain", "c005"])
            .expect(0)
            .starts_with("PGC-C005: unknown key")
    );
    alone(&["explain", "PGC-X99"]).expect(4);
    assert!(alone(&["explain", "-o", "json"]).expect(0).starts_with('['));
    assert!(
        alone(&["completion", "bash"])
            .expect(0)
            .contains("pgcapture")
    );
    assert!(
        alone(&["config", "schema"])
            .expect(0)
            .contains("catch_up_above")
    );
    assert!(alone(&["config", "show"]).expect(0).contains("[node]"));
    alone(&["frobnicate"]).expect(2);
    alone(&["source", "ls", "--endpoint", "ftp://x"]).expect(2);
}

#[test]
fn config_check_tells_what_is_wrong() {
    let directory = free_directory();
    let file = directory.path().join("pgcapture.toml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "[limits]\nsessions = 5\n").unwrap();
    run("", &["config", "check", "-c", path]).expect(0);
    run("", &["start", "--check", "-c", path]).expect(0);
    std::fs::write(&file, "[limit]\nsessions = 5\n").unwrap();
    let refused = run("", &["config", "check", "-c", path]);
    assert!(
        refused.talk.contains("did you mean \"limits.sessions\"?"),
        "{}",
        refused.talk
    );
    refused.expect(2);
    let open = run("", &["start", "--check", "--listen", "0.0.0.0:7700"]);
    assert!(open.talk.contains("PGC-C006"), "{}", open.talk);
    open.expect(2);
    let allowed = run(
        "",
        &["start", "--check", "--listen", "0.0.0.0:7700", "--insecure"],
    );
    assert!(
        allowed.talk.contains("without protection"),
        "{}",
        allowed.talk
    );
    allowed.expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_on_one_directory_are_refused() {
    let directory = free_directory();
    let data = directory.path().to_str().unwrap();
    let args = [
        "start",
        "--data-dir",
        data,
        "--listen",
        "127.0.0.1:0",
        "--metrics",
        "127.0.0.1:0",
    ];
    let mut first = Running::start(&args);
    first.wait_for("is ready").await;
    let second = run("", &args);
    assert!(second.talk.contains("PGC-N01"), "{}", second.talk);
    second.expect(1);
    assert_eq!(first.stop().await, Some(0));
    let read_only = [
        "start",
        "--data-dir",
        "/proc/nowhere",
        "--listen",
        "127.0.0.1:0",
        "--metrics",
        "127.0.0.1:0",
    ];
    let refused = run("", &read_only);
    assert!(refused.talk.contains("PGC-N03"), "{}", refused.talk);
    refused.expect(1);
}

#[test]
fn bench_capture_prints_its_figures_and_what_was_run() {
    let directory = free_directory();
    let data = directory.path().to_str().unwrap();
    let args = [
        "bench", "capture", "--runs", "1", "--rows", "2000", "-o", "json",
    ];
    let printed = run("", &[&args[..], &["--data", data]].concat()).expect(0);
    let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let report = report.as_object().unwrap();
    let number = |name: &str| report[name].as_f64().unwrap();
    assert!(number("rate") > 0.0 && number("rss_mib") > 0.0);
    assert!((number("ratio") - number("rate") / number("peer_rate")).abs() < 1e-9);
    let run = [
        "rows",
        "transaction_rows",
        "wal_bytes",
        "runs",
        "processors",
    ];
    assert!(run.iter().all(|name| report[*name].as_u64().is_some()));
    let words = [
        "benchmark",
        "mode",
        "table",
        "socket",
        "server_version",
        "peer",
    ];
    assert!(words.iter().all(|name| report[*name].is_string()));
    let figures = [
        "rate",
        "peer_rate",
        "ratio",
        "cpu_seconds_per_million",
        "peer_cpu_seconds_per_million",
        "rss_mib",
        "debug_build",
    ];
    assert_eq!(
        report.len(),
        run.len() + words.len() + figures.len(),
        "{printed}"
    );
    assert!(figures.iter().all(|name| report.contains_key(*name)));
    let left = std::fs::read_dir(directory.path()).unwrap();
    assert_eq!(left.count(), 0, "everything is removed again");
}
