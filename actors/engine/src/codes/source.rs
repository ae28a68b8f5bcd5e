//! Sources: PostgreSQL, slots, publications: the codes `PGC-S…`.

use super::Explanation;

/// Every code of the family.
pub const ALL: &[&Explanation] = &[
    &BAD_URL,
    &UNREACHABLE,
    &LOGIN_REFUSED,
    &TLS_FAILED,
    &DATABASE_MISSING,
    &READ_ONLY,
    &WAL_LEVEL,
    &NO_REPLICATION_RIGHT,
    &PRIVILEGE_MISSING,
    &NO_FREE_SLOT,
    &NO_FREE_WALSENDER,
    &SLOT_IN_USE,
    &SLOT_MISSING,
    &SLOT_INVALIDATED,
    &SLOT_OTHER_PLUGIN,
    &SLOT_OTHER_DATABASE,
    &SLOT_EXISTS,
    &PUBLICATION_MISSING,
    &IDENTITY_MISSING,
    &BINARY_MISSING,
    &CONNECTION_LOST,
    &SERVER_UNAVAILABLE,
    &MESSAGE_TOO_LARGE,
    &PROTOCOL_BROKEN,
    &REFUSED,
    &VERSION_TOO_OLD,
    &STANDBY,
    &OTHER_SERVER,
    &POSITION_AHEAD,
    &CATCH_UP_UNAVAILABLE,
    &NO_BINARIES,
    &LOCAL_SERVER,
    &PUBLICATION_DROPPED,
    &PIPELINE_REBUILT,
    &PGOUTPUT_VIOLATION,
    &ROW_TOO_LARGE,
    &TEXT_NOT_UTF8,
    &TOO_MANY_RELATIONS,
    &TOO_MANY_CHANGES,
    &FENCED,
    &WAL_GUARD,
    &LEASE_LOST,
    &NOT_ATTESTED,
];

/// Codes of troubles that pass by themselves.
pub const RETRY: &[&str] = &[UNREACHABLE.code, SERVER_UNAVAILABLE.code];

/// Codes after which the pipeline is built again at once.
pub const REBUILD: &[&str] = &[CONNECTION_LOST.code];

/// Codes that mean a gap, or a wrong source: nothing goes on without a decision.
pub const HALT: &[&str] = &[
    SLOT_MISSING.code,
    SLOT_INVALIDATED.code,
    SLOT_OTHER_PLUGIN.code,
    SLOT_OTHER_DATABASE.code,
    MESSAGE_TOO_LARGE.code,
    OTHER_SERVER.code,
    POSITION_AHEAD.code,
    FENCED.code,
];

/// Codes with which an agent halts at a declared gap, so that an operator may accept it.
pub const GAP: &[&str] = &[
    SLOT_MISSING.code,
    SLOT_INVALIDATED.code,
    POSITION_AHEAD.code,
    PUBLICATION_DROPPED.code,
    WAL_GUARD.code,
];

/// Stands for the source in the next steps of [`GAP`]; a running agent puts its own name there.
pub const NAME: &str = "NAME";

/// The URL of a source cannot be read.
pub const BAD_URL: Explanation = Explanation {
    code: "PGC-S01",
    title: "the URL of a source cannot be read",
    text: "A source is named by a URL as libpq reads them. Nothing was connected and nothing \
           changed.",
    next: "Write it as postgres://user@host:5432/database and give the password by reference \
           (env: or file:).",
};

/// PostgreSQL cannot be reached.
pub const UNREACHABLE: Explanation = Explanation {
    code: "PGC-S02",
    title: "PostgreSQL cannot be reached",
    text: "No host of the URL took a connection in time. The slot keeps the WAL meanwhile, so \
           nothing is lost, but the source's disk fills.",
    next: "Check host, port and firewall, and that PostgreSQL listens there \
           (listen_addresses).",
};

