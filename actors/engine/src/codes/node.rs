//! The node and its command line: the codes `PGC-N…`.

use super::Explanation;

/// Another node has the data directory.
pub const DATA_DIR_IN_USE: Explanation = Explanation {
    code: "PGC-N01",
    title: "the data directory is in use by another node",
    text: "A node holds a lock on node.lock in its data directory. Two nodes on one directory \
           would write the same log.",
    next: "stop the other node, or give this one its own [node] data_dir",
};

/// The data directory is of a newer version.
pub const NEWER_STORE: Explanation = Explanation {
    code: "PGC-N02",
    title: "the data directory was written by a newer pgcapture",
    text: "Formats only go forward: an older program would misread what a newer one wrote. \
           Nothing was changed.",
    next: "start the newer version again, or restore the directory from before the upgrade",
};

/// The data directory cannot be written.
pub const DATA_DIR_UNWRITABLE: Explanation = Explanation {
    code: "PGC-N03",
    title: "the data directory cannot be written",
    text: "The directory cannot be created, is on a read-only file system, or belongs to another \
           user.",
    next: "check owner and mount of [node] data_dir, or name another directory",
};

/// The store's disk is full or broken.
pub const STORE_FAILED: Explanation = Explanation {
    code: "PGC-N04",
    title: "the node's store cannot be written",
    text: "The disk under the data directory is full or failed. Acknowledgements do not count and \
           sources cannot be changed until it takes writes again; nothing that was confirmed is \
           lost.",
    next: "free space under [node] data_dir, and it goes on; a disk that failed otherwise must be \
           replaced, and the node restarted",
};

/// The store's contents are damaged.
pub const STORE_DAMAGED: Explanation = Explanation {
    code: "PGC-N05",
    title: "the node's store is damaged",
    text: "node.redb does not hold what a node wrote: a page is not what its checksum says, the file \
           ends too early, or a write that was on disk is missing, as in an older copy (node.attested \
           counts them). Nothing of it was used. A node of a cluster must not go on with less than it \
           promised: it could vote twice. The log of changes is kept apart and is not affected.",
    next: "in a cluster: pgcapture cluster remove NAME on another node, move the data directory away \
           and start: it joins anew and gets everything from the others. A node that is alone: \
           restore node.redb from a copy and delete node.attested; or move both away and add the \
           sources again: the log and the slots are found again, the positions of consumers are not",
};

/// An address cannot be bound.
pub const ADDRESS_IN_USE: Explanation = Explanation {
    code: "PGC-N06",
    title: "an address cannot be listened on",
    text: "Another program listens there, or the address is not one of this machine.",
    next: "choose another [node] listen or metrics address, or stop the other program",
};

/// The node cannot be reached.
pub const UNREACHABLE: Explanation = Explanation {
    code: "PGC-N07",
    title: "the node cannot be reached",
    text: "No connection to the endpoint, or no answer within --timeout.",
    next: "is the node running? try `pgcapture dev` or `pgcapture start`, or name it with \
           --endpoint",
};

/// Token missing or wrong.
pub const DENIED: Explanation = Explanation {
    code: "PGC-N08",
    title: "access denied",
    text: "The node asks for a token, and none or a wrong one was sent.",
    next: "pass --token-file FILE or set PGCAPTURE_TOKEN_FILE",
};

/// A destructive command without consent.
pub const NEEDS_YES: Explanation = Explanation {
    code: "PGC-N09",
    title: "the command destroys something and was not confirmed",
    text: "The command printed what it would do and did nothing.",
    next: "run it again with --yes",
};

/// No such source, stream or consumer.
pub const NOT_FOUND: Explanation = Explanation {
    code: "PGC-N10",
    title: "there is nothing of that name",
    text: "The node knows no source, stream, slot or consumer of that name.",
    next: "`pgcapture source ls`, `pgcapture stream ls` and `pgcapture consumer ls` list them",
};

/// A name is taken or an object is in the way.
pub const CONFLICT: Explanation = Explanation {
    code: "PGC-N11",
    title: "the change conflicts with what exists",
    text: "A source, stream or slot of that name exists with another definition, or a consumer \
           that was to be moved has open sessions.",
    next: "look at it with `pgcapture source show` or `pgcapture consumer show`, then choose \
           another name or stop what uses it",
};

