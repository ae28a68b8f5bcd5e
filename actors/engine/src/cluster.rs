//! What a cluster has agreed on: its sources, their epochs, the declared gaps, its replicas and dumps.
//!
//! [`State::apply`] is the only way to change it and is deterministic: the same commands in the
//! same order make the same state on every node, today behind one node's store, later behind Raft.
//! Times and names come in with the command. It never reaches PostgreSQL, a file or a clock.
//!
//! # Invariants
//!
//! - The epoch of a source name only grows, even when the source is removed and added again.
//! - No two sources share a stream, nor a slot on the same server.

mod source;

mod cursor;

mod node;

mod gap;

mod slot;

pub mod liveness;

pub mod placement;

mod home;

mod route;

mod replica;

mod dump;

mod answered;

mod agreed;

mod protocol;

mod publication;

mod refusal;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use self::{
    agreed::{Agreed, Outcome, Request, Touched},
    answered::{ANSWERED_MAX, Answered, RequestId},
    cursor::{ACKED_RUNS_MAX, Cursor, CursorCommand, CursorTable, SubscriptionId},
    dump::{
        COOL_DOWN_MAX, COOL_DOWNS_MAX, DUMP_RANGES_MAX, DUMP_TABLES_MAX, DUMPS_KEPT_MAX,
        DUMPS_OPEN_MAX, Dump, DumpAction, DumpCommand, DumpOptions, DumpRefusal, DumpRule,
        DumpState, DumpTable, FinishedRange, NewDump, NewLayout, PlannedTable, REPLANS_MAX,
        TableFailure, TableLayout, WantedPages,
    },
    home::{Home, HomeClaim, HomeCommand, Homes},
    node::{NODES_MAX, Node, RECOVERY_EPOCHS},
    protocol::{Added, PROTOCOL_FIRST, PROTOCOL_SECOND, Spoken, next_protocol},
    refusal::Refusal,
    replica::{
        DEFAULT_LAG_MAX, DEFAULT_RANGES_MAX, RANGES_MAX_LIMIT, REPLICAS_MAX, Replica, ReplicaKind,
        ReplicaRefusal,
    },
    route::Route,
    slot::LetGo,
    source::{InvalidName, OnGap, Origin, SecretRef, Source, check_name},
};
use crate::{
    checkpoint::{Checkpoint, Epoch},
    confirm,
    dump::DumpId,
    lsn::{Lsn, PgTime},
    wal_guard::WalWish,
};

/// A source keeps at most this many declared gaps; the oldest are forgotten. A gap is a disaster:
/// whoever has a thousand looks at the newest.
pub const GAPS_MAX: usize = 1_000;

/// All sources together keep at most this many gaps, of some fifty bytes each: the state stays far
/// below what a value of the store and a row of a snapshot may have. Beyond it those are forgotten
/// that are the oldest of whoever has most.
pub const GAPS_TOTAL_MAX: usize = 20_000;

/// At most this many sources; each costs two connections and a pipeline.
pub const SOURCES_MAX: usize = 1_000;

