//! The change log: the codes `PGC-L…`.

use super::Explanation;

/// No space left on the disk of the log.
pub const DISK_FULL: Explanation = Explanation {
    code: "PGC-L01",
    title: "no space left for the log",
    text: "The disk of the log, or its quota, is full. Nothing is lost: what is not durable is \
           kept in memory, nothing is confirmed to PostgreSQL, and the source keeps its WAL, which \
           grows meanwhile. Consumers go on reading what the log holds.",
    next: "free space on that disk, or lower the retention of the source; the log goes on by \
           itself within a second",
};

/// A write or a sync failed.
pub const WRITE_FAILED: Explanation = Explanation {
    code: "PGC-L02",
    title: "the log cannot be written",
    text: "The operating system refused a write or an fsync. After a failed fsync the kernel may \
           have dropped the data and call it clean, so that trying again would prove nothing: the \
           log stops. Everything that was acknowledged is on disk.",
    next: "look into the kernel log for errors of the device; then pgcapture source pause and \
           resume, or a restart of the node: the log is opened again and checked",
};

/// Stored bytes do not match their checksum.
pub const CORRUPT: Explanation = Explanation {
    code: "PGC-L03",
    title: "the log is damaged",
    text: "Bytes that were durable do not match their checksum or are missing. No damaged byte is \
           ever delivered. A write that a crash interrupted is not damage: it is cut when the log \
           is opened.",
    next: "restore the directory of the log from a backup, or move it away and start the source \
           again: consumers then see a declared gap",
};

/// Another process has the log open.
pub const IN_USE: Explanation = Explanation {
    code: "PGC-L04",
    title: "the log is in use by another process",
    text: "The directory of a log belongs to one process at a time, which holds a lock on it for \
           as long as it runs.",
    next: "stop the other pgcapture, or give this one a directory of its own",
};

/// Files of a newer version.
pub const NEWER_VERSION: Explanation = Explanation {
    code: "PGC-L05",
    title: "the log was written by a newer pgcapture",
    text: "The format version in a segment is newer than this program knows.",
    next: "start the newer version again, or move the directory of the log away",
};

/// Retention has removed the position.
pub const REMOVED: Explanation = Explanation {
    code: "PGC-L06",
    title: "retention has removed the position",
    text: "What was asked for was in the log and is no longer: retention by size or by time has \
           removed it.",
    next: "start at the earliest position and dump the tables again; raise the retention of the \
           source if consumers stay away for long",
};

/// A newer epoch holds the log.
pub const FENCED: Explanation = Explanation {
    code: "PGC-L07",
    title: "a newer writer holds the log",
    text: "Every writer of a log has an epoch, and a newer epoch refuses the older ones. This \
           keeps a paused or cut off agent from writing after it was replaced.",
    next: "nothing: the older agent ends by itself; if it happens again and again, look for two \
           agents of one source",
};

/// The directory cannot be used.
pub const UNUSABLE: Explanation = Explanation {
    code: "PGC-L08",
    title: "the directory of the log cannot be used",
    text: "A file or the directory could not be created, read or written.",
    next: "check that the directory exists, belongs to the user of pgcapture and is not mounted \
           read-only",
};

/// The node that runs the source cannot be reached.
pub const OWNER_AWAY: Explanation = Explanation {
    code: "PGC-L09",
    title: "the node that runs the source cannot be reached",
    text: "The log of a source lies on the node that runs its agent, and other nodes read it there. \
           That node cannot be reached now, or no node runs the source. Sessions wait: they go on \
           where they are, without a reconnect, as soon as a node does.",
    next: "nothing for some seconds, another node takes over; if it stays so, look at `pgcapture \
           source show` for the owner and at that node",
};

/// Every code of the family.
pub const ALL: &[&Explanation] = &[
    &DISK_FULL,
    &WRITE_FAILED,
    &CORRUPT,
    &IN_USE,
    &NEWER_VERSION,
    &REMOVED,
    &FENCED,
    &UNUSABLE,
    &OWNER_AWAY,
];
