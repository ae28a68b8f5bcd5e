//! Members of a cluster that agree in memory: each has a gateway, all have one log and one set of cursors.
//!
//! A member is reached through a relay, so that it can die for the others as a process does: at once,
//! with every connection, and new ones refused.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use pgcapture_actors::{
    consensus::{Consensus, Leadership, ProposeError},
    dump::NoRanges,
    gateway::{GatewayHandle, GatewayLimits},
    log::memory::{MemoryLog, MemoryLogOptions},
};
use pgcapture_engine::{
    checkpoint::Epoch,
    cluster::{Answer, Command, Node as Member, OnGap, Origin, Source, State},
    lsn::PgTime,
};
use pgcapture_node::{config::Config, homes::Homes, peers::Peers, rpc::capture::CaptureService};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::harness::{MemoryCursors, Node, Shop, serve};

/// The agreed state, in memory.
#[derive(Debug)]
pub(crate) struct Agreement {
    apply: Mutex<()>,
    state: watch::Sender<Arc<State>>,
}

impl Agreement {
    /// Applies all of them before anybody sees one.
    pub(crate) fn agree_at_once(&self, commands: impl IntoIterator<Item = Command>) {
        let _one = self.apply.lock().unwrap();
        let mut state = State::clone(&self.state.borrow());
        for command in commands {
            state.apply(command).unwrap();
        }
        self.state.send_replace(Arc::new(state));
    }
}

#[async_trait]
impl Consensus for Agreement {
    async fn propose(&self, command: Command) -> Result<Answer, ProposeError> {
        let _one = self.apply.lock().unwrap();
        let mut state = State::clone(&self.state.borrow());
        let answer = state.apply(command)?;
        self.state.send_replace(Arc::new(state));
        Ok(answer)
    }

    fn state(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        watch::channel(Leadership::alone("n1")).1
    }

    async fn confirm_leadership(&self) -> Result<(), ProposeError> {
        Ok(())
    }
}

/// The members.
pub(crate) struct Members {
    pub(crate) agreement: Arc<Agreement>,
    pub(crate) nodes: BTreeMap<&'static str, Node>,
    pub(crate) homes: BTreeMap<&'static str, Homes>,
    relays: BTreeMap<&'static str, Relay>,
}

impl Members {
    pub(crate) async fn start(names: &[&'static str]) -> Self {
        let (state, _) = watch::channel(Arc::default());
        let agreement = Arc::new(Agreement {
            apply: Mutex::default(),
            state,
        });
        let source = Command::AddSource(Box::new(source()));
        agreement.propose(source).await.unwrap();
        let log = MemoryLog::new(MemoryLogOptions::default());
        let cursors = Arc::<MemoryCursors>::default();
        let mut members = Self {
            agreement,
            nodes: BTreeMap::new(),
            homes: BTreeMap::new(),
            relays: BTreeMap::new(),
        };
        for name in names {
            members.add(name, &log, &cursors).await;
        }
        members
    }

    async fn add(
        &mut self,
        name: &'static str,
        log: &Arc<MemoryLog>,
        cursors: &Arc<MemoryCursors>,
    ) {
        let store: Arc<MemoryCursors> = Arc::clone(cursors);
        let gateway = GatewayHandle::start(
            Arc::new(Shop(Arc::clone(log))),
            store,
            Arc::new(NoRanges),
            GatewayLimits::default(),
        );
        let config = Config::from_text("test.toml", "").unwrap();
        let peers = Peers::new(&config).unwrap();
        let consensus: Arc<Agreement> = Arc::clone(&self.agreement);
        let homes = Homes::start(name, consensus, gateway.clone(), peers);
        let service = CaptureService::with_homes(gateway.clone(), homes.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay::start(listener.local_addr().unwrap());
        let member = Command::AddNode(Member {
            name: name.to_owned(),
            id: self.nodes.len() as u64 + 1,
            address: relay.address.to_string(),
            joined_at: PgTime(0),
        });
        self.agreement.propose(member).await.unwrap();
        let shared = (Arc::clone(log), Arc::clone(cursors));
        let node = serve(listener, service, gateway, shared).await;
        self.nodes.insert(name, node);
        self.homes.insert(name, homes);
        self.relays.insert(name, relay);
    }

    pub(crate) fn node(&self, name: &str) -> &Node {
        &self.nodes[name]
    }

    /// The one whose writer is the newest.
    pub(crate) fn writer(&mut self) -> &mut Node {
        let last = self.nodes.len() - 1;
        self.nodes.values_mut().nth(last).unwrap()
    }

    /// Ends a member for the others; its own consumers see nothing of it.
    pub(crate) fn cut_off(&mut self, name: &str) {
        let relay = self.relays.remove(name).unwrap();
        relay.stop();
    }

    /// Waits until the state has this home for `shop`.
    pub(crate) async fn home_is(&self, home: Option<&str>) {
        let mut state = self.agreement.state();
        let is_so = |state: &Arc<State>| state.homes.values().next().map(String::as_str) == home;
        let came = tokio::time::timeout(crate::harness::PATIENCE, state.wait_for(is_so)).await;
        drop(came.expect("the home is as it should be").unwrap());
    }
}

/// Passes bytes on to one address.
struct Relay {
    address: SocketAddr,
    stop: DropGuard,
    thread: std::thread::JoinHandle<()>,
}

impl Relay {
    fn start(to: SocketAddr) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = relay(listener, to) => {}
                    () = stopped.cancelled() => {}
                }
            });
        });
        let stop = stop.drop_guard();
        Self {
            address,
            stop,
            thread,
        }
    }

    /// Returns when every socket is closed.
    fn stop(self) {
        drop(self.stop);
        self.thread.join().unwrap();
    }
}

async fn relay(listener: std::net::TcpListener, to: SocketAddr) {
    let listener = TcpListener::from_std(listener).unwrap();
    let mut connections = JoinSet::new();
    loop {
        let (mut inbound, _) = listener.accept().await.unwrap();
        connections.spawn(async move {
            let mut outbound = TcpStream::connect(to).await?;
            tokio::io::copy_bidirectional(&mut inbound, &mut outbound).await
        });
    }
}

fn source() -> Source {
    Source {
        name: "shop".to_owned(),
        stream: "shop".to_owned(),
        url: "postgres://pgcapture@db/shop".to_owned(),
        password: None,
        slot: "slot".to_owned(),
        publication: "publication".to_owned(),
        tables: vec!["public.*".to_owned()],
        exclude: Vec::new(),
        paused: false,
        epoch: Epoch(0),
        created_at: PgTime(0),
        on_gap: OnGap::Halt,
        origin: Origin::Command,
        owns_publication: true,
    }
}
