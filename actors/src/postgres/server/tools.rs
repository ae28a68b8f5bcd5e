//! What making a server takes: a program run to its end, a free port.

use std::{
    io,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
};

use super::LocalServerError;

/// Bytes of a program's output in an error.
const TAIL_BYTES: usize = 2_000;

/// Runs a program and waits for its success.
pub(super) async fn run_to_end(
    program: &'static str,
    mut command: Command,
) -> Result<(), LocalServerError> {
    let path = command.get_program().to_owned();
    command.stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    let output = output.map_err(io::Error::other).and_then(|output| output);
    let output = output.map_err(|source| LocalServerError::Io {
        action: "run",
        path: path.into(),
        source,
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(LocalServerError::Failed {
        program,
        status: output.status,
        output: tail(&String::from_utf8_lossy(&output.stderr)),
    })
}

/// Returns the end of a text.
pub(super) fn tail(text: &str) -> String {
    let mut start = text.len().saturating_sub(TAIL_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text.get(start..).unwrap_or_default().trim().to_owned()
}

/// Returns a port that is free now.
pub(super) fn free_port(path: &Path) -> Result<u16, LocalServerError> {
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    port.map(|address| address.port())
        .map_err(|source| LocalServerError::Io {
            action: "find a free port for",
            path: path.to_owned(),
            source,
        })
}
