//! Ends what a throw-away server leaves when our own process is killed.
//!
//! A `kill -9` runs no destructor, and a parent-death signal is lost when the server changes its
//! user. So a shell waits at the other end of a pipe: the system closes it with our process, however
//! that ends. An orderly end tells the shell to go without doing anything. It has a process group
//! of its own, so that a Ctrl-C, or a kill of our group, does not take it along.

use std::{
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
};

/// `$1` is the directory. A server in it is stopped as in a crash, if the process that its file
/// names is still that server; then everything is removed, again while something still writes.
const SCRIPT: &str = r#"
read -r _ && exit 0
if read -r pid _ 2>/dev/null <"$1/data/postmaster.pid"; then
    is_ours() { [ ! -d /proc/self ] || [ "/proc/$pid/cwd" -ef "$1/data" ]; }
    if is_ours "$1"; then
        kill -QUIT "$pid"
        kill -CONT "$pid"
        tries=300
        while kill -0 "$pid" && is_ours "$1" && [ $((tries -= 1)) -gt 0 ]; do sleep 0.1; done
    fi
fi
tries=50
until rm -rf "$1" || [ $((tries -= 1)) -eq 0 ]; do sleep 0.1; done
"#;

/// Removes a directory, and stops the server in it, when this process is killed. Its drop leaves
/// both alone.
#[derive(Debug)]
pub struct Caretaker {
    shell: Child,
    pipe: Option<ChildStdin>,
}

impl Caretaker {
    /// Takes care of a directory that nobody else needs.
    ///
    /// # Errors
    ///
    /// When there is no shell.
    pub fn of(directory: &Path) -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "pgcapture-caretaker"])
            .arg(directory)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe })
    }
}

impl Drop for Caretaker {
    fn drop(&mut self) {
        let told = self.pipe.take().map(|mut pipe| pipe.write_all(b"done\n"));
        if let Some(Err(error)) = told {
            tracing::debug!(%error, "the caretaker had ended already");
        }
        if let Err(error) = self.shell.wait() {
            tracing::debug!(%error, "the caretaker had ended already");
        }
    }
}
