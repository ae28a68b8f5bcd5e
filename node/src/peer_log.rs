//! The log of a source on the node that runs its agent, read from here.
//!
//! A [`RemoteLog`] is the log of one source at one node under one epoch. It shares one stream that
//! tells its end and its health, and opens one more for each reader. When that node does not deliver
//! any more it ends for good; whoever made it looks for the next owner (`routes`). Never writes.

pub mod credit;

mod reader;

pub mod readers;

pub mod wire;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use pgcapture_actors::{
    log::{ChangeLog, LogError, LogExtent, LogHealth, LogReader, LogWriter, Start, Tail},
    supervise::{Task, TaskKind, spawn},
};
use pgcapture_engine::{checkpoint::Epoch, lsn::Lsn};
use pgcapture_proto::peer::v1::{
    AskProgressRequest, LogName, LogNews, WatchLogRequest, log_news, peer_log_client::PeerLogClient,
};
use tokio::sync::watch;
use tonic::{Status, Streaming};

use self::reader::RemoteReader;
use crate::peers::PeerChannel;

/// A node that has not answered an opening call by then is away. It may wait for its own knowledge of
/// the assignment meanwhile; see `rpc::peer_log`.
const OPEN_MAX: Duration = Duration::from_secs(2);

/// A batch is as large as its largest row, and that has a limit at the source; a message is larger by
/// a header.
const MESSAGE_BYTES_MAX: usize = u32::MAX as usize;

/// A log on another node.
#[derive(Debug)]
pub struct RemoteLog {
    peer: Peer,
    tail: watch::Receiver<Tail>,
    health: watch::Receiver<LogHealth>,
    extent: Arc<Mutex<LogExtent>>,
    asked: watch::Sender<Lsn>,
    ended: watch::Receiver<Option<String>>,
    _task: Task<()>,
}

/// Which log, where.
#[derive(Clone, Debug)]
struct Peer {
    client: PeerLogClient<PeerChannel>,
    /// For errors.
    node: String,
    name: LogName,
}

impl RemoteLog {
    /// Asks `node` for the log; returns when its end is known.
    ///
    /// # Errors
    ///
    /// [`LogError::Away`] when the node cannot be reached or does not run the source under that
    /// epoch, or what it says of the log.
    pub async fn connect(
        channel: PeerChannel,
        node: &str,
        name: LogName,
    ) -> Result<Arc<Self>, LogError> {
        let client = PeerLogClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let peer = Peer {
            client,
            node: node.to_owned(),
            name,
        };
        let request = WatchLogRequest {
            log: Some(peer.name.clone()),
        };
        let opened = async {
            let answer = peer.client.clone().watch_log(request).await;
            let mut news = answer.map_err(|status| peer.away(&status))?.into_inner();
            let first = peer.next_news(&mut news).await?;
            Ok::<_, LogError>((news, first))
        };
        let (news, (extent, health)) = peer.in_time(opened).await?;
        let (tail_sender, tail) = watch::channel(extent.tail);
        let (health_sender, health) = watch::channel(health);
        let (ended_sender, ended) = watch::channel(None);
        let extent = Arc::new(Mutex::new(extent));
        let asked = watch::Sender::default();
        let shown = Shown {
            tail: tail_sender,
            health: health_sender,
            extent: Arc::clone(&extent),
        };
        let (listening, asking) = (peer.clone(), peer.clone());
        let progress = asked.subscribe();
        let task = spawn(TaskKind::PeerReader, node, async move {
            let error = tokio::select! {
                error = listening.listen(news, shown) => error,
                error = asking.ask(progress) => error,
            };
            ended_sender.send_replace(Some(error.to_string()));
        });
        Ok(Arc::new(Self {
            peer,
            tail,
            health,
            extent,
            asked,
            ended,
            _task: task,
        }))
    }

    /// Waits until the node does not deliver any more, and returns why.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(reason)) => reason.clone(),
            Ok(None) | Err(_) => "the stream of news ended".to_owned(),
        }
    }
}

/// What the task tells.
struct Shown {
    tail: watch::Sender<Tail>,
    health: watch::Sender<LogHealth>,
    extent: Arc<Mutex<LogExtent>>,
}