/// The agreed state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// All sources by name.
    pub sources: BTreeMap<String, Source>,
    /// Declared holes of each source, oldest first.
    pub gaps: BTreeMap<String, Vec<Gap>>,
    /// The newest epoch of every source name that ever existed.
    pub epochs: BTreeMap<String, Epoch>,
    /// All replicas by name.
    pub replicas: BTreeMap<String, Replica>,
    /// Pauses between ranges that were set for a subscription: its stream and its name.
    pub cool_downs: BTreeMap<(String, String), Duration>,
    /// The number of the newest dump that ever existed.
    pub last_dump: DumpId,
    /// All nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// The number of the newest node that ever joined; a removed one's is not given again.
    pub last_node: u64,
    /// Which node runs the agent of each source, under the source's epoch.
    pub owners: BTreeMap<String, String>,
    /// Up to where everything of a source is known to be consumed, as its agent has attested last.
    pub attested: BTreeMap<String, confirm::Origin>,
    /// The home of every subscription that has sessions.
    pub homes: Homes,
    /// What was said of each source about the WAL that may be kept for it.
    pub wal_wishes: BTreeMap<String, WalWish>,
    /// Up to where the slot of each source was let go by a decision, whatever consumers lacked.
    pub let_go: BTreeMap<String, LetGo>,
    /// How far all consumers of a stream had come when one of them went back, or began, behind that.
    pub reached: BTreeMap<String, Checkpoint>,
    /// The newest epoch of each source's name when it was added: what was written under it or before
    /// is of another source, which had that name earlier.
    pub since: BTreeMap<String, Epoch>,
    /// All dumps that are not forgotten. Not serialised with the rest: a store keeps one row each, and
    /// writes only those that changed, which it sees by the pointers.
    #[serde(skip)]
    pub dumps: BTreeMap<DumpId, Arc<Dump>>,
    /// What newer versions of the protocol have added. Not serialised with the rest either: a row of
    /// its own, which is not there while nodes of the first version take part.
    #[serde(skip)]
    pub added: Added,
}

/// A declared hole in a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Changes after this position may be missing.
    pub from: Lsn,
    /// Changes before this position may be missing; `None` while the end is not known.
    pub to: Option<Lsn>,
    /// A stable word, such as `slot_lost`.
    pub reason: String,
    /// When it was declared.
    pub declared_at: PgTime,
}

/// A wish to change the state. Applied whole or refused whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Adds a source. The same source again is accepted and changes nothing.
    AddSource(Box<Source>),
    /// Removes a source, its gaps, replicas, dumps and consumers included. Its epoch is remembered.
    RemoveSource {
        /// Which.
        name: String,
    },
    /// Pauses a source or lets it go on. Idempotent.
    SetPaused {
        /// Which.
        name: String,
        /// Whether it shall rest.
        paused: bool,
    },
    /// Begins a new epoch of a source: the right of one node to run its agent. Refused when the
    /// epoch has moved meanwhile, so that two who act on the same knowledge do not both succeed.
    Assign {
        /// Which.
        name: String,
        /// To which node.
        node: String,
        /// The epoch that the proposer knows.
        after: Epoch,
    },
    /// Replaces where a source connects to; the answer to a moved server or a new password.
    SetConnection {
        /// Which.
        name: String,
        /// New address, without a password.
        url: String,
        /// Where the password is.
        password: Option<SecretRef>,
    },
    /// Declares a hole. The same hole again changes nothing.
    DeclareGap {
        /// In which source.
        name: String,
        /// The hole.
        gap: Gap,
    },
    /// Adds a replica. The same replica again is accepted and changes nothing.
    AddReplica(Box<Replica>),
    /// Removes a replica; ranges are read from it no more.
    RemoveReplica {
        /// Which.
        name: String,
    },
    /// Records that all subscriptions of a source have consumed everything before a place. Refused
    /// for another epoch than the newest: an agent that was replaced attests nothing.
    Attest {
        /// Of which source.
        name: String,
        /// The agent's epoch.
        epoch: Epoch,
        /// The place.
        origin: confirm::Origin,
    },
    /// Does something about dumps.
    Dump(DumpCommand),
    /// Adds a node, or changes where it is reached. The same node again changes nothing. A new one is
    /// refused unless it has the number after the newest.
    AddNode(Node),
    /// Forgets a node. The second time changes nothing.
    RemoveNode {
        /// Which.
        name: String,
    },
    /// Gives subscriptions a home, or takes it.
    Home(HomeCommand),
    /// Adds a source together with what is said about its WAL. The same again changes nothing.
    AddGuardedSource {
        /// The source.
        source: Box<Source>,
        /// What is said.
        wish: WalWish,
    },
    /// Says how much WAL may be kept for a source. Idempotent.
    SetWalGuard {
        /// Which.
        name: String,
        /// What is said; nothing leaves it to the node.
        wish: WalWish,
    },
    /// Records that the slot of a source is let go up to a place by a decision, whatever consumers
    /// lack: the next owner declares to them what it cannot give and goes on. Refused for another epoch
    /// than the newest.
    LetGo {
        /// Of which source.
        name: String,
        /// The agent's epoch.
        epoch: Epoch,
        /// How far and why.
        let_go: LetGo,
    },
    /// Raises the version of the protocol between nodes by one. Refused when there is a node that was
    /// not asked. Idempotent.
    RaiseProtocol {
        /// The next version.
        to: u32,
        /// The numbers of all nodes, every one of which speaks it.
        nodes: BTreeSet<u64>,
    },
    /// Records which publication a source is captured with. Refused for another epoch than the newest,
    /// and before version 2 of the protocol. Idempotent.
    KeepPublication {
        /// Of which source.
        name: String,
        /// The agent's epoch.
        epoch: Epoch,
        /// Its OID: one that was dropped and made anew has another.
        oid: u32,
    },
    /// Limits what all dumps together may read from a replica a second. Refused for a replica that is not
    /// there, and before version 2 of the protocol. Idempotent.
    SetReplicaRate {
        /// The replica's name.
        name: String,
        /// Bytes of rows; `None` takes the limit away.
        rate: Option<u64>,
    },
}

