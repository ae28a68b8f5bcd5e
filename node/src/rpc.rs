//! The gRPC services: each unwraps a request, calls a handle, and maps the error.

pub mod capture;

pub mod codec;
