//! Runs the built binary: once to its end, or in the background.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::Command as StdCommand,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    sync::watch,
};

/// Far beyond what anything here takes: reaching it is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) args: String,
    pub(crate) exit: Option<i32>,
    pub(crate) data: String,
    pub(crate) talk: String,
}

impl Ended {
    /// Checks the exit code and returns stdout. A failure must end with a next step.
    pub(crate) fn expect(self, exit: i32) -> String {
        assert_eq!(self.exit, Some(exit), "{}: {self:#?}", self.args);
        let is_usage = self.talk.contains("Usage:") || self.talk.contains("For more information");
        if exit != 0 && !is_usage {
            assert!(self.talk.contains("next: "), "{self:#?}");
        }
        self.data
    }
}

/// Runs a command to its end; `endpoint` may be empty.
#[allow(
    dead_code,
    reason = "not every test that shares this uses the common folder"
)]
pub(crate) fn run(endpoint: &str, args: &[&str]) -> Ended {
    run_in(&std::env::temp_dir(), endpoint, args)
}

/// The same with another folder for everything temporary.
pub(crate) fn run_in(temporary: &Path, endpoint: &str, args: &[&str]) -> Ended {
    let mut command = StdCommand::new(env!("CARGO_BIN_EXE_pgcapture"));
    command.env("TMPDIR", temporary);
    if !endpoint.is_empty() {
        command.env("PGCAPTURE_ENDPOINT", endpoint);
    }
    let output = command.args(args).output().expect("the binary is built");
    Ended {
        args: args.join(" "),
        exit: output.status.code(),
        data: String::from_utf8_lossy(&output.stdout).into_owned(),
        talk: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A folder whose parents every user may pass.
pub(crate) fn free_directory() -> TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

/// A command in the background; killed when dropped. What it writes, to either stream, is read all
/// the time, so that it never waits for us.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pub(crate) seen: watch::Receiver<String>,
}

impl Running {
    #[allow(
        dead_code,
        reason = "not every test that shares this uses the common folder"
    )]
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_in(&std::env::temp_dir(), args)
    }

    /// The same with another folder for everything temporary.
    pub(crate) fn start_in(temporary: &Path, args: &[&str]) -> Self {
        let (output, writer) = std::io::pipe().expect("a pipe can be made");
        let stdout = writer.try_clone().expect("a pipe can be shared");
        let child = Command::new(env!("CARGO_BIN_EXE_pgcapture"))
            .args(args)
            .env("TMPDIR", temporary)
            .stdout(stdout)
            .stderr(writer)
            .kill_on_drop(true)
            .spawn()
            .expect("the binary is built");
        let (sender, seen) = watch::channel(String::new());
        std::thread::spawn(move || read_all(output, &sender));
        Self { child, seen }
    }

    /// Waits for a line with `wanted` and returns everything said so far.
    pub(crate) async fn wait_for(&mut self, wanted: &str) -> String {
        let waited = self.seen.wait_for(|seen| seen.contains(wanted));
        if let Ok(Ok(seen)) = tokio::time::timeout(PATIENCE, waited).await {
            return seen.clone();
        }
        panic!("no \"{wanted}\" in: {}", *self.seen.borrow())
    }

    /// The address of gRPC that was printed.
    pub(crate) fn endpoint(&self) -> String {
        let seen = self.seen.borrow();
        let after = seen.split("gRPC").nth(1).expect("gRPC is printed");
        let address = after.split_whitespace().next().expect("an address follows");
        address.trim_end_matches(',').to_owned()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("it still runs");
        let pid = Pid::from_raw(i32::try_from(id).expect("a pid is small"));
        kill_process(pid.expect("a pid is positive"), signal).expect("it is ours");
    }

    /// Asks for a stop as an init system does and returns the exit code.
    pub(crate) async fn stop(&mut self) -> Option<i32> {
        self.end(Signal::TERM).await
    }

    /// Interrupts it as Ctrl-C does and returns the exit code.
    #[allow(dead_code, reason = "not every test that shares this interrupts")]
    pub(crate) async fn interrupt(&mut self) -> Option<i32> {
        self.end(Signal::INT).await
    }

    async fn end(&mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        let ended = async {
            let status = self.child.wait().await.expect("it ends");
            // The sender is dropped once everything was read.
            while self.seen.changed().await.is_ok() {}
            status
        };
        let ended = tokio::time::timeout(PATIENCE, ended).await;
        ended.expect("it ends in time").code()
    }
}

fn read_all(output: std::io::PipeReader, sender: &watch::Sender<String>) {
    for line in BufReader::new(output).lines() {
        let line = line.expect("the output is text");
        sender.send_modify(|seen| {
            seen.push_str(&line);
            seen.push('\n');
        });
    }
}
