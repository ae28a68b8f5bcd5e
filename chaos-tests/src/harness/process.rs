//! One child process: started in a group of its own, signalled by id, always reaped. One that the
//! harness leaves behind, killed itself, is ended by a caretaker.

use std::{
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    caretaker::Caretaker,
    wait::{Look, until},
};

/// A running or ended child process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    farewell: Signal,
    /// Let go once the child was waited for.
    _caretaker: Option<Caretaker>,
}

impl Process {
    /// Starts a process. `farewell` is the signal that ends it when it is dropped.
    ///
    /// A group of its own keeps the terminal's Ctrl-C from it: its owner ends it.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn(name: &str, command: &mut Command, farewell: Signal) -> Result<Self> {
        let started = command.process_group(0).spawn();
        let child = started.with_context(|| format!("start {name}: {command:?}"))?;
        let mut process = Self {
            name: name.to_owned(),
            child,
            farewell,
            _caretaker: None,
        };
        process._caretaker = Some(Caretaker::of(process.id(), farewell)?);
        Ok(process)
    }

    /// Returns its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.child.id(), signal).with_context(|| format!("signal {}", self.name))
    }

    /// Returns how it ended; `None` while it runs.
    ///
    /// # Errors
    ///
    /// When the system cannot say.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait();
        status.with_context(|| format!("wait for {}", self.name))
    }

    /// Waits until it has ended and is reaped.
    ///
    /// # Errors
    ///
    /// When it still runs after `limit`.
    pub async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        until(&what, limit, async || match self.child.try_wait() {
            Ok(Some(status)) => Look::Ready(status),
            Ok(None) => Look::NotYet("still running".to_owned()),
            Err(error) => Look::NotYet(error.to_string()),
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // It may be stopped; a stopped process takes no other signal.
        for signal in [self.farewell, Signal::CONT] {
            if let Err(error) = self.signal(signal) {
                eprintln!("{error:#}");
            }
        }
        if let Err(error) = self.child.wait() {
            eprintln!("wait for {}: {error}", self.name);
        }
    }
}

/// Sends a signal to a process by its id.
///
/// # Errors
///
/// When there is no such process, or it is not ours.
pub fn send(id: u32, signal: Signal) -> Result<()> {
    let raw = i32::try_from(id).context("process id")?;
    let pid = Pid::from_raw(raw).context("process id 0")?;
    kill_process(pid, signal).with_context(|| format!("send {signal:?} to process {id}"))
}