/// PostgreSQL refused the login.
pub const LOGIN_REFUSED: Explanation = Explanation {
    code: "PGC-S03",
    title: "PostgreSQL refused the login",
    text: "Wrong password, unknown user, or no line of pg_hba.conf allows this user, database \
           and address. Replication connections that name a database match the lines of that \
           database.",
    next: "Check user, password and pg_hba.conf on the server; a password file that is corrected is \
           read again by itself.",
};

/// No trusted TLS with PostgreSQL.
pub const TLS_FAILED: Explanation = Explanation {
    code: "PGC-S04",
    title: "no trusted TLS with PostgreSQL",
    text: "The URL asks for TLS and the server has none, or its certificate is not trusted or \
           is for another host.",
    next: "Check sslmode, sslrootcert and the server's ssl settings.",
};

/// The database does not exist.
pub const DATABASE_MISSING: Explanation = Explanation {
    code: "PGC-S05",
    title: "the database does not exist",
    text: "The server is there; the database of the URL is not.",
    next: "Correct the database in the source's URL.",
};

/// The server is read-only.
pub const READ_ONLY: Explanation = Explanation {
    code: "PGC-S06",
    title: "the server is read-only",
    text: "It is a standby, or every session there is read-only; slots are made and advanced \
           on a primary.",
    next: "Name the primary, or all hosts with target_session_attrs=read-write.",
};

/// Wal_level is not logical.
pub const WAL_LEVEL: Explanation = Explanation {
    code: "PGC-S07",
    title: "wal_level is not logical",
    text: "Without wal_level = logical the WAL does not hold what decoding needs.",
    next: "Run ALTER SYSTEM SET wal_level = logical on the source and restart PostgreSQL.",
};

/// The role may not replicate.
pub const NO_REPLICATION_RIGHT: Explanation = Explanation {
    code: "PGC-S08",
    title: "the role may not replicate",
    text: "A slot can be read only by a role with the attribute REPLICATION (or a superuser).",
    next: "Run ALTER ROLE … REPLICATION as a superuser; on managed services grant their \
           replication role (rds_replication, …).",
};

/// A privilege is missing.
pub const PRIVILEGE_MISSING: Explanation = Explanation {
    code: "PGC-S09",
    title: "a privilege is missing",
    text: "PostgreSQL refused a statement that the role has no right to.",
    next: "Grant what the message names, or run the printed SQL as the owner.",
};

/// No replication slot is free.
pub const NO_FREE_SLOT: Explanation = Explanation {
    code: "PGC-S10",
    title: "no replication slot is free",
    text: "All max_replication_slots are taken. A slot that nobody uses also keeps WAL for \
           ever.",
    next: "Drop a slot that nobody needs (pg_replication_slots), or raise \
           max_replication_slots and restart PostgreSQL.",
};

/// No walsender is free.
pub const NO_FREE_WALSENDER: Explanation = Explanation {
    code: "PGC-S11",
    title: "no walsender is free",
    text: "All max_wal_senders are taken.",
    next: "Close replication connections that nobody needs (pg_stat_replication), or raise \
           max_wal_senders and restart PostgreSQL.",
};

/// The slot is in use.
pub const SLOT_IN_USE: Explanation = Explanation {
    code: "PGC-S12",
    title: "the slot is in use",
    text: "One client at a time may read a slot. The message names the process that has it.",
    next: "Stop the other client, or let the take-over end it: SELECT \
           pg_terminate_backend(PID).",
};

/// The slot does not exist.
pub const SLOT_MISSING: Explanation = Explanation {
    code: "PGC-S13",
    title: "the slot does not exist",
    text: "It was never made, was dropped, or the server was rebuilt. Whatever was committed \
           since the last confirmed position and is no longer in a slot cannot be read: a new \
           slot starts later.",
    next: "Go on with a new slot, the gap declared to consumers: pgcapture source resume NAME \
           --accept-gap. A source that has captured nothing yet is removed and added again.",
};