/// What nodes agree on, one after the other: an entry of their common log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proposal {
    /// Changes the state.
    State(Command),
    /// Moves cursors.
    Cursors(CursorCommand),
}

/// What an accepted command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The state changed.
    Done,
    /// It was so already.
    Unchanged,
    /// The new epoch.
    Assigned(Epoch),
    /// The new dump.
    DumpCreated(DumpId),
}

impl State {
    /// Applies a command.
    ///
    /// # Errors
    ///
    /// [`Refusal`]; the state is then as it was.
    pub fn apply(&mut self, command: Command) -> Result<Answer, Refusal> {
        match command {
            Command::AddSource(source) => self.add_source(*source),
            Command::RemoveSource { name } => self.remove_source(&name),
            Command::SetPaused { name, paused } => {
                let source = self.source_mut(&name)?;
                let before = std::mem::replace(&mut source.paused, paused);
                Ok(changed(before != paused))
            }
            Command::Assign { name, node, after } => self.assign(&name, node, after),
            Command::SetConnection {
                name,
                url,
                password,
            } => {
                let source = self.source_mut(&name)?;
                let is_new = source.url != url || source.password != password;
                source.url = url;
                source.password = password;
                Ok(changed(is_new))
            }
            Command::DeclareGap { name, gap } => self.declare_gap(&name, gap),
            Command::AddReplica(replica) => self.add_replica(*replica),
            Command::RemoveReplica { name } => self.remove_replica(&name),
            Command::Attest {
                name,
                epoch,
                origin,
            } => self.attest(&name, epoch, origin),
            Command::Dump(command) => self.apply_dump(command),
            Command::AddNode(node) => self.add_node(node),
            Command::RemoveNode { name } => Ok(self.remove_node(&name)),
            Command::Home(command) => Ok(self.apply_home(command)),
            Command::AddGuardedSource { source, wish } => {
                let name = source.name.clone();
                let added = self.add_source(*source)?;
                // Of a source that is there, nothing said leaves what was said.
                if added == Answer::Unchanged && wish == WalWish::default() {
                    return Ok(added);
                }
                let said = self.set_wal_guard(&name, wish)?;
                Ok(changed(added == Answer::Done || said == Answer::Done))
            }
            Command::SetWalGuard { name, wish } => self.set_wal_guard(&name, wish),
            Command::LetGo {
                name,
                epoch,
                let_go,
            } => self.let_slot_go(&name, epoch, let_go),
            Command::RaiseProtocol { to, nodes } => self.raise_protocol(to, &nodes),
            Command::KeepPublication { name, epoch, oid } => {
                self.keep_publication(&name, epoch, oid)
            }
            Command::SetReplicaRate { name, rate } => self.set_replica_rate(&name, rate),
        }
    }

