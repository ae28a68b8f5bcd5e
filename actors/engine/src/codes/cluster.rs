//! Nodes that agree with each other: the codes `PGC-R…`.

use super::Explanation;

/// No majority.
pub const NO_QUORUM: Explanation = Explanation {
    code: "PGC-R01",
    title: "no majority of the nodes can be reached",
    text: "A change of the agreed state counts once a majority of the voting nodes has it. No leader \
           answered within the deadline. The change may still happen when the nodes reach each other \
           again; asking for the same again is harmless.",
    next: "look at `pgcapture cluster status` on several nodes, start those that are down, and try \
           again",
};

/// Too large.
pub const TOO_LARGE: Explanation = Explanation {
    code: "PGC-R02",
    title: "the change is too large to be agreed on",
    text: "A change travels as one entry of the nodes' common log, which has a limit. Nothing \
           changed.",
    next: "split it: fewer tables in one dump, or patterns instead of lists",
};

/// Another cluster.
pub const OTHER_CLUSTER: Explanation = Explanation {
    code: "PGC-R03",
    title: "the node belongs to another cluster",
    text: "Every cluster has an identity that is made with it. A node with the data of one cluster \
           never speaks to the nodes of another: their logs have nothing in common.",
    next: "check [node] peers and listen; to move a node to another cluster, remove it there and give \
           it an empty [node] data_dir",
};

/// Another protocol.
pub const OTHER_PROTOCOL: Explanation = Explanation {
    code: "PGC-R04",
    title: "the node speaks another version of the protocol between nodes",
    text: "The versions of the two nodes are too far apart to work together.",
    next: "upgrade the older node",
};

/// The name is taken.
pub const NAME_TAKEN: Explanation = Explanation {
    code: "PGC-R05",
    title: "a node of that name belongs to the cluster already",
    text: "Either two nodes have one name, or a node lost its data directory. One that lost its \
           data may not come back under its old place: it would have forgotten what it promised.",
    next: "give the node another [node] name; or, if its data is lost, run `pgcapture cluster remove \
           NAME` and start it again",
};

/// The node was removed.
pub const REMOVED: Explanation = Explanation {
    code: "PGC-R06",
    title: "the node does not belong to the cluster any more",
    text: "It was removed from the cluster that its data directory belongs to.",
    next: "give it an empty [node] data_dir to join again",
};

/// The name changed.
pub const NAME_CHANGED: Explanation = Explanation {
    code: "PGC-R07",
    title: "the node's name is not the one that its cluster knows",
    text: "A node keeps the name under which it joined: sources are assigned to it by name.",
    next: "set [node] name to the name in the message, or join anew with an empty [node] data_dir",
};

/// The change of members cannot be done.
pub const BAD_CHANGE: Explanation = Explanation {
    code: "PGC-R08",
    title: "the members of the cluster cannot be changed like that",
    text: "The node is unknown, is the last one that votes, or does not vote yet.",
    next: "`pgcapture cluster status` shows who belongs to the cluster and how",
};

/// No peer let it in.
pub const NOT_JOINED: Explanation = Explanation {
    code: "PGC-R09",
    title: "the node did not find its cluster",
    text: "The data directory is empty and [node] peers names other nodes. The first of the list \
           begins a cluster once every other one has answered; the others wait for it.",
    next: "start the other nodes of [node] peers, and check that every node lists the same addresses",
};

/// Asked a node that does not lead.
pub const NOT_LEADING: Explanation = Explanation {
    code: "PGC-R12",
    title: "the node does not lead the cluster",
    text: "What one node does for all others, hearing who lives and handing out work, is done by the \
           leader of the Raft group. Nodes follow it by themselves.",
    next: "`pgcapture cluster status` shows who leads; ask there",
};

/// The cluster was recovered without the node.
pub const RECOVERED: Explanation = Explanation {
    code: "PGC-R15",
    title: "the cluster was recovered without this node",
    text: "`pgcapture cluster recover` let another node go on alone. What this node has was agreed on by \
           the cluster before that and may contradict what was agreed on since.",
    next: "give the node an empty [node] data_dir, with the recovered nodes in [node] peers: it joins again",
};

/// Nothing to recover.
pub const NOTHING_TO_RECOVER: Explanation = Explanation {
    code: "PGC-R16",
    title: "there is nothing to recover",
    text: "Recovery makes one survivor of a cluster that lost its majority go on alone. The data directory \
           must be that of a stopped node that had others beside it.",
    next: "check [node] data_dir of the file given with -c, and start the node if it is alone already",
};

/// A node that would be dropped is alive.
pub const STILL_ALIVE: Explanation = Explanation {
    code: "PGC-R17",
    title: "a node that would be dropped may be alive",
    text: "Something takes connections at its address. While a majority lives the cluster works, and a \
           second one beside it would agree on something else. Nothing was changed.",
    next: "start this node and look at `pgcapture cluster status`; if the others are really lost, stop \
           what listens there, or pass --force",
};

/// No room for more.
pub const STATE_FULL: Explanation = Explanation {
    code: "PGC-R18",
    title: "the cluster has no room for more sources, replicas or consumers",
    text: "Everything that nodes agree on, but for cursors and dumps, is one value of at most 16 MiB. From 12 \
           MiB on nothing is added to it: no source, no replica, and no consumer that has no open session \
           yet. All that is there goes on. A source takes some 200 bytes and the length of its table lists, a \
           consumer with an open session some 30 bytes and its names.",
    next: "`pgcapture_raft_state_bytes` shows the size; use patterns instead of long table lists, close \
           sessions that are not needed, or divide the sources between two clusters",
};

/// Not the same list of peers everywhere.
pub const PEERS_DIFFER: Explanation = Explanation {
    code: "PGC-R13",
    title: "the nodes were told different lists of peers",
    text: "Every node is told the same [node] peers, each node in it under the address that it \
           advertises. While no cluster has begun, nodes whose lists differ wait: two of them might \
           begin one each. Afterwards it is a warning: a node that starts anew might not find the others.",
    next: "write the same [node] peers in the same order on every node, and set [node] advertise to the \
           address in that list; then start the nodes that differed again",
};

/// Every code of the family.
pub const ALL: &[&Explanation] = &[
    &NO_QUORUM,
    &TOO_LARGE,
    &OTHER_CLUSTER,
    &OTHER_PROTOCOL,
    &NAME_TAKEN,
    &REMOVED,
    &NAME_CHANGED,
    &BAD_CHANGE,
    &NOT_JOINED,
    &NOT_LEADING,
    &RECOVERED,
    &NOTHING_TO_RECOVER,
    &STILL_ALIVE,
    &PEERS_DIFFER,
    &STATE_FULL,
];