/// The slot was invalidated.
pub const SLOT_INVALIDATED: Explanation = Explanation {
    code: "PGC-S14",
    title: "the slot was invalidated",
    text: "The server threw away WAL that the slot still needed (max_slot_wal_keep_size, \
           idle_replication_slot_timeout, rows removed on a standby). The changes in it \
           cannot be read any more: this is a gap.",
    next: "Go on with a new slot, the gap declared to consumers: pgcapture source resume NAME \
           --accept-gap; then fill the gap from the tables.",
};

/// The slot belongs to another output plugin.
pub const SLOT_OTHER_PLUGIN: Explanation = Explanation {
    code: "PGC-S15",
    title: "the slot belongs to another output plugin",
    text: "pgcapture reads slots of pgoutput. The slot was made for something else and that \
           client's position would be lost.",
    next: "Choose another slot name.",
};

/// The slot belongs to another database.
pub const SLOT_OTHER_DATABASE: Explanation = Explanation {
    code: "PGC-S16",
    title: "the slot belongs to another database",
    text: "A logical slot sees the changes of one database only.",
    next: "Choose another slot name, or correct the database in the URL.",
};

/// A slot of that name exists.
pub const SLOT_EXISTS: Explanation = Explanation {
    code: "PGC-S17",
    title: "a slot of that name exists",
    text: "It may belong to somebody else, and its position is not at the start of this \
           source.",
    next: "Choose another slot name, or drop the slot if nobody needs it.",
};

/// The publication does not exist.
pub const PUBLICATION_MISSING: Explanation = Explanation {
    code: "PGC-S18",
    title: "the publication does not exist",
    text: "The slot cannot be decoded without it. On PostgreSQL 14 to 17 a slot that has to \
           decode a change from a moment without publication fails there for ever, even after \
           the publication is made again; on 18 those changes are left out with a warning. \
           Both are gaps.",
    next: "Make the publication before the slot; if it was dropped while changes were \
           written, drop and make the slot too.",
};

/// A table has no replica identity.
pub const IDENTITY_MISSING: Explanation = Explanation {
    code: "PGC-S19",
    title: "a table has no replica identity",
    text: "A table in a publication of UPDATE and DELETE without usable replica identity \
           makes the application's own UPDATE and DELETE fail, so it is never added. From \
           PostgreSQL 18 on they fail as well where the identity is the full row and a generated \
           column of it is not published.",
    next: "Add a primary key, or ALTER TABLE … REPLICA IDENTITY FULL, or exclude the table; with \
           generated columns on 18 the identity must be a key.",
};

/// A column type has no binary form.
pub const BINARY_MISSING: Explanation = Explanation {
    code: "PGC-S20",
    title: "a column type has no binary form",
    text: "One value of a type without binary send function fails the whole stream in binary \
           mode, so this source is read as text.",
    next: "Nothing; exclude the table if you need the binary form of the others.",
};

/// The connection to PostgreSQL was lost.
pub const CONNECTION_LOST: Explanation = Explanation {
    code: "PGC-S21",
    title: "the connection to PostgreSQL was lost",
    text: "The server ended, the network broke, or nothing was heard in time. Reading starts \
           again at the last durable position.",
    next: "Nothing; it is tried again by itself. If it lasts, look into the server's log.",
};

/// PostgreSQL cannot serve now.
pub const SERVER_UNAVAILABLE: Explanation = Explanation {
    code: "PGC-S22",
    title: "PostgreSQL cannot serve now",
    text: "It starts, stops, recovers or is out of connections or memory.",
    next: "Nothing; it is tried again by itself. If it lasts, look into the server's log.",
};

/// A change is larger than the limit.
pub const MESSAGE_TOO_LARGE: Explanation = Explanation {
    code: "PGC-S23",
    title: "a change is larger than the limit",
    text: "One row of the stream is larger than the configured limit. It cannot be left out \
           without a gap, so the source stands still.",
    next: "Raise limits.max_row in the node's configuration and restart the node.",
};

