//! pub
