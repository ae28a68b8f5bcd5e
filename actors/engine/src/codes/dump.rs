//! Dumps as jobs: the codes `PGC-E01` to `PGC-E19`, E for existing rows. Reading them has the rest.

use super::Explanation;

/// The source has no replica.
pub const NO_REPLICA: Explanation = Explanation {
    code: "PGC-E01",
    title: "the source has no replica to read from",
    text: "Existing rows are read from a replica of the source, so that the source does not feel \
           it. In a small set-up the source itself may be named as one.",
    next: "add one: pgcapture replica add NAME --source SOURCE --url URL",
};

/// The ends of a page range are swapped.
pub const PAGES_BACKWARDS: Explanation = Explanation {
    code: "PGC-E02",
    title: "a page range runs backwards",
    text: "The first page of a range is behind its last. Both ends are included: 0-999 are the \
           first thousand pages.",
    next: "give the smaller number first",
};

/// A page range begins behind the table's end.
pub const PAGES_BEYOND_END: Explanation = Explanation {
    code: "PGC-E03",
    title: "a page range begins beyond the end of the table",
    text: "The table has fewer pages on the replica. Pages are counted from 0; a table of N pages \
           has the pages 0 to N-1.",
    next: "leave --pages out to dump the whole table, or ask for pages that exist",
};

/// Another dump is in the way.
pub const ALREADY_ACTIVE: Explanation = Explanation {
    code: "PGC-E04",
    title: "another dump of this uri is not over",
    text: "Two dumps of one table into one subscription would deliver its rows twice; a schedule \
           needs a uri without any work.",
    next: "wait for it, or end it: pgcapture dump cancel ID",
};

/// There is no such dump.
pub const UNKNOWN: Explanation = Explanation {
    code: "PGC-E05",
    title: "there is no such dump",
    text: "The number was never given, or the dump has been over for so long that it was forgotten.",
    next: "see which there are: pgcapture dump ls",
};

/// The dump is in another state.
pub const WRONG_STATE: Explanation = Explanation {
    code: "PGC-E06",
    title: "the dump is not in a state for that",
    text: "What is over cannot be paused or resumed; only what has failed can be tried again.",
    next: "look at it: pgcapture dump show ID; start another one if this one is over",
};

/// The request cannot be used.
pub const BAD_REQUEST: Explanation = Explanation {
    code: "PGC-E07",
    title: "the dump cannot be created as asked",
    text: "No table matches, a number is out of its limits, or there are too many dumps, tables or \
           ranges.",
    next: "change what the message names",
};

/// The table was rewritten again and again.
pub const REWRITTEN_TOO_OFTEN: Explanation = Explanation {
    code: "PGC-E08",
    title: "the table was rewritten too often while it was read",
    text: "Each rewrite begins the reading anew. After a few the table fails, because it would \
           never end.",
    next: "let VACUUM FULL, CLUSTER, TRUNCATE or ALTER TABLE end, then: pgcapture dump retry ID",
};

/// The table was dropped while it was read.
pub const DROPPED: Explanation = Explanation {
    code: "PGC-E09",
    title: "the table was dropped while it was read",
    text: "The table is gone, or another one has its name now. The rows that were delivered were \
           right when they were read; the change stream tells of the drop.",
    next: "start a new dump if there is a new table of that name",
};

/// A range failed again and again.
pub const RANGE_FAILED: Explanation = Explanation {
    code: "PGC-E10",
    title: "a range of the table could not be read in many tries",
    text: "Each try failed, with growing pauses between. The other tables go on; what was read of \
           this one is kept.",
    next: "remove the cause that the message names, then: pgcapture dump retry ID",
};

/// The controller is not there.
pub const CONTROLLER_AWAY: Explanation = Explanation {
    code: "PGC-E11",
    title: "the dump controller is not ready",
    text: "It is being built anew after a fault, or the node is stopping. Nothing that was finished \
           is lost.",
    next: "try again in a second; another node if this one is stopping",
};

/// The agreed state could not be changed.
pub const NOT_KEPT: Explanation = Explanation {
    code: "PGC-E12",
    title: "the progress of a dump could not be recorded",
    text: "The node's store, or the cluster, did not take the change. Ranges whose end was not \
           recorded are read and delivered again.",
    next: "see what the store says (disk full?); dumps go on by themselves once it takes writes",
};

/// A reader ended without a word.
pub const READER_DIED: Explanation = Explanation {
    code: "PGC-E13",
    title: "the reader of a range ended unexpectedly",
    text: "A fault in the program. The range is read again.",
    next: "report it with the log around this message",
};

/// The uri stands for nothing.
pub const UNKNOWN_URI: Explanation = Explanation {
    code: "PGC-E14",
    title: "the uri stands for no stream",
    text: "A dump needs a uri whose stream is fed by a source.",
    next: "see which streams there are: pgcapture stream ls",
};

/// There is no such replica.
pub const UNKNOWN_REPLICA: Explanation = Explanation {
    code: "PGC-E15",
    title: "there is no such replica",
    text: "Replicas are known by the name they were added under.",
    next: "see which there are: pgcapture replica ls",
};

/// The replica cannot be added so.
pub const BAD_REPLICA: Explanation = Explanation {
    code: "PGC-E16",
    title: "the replica cannot be added as asked",
    text: "Another replica has that name, the name breaks the rules, a number is out of its \
           limits, or there are too many replicas.",
    next: "change what the message names; remove the other one first to replace it",
};

/// Page ranges given by hand mean other rows now.
pub const PAGES_MOVED: Explanation = Explanation {
    code: "PGC-E17",
    title: "the table was rewritten, and its page ranges were given by hand",
    text: "VACUUM FULL, CLUSTER, TRUNCATE and some forms of ALTER TABLE move every row to a new file. \
           The page numbers that were given mean other rows there, so going on would leave rows out.",
    next: "start a new dump with page ranges of the table as it is now, or of the whole table",
};

/// The node that read a range is away.
pub const READER_AWAY: Explanation = Explanation {
    code: "PGC-E18",
    title: "the node that read a range is away",
    text: "Ranges of a dump are read by all nodes that reach the replica. One of them stopped, died, \
           or does not answer. The ranges that it was reading are read again by others; what was \
           finished is not.",
    next: "nothing, the dump goes on; see which node is away: pgcapture cluster status",
};

/// The family.
pub const ALL: &[&Explanation] = &[
    &NO_REPLICA,
    &PAGES_BACKWARDS,
    &PAGES_BEYOND_END,
    &ALREADY_ACTIVE,
    &UNKNOWN,
    &WRONG_STATE,
    &BAD_REQUEST,
    &REWRITTEN_TOO_OFTEN,
    &DROPPED,
    &RANGE_FAILED,
    &CONTROLLER_AWAY,
    &NOT_KEPT,
    &READER_DIED,
    &UNKNOWN_URI,
    &UNKNOWN_REPLICA,
    &BAD_REPLICA,
    &PAGES_MOVED,
    &READER_AWAY,
];
