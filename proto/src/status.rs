//! The one table: stable error code to gRPC status.
//!
//! Services turn a domain error into its code, its text and its next step; what a client of any
//! language sees of it is decided here and nowhere else. A code that is not in the table is a defect
//! of ours and becomes INTERNAL.

use std::fmt::Display;

use tonic::{Code, Status, metadata::MetadataValue};

/// Metadata key under which a status carries the stable code.
pub const CODE_KEY: &str = "pgcapture-code";

/// Every code that may reach a client.
const TABLE: &[(&str, Code)] = &[
    // An unknown uri.
    ("PGC-G01", Code::NotFound),
    // No init, a second init, a bad parameter, an unknown checkpoint.
    ("PGC-G02", Code::InvalidArgument),
    ("PGC-G03", Code::InvalidArgument),
    ("PGC-G04", Code::InvalidArgument),
    ("PGC-G05", Code::InvalidArgument),
    // A position that retention has removed.
    ("PGC-G06", Code::OutOfRange),
    // A request or a number that exceeds a limit.
    ("PGC-G07", Code::ResourceExhausted),
    ("PGC-G08", Code::ResourceExhausted),
    // Draining, or a log that cannot be read now: try again.
    ("PGC-G09", Code::Unavailable),
    ("PGC-G10", Code::Unavailable),
    // Moved or removed by an operator: reconnect.
    ("PGC-G11", Code::Aborted),
    // Damaged data, a store that fails, a defect.
    ("PGC-G12", Code::DataLoss),
    ("PGC-G13", Code::Unavailable),
    ("PGC-G14", Code::Internal),
    // Malformed bytes.
    ("PGC-G15", Code::InvalidArgument),
    // A mode that the other sessions do not have.
    ("PGC-G16", Code::FailedPrecondition),
    // Rows of a dump; it is read again.
    ("PGC-G17", Code::Unavailable),
    // The books of the subscription are on another node, or were: reconnect.
    ("PGC-G18", Code::Unavailable),
    ("PGC-G19", Code::Unavailable),
    // The node: its disk, a token, names and requests.
    ("PGC-N01", Code::Unavailable),
    ("PGC-N04", Code::Unavailable),
    ("PGC-N08", Code::Unauthenticated),
    ("PGC-N10", Code::NotFound),
    ("PGC-N11", Code::AlreadyExists),
    ("PGC-N12", Code::InvalidArgument),
    ("PGC-N15", Code::DataLoss),
    // The node that has to answer is away: try again.
    ("PGC-N18", Code::Unavailable),
    // The cluster: nobody to agree with, too large, a name that is taken, a change that cannot be.
    ("PGC-R01", Code::Unavailable),
    ("PGC-R02", Code::ResourceExhausted),
    ("PGC-R05", Code::AlreadyExists),
    ("PGC-R08", Code::FailedPrecondition),
    ("PGC-R18", Code::ResourceExhausted),
    // Dumps: requests that cannot be, what is in the way, what is not there.
    ("PGC-E02", Code::InvalidArgument),
    ("PGC-E03", Code::InvalidArgument),
    ("PGC-E04", Code::AlreadyExists),
    ("PGC-E05", Code::NotFound),
    ("PGC-E07", Code::InvalidArgument),
    ("PGC-E14", Code::NotFound),
    ("PGC-E15", Code::NotFound),
    ("PGC-E16", Code::InvalidArgument),
    ("PGC-E25", Code::NotFound),
    ("PGC-E37", Code::InvalidArgument),
    ("PGC-E38", Code::InvalidArgument),
    // The controller, the store or the replica is away: try again.
    ("PGC-E11", Code::Unavailable),
    ("PGC-E12", Code::Unavailable),
    ("PGC-E13", Code::Internal),
    ("PGC-E20", Code::Unavailable),
    ("PGC-E30", Code::Unavailable),
    ("PGC-E31", Code::Unavailable),
    // A secret that cannot be read.
    ("PGC-C007", Code::FailedPrecondition),
];

/// Prefixes of the codes of sources and of dumps: PostgreSQL is not as it must be, and an operator
/// mends it there.
const POSTGRES_PREFIXES: [&str; 2] = ["PGC-S", "PGC-E"];

/// Returns the gRPC code of a stable code.
#[must_use]
pub fn grpc_code(code: &str) -> Code {
    TABLE
        .iter()
        .find(|(known, _)| *known == code)
        .map_or_else(|| family_code(code), |(_, grpc_code)| *grpc_code)
}

fn family_code(code: &str) -> Code {
    if POSTGRES_PREFIXES
        .iter()
        .any(|prefix| code.starts_with(prefix))
    {
        Code::FailedPrecondition
    } else {
        Code::Internal
    }
}

/// Makes the status of an error: `PGC-G01: what happened; next: what to do`.
#[must_use]
pub fn status(code: &'static str, what: impl Display, next: &str) -> Status {
    let mut status = Status::new(grpc_code(code), format!("{code}: {what}; next: {next}"));
    status
        .metadata_mut()
        .insert(CODE_KEY, MetadataValue::from_static(code));
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_stand_once() {
        let mut codes: Vec<_> = TABLE.iter().map(|(code, _)| *code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), TABLE.len());
    }

    #[test]
    fn a_status_says_code_reason_and_next_step() {
        let status = status("PGC-G01", "unknown uri \"x\"", "list the streams");
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(
            status.message(),
            "PGC-G01: unknown uri \"x\"; next: list the streams"
        );
        assert_eq!(status.metadata().get(CODE_KEY).unwrap(), "PGC-G01");
        assert_eq!(grpc_code("PGC-X99"), Code::Internal);
    }
}
