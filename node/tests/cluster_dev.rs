//! `pgcapture dev --nodes 3` as its user sees it: real nodes, broken and mended by other commands.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests: a panic is a failure"
)]

#[path = "failover/addresses.rs"]
mod addresses;

#[path = "cli/harness.rs"]
mod harness;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use harness::{Ended, PATIENCE, Running, free_directory, run_in};
use pgcapture_actors::postgres::{Connection, LocalServer, LocalServerOptions, Replication};
use rustix::process::{Pid, Signal, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Between two looks at a fact that nothing announces.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A running cluster in a temporary folder of its own, which also holds its socket.
struct Dev {
    running: Running,
    folder: TempDir,
    endpoint: String,
}

impl Dev {
    async fn start(more: &[&str]) -> Self {
        let folder = free_directory();
        // The server's user passes through.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut args = vec!["dev", "--nodes", "3", "--port", "0"];
        args.extend(more);
        let mut running = Running::start_in(folder.path(), &args);
        let said = running.wait_for("NOT FOR PRODUCTION").await;
        assert!(said.contains("dev cluster, 3 nodes"), "{said}");
        assert!(said.contains("pgcapture dev kill 2"), "{said}");
        let endpoint = running.endpoint();
        Self {
            running,
            folder,
            endpoint,
        }
    }

    fn ask(&self, args: &[&str]) -> Ended {
        run_in(self.folder.path(), &self.endpoint, args)
    }

    /// What `dev status` says of all nodes.
    fn nodes(&self) -> Vec<Value> {
        let status = self.ask(&["dev", "status", "-o", "json"]).expect(0);
        let status: Value = serde_json::from_str(&status).unwrap();
        status["nodes"].as_array().unwrap().clone()
    }

    fn states(&self) -> Vec<String> {
        let nodes = self.nodes().into_iter();
        nodes
            .map(|node| node["state"].as_str().unwrap().to_owned())
            .collect()
    }

    fn processes(&self) -> Vec<Pid> {
        let nodes = self.nodes().into_iter();
        let pids = nodes.filter_map(|node| node["pid"].as_i64());
        pids.map(|pid| Pid::from_raw(i32::try_from(pid).unwrap()).unwrap())
            .collect()
    }
}

/// Whether a process does anything yet: one that is dead and not waited for does not.
fn lives(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    let is_dead = status.is_ok_and(|text| text.contains(") Z "));
    !is_dead && test_kill_process(pid).is_ok()
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_broken_and_mended_and_leave_nothing_behind() {
    let mut dev = Dev::start(&[]).await;
    assert_eq!(dev.states(), ["running"; 3]);
    let table = dev.ask(&["dev", "status"]).expect(0);
    assert!(table.starts_with("NODE  NAME  STATE"), "{table}");

    let killed = dev.ask(&["dev", "kill", "2"]);
    assert!(killed.talk.contains("killed n2"), "{}", killed.talk);
    killed.expect(0);
    assert_eq!(dev.states(), ["running", "dead", "running"]);
    let refused = dev.ask(&["dev", "kill", "2"]);
    assert!(
        refused.talk.contains("next: pgcapture dev start 2"),
        "{}",
        refused.talk
    );
    refused.expect(7);
    dev.ask(&["dev", "start", "n2"]).expect(0);
    dev.ask(&["dev", "start", "2"]).expect(7);

    dev.ask(&["dev", "pause", "3"]).expect(0);
    assert_eq!(dev.states(), ["running", "running", "paused"]);
    dev.ask(&["dev", "resume", "3"]).expect(0);
    dev.ask(&["dev", "kill", "9"]).expect(4);
    dev.ask(&["dev", "kill", "none"]).expect(2);

    dev.ask(&["dev", "partition", "1|2,3"]).expect(0);
    let cut: Vec<Value> = dev
        .nodes()
        .iter()
        .map(|it| it["cut_off_from"].clone())
        .collect();
    assert_eq!(Value::from(cut), serde_json::json!([[2, 3], [1], [1]]));
    dev.ask(&["dev", "heal"]).expect(0);

    let processes = dev.processes();
    assert_eq!(processes.len(), 3);
    assert_eq!(dev.running.stop().await, Some(0));
    assert!(!processes.into_iter().any(lives));
    assert_eq!(entries(dev.folder.path()), Vec::<String>::new());
    dev.ask(&["dev", "kill", "1"]).expect(6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_dev_takes_its_nodes_along_even_a_frozen_one() {
    // Data on another file system than everything temporary, where there is one.
    let memory = Path::new("/dev/shm");
    let data = memory.is_dir().then(|| TempDir::new_in(memory).unwrap());
    let data = data.unwrap_or_else(free_directory);
    let dev = Dev::start(&["--data", data.path().to_str().unwrap()]).await;
    dev.ask(&["dev", "pause", "3"]).expect(0);
    let processes = dev.processes();
    assert!(processes.iter().all(|pid| lives(*pid)));
    dev.running.signal(Signal::KILL);
    eventually("the end of the nodes", || {
        !processes.iter().any(|pid| lives(*pid))
    })
    .await;
    eventually("the end of the files", || {
        entries(dev.folder.path()).is_empty() && entries(data.path()).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dev_that_cannot_be_given_orders_leaves_nothing_on_a_server_of_others() {
    let server = LocalServer::start(LocalServerOptions::default()).await;
    let server = server.expect("PostgreSQL is installed");
    let folder = free_directory();
    // All of its nodes listen beside that one.
    let address = addresses::free_addresses(1).remove(0);
    let port = address.rsplit(':').next().unwrap();
    // Something else is where its socket belongs.
    let taken = format!("pgcapture-dev-{port}.sock");
    fs::create_dir(folder.path().join(&taken)).unwrap();
    let url = server.url("postgres");
    let args = ["dev", "--nodes", "2", "--port", port, "--pg", &url];
    let ended = run_in(folder.path(), "", &args);
    assert!(ended.talk.contains("no socket at"), "{}", ended.talk);
    ended.expect(1);
    assert_eq!(entries(folder.path()), [taken]);
    let config = server.config("postgres");
    let connection = Connection::connect(&config, Replication::Off).await;
    let left = "SELECT slot_name FROM pg_replication_slots \
                UNION ALL SELECT pubname FROM pg_publication";
    let left = connection.unwrap().query(left).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

/// Numbers of the orders whose insertion was shown, in the order of the lines.
fn inserted(seen: &str) -> Vec<u64> {
    let lines = seen.lines();
    let ids = lines.filter_map(|line| {
        line.split_once("INSERT public.orders id=")?
            .1
            .split(' ')
            .next()
    });
    ids.map(|id| id.parse().unwrap()).collect()
}

/// Waits until a tail has shown some more orders.
async fn goes_on(tail: &mut Running) {
    let more = inserted(&tail.seen.borrow()).len() + 20;
    let waited = tail.seen.wait_for(|seen| inserted(seen).len() >= more);
    let waited = tokio::time::timeout(PATIENCE, waited).await;
    waited.expect("the stream goes on").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_on_another_node_while_its_owner_dies() {
    let mut dev = Dev::start(&["--load", "orders:200/s"]).await;
    let third = dev.nodes()[2]["endpoint"].as_str().unwrap().to_owned();
    let ask_third = |args: &[&str]| run_in(dev.folder.path(), &third, args);
    ask_third(&["cluster", "health", "--until", "healthy"]).expect(0);
    ask_third(&["slot", "move", "orders", "n1"]).expect(0);
    ask_third(&["slot", "ls", "--until", "healthy"]).expect(0);
    let tail = ["--endpoint", &third, "tail", "orders", "--table", "orders"];
    let mut tail = Running::start_in(dev.folder.path(), &tail);
    tail.wait_for("INSERT public.orders").await;

    dev.ask(&["dev", "kill", "1"]).expect(0);
    eventually("another owner", || {
        let slots = ask_third(&["slot", "ls", "-o", "json"]).expect(0);
        let slots: Value = serde_json::from_str(&slots).unwrap();
        slots[0]["owner"] != "n1" && slots[0]["state"] == "following"
    })
    .await;
    goes_on(&mut tail).await;
    // Who names the first node, as commands do by default, asks the next one.
    let slots = dev.ask(&["slot", "ls", "-o", "json"]).expect(0);
    assert!(slots.contains("orders"), "{slots}");
    dev.ask(&["cluster", "status"]).expect(0);

    dev.ask(&["dev", "start", "1"]).expect(0);
    ask_third(&["cluster", "health", "--until", "healthy"]).expect(0);
    goes_on(&mut tail).await;
    assert_eq!(tail.interrupt().await, Some(130));
    // The load inserts one order after another: a hole or a double is seen.
    let ids = inserted(&tail.seen.borrow());
    let is_next = |pair: &[u64]| pair[0] + 1 == pair[1];
    assert!(ids.windows(2).all(is_next), "{ids:?}");
    assert_eq!(dev.running.stop().await, Some(0));
}
