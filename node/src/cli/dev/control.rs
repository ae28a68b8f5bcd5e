//! How `dev kill 2` and its like reach the running `dev`: one line of JSON each way over a unix
//! socket that only its user may open.
//!
//! The socket lies in the temporary folder and is named after the port of the first node. It is put
//! there in one step, with its rights, and goes with the cluster.

mod server;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use pgcapture_engine::codes;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
};

pub(super) use self::server::{Obey, Server};
use crate::cli::{
    Failure, Global,
    output::{Column, View},
};

/// A longer line is none of ours.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// What is asked of a running `dev`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// How the nodes are.
    Status,
    /// `kill -9`.
    Kill(u8),
    /// An ordered stop.
    Stop(u8),
    /// Freeze.
    Pause(u8),
    /// Unfreeze.
    Resume(u8),
    /// Start a dead node on its data.
    Start(u8),
    /// One node more.
    Add,
    /// Groups that do not reach each other.
    Partition(Vec<BTreeSet<u8>>),
    /// Everybody reaches everybody.
    Heal,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// It is done.
    Done {
        /// What, in words; empty for a question.
        said: String,
        /// All nodes, after it.
        nodes: Vec<NodeView>,
    },
    /// It is not.
    Refused {
        /// Exit code of the command.
        exit: u8,
        /// Stable code.
        code: String,
        /// What happened.
        text: String,
        /// What to do.
        next: String,
    },
}

/// A node as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct NodeView {
    /// What the commands of `dev` call it.
    pub(in crate::cli) node: u8,
    /// What the cluster calls it.
    pub(in crate::cli) name: String,
    pub(in crate::cli) state: NodeState,
    pub(in crate::cli) endpoint: String,
    pub(in crate::cli) metrics_url: String,
    /// `None` while it is dead.
    pub(in crate::cli) pid: Option<u32>,
    /// Numbers of the nodes to which it has no way.
    pub(in crate::cli) cut_off_from: Vec<u8>,
}

/// What a node's process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::cli) enum NodeState {
    Running,
    /// Frozen by `dev pause`.
    Paused,
    Dead,
}

impl NodeState {
    pub(in crate::cli) const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Dead => "dead",
        }
    }
}

impl NodeView {
    /// Tells whether it can answer.
    pub(in crate::cli) fn is_running(&self) -> bool {
        self.state == NodeState::Running
    }
}

impl View for NodeView {
    const COLUMNS: &'static [Column] = &[
        ("NODE", false),
        ("NAME", false),
        ("STATE", false),
        ("ENDPOINT", false),
        ("METRICS", false),
        ("CUT OFF FROM", false),
        ("PID", true),
    ];

    fn cells(&self) -> Vec<String> {
        let state = self.state.as_str();
        let is_well = self.state == NodeState::Running;
        let cut: Vec<String> = self.cut_off_from.iter().map(u8::to_string).collect();
        vec![
            self.node.to_string(),
            self.name.clone(),
            if is_well {
                state.to_owned()
            } else {
                format!("! {state}")
            },
            self.endpoint.clone(),
            self.metrics_url.clone(),
            crate::cli::output::joined(&cut),
            self.pid
                .map_or_else(|| "–".to_owned(), |pid| pid.to_string()),
        ]
    }
}

/// Returns where the socket of a cluster lies.
pub(super) fn path(port: u16) -> PathBuf {
    path_in(&std::env::temp_dir(), port)
}

fn path_in(folder: &Path, port: u16) -> PathBuf {
    folder.join(format!("pgcapture-dev-{port}.sock"))
}

/// Returns the port that a command means: `--port`, or the one of `--endpoint`.
pub(super) fn port(global: &Global, port: Option<u16>) -> Result<u16, Failure> {
    let of_endpoint = || {
        let endpoint = global.endpoint.trim_end_matches('/');
        let (_, port) = endpoint.rsplit_once(':')?;
        port.parse().ok()
    };
    port.filter(|port| *port != 0)
        .or_else(of_endpoint)
        .ok_or_else(|| Failure::usage("--port names the first node of the running dev"))
}

/// Asks the `dev` whose socket is at `path`.
pub(super) async fn ask(
    path: &Path,
    request: &Request,
    limit: Duration,
) -> Result<Answer, Failure> {
    let stream = UnixStream::connect(path).await.map_err(|error| {
        let text = format!("nobody answers at {}: {error}", path.display());
        Failure::new(6, &codes::node::NO_DEV, text)
    })?;
    match tokio::time::timeout(limit, exchange(stream, request)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            let text = format!("dev does not answer as it should: {error}");
            Err(Failure::new(6, &codes::node::NO_DEV, text))
        }
        Err(_) => {
            let text = format!("dev did not answer within {} s", limit.as_secs());
            Err(Failure::new(6, &codes::node::NO_DEV, text)
                .next("it may still do it: look at pgcapture dev status; --timeout waits longer"))
        }
    }
}

async fn exchange(mut stream: UnixStream, request: &Request) -> io::Result<Answer> {
    stream.write_all(&line(request)?).await?;
    let Some(answer) = read_line(&mut stream).await? else {
        return Err(io::Error::other("it has ended"));
    };
    serde_json::from_str(&answer).map_err(io::Error::other)
}

fn line<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value).map_err(io::Error::other)?;
    line.push(b'\n');
    Ok(line)
}

/// Reads one line; `None` when there is none.
async fn read_line(stream: &mut UnixStream) -> io::Result<Option<String>> {
    let mut line = String::new();
    let limited = stream.take(LINE_BYTES_MAX);
    let length = BufReader::new(limited).read_line(&mut line).await?;
    Ok((length > 0).then_some(line))
}

impl From<Failure> for Answer {
    fn from(failure: Failure) -> Self {
        let Failure {
            exit,
            code,
            text,
            next,
        } = failure;
        Self::Refused {
            exit,
            code,
            text,
            next,
        }
    }
}

impl Answer {
    /// Returns what was said and all nodes.
    pub(super) fn into_result(self) -> Result<(String, Vec<NodeView>), Failure> {
        match self {
            Self::Done { said, nodes } => Ok((said, nodes)),
            Self::Refused {
                exit,
                code,
                text,
                next,
            } => Err(Failure {
                exit,
                code,
                text,
                next,
            }),
        }
    }
}

#[cfg(test)]
mod tests;
