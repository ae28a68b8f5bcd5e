//! One process of a node: started, signalled, watched.
//!
//! The task that waits for the process is also the only one that signals it, so that no signal can
//! reach another process that got its number.

use std::{
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use pgcapture_actors::supervise::{Task, TaskKind, spawn};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
};

use crate::peers::ROUTES_VARIABLE;

/// Signals that wait for the task; each takes microseconds.
const SIGNALS_WAITING_MAX: usize = 4;

/// What a process is started with.
#[derive(Clone, Debug)]
pub(super) struct Order {
    /// The configuration file.
    pub(super) config: PathBuf,
    /// Where detours stand.
    pub(super) routes: PathBuf,
    /// Where its output goes.
    pub(super) output: PathBuf,
    /// Flags that come before the command, such as `-v`.
    pub(super) flags: Vec<String>,
}

/// A process. Killed when dropped.
#[derive(Debug)]
pub(super) struct Process {
    id: u32,
    signals: mpsc::Sender<Signal>,
    ended: watch::Receiver<Option<ExitStatus>>,
    _task: Task<()>,
}

impl Process {
    /// Starts a node.
    pub(super) fn start(order: &Order) -> io::Result<Self> {
        let output = append(&order.output)?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(&order.flags)
            .args(["start", "--end-with-stdin", "-c"])
            .arg(&order.config)
            .env(ROUTES_VARIABLE, &order.routes)
            // Ctrl-C in a terminal is for us: the nodes are stopped in order then.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true);
        // Nothing of the environment of this process may configure its nodes.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PGCAPTURE_") && name != ROUTES_VARIABLE {
                command.env_remove(name);
            }
        }
        let child = command.spawn()?;
        let id = child
            .id()
            .ok_or_else(|| io::Error::other("it ended at once"))?;
        let (signals, orders) = mpsc::channel(SIGNALS_WAITING_MAX);
        let (told, ended) = watch::channel(None);
        let task = spawn(
            TaskKind::Tool,
            "node process",
            attend(child, id, orders, told),
        );
        Ok(Self {
            id,
            signals,
            ended,
            _task: task,
        })
    }

    /// Its number.
    pub(super) const fn id(&self) -> u32 {
        self.id
    }

    /// Sends a signal; does nothing when it has ended.
    pub(super) async fn signal(&self, signal: Signal) {
        if self.signals.send(signal).await.is_err() {
            tracing::debug!(
                ?signal,
                "nobody is there to be signalled: the process has ended"
            );
        }
    }

    /// How it ended; `None` while it runs.
    pub(super) fn ended(&self) -> Option<ExitStatus> {
        *self.ended.borrow()
    }

    /// Watches for its end.
    pub(super) fn watch(&self) -> watch::Receiver<Option<ExitStatus>> {
        self.ended.clone()
    }
}

/// Waits for the end and signals until then: the body of an owned task.
async fn attend(
    mut child: Child,
    id: u32,
    mut orders: mpsc::Receiver<Signal>,
    told: watch::Sender<Option<ExitStatus>>,
) {
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
    // The other end of its stdin: the process ends when this one does, however.
    let _held = child.stdin.take();
    loop {
        tokio::select! {
            biased;
            ended = child.wait() => {
                match ended {
                    Ok(status) => drop(told.send_replace(Some(status))),
                    Err(error) => tracing::error!(%error, "a node cannot be waited for"),
                }
                return;
            }
            Some(signal) = orders.recv() => {
                if let Some(pid) = pid
                    && let Err(error) = kill_process(pid, signal)
                {
                    tracing::error!(%error, ?signal, "a node cannot be signalled");
                }
            }
        }
    }
}

fn append(file: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(file)
}
