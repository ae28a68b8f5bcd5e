//! The binary as a process: a node in the background, or a command to its end.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    process::{Child, Command},
    sync::watch,
};

/// Far beyond what anything here takes, so that it only ends a hung test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a fact that nothing announces.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks again and again until there is what is looked for; fails with the last thing seen.
pub(crate) async fn eventually<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) => assert!(
                tokio::time::Instant::now() < deadline,
                "{what} did not happen; last seen: {seen}"
            ),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    args: String,
    exit: Option<i32>,
    pub(crate) data: String,
    pub(crate) talk: String,
}

impl Ended {
    pub(crate) fn succeeded(&self) -> bool {
        self.exit == Some(0)
    }

    /// Checks the exit code; a failure must tell the next step.
    pub(crate) fn expect(self, exit: i32) -> Self {
        assert_eq!(self.exit, Some(exit), "{}: {self:#?}", self.args);
        let says_next = self.talk.contains("next: ") || self.talk.contains("help: ");
        assert!(exit == 0 || says_next, "{self:#?}");
        self
    }

    /// Checks that the command failed with these words on stderr.
    pub(crate) fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.talk.contains(word), "no \"{word}\": {self:#?}");
        }
        self
    }

    /// Checks that the arguments themselves were refused, with these words.
    pub(crate) fn expect_usage(self, words: &[&str]) -> Self {
        assert_eq!(self.exit, Some(2), "{}: {self:#?}", self.args);
        self.says(words)
    }

    /// Checks that the command succeeded and reads its data.
    pub(crate) fn json(self) -> Value {
        let ended = self.expect(0);
        serde_json::from_str(&ended.data).unwrap_or_else(|error| panic!("{error}: {ended:#?}"))
    }
}

/// Runs a command to its end.
pub(crate) async fn run(endpoint: &str, args: &[&str]) -> Ended {
    let mut command = command();
    if !endpoint.is_empty() {
        command.env("PGCAPTURE_ENDPOINT", endpoint);
    }
    let output = tokio::time::timeout(PATIENCE, command.args(args).output());
    let output = output.await.expect("it ends").expect("the binary is built");
    Ended {
        args: args.join(" "),
        exit: output.status.code(),
        data: String::from_utf8_lossy(&output.stdout).into_owned(),
        talk: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgcapture"));
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// A folder for a node: its configuration and its data.
#[derive(Debug)]
pub(crate) struct Place {
    folder: PathBuf,
}

impl Place {
    pub(crate) fn at(folder: &Path) -> Self {
        let folder = folder.to_owned();
        Self { folder }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Writes the configuration with `more` at its end and returns the file.
    pub(crate) fn configure(&self, more: &str) -> String {
        self.configure_as("n1", "127.0.0.1:0", more)
    }

    /// The same for a node of this name that listens there.
    pub(crate) fn configure_as(&self, name: &str, listen: &str, more: &str) -> String {
        let file = self.folder.join("pgcapture.toml");
        let text = format!(
            "[node]\nname = \"{name}\"\ndata_dir = \"{}\"\nlisten = \"{listen}\"\n\
             metrics = \"127.0.0.1:0\"\n{more}",
            self.data().display()
        );
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    }
}

/// A node in the background; killed when dropped. Its stderr is read all the time.
#[derive(Debug)]
pub(crate) struct Node {
    child: Child,
    seen: watch::Receiver<String>,
    pub(crate) listen: String,
    pub(crate) metrics: String,
}

impl Node {
    /// Starts a node with a configuration and waits until it is ready.
    pub(crate) async fn start(file: &str) -> Self {
        Self::start_with(file, &[]).await
    }

    /// The same with more in its environment.
    pub(crate) async fn start_with(file: &str, environment: &[(&str, PathBuf)]) -> Self {
        let mut node = Self::launch(file, environment);
        let ready = node.logged(|line| line["message"] == "ready").await;
        node.listen = ready["listen"].as_str().unwrap().to_owned();
        node.metrics = ready["metrics"].as_str().unwrap().to_owned();
        node
    }

    /// Starts a node and waits for nothing.
    pub(crate) fn launch(file: &str, environment: &[(&str, PathBuf)]) -> Self {
        let (stderr, writer) = std::io::pipe().unwrap();
        let child = command()
            .args(["start", "-c", file])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::null())
            .stderr(writer)
            .spawn()
            .expect("the binary is built");
        let (sender, seen) = watch::channel(String::new());
        std::thread::spawn(move || read_all(stderr, &sender));
        Self {
            child,
            seen,
            listen: String::new(),
            metrics: String::new(),
        }
    }

    /// Waits for a line of the log.
    pub(crate) async fn logged(&self, is_wanted: impl Fn(&Value) -> bool) -> Value {
        let mut seen = self.seen.clone();
        let find = |text: &String| {
            let lines = text.lines();
            let mut lines = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.find(|line| is_wanted(line))
        };
        let found = seen.wait_for(|text| find(text).is_some());
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(Ok(text)) => find(&text).unwrap(),
            _ => panic!("no such line in: {}", self.log()),
        }
    }

    /// Everything it has said.
    pub(crate) fn log(&self) -> String {
        self.seen.borrow().clone()
    }

    pub(crate) fn pid(&self) -> Pid {
        let id = i32::try_from(self.child.id().expect("it still runs")).unwrap();
        Pid::from_raw(id).unwrap()
    }

    /// Resident memory in bytes.
    pub(crate) fn rss(&self) -> u64 {
        let pid = self.pid().as_raw_nonzero();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() << 10
    }

    /// Ends it as a crash does.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Ends it as an init system does; returns the exit code and everything it has said.
    pub(crate) async fn stop(self) -> (Option<i32>, String) {
        kill_process(self.pid(), Signal::TERM).unwrap();
        self.ended().await
    }

    /// Waits until it ends by itself; returns the exit code and everything it has said.
    pub(crate) async fn ended(mut self) -> (Option<i32>, String) {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait());
        let status = ended.await.expect("it ends in time").unwrap();
        // The sender is dropped once everything was read.
        while self.seen.changed().await.is_ok() {}
        (status.code(), self.log())
    }
}

fn read_all(stderr: std::io::PipeReader, sender: &watch::Sender<String>) {
    for line in BufReader::new(stderr).lines() {
        let line = line.expect("stderr is text");
        sender.send_modify(|seen| {
            seen.push_str(&line);
            seen.push('\n');
        });
    }
}