/// PostgreSQL sent what cannot be understood.
pub const PROTOCOL_BROKEN: Explanation = Explanation {
    code: "PGC-S24",
    title: "PostgreSQL sent what cannot be understood",
    text: "The bytes do not follow the protocol: something between (a proxy, a pooler) speaks \
           another one, or the server is of an unknown kind.",
    next: "Connect to PostgreSQL itself, not through a connection pooler.",
};

/// PostgreSQL refused a statement.
pub const REFUSED: Explanation = Explanation {
    code: "PGC-S25",
    title: "PostgreSQL refused a statement",
    text: "The message is the server's own.",
    next: "Read the message; the server's log has the statement.",
};

/// The server is too old.
pub const VERSION_TOO_OLD: Explanation = Explanation {
    code: "PGC-S26",
    title: "the server is too old",
    text: "pgcapture reads PostgreSQL 14 and newer: binary decoding came with it.",
    next: "Upgrade the source.",
};

/// The source is a standby.
pub const STANDBY: Explanation = Explanation {
    code: "PGC-S27",
    title: "the source is a standby",
    text: "A standby takes neither publications nor (before 16) logical slots.",
    next: "Name the primary.",
};

/// This is another server than before.
pub const OTHER_SERVER: Explanation = Explanation {
    code: "PGC-S28",
    title: "this is another server than before",
    text: "The system identifier differs from the one that the source was added with: its WAL \
           positions mean something else.",
    next: "Correct the URL; if the server was rebuilt, add it as a new source.",
};

/// The slot has moved past the log.
pub const POSITION_AHEAD: Explanation = Explanation {
    code: "PGC-S29",
    title: "the slot has moved past the log",
    text: "The server's confirmed position is later than the log's end: another client has \
           read the slot, or the log was lost. PostgreSQL would skip the changes between \
           without a word.",
    next: "Restore the log, or go on with a new slot, the gap declared to consumers: pgcapture \
           source resume NAME --accept-gap.",
};

/// The backlog cannot be read by COPY.
pub const CATCH_UP_UNAVAILABLE: Explanation = Explanation {
    code: "PGC-S30",
    title: "the backlog cannot be read by COPY",
    text: "Catching up needs a second free slot and the slot functions. The source is \
           followed by walsender instead: slower, nothing is lost.",
    next: "Raise max_replication_slots by one to catch up faster.",
};

/// No PostgreSQL programs were found.
pub const NO_BINARIES: Explanation = Explanation {
    code: "PGC-S31",
    title: "no PostgreSQL programs were found",
    text: "A throw-away server needs initdb, postgres and pg_ctl.",
    next: "Install PostgreSQL (Debian: apt install postgresql) or set PGCAPTURE_PG_BIN to its \
           bin directory.",
};

/// The throw-away PostgreSQL does not start.
pub const LOCAL_SERVER: Explanation = Explanation {
    code: "PGC-S32",
    title: "the throw-away PostgreSQL does not start",
    text: "The message carries what the server wrote.",
    next: "Read the message; see that the temporary directory is writable and has some 100 MB \
           free.",
};

/// The publication was dropped or changed under way.
pub const PUBLICATION_DROPPED: Explanation = Explanation {
    code: "PGC-S33",
    title: "the publication was dropped or changed under way",
    text: "Changes that were written without it are not in the stream.",
    next: "Make the publication again, then go on with a new slot, the gap declared to consumers: \
           pgcapture source resume NAME --accept-gap.",
};

/// The stream breaks the rules of pgoutput.
pub const PGOUTPUT_VIOLATION: Explanation = Explanation {
    code: "PGC-S40",
    title: "the stream does not follow the pgoutput protocol",
    text: "A message was damaged or came where it cannot come. Nothing of it was written. The \
           source connects again from the durable end of the log, so nothing is lost or sent twice.",
    next: "Nothing, if it happens once. If it comes again at the same LSN, look for a proxy between \
           pgcapture and PostgreSQL and compare the server's major version with the supported ones.",
};

