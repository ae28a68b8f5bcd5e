//! Reading existing rows from a replica: the codes `PGC-E20` to `PGC-E39`.

use super::Explanation;

/// Every code of the family.
pub const ALL: &[&Explanation] = &[
    &REPLICA_UNREACHABLE,
    &NOT_A_STANDBY,
    &OTHER_SYSTEM,
    &REPLICA_BEHIND,
    &TABLE_REWRITTEN,
    &TABLE_MISSING,
    &TABLE_CHANGED,
    &NOT_PUBLISHED,
    &NO_SELECT,
    &ROW_SECURITY,
    &READ_CANCELLED,
    &REPLICA_LOST,
    &SNAPSHOT_WAITS,
    &NO_SNAPSHOT_SLOT,
    &ROW_UNREADABLE,
    &LOGICAL_REPLICA,
    &READ_REFUSED,
    &NO_HEAP,
    &NOT_IN_WAL,
    &REPLICA_TOO_OLD,
];

/// The replica cannot be reached.
pub const REPLICA_UNREACHABLE: Explanation = Explanation {
    code: "PGC-E20",
    title: "the replica cannot be reached",
    text: "No connection or no login. Its ranges wait, or go to another replica of the source; \
           changes flow on.",
    next: "check that the replica runs, its URL and pg_hba.conf; reading goes on by itself",
};

/// It is not a standby.
pub const NOT_A_STANDBY: Explanation = Explanation {
    code: "PGC-E21",
    title: "the replica is not a standby, or was promoted",
    text: "A standby replays the source's WAL, and the place up to which it has replayed is the \
           position of its rows. A server that is not in recovery has no such place: a promoted \
           one goes its own way from there on. Nothing is read from it.",
    next: "remove the replica and add a standby of the server that is the source now",
};

/// Another cluster.
pub const OTHER_SYSTEM: Explanation = Explanation {
    code: "PGC-E22",
    title: "the replica belongs to another source",
    text: "Its system identifier is not that of the source: it was made from another server, or \
           one of the two was made anew. Rows from there would be strangers in the stream.",
    next: "correct the URL of the replica, or make the standby anew from the source with \
           pg_basebackup",
};

/// Replay is behind what the session has delivered.
pub const REPLICA_BEHIND: Explanation = Explanation {
    code: "PGC-E23",
    title: "the replica is behind",
    text: "It has not yet replayed what the consumer has already got. Older rows would overwrite \
           newer ones, so the range waits.",
    next: "nothing, if it catches up; else look for a paused replay (pg_wal_replay_resume) or a \
           long query that holds it up (max_standby_streaming_delay)",
};

/// The rows lie elsewhere now.
pub const TABLE_REWRITTEN: Explanation = Explanation {
    code: "PGC-E24",
    title: "the table was rewritten since the dump was planned",
    text: "VACUUM FULL, CLUSTER, TRUNCATE or an ALTER TABLE gave the table a new file, in which \
           page numbers mean other rows. The table is planned anew.",
    next: "nothing: it is planned anew by itself",
};

/// The table is gone.
pub const TABLE_MISSING: Explanation = Explanation {
    code: "PGC-E25",
    title: "there is no such table",
    text: "It does not exist on the replica, or was dropped while the dump ran.",
    next: "correct the name; if the table was dropped on purpose, cancel the dump",
};

/// The name or place of the table is another one.
pub const TABLE_CHANGED: Explanation = Explanation {
    code: "PGC-E26",
    title: "the table is another one than when the dump was planned",
    text: "It was renamed, moved to another schema, attached to or detached from a partitioned \
           table, dropped and made again, or columns changed in the very moment. The table is \
           planned anew.",
    next: "nothing, if it has another name by purpose: start the dump again with that name",
};

/// Not in the publication.
pub const NOT_PUBLISHED: Explanation = Explanation {
    code: "PGC-E27",
    title: "the table is not in the publication of the source",
    text: "Its changes are not in the stream, so its existing rows would be a picture that nobody \
           keeps up to date.",
    next: "add it with ALTER PUBLICATION … ADD TABLE, then start the dump again",
};