/// A request makes no sense.
pub const BAD_REQUEST: Explanation = Explanation {
    code: "PGC-N12",
    title: "the request cannot be understood",
    text: "A name, position, pattern or url in the request does not follow its grammar.",
    next: "correct what the message names; `--help` shows the grammar of every argument",
};

/// PostgreSQL for `dev` cannot be started.
pub const NO_POSTGRES: Explanation = Explanation {
    code: "PGC-N13",
    title: "no PostgreSQL could be started",
    text: "`pgcapture dev` starts its own PostgreSQL from installed programs and found none that \
           works.",
    next: "install PostgreSQL 14 or newer (Debian: apt install postgresql), or pass --pg-bin DIR, \
           or use a running server with --pg URL",
};

/// The stop took longer than allowed.
pub const UNCLEAN_STOP: Explanation = Explanation {
    code: "PGC-N14",
    title: "the node did not stop in time",
    text: "Sessions or agents did not end within the deadline and were cut off. Nothing is lost: \
           the next start goes on from what is durable.",
    next: "look at the lines before this one for what did not end",
};

/// A source's log cannot be opened.
pub const LOG_DAMAGED: Explanation = Explanation {
    code: "PGC-N15",
    title: "the log of a source cannot be opened",
    text: "Something that was durable in the log is damaged or missing. The source is not captured \
           until an operator decides; its slot keeps the WAL meanwhile.",
    next: "look at the file that the message names; restore it, or remove the source and add it \
           again, which begins a new log",
};

/// No cluster of `pgcapture dev` to control.
pub const NO_DEV: Explanation = Explanation {
    code: "PGC-N16",
    title: "no cluster of `pgcapture dev` runs there",
    text: "`pgcapture dev --nodes 3` listens on a socket in the temporary folder, named after the port \
           of its first node. There is none for that port, or another user owns it.",
    next: "run `pgcapture dev --nodes 3`, or name the port of the first node with --port",
};

/// A node of `pgcapture dev` that is not as it must be.
pub const DEV_NODE: Explanation = Explanation {
    code: "PGC-N17",
    title: "a node of `pgcapture dev` is not as it must be for that",
    text: "There is no such node, it is dead, frozen or alive already, or it did not start.",
    next: "`pgcapture dev status` shows all nodes",
};

/// The node that owns the source is away.
pub const OWNER_AWAY: Explanation = Explanation {
    code: "PGC-N18",
    title: "the node that has to answer cannot be reached",
    text: "What is asked for is known to one node only: the one that runs the source's agent, the one \
           that keeps the subscription, or the leader of the cluster. It did not answer the node that \
           was asked. If it is gone, another one runs the source, or leads, within seconds; a \
           subscription is taken over by the node that is asked to change it, once the one that keeps \
           it refuses connections or has been silent for some seconds.",
    next: "try again in some seconds; `pgcapture cluster status` shows which nodes live",
};

/// The cluster is not healthy.
pub const NOT_HEALTHY: Explanation = Explanation {
    code: "PGC-N19",
    title: "the cluster is not healthy",
    text: "Healthy means: a leader is known, every member lives, and every source that is not paused \
           is read by its owner.",
    next: "look at the lines above; wait for it with `pgcapture cluster health --until healthy`",
};

/// Every code of the family.
pub const ALL: &[&Explanation] = &[
    &DATA_DIR_IN_USE,
    &NEWER_STORE,
    &DATA_DIR_UNWRITABLE,
    &STORE_FAILED,
    &STORE_DAMAGED,
    &ADDRESS_IN_USE,
    &UNREACHABLE,
    &DENIED,
    &NEEDS_YES,
    &NOT_FOUND,
    &CONFLICT,
    &BAD_REQUEST,
    &NO_POSTGRES,
    &UNCLEAN_STOP,
    &LOG_DAMAGED,
    &NO_DEV,
    &DEV_NODE,
    &OWNER_AWAY,
    &NOT_HEALTHY,
];
