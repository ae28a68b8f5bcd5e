//! The wire contract: what old and new consumers, the CLI and the console speak.
//!
//! Everything here is generated from `proto/*.proto`; names and numbers of the package
//! `pgcapture` are facts of interoperation and never change. The generated gRPC clients are
//! behind the feature `client`, the servers behind `server`.

#[cfg(feature = "tonic")]
pub mod status;

/// The data contract of wire.md: package `pgcapture`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::clone_on_ref_ptr,
    clippy::pedantic,
    clippy::str_to_string,
    clippy::wildcard_enum_match_arm,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod pgcapture {
    include!(concat!(env!("OUT_DIR"), "/pgcapture.rs"));
}

/// The administration contract: package `pgcapture.admin.v1`.
pub mod admin {
    /// Version 1.
    #[allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::clone_on_ref_ptr,
        clippy::clone_on_ref_ptr,
        clippy::pedantic,
        clippy::str_to_string,
        clippy::wildcard_enum_match_arm,
        clippy::allow_attributes_without_reason,
        reason = "generated code"
    )]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/pgcapture.admin.v1.rs"));
    }
}

/// The contract between the nodes of one cluster: package `pgcapture.peer.v1`.
pub mod peer {
    /// Version 1.
    #[allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::clone_on_ref_ptr,
        clippy::pedantic,
        clippy::str_to_string,
        clippy::wildcard_enum_match_arm,
        clippy::allow_attributes_without_reason,
        reason = "generated code"
    )]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/pgcapture.peer.v1.rs"));
    }
}

/// All descriptors, encoded as a `google.protobuf.FileDescriptorSet`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
