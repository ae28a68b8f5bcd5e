//! The node: configuration, command line, gRPC and HTTP around the actors.

pub mod rpc;