impl Peer {
    fn away(&self, status: &Status) -> LogError {
        LogError::Away {
            node: self.node.clone(),
            reason: status.message().to_owned(),
        }
    }

    fn silent(&self, what: &str) -> LogError {
        LogError::Away {
            node: self.node.clone(),
            reason: what.to_owned(),
        }
    }

    async fn in_time<T>(
        &self,
        opened: impl Future<Output = Result<T, LogError>>,
    ) -> Result<T, LogError> {
        let opened = tokio::time::timeout(OPEN_MAX, opened).await;
        opened.unwrap_or_else(|_| Err(self.silent(&format!("no answer within {OPEN_MAX:?}"))))
    }

    /// Refuses an answer about another log or epoch.
    fn check(&self, name: Option<&LogName>) -> Result<(), LogError> {
        if name == Some(&self.name) {
            return Ok(());
        }
        Err(self.silent("it answers for another log or epoch"))
    }

    async fn next_news(
        &self,
        news: &mut Streaming<LogNews>,
    ) -> Result<(LogExtent, LogHealth), LogError> {
        let message = news.message().await.map_err(|status| self.away(&status))?;
        let message = message.ok_or_else(|| self.silent("it ended the stream"))?;
        match message.kind {
            Some(log_news::Kind::Refusal(refusal)) => Err(wire::to_error(&self.node, refusal)),
            Some(log_news::Kind::State(state)) => {
                self.check(message.log.as_ref())?;
                Ok(wire::to_state(&state))
            }
            None => Err(self.silent("its answer says nothing that this version knows")),
        }
    }

    /// Shows what the node tells; returns why it tells no more.
    async fn listen(self, mut news: Streaming<LogNews>, shown: Shown) -> LogError {
        loop {
            let (extent, health) = match self.next_news(&mut news).await {
                Ok(told) => told,
                Err(error) => return error,
            };
            *lock(&shown.extent) = extent;
            shown.health.send_if_modified(|known| {
                let is_new = *known != health;
                *known = health;
                is_new
            });
            shown.tail.send_if_modified(|known| {
                let is_new = *known != extent.tail;
                *known = extent.tail;
                is_new
            });
        }
    }

    /// Passes on what readers ask for; returns only when the node cannot be asked.
    async fn ask(mut self, mut asked: watch::Receiver<Lsn>) -> LogError {
        while asked.changed().await.is_ok() {
            let request = AskProgressRequest {
                log: Some(self.name.clone()),
                lsn: asked.borrow_and_update().0,
            };
            let answer = self.client.ask_progress(request).await;
            match answer.map(|answer| answer.into_inner().refusal) {
                Ok(None) => {}
                Ok(Some(refusal)) => return wire::to_error(&self.node, refusal),
                Err(status) => return self.away(&status),
            }
        }
        // The log was dropped, and this task with it.
        std::future::pending().await
    }
}

/// A panic under the lock leaves an older value: go on.
fn lock(extent: &Mutex<LogExtent>) -> std::sync::MutexGuard<'_, LogExtent> {
    extent.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl ChangeLog for RemoteLog {
    /// Refused: a log is written where it lies.
    async fn open_writer(&self, asked: Epoch) -> Result<Box<dyn LogWriter>, LogError> {
        Err(LogError::Fenced {
            asked,
            held: Epoch(self.peer.name.epoch),
        })
    }

    async fn open_reader(&self, start: Start) -> Result<Box<dyn LogReader>, LogError> {
        let opened = RemoteReader::open(self.peer.clone(), start);
        Ok(Box::new(self.peer.in_time(opened).await?))
    }

    fn tail(&self) -> watch::Receiver<Tail> {
        self.tail.clone()
    }

    fn health(&self) -> watch::Receiver<LogHealth> {
        self.health.clone()
    }

    fn extent(&self) -> LogExtent {
        *lock(&self.extent)
    }

    fn ask_progress(&self, at: Lsn) {
        self.asked.send_if_modified(|furthest| {
            let is_further = *furthest < at;
            *furthest = at.max(*furthest);
            is_further
        });
    }
}
