//! The side of the running `dev`: takes requests one after another and does them.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use pgcapture_actors::{
    postgres::Caretaker,
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::codes;
use tokio::net::{UnixListener, UnixStream};

use super::{Answer, Request, line, path_in, read_line};
use crate::cli::Failure;

/// Rights of the socket: its user's alone.
const MODE: u32 = 0o600;

/// Rights of the folder that the socket is made in.
const FOLDER_MODE: u32 = 0o700;

/// A command that has connected says what it wants within this time.
const REQUEST_MAX: Duration = Duration::from_secs(5);

/// Pause after a connection that could not be taken, such as for want of file handles.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Does what is asked.
#[async_trait]
pub(in crate::cli::dev) trait Obey: Send + Sync + 'static {
    /// Does one request.
    async fn obey(&self, request: Request) -> Result<Answer, Failure>;
}

/// The socket. Gone when dropped, and when this process is killed.
#[derive(Debug)]
pub(in crate::cli::dev) struct Server {
    path: PathBuf,
    _task: Task<()>,
    _caretaker: Caretaker,
}

impl Server {
    /// Listens at the path of `port`. What a dead `dev` left there is replaced.
    pub(in crate::cli::dev) async fn start(
        port: u16,
        obey: Arc<dyn Obey>,
    ) -> Result<Self, Failure> {
        let path = path_in(&std::env::temp_dir(), port);
        Self::start_at(path, obey).await
    }

    /// The same at any path.
    pub(super) async fn start_at(path: PathBuf, obey: Arc<dyn Obey>) -> Result<Self, Failure> {
        if UnixStream::connect(&path).await.is_ok() {
            let text = format!("a dev answers at {} already", path.display());
            return Err(Failure::new(1, &codes::node::ADDRESS_IN_USE, text)
                .next("end it, or choose another --port"));
        }
        let listening = listen(&path);
        let listening = listening.and_then(|made| Ok((made, Caretaker::of(&path)?)));
        let (listener, caretaker) = listening.map_err(|error| {
            let text = format!("no socket at {}: {error}", path.display());
            Failure::new(1, &codes::node::ADDRESS_IN_USE, text)
                .next("remove that file, or choose another --port")
        })?;
        let task = spawn(TaskKind::Tool, "dev control", serve(listener, obey));
        Ok(Self {
            path,
            _task: task,
            _caretaker: caretaker,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "the socket was gone already");
        }
    }
}

/// Makes the socket where nobody else can open it before it has its rights, then puts it in its place. It
/// is made beside that place, since a file moves in one step within one file system only, and under a
/// shorter name, since a socket's path is limited to 107 bytes.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let beside = path.parent().unwrap_or_else(|| Path::new("."));
    let folder = tempfile::Builder::new()
        .prefix(".pg")
        .permissions(fs::Permissions::from_mode(FOLDER_MODE))
        .tempdir_in(beside)?;
    let made = folder.path().join("s");
    let listener = UnixListener::bind(&made)?;
    fs::set_permissions(&made, fs::Permissions::from_mode(MODE))?;
    fs::rename(made, path)?;
    Ok(listener)
}

/// Serves one connection at a time: what two commands ask for happens in some order.
async fn serve(listener: UnixListener, obey: Arc<dyn Obey>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = answer(stream, obey.as_ref()).await {
                    tracing::debug!(%error, "a command hung up");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a command cannot be heard");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, obey: &dyn Obey) -> io::Result<()> {
    use tokio::io::AsyncWriteExt as _;
    let heard = tokio::time::timeout(REQUEST_MAX, read_line(&mut stream)).await;
    let heard = heard.map_err(io::Error::other)??;
    let Some(heard) = heard else {
        return Ok(());
    };
    let answer = match serde_json::from_str(&heard) {
        Ok(request) => obey.obey(request).await.unwrap_or_else(Answer::from),
        Err(error) => {
            let failure = Failure::usage(format!("dev does not know this: {error}"));
            failure
                .next("use the same version of pgcapture as dev")
                .into()
        }
    };
    stream.write_all(&line(&answer)?).await
}