/// A row is larger than the limit.
pub const ROW_TOO_LARGE: Explanation = Explanation {
    code: "PGC-S41",
    title: "a row is larger than the limit",
    text: "One row (or logical message) takes more bytes than the source allows. The source stops \
           before it: nothing is left out, and PostgreSQL keeps the WAL.",
    next: "Raise limits.max_row in the node's configuration above the size in the message and \
           restart the node: nothing is lost.",
};

/// A text value is not UTF-8.
pub const TEXT_NOT_UTF8: Explanation = Explanation {
    code: "PGC-S42",
    title: "a text value is not UTF-8",
    text: "A column came in text form and its bytes are not UTF-8, which consumers could not read. \
           PostgreSQL converts to UTF-8 unless the database has the encoding SQL_ASCII. The source \
           stops before the row.",
    next: "Correct the value and, if the row must not be delivered as it was, declare the gap; or \
           read the source in binary form, which takes any bytes.",
};

/// Too many relations on one connection.
pub const TOO_MANY_RELATIONS: Explanation = Explanation {
    code: "PGC-S43",
    title: "too many tables on one connection",
    text: "PostgreSQL described more relations than a connection may hold in memory. The source \
           connects again, which starts the count anew.",
    next: "Nothing, if it happens after weeks of creating and dropping tables. Otherwise spread the \
           tables over several publications and sources.",
};

/// More changes than a checkpoint counts.
pub const TOO_MANY_CHANGES: Explanation = Explanation {
    code: "PGC-S44",
    title: "a transaction has more than four billion changes",
    text: "A position inside a transaction is a number of 32 bits, as old consumers expect it. The \
           source stops inside the transaction.",
    next: "Drop the slot, create it again after the transaction and dump the table; split such \
           transactions from then on.",
};

/// A part of a pipeline failed.
pub const PIPELINE_REBUILT: Explanation = Explanation {
    code: "PGC-S34",
    title: "a part of the pipeline failed and all of it was built again",
    text: "An actor or task panicked, or the log closed. The pipeline is built again from the durable \
           end of the log, so nothing is lost and nothing is written twice.",
    next: "report the message if it comes again: it is a defect of pgcapture",
};

/// A newer agent reads the slot.
pub const FENCED: Explanation = Explanation {
    code: "PGC-S50",
    title: "a newer agent of this cluster reads the slot",
    text: "The source was given to another node, under a newer epoch, while this agent was paused or \
           cut off. It has stopped for good and writes nothing more; the newer one goes on.",
    next: "Nothing. If it happens again and again, look for nodes that are often paused, or for two \
           clusters with the same identity.",
};

/// The source keeps more WAL than its limit.
pub const WAL_GUARD: Explanation = Explanation {
    code: "PGC-S51",
    title: "the source keeps more WAL for the slot than wal_guard allows",
    text: "What happens at the limit is its policy. alert: it is told only, and the source's disk fills \
           further. spill, in a cluster: the slot is let go as far as the log of the node that reads it \
           goes; consumers read on from there, and get a declared gap if that node is lost before they \
           have. drop_with_gap: the slot is let go, which is a gap, and the source halts.",
    next: "See why the slot does not move: a log that takes nothing, consumers that do not \
           acknowledge, a long transaction. When the source has halted, go on with a new slot, the gap \
           declared to consumers: pgcapture source resume NAME --accept-gap. Another limit: pgcapture \
           source add NAME again with --wal-budget.",
};

/// The node cannot prove its right to the source.
pub const LEASE_LOST: Explanation = Explanation {
    code: "PGC-S52",
    title: "the node cannot prove its right to the source",
    text: "It does not hear from the majority of the cluster. The agent has let go of the slot and \
           goes on when the right is back, or another node does.",
    next: "Nothing; check the network between the nodes if it lasts.",
};

/// A position cannot be agreed on.
pub const NOT_ATTESTED: Explanation = Explanation {
    code: "PGC-S53",
    title: "a position of the slot cannot be agreed on",
    text: "Where the slot is the durable truth, the cluster has to know how far it was let go before \
           it is. That could not be recorded.",
    next: "Check that the cluster has a majority; it is tried again by itself.",
};