/// No right to read.
pub const NO_SELECT: Explanation = Explanation {
    code: "PGC-E28",
    title: "the role may not read the table",
    text: "Reading existing rows takes the right SELECT on the table and USAGE on its schema. The \
           stream of changes needs neither.",
    next: "run GRANT SELECT ON TABLE … TO … (and GRANT USAGE ON SCHEMA) on the source",
};

/// Row level security.
pub const ROW_SECURITY: Explanation = Explanation {
    code: "PGC-E29",
    title: "row level security hides rows of the table from the role",
    text: "A dump with some rows left out would look like a whole one. The stream of changes is \
           not subject to row level security.",
    next: "run ALTER ROLE … BYPASSRLS on the source, or read as the owner of the table",
};

/// The server cancelled the reading.
pub const READ_CANCELLED: Explanation = Explanation {
    code: "PGC-E30",
    title: "the replica cancelled the reading of a range",
    text: "A conflict with replay (the standby waits for readers max_standby_streaming_delay at \
           most), a statement_timeout, a lock that did not come, or a human. What was read is \
           right but not all, so the range is read again.",
    next: "nothing, if it happens now and then; else set hot_standby_feedback = on or raise \
           max_standby_streaming_delay on the replica, or make ranges smaller",
};

/// The connection broke in the middle.
pub const REPLICA_LOST: Explanation = Explanation {
    code: "PGC-E31",
    title: "the connection to the replica broke while a range was read",
    text: "The replica was stopped, restarted or killed, or the network broke. The range is read \
           again.",
    next: "nothing, if it happens once; else look into the replica's log",
};

/// A transaction holds up the snapshot on the source.
pub const SNAPSHOT_WAITS: Explanation = Explanation {
    code: "PGC-E32",
    title: "the source gives no snapshot while a transaction is open",
    text: "On the source itself a snapshot with a known position waits for every transaction that \
           is writing. One of them has been open for too long.",
    next: "end that transaction, or add a standby as replica: there nothing has to be waited for",
};

/// No slot for a snapshot.
pub const NO_SNAPSHOT_SLOT: Explanation = Explanation {
    code: "PGC-E33",
    title: "the source has no slot or walsender left for a snapshot",
    text: "On the source itself a range takes a temporary slot for some milliseconds and a \
           walsender while it is read.",
    next: "raise max_replication_slots and max_wal_senders on the source, lower the number of \
           ranges read at once, or add a standby as replica",
};

/// A row cannot be delivered.
pub const ROW_UNREADABLE: Explanation = Explanation {
    code: "PGC-E34",
    title: "a row of the table cannot be delivered",
    text: "A row is larger than the source allows, or a text is not UTF-8. A change of the same row \
           would stop the source.",
    next: "raise limits.max_row in the node's configuration above the size in the message, or \
           repair the row; then retry the dump",
};

/// A logical replica.
pub const LOGICAL_REPLICA: Explanation = Explanation {
    code: "PGC-E35",
    title: "logical replicas come later",
    text: "The server is a subscriber: it has rows of its own making, on other pages. Reading from \
           such a replica is not there yet.",
    next: "add a physical standby of the source",
};

/// The server refused for another reason.
pub const READ_REFUSED: Explanation = Explanation {
    code: "PGC-E36",
    title: "the replica refused to read the table",
    text: "PostgreSQL answered with an error that has no code of its own here; its words are in the \
           message. Damaged pages show like this.",
    next: "follow the server's words and retry the dump",
};

/// Nothing that has pages.
pub const NO_HEAP: Explanation = Explanation {
    code: "PGC-E37",
    title: "the relation has no rows of its own to dump",
    text: "It is a view, a materialized view, a foreign table, a sequence or an index. Only tables \
           and their partitions are in the stream.",
    next: "name the tables instead",
};

/// Temporary or unlogged.
pub const NOT_IN_WAL: Explanation = Explanation {
    code: "PGC-E38",
    title: "the table is temporary or unlogged",
    text: "Its rows are not in the WAL: no standby has them, and the stream has no changes of them.",
    next: "leave it out, or run ALTER TABLE … SET LOGGED and add it to the publication",
};

/// Too old for TID range scans.
pub const REPLICA_TOO_OLD: Explanation = Explanation {
    code: "PGC-E39",
    title: "the replica's PostgreSQL is older than 14",
    text: "Ranges of pages are read without scanning the whole table since PostgreSQL 14.",
    next: "upgrade the replica",
};
