//! The first process of a throw-away server. Ends it when dropped.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{Child, ExitStatus},
};

use rustix::process::{Pid, Signal, kill_process};

/// The server's first process.
#[derive(Debug)]
pub(super) struct Postmaster {
    pub(super) child: Child,
}

impl Postmaster {
    pub(super) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(Err(error)) = pid.map(|pid| kill_process(pid, signal)) {
            tracing::debug!(%error, "the server had ended already");
        }
    }

    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        // A child that cannot be waited for is gone.
        self.child
            .try_wait()
            .unwrap_or_else(|_| Some(ExitStatus::from_raw(0)))
    }

    pub(super) fn wait(&mut self) {
        if let Err(error) = self.child.wait() {
            tracing::debug!(%error, "the server had ended already");
        }
    }
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        if self.ended().is_none() {
            // An immediate stop takes its children along; one that was stopped must wake for it.
            self.signal(Signal::QUIT);
            self.signal(Signal::CONT);
            self.wait();
        }
    }
}
