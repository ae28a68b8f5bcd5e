//! A scripted walsender: logs anybody in, takes one `START_REPLICATION`, and then sends what the test
//! says, each time in one write. It answers the end of a stream and reads everything else away.

use std::path::Path;

use pgcapture_engine::lsn::Lsn;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixListener,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};

use crate::{
    postgres::Config,
    supervise::{Task, TaskKind, spawn},
};

/// Part of the socket's name.
const PORT: u16 = 5_432;

/// Writes that may wait for the socket.
const WRITES_MAX: usize = 4;

/// From now on both sides copy.
const COPY_BOTH: &[u8] = b"W\0\0\0\x07\0\0\0";

/// A socket on which the server listens.
#[derive(Debug)]
pub(super) struct Listening {
    listener: UnixListener,
    pub(super) config: Config,
}

/// A stream under way.
#[derive(Debug)]
pub(super) struct Walsender {
    writes: mpsc::Sender<Vec<u8>>,
    _tasks: [Task<()>; 2],
}

impl Listening {
    pub(super) fn new(folder: &Path) -> Self {
        let url = format!("postgres://u@/d?host={}&port={PORT}", folder.display());
        Self {
            listener: UnixListener::bind(folder.join(format!(".s.PGSQL.{PORT}"))).unwrap(),
            config: Config::parse(&url).unwrap(),
        }
    }

    /// Waits for a client and brings it to the stream.
    pub(super) async fn accept(&self) -> Walsender {
        let (client, _) = self.listener.accept().await.unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        rest(&mut from_client).await;
        let parameter = |name: &str, value: &str| frame(b'S', [name, "\0", value, "\0"].concat());
        let login = [
            frame(b'R', "\0\0\0\0"),
            parameter("server_version", "15.0"),
            parameter("in_hot_standby", "off"),
            parameter("default_transaction_read_only", "off"),
            frame(b'Z', "I"),
        ];
        to_client.write_all(&login.concat()).await.unwrap();
        assert_eq!(from_client.read_u8().await.unwrap(), b'Q');
        let command = rest(&mut from_client).await;
        assert!(command.starts_with(b"START_REPLICATION"), "{command:?}");
        to_client.write_all(COPY_BOTH).await.unwrap();
        let (writes, written) = mpsc::channel(WRITES_MAX);
        let reader = listen(from_client, writes.clone());
        Walsender {
            writes,
            _tasks: [
                spawn(TaskKind::Tool, "walsender reads", reader),
                spawn(TaskKind::Tool, "walsender writes", talk(to_client, written)),
            ],
        }
    }
}

impl Walsender {
    /// Sends events in one write.
    pub(super) async fn send(&self, events: &[Vec<u8>]) {
        self.writes.send(events.concat()).await.unwrap();
    }
}

/// "Everything before `end` was sent."
pub(super) fn keepalive(end: Lsn, is_reply_requested: bool) -> Vec<u8> {
    let body = [
        &b"k"[..],
        &end.0.to_be_bytes(),
        &[0; 8],
        &[u8::from(is_reply_requested)],
    ];
    frame(b'd', body.concat())
}

/// A transaction of one message (not one of a table) of so many bytes, which commits at `lsn`.
pub(super) fn transaction(lsn: Lsn, bytes: usize) -> Vec<u8> {
    let (at, end) = (lsn.0.to_be_bytes(), (lsn.0 + 1).to_be_bytes());
    let length = u32::try_from(bytes).unwrap().to_be_bytes();
    let begin = [&b"B"[..], &at, &[0; 8], &[0, 0, 0, 9]].concat();
    let content = vec![b'x'; bytes];
    let message = [&b"M\x01"[..], &at, b"p\0", &length, &content].concat();
    let commit = [&b"C\0"[..], &at, &end, &[0; 8]].concat();
    let event = |payload: Vec<u8>| {
        let body = [&b"w"[..], &at, &end, &[0; 8], &payload];
        frame(b'd', body.concat())
    };
    [begin, message, commit].map(event).concat()
}

fn frame(tag: u8, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

/// Reads the rest of a message, from its length on.
async fn rest(client: &mut OwnedReadHalf) -> Vec<u8> {
    let length = client.read_u32().await.unwrap();
    let mut body = vec![0; length as usize - 4];
    client.read_exact(&mut body).await.unwrap();
    body
}

/// Reads what the client says, and ends the stream when it does, until it has gone.
async fn listen(mut client: OwnedReadHalf, writes: mpsc::Sender<Vec<u8>>) {
    while let Ok(tag) = client.read_u8().await {
        rest(&mut client).await;
        if tag == b'c' {
            let ended = [frame(b'c', ""), frame(b'C', "COPY 0\0"), frame(b'Z', "I")];
            drop(writes.send(ended.concat()).await);
        }
    }
}

async fn talk(mut client: OwnedWriteHalf, mut written: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = written.recv().await {
        if client.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
