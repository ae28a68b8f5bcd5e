//! Sources: PostgreSQL, slots, publications: the codes `PGC-S…`.

use super::Explanation;

/// Every code of the family.
pub const ALL: &[&Explanation] = &[
    &PGOUTPUT_VIOLATION,
    &ROW_TOO_LARGE,
    &TEXT_NOT_UTF8,
    &TOO_MANY_RELATIONS,
    &TOO_MANY_CHANGES,
];

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
    next: "Raise the row limit of the source above the size in the message and start it again, or \
           drop the table from the publication if its rows are not wanted.",
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