    /// Finds the source that feeds a stream.
    #[must_use]
    pub fn source_of_stream(&self, stream: &str) -> Option<&Source> {
        self.sources.values().find(|source| source.stream == stream)
    }

    /// Finds a source.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownSource`], which names those that exist.
    pub fn source(&self, name: &str) -> Result<&Source, Refusal> {
        self.sources.get(name).ok_or_else(|| self.unknown(name))
    }

    /// Returns the names of all sources, joined by commas, or "none yet".
    #[must_use]
    pub fn known_sources(&self) -> String {
        join(self.sources.keys().map(String::as_str))
    }

    /// Returns the names of all streams, joined by commas, or "none yet".
    #[must_use]
    pub fn known_streams(&self) -> String {
        join(self.sources.values().map(|source| source.stream.as_str()))
    }

    fn unknown(&self, name: &str) -> Refusal {
        Refusal::UnknownSource {
            name: name.to_owned(),
            known: self.known_sources(),
        }
    }

    fn source_mut(&mut self, name: &str) -> Result<&mut Source, Refusal> {
        let refusal = self.unknown(name);
        self.sources.get_mut(name).ok_or(refusal)
    }

    fn add_source(&mut self, mut source: Source) -> Result<Answer, Refusal> {
        check_name("source", &source.name)?;
        check_name("stream", &source.stream)?;
        source.epoch = self.epochs.get(&source.name).copied().unwrap_or_default();
        if let Some(existing) = self.sources.get(&source.name) {
            return if existing.is_same_capture(&source) {
                Ok(Answer::Unchanged)
            } else {
                Err(Refusal::SourceExists { name: source.name })
            };
        }
        if let Some(other) = self.source_of_stream(&source.stream) {
            return Err(Refusal::StreamTaken {
                stream: source.stream,
                source_name: other.name.clone(),
            });
        }
        let same_slot = |other: &&Source| other.url == source.url && other.slot == source.slot;
        if let Some(other) = self.sources.values().find(same_slot) {
            return Err(Refusal::SlotTaken {
                slot: source.slot,
                source_name: other.name.clone(),
            });
        }
        if self.sources.len() >= SOURCES_MAX {
            return Err(Refusal::TooManySources);
        }
        self.since.insert(source.name.clone(), source.epoch);
        self.sources.insert(source.name.clone(), source);
        Ok(Answer::Done)
    }

    fn remove_source(&mut self, name: &str) -> Result<Answer, Refusal> {
        let source = self
            .sources
            .remove(name)
            .ok_or_else(|| self.unknown(name))?;
        self.epochs.insert(source.name.clone(), source.epoch);
        self.gaps.remove(name);
        self.owners.remove(name);
        self.since.remove(name);
        self.attested.remove(name);
        self.wal_wishes.remove(name);
        self.let_go.remove(name);
        self.added.publications.remove(name);
        self.reached.remove(&source.stream);
        self.replicas.retain(|_, replica| replica.source != name);
        let (rates, replicas) = (&mut self.added.replica_rates, &self.replicas);
        rates.retain(|replica, _| replicas.contains_key(replica));
        self.dumps.retain(|_, dump| dump.source != name);
        self.homes.retain(|id, _| id.stream != source.stream);
        Ok(Answer::Done)
    }
}

const fn changed(is_changed: bool) -> Answer {
    if is_changed {
        Answer::Done
    } else {
        Answer::Unchanged
    }
}

fn join<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let joined = names.collect::<Vec<_>>().join(", ");
    if joined.is_empty() {
        "none yet".to_owned()
    } else {
        joined
    }
}

#[cfg(test)]
mod tests;
