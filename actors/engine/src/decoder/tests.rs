//! The rules of the stream, one by one.
