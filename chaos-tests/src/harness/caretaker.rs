//! Ends a child process when the harness itself is killed.
//!
//! A `kill -9` runs no destructor, and a parent-death signal is lost where the child changes its user.
//! So a shell waits at the other end of a pipe, which the system closes with the harness, however that
//! ends. It has a group of its own, so that a signal to the harness's group does not take it along.
//! Never removes anything: what a run left is evidence.

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, Command, Stdio},
};

use anyhow::{Context, Result};
use rustix::process::Signal;

/// `$1` is the process, `$2` the signal that ends it. Its time of birth tells it from another one that
/// was given the same number. A stopped process takes no signal until it goes on.
const SCRIPT: &str = r#"
born() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20; }
was=$(born "$1")
read -r _ && exit 0
[ "$(born "$1")" = "$was" ] || exit 0
kill -"$2" "$1"
kill -CONT "$1"
"#;

/// Ends one process when this one is killed. Its drop leaves that alone.
#[derive(Debug)]
pub(super) struct Caretaker {
    shell: Child,
    pipe: Option<ChildStdin>,
}

impl Caretaker {
    /// Takes care of a child that was not waited for yet.
    ///
    /// # Errors
    ///
    /// When there is no shell.
    pub(super) fn of(id: u32, farewell: Signal) -> Result<Self> {
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", SCRIPT, "chaos-caretaker"])
            .args([id.to_string(), farewell.as_raw().to_string()])
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut shell = shell.spawn().context("start a caretaker")?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe })
    }
}

impl Drop for Caretaker {
    fn drop(&mut self) {
        // It may have ended already, killed like anything else here.
        if let Some(mut pipe) = self.pipe.take() {
            drop(pipe.write_all(b"done\n"));
        }
        if let Err(error) = self.shell.wait() {
            eprintln!("wait for a caretaker: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn child() -> Child {
        let mut command = Command::new("sleep");
        command.arg("1000").spawn().unwrap()
    }

    #[test]
    fn a_killed_harness_takes_its_processes_along() {
        let mut child = child();
        let mut caretaker = Caretaker::of(child.id(), Signal::TERM).unwrap();
        // As the system does when the harness is no more. Not QUIT here: a shell that runs the tests in
        // the background has it ignored.
        drop(caretaker.pipe.take());
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::TERM.as_raw()));
    }

    #[test]
    fn an_orderly_end_leaves_them_to_their_owner() {
        let mut child = child();
        drop(Caretaker::of(child.id(), Signal::KILL).unwrap());
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
