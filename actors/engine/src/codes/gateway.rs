//! Consumers and their sessions: the codes `PGC-G…`.

use super::Explanation;

/// Every code of the family.
pub const ALL: &[&Explanation] = &[
    &UNKNOWN_URI,
    &NO_INIT,
    &SECOND_INIT,
    &BAD_PARAMETER,
    &UNKNOWN_CHECKPOINT,
    &POSITION_REMOVED,
    &REQUEST_TOO_LARGE,
    &TOO_MANY,
    &DRAINING,
    &STREAM_UNAVAILABLE,
    &SUBSCRIPTION_MOVED,
    &STREAM_DAMAGED,
    &CURSOR_NOT_KEPT,
    &SESSION_FAILED,
    &MALFORMED_REQUEST,
    &MODE_DIFFERS,
    &ROWS_LOST,
    &HOME_ELSEWHERE,
    &HOME_LOST,
];

/// Unknown uri.
pub const UNKNOWN_URI: Explanation = Explanation {
    code: "PGC-G01",
    title: "unknown uri",
    text: "The uri of a Capture stream is a stream's name, or stream/consumer. This node \
           knows no stream of that name.",
    next: "list the streams with `pgcapture source ls`, and correct the uri",
};

/// No init.
pub const NO_INIT: Explanation = Explanation {
    code: "PGC-G02",
    title: "no init",
    text: "The first message of a Capture stream must be init; it did not come, came too \
           late, or something else came first.",
    next: "send CaptureInit with the uri before anything else",
};

/// Second init.
pub const SECOND_INIT: Explanation = Explanation {
    code: "PGC-G03",
    title: "second init",
    text: "A Capture stream serves one uri from its first message to its end.",
    next: "open another stream for another uri",
};

/// Bad parameter.
pub const BAD_PARAMETER: Explanation = Explanation {
    code: "PGC-G04",
    title: "bad parameter",
    text: "A parameter of init has a value that cannot be used. Nothing was delivered and no \
           subscription was made.",
    next: "correct the parameter that the message names",
};

/// Unknown checkpoint.
pub const UNKNOWN_CHECKPOINT: Explanation = Explanation {
    code: "PGC-G05",
    title: "unknown checkpoint",
    text: "A consumer acknowledged a message that was never delivered on its subscription, so \
           it may hold messages of another one. The session was ended; what it had not \
           acknowledged is delivered again.",
    next: "echo checkpoints exactly as they were received, on the stream they came from",
};

/// Position removed.
pub const POSITION_REMOVED: Explanation = Explanation {
    code: "PGC-G06",
    title: "position removed",
    text: "Retention has removed a part of the log that the consumer had not read: changes \
           are missing between its position and the earliest one. Nothing is skipped \
           silently.",
    next: "load the tables anew, then move the subscription with `pgcapture consumer seek \
           NAME earliest`; raise the retention",
};

/// Request too large.
pub const REQUEST_TOO_LARGE: Explanation = Explanation {
    code: "PGC-G07",
    title: "request too large",
    text: "A message to the gateway exceeds its limit; requests are an init and small \
           acknowledgements.",
    next: "send shorter parameters",
};

/// Too many.
pub const TOO_MANY: Explanation = Explanation {
    code: "PGC-G08",
    title: "too many",
    text: "The node has as many sessions or subscriptions as its limits allow.",
    next: "close sessions, remove unused subscriptions with `pgcapture consumer rm`, or raise \
           the limit",
};

/// Node is draining.
pub const DRAINING: Explanation = Explanation {
    code: "PGC-G09",
    title: "node is draining",
    text: "The node stops. Acknowledgements that it received are durable.",
    next: "reconnect, to another node or after the restart; delivery continues where \
           acknowledgements ended",
};

/// Stream unavailable.
pub const STREAM_UNAVAILABLE: Explanation = Explanation {
    code: "PGC-G10",
    title: "stream unavailable",
    text: "The log of the stream cannot be read here now.",
    next: "look at `pgcapture source show` and try again",
};

/// Subscription moved.
pub const SUBSCRIPTION_MOVED: Explanation = Explanation {
    code: "PGC-G11",
    title: "subscription moved",
    text: "An operator moved or removed the subscription while sessions used it.",
    next: "reconnect; delivery continues at the new position",
};

/// Stored data damaged.
pub const STREAM_DAMAGED: Explanation = Explanation {
    code: "PGC-G12",
    title: "stored data damaged",
    text: "A checksum of the log does not match; no damaged byte was delivered.",
    next: "see the node's log for the file, restore it, or declare the gap and load the \
           tables anew",
};

/// Cursor not kept.
pub const CURSOR_NOT_KEPT: Explanation = Explanation {
    code: "PGC-G13",
    title: "cursor not kept",
    text: "The node's store cannot read or save cursors; acknowledgements do not count until \
           it can.",
    next: "check the space and the rights of the data directory",
};

/// Session failed.
pub const SESSION_FAILED: Explanation = Explanation {
    code: "PGC-G14",
    title: "session failed",
    text: "A defect ended this session. Other sessions are not affected; what it had not \
           acknowledged is delivered again.",
    next: "reconnect; report the node's log if it happens again",
};

/// Malformed request.
pub const MALFORMED_REQUEST: Explanation = Explanation {
    code: "PGC-G15",
    title: "malformed request",
    text: "The bytes are not a pgcapture.CaptureRequest in a gRPC frame.",
    next: "check the client's version of pgcapture.proto",
};

/// Mode differs.
pub const MODE_DIFFERS: Explanation = Explanation {
    code: "PGC-G16",
    title: "mode differs",
    text: "A subscription is either shared or ordered for all its sessions at once.",
    next: "use the same Mode in all consumers of the uri, or another consumer name",
};

/// Rows lost.
pub const ROWS_LOST: Explanation = Explanation {
    code: "PGC-G17",
    title: "rows lost",
    text: "The rows of a range of a dump ended before the server had said that there are no \
           more. Nothing is taken for complete: the range is read again.",
    next: "look at `pgcapture dump show`; report the node's log if it happens again",
};

/// Another node keeps the subscription.
pub const HOME_ELSEWHERE: Explanation = Explanation {
    code: "PGC-G18",
    title: "subscription kept by another node",
    text: "All sessions of a subscription share one node's books. Another node took the subscription \
           over while this one could not be reached; what was not acknowledged is delivered again.",
    next: "reconnect, to any node; delivery continues where acknowledgements ended",
};

/// The node that keeps the subscription went away.
pub const HOME_LOST: Explanation = Explanation {
    code: "PGC-G19",
    title: "the node that keeps the subscription went away",
    text: "The session came in on one node and its subscription was kept by another, which went away \
           after it had delivered something. What was delivered and not acknowledged comes again, so \
           the stream cannot simply go on.",
    next: "reconnect, to any node; delivery continues where acknowledgements ended",
};
