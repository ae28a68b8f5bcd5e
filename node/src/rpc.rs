//! The gRPC services: each unwraps a request, calls a handle, and maps the error.

pub mod auth;

pub mod capture;

pub mod codec;

pub mod admin;
