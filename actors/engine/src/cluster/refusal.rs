//! Why the agreed state refuses a command. A part of what nodes say to each other: new variants go to
//! the end.

use serde::{Deserialize, Serialize};

use super::{DumpRefusal, InvalidName, NODES_MAX, ReplicaRefusal, SOURCES_MAX};
use crate::checkpoint::Epoch;

/// Why a command was refused; the state did not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// There is no such source.
    #[error("unknown source \"{name}\"; known sources: {known}")]
    UnknownSource {
        /// What was asked for.
        name: String,
        /// What exists, joined by commas, or "none yet".
        known: String,
    },
    /// A different source has that name.
    #[error("source \"{name}\" exists already with another definition")]
    SourceExists {
        /// The name.
        name: String,
    },
    /// Another source feeds that stream.
    #[error("stream \"{stream}\" is fed by source \"{source_name}\"")]
    StreamTaken {
        /// The stream.
        stream: String,
        /// Who feeds it.
        source_name: String,
    },
    /// Another source reads that slot.
    #[error("slot \"{slot}\" is read by source \"{source_name}\"")]
    SlotTaken {
        /// The slot.
        slot: String,
        /// Who reads it.
        source_name: String,
    },
    /// A name breaks the rules.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// Somebody else began an epoch meanwhile.
    #[error("source \"{name}\" is at epoch {epoch} already")]
    EpochMoved {
        /// The source.
        name: String,
        /// Its epoch.
        epoch: Epoch,
    },
    /// Another node has that name.
    #[error("a node \"{name}\" belongs to the cluster already")]
    NodeExists {
        /// The name.
        name: String,
    },
    /// The cluster is full of nodes.
    #[error("there are {NODES_MAX} nodes already, which is the limit")]
    TooManyNodes,
    /// The cluster is full.
    #[error("there are {SOURCES_MAX} sources already, which is the limit")]
    TooManySources,
    /// It is about a replica.
    #[error(transparent)]
    Replica(#[from] ReplicaRefusal),
    /// It is about a dump.
    #[error(transparent)]
    Dump(#[from] DumpRefusal),
    /// A new node gets the number after the newest, which was another one by then.
    #[error("node \"{name}\" cannot have the number {id}: the next one is {next}")]
    NodeNumber {
        /// The node's name.
        name: String,
        /// The number that was proposed.
        id: u64,
        /// The number that it may have.
        next: u64,
    },
    /// That version of the protocol between nodes is not agreed on, or not by these nodes.
    #[error(
        "version {wanted} of the protocol is not for this cluster now: it has agreed on {agreed}"
    )]
    Protocol {
        /// What was to be, or what the command came with.
        wanted: u32,
        /// What is agreed on.
        agreed: u32,
    },
}
