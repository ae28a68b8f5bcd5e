//! The README's own command, as a new user runs it: `deploy/quickstart run`, changes arriving in a
//! second terminal, Ctrl-C, nothing left behind.
//!
//! Runs the release build in processes of its own and looks from outside only: output, exit codes,
//! processes, the temporary directory. Never links the node. The test's name begins with
//! `quickstart_`, by which `deploy/quickstart test --fast` leaves it out.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A release build from nothing on two cores that something else uses as well.
const BUILD_MAX: Duration = Duration::from_secs(1_200);

/// From the end of the build to the block of addresses and to changes: what the README promises.
const VISIBLE_MAX: Duration = Duration::from_secs(60);

/// A clean end with a PostgreSQL to stop.
const STOP_MAX: Duration = Duration::from_secs(60);

/// Changes that must arrive before we believe that they flow.
const CHANGES: usize = 20;

/// A process whose lines of stdout arrive one by one; killed when dropped.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let (sender, lines) = channel();
        // Ends with the pipe; the lines after the last one that is asked for are dropped.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    /// Returns the next line, or panics with what was awaited.
    fn line(&self, until: Instant, awaited: &str) -> String {
        let left = until.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("no {awaited} in time"),
            Err(RecvTimeoutError::Disconnected) => panic!("ended before {awaited}"),
        }
    }

    /// Does what Ctrl-C does, and returns how the process ended.
    fn interrupt(&mut self) -> ExitStatus {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::INT).expect("it is still running");
        let until = Instant::now() + STOP_MAX;
        // The end of its output is the fact that is awaited; the process follows at once.
        loop {
            match self.lines.recv_timeout(until - Instant::now()) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("still running after Ctrl-C"),
            }
        }
        self.child.wait().expect("its end can be awaited")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended in the good case; in the bad one the panic is what counts.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn root() -> PathBuf {
    let node = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = node.parent().expect("node stands in the repository");
    root.to_path_buf()
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Returns `127.0.0.1:PORT` from the block's line `gRPC   127.0.0.1:PORT`.
fn grpc_address(line: &str) -> Option<String> {
    let (_, after) = line.split_once("gRPC")?;
    let address = after.split_whitespace().next()?;
    let address = address.trim_end_matches(',');
    address.parse::<std::net::SocketAddr>().ok()?;
    Some(address.to_owned())
}

/// Returns the processes, apart from this one, whose command line or environment names `place`.
fn processes_that_name(place: &Path) -> Vec<String> {
    let place = place.to_str().expect("a temporary path is plain text");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("Linux").filter_map(Result::ok) {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) || pid == std::process::id().to_string() {
            continue;
        }
        // A process that ended meanwhile has nothing to read.
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let environment = read("environ");
        if command.contains(place) || String::from_utf8_lossy(&environment).contains(place) {
            found.push(format!("{pid}: {command}"));
        }
    }
    found
}

/// A user's shell has none of the variables that cargo sets for a test; with them some build scripts
/// would run again, and the whole build after them.
fn forget_cargo(command: &mut Command) {
    let keep = ["CARGO_HOME", "CARGO_TARGET_DIR"];
    for (name, _) in std::env::vars_os() {
        let is_cargos = name.to_string_lossy().starts_with("CARGO");
        if is_cargos && !keep.iter().any(|kept| name == *kept) {
            command.env_remove(name);
        }
    }
}

#[test]
fn quickstart_shows_changes_to_a_new_user_and_leaves_nothing_behind() {
    // Everything temporary goes here, where the user of the servers may enter, and only there.
    let temporary = tempfile::Builder::new()
        .prefix("pgcapture-quickstart-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .tempdir()
        .unwrap();

    let mut quickstart = Command::new(root().join("deploy/quickstart"));
    quickstart
        .args(["run", "--port", "0"])
        .env("TMPDIR", temporary.path());
    forget_cargo(&mut quickstart);
    let mut dev = Running::start(&mut quickstart);
    let until = Instant::now() + BUILD_MAX;
    let address = loop {
        if let Some(address) = grpc_address(&dev.line(until, "block of addresses")) {
            break address;
        }
    };

    // The second terminal.
    let mut tail = Running::start(
        Command::new(target().join("release/pgcapture"))
            .args(["tail", "orders", "--endpoint"])
            .arg(format!("http://{address}"))
            .env("TMPDIR", temporary.path()),
    );
    let until = Instant::now() + VISIBLE_MAX;
    let (mut changes, mut inserts) = (0, 0);
    // A shop takes orders, but may change many at once.
    while changes < CHANGES || inserts == 0 {
        let line = tail.line(until, "change and an INSERT among them");
        changes += 1;
        inserts += usize::from(line.contains("INSERT"));
    }
    tail.interrupt();

    let status = dev.interrupt();
    assert!(
        matches!(status.code(), Some(0 | 130)),
        "Ctrl-C is an orderly end: {status}"
    );

    let left: Vec<PathBuf> = fs::read_dir(temporary.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    let left = processes_that_name(temporary.path());
    assert!(left.is_empty(), "still running: {left:?}");
}

#[test]
fn the_address_is_found_in_the_block() {
    let line = "  metrics   http://127.0.0.1:7790        gRPC   127.0.0.1:7700 (reflection on)";
    assert_eq!(grpc_address(line).as_deref(), Some("127.0.0.1:7700"));
    assert_eq!(grpc_address("  gRPC   soon"), None);
    assert_eq!(grpc_address("building pgcapture"), None);
}
