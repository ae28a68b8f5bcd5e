//! Work that is done in a process of its own, so that its processor time is not the node's:
//! consumers and writers.
//!
//! The parent starts this program again with a hidden subcommand, gives it the task as one JSON
//! line on stdin and reads answers as JSON lines from stdout. A child ends when its stdin ends.

use std::{io::Write as _, process::Stdio};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child as Process, ChildStdin, ChildStdout, Command},
};

use super::{cluster, consumer, holder, writer};

/// What a child does.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Task {
    /// Consumes and acknowledges.
    Consume(consumer::Order),
    /// Writes at a rate.
    Write(writer::Order),
    /// Holds sessions open.
    Hold(holder::Order),
    /// Gives many subscriptions a cursor.
    Subscribe(cluster::Order),
}

/// A running child; killed when dropped.
#[derive(Debug)]
pub(super) struct Child {
    process: Process,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts a child with its task.
    pub(super) async fn start(task: &Task) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.args(["bench", "child"]).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().context("start a child process")?;
        let mut input = process.stdin.take().context("the child has a stdin")?;
        let output = process.stdout.take().context("the child has a stdout")?;
        let mut line = serde_json::to_string(task)?;
        line.push('\n');
        input.write_all(line.as_bytes()).await?;
        Ok(Self {
            process,
            input,
            output: BufReader::new(output).lines(),
        })
    }

    /// Waits for the next answer.
    pub(super) async fn answer<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let Some(line) = self.output.next_line().await? else {
            bail!("a child process ended without an answer; its error is above");
        };
        serde_json::from_str(&line).with_context(|| format!("a child answered {line}"))
    }

    /// Lets the child end and waits for it.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        drop(self.input);
        let status = self.process.wait().await?;
        if !status.success() {
            bail!("a child process failed ({status})");
        }
        Ok(())
    }
}

/// Does the task that stdin brings.
pub(super) async fn run() -> anyhow::Result<()> {
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .context("read the task")?;
    match serde_json::from_str(&line).context("read the task")? {
        Task::Consume(order) => consumer::run(&order).await?,
        Task::Write(order) => writer::run(order).await?,
        Task::Hold(order) => holder::run(&order).await?,
        Task::Subscribe(order) => cluster::subscribe(&order).await?,
    }
    // The parent decides when our connections end.
    parent_ended().await
}

/// Waits until the parent has no more to say: then this process ends.
pub(super) async fn parent_ended() -> anyhow::Result<()> {
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().lines().for_each(drop));
    ended.await.context("wait for the parent")
}

/// Sends an answer to the parent.
pub(super) fn answer(value: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_string(value)?;
    line.push('\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(line.as_bytes())?;
    stdout.flush()?;
    Ok(())
}
