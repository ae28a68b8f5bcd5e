//! Notices that the process which started this one is gone: for the nodes of `pgcapture dev`.
//!
//! The parent holds the other end of stdin and writes nothing. The system closes it with the parent,
//! however that ends.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::{io::AsyncReadExt as _, net::unix::pipe};

/// The parent's end of stdin.
#[derive(Debug)]
pub(super) struct Parent {
    pipe: Option<pipe::Receiver>,
}

impl Parent {
    /// Watches stdin if `is_wanted`; otherwise the parent does not matter.
    pub(super) fn watch(is_wanted: bool) -> io::Result<Self> {
        if !is_wanted {
            return Ok(Self { pipe: None });
        }
        // A process that `dev pause` has stopped would not notice that its stdin ends: then it goes
        // on, and does.
        set_parent_process_death_signal(Some(Signal::CONT))?;
        let stdin: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Self {
            pipe: Some(pipe::Receiver::from_owned_fd(stdin)?),
        })
    }

    /// Waits until the parent is gone.
    pub(super) async fn gone(&mut self) {
        let Some(pipe) = &mut self.pipe else {
            return std::future::pending().await;
        };
        let mut said = [0; 64];
        // An error is an end as well.
        while pipe.read(&mut said).await.is_ok_and(|length| length > 0) {}
    }
}
