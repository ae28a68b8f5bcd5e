//! How rows are read from replicas: with the password that the reference leads to at that moment.

use std::sync::Arc;

use pgcapture_actors::{
    dump::{PostgresReader, ReplicaConfigs},
    postgres::{self, dump::ReadLimits},
};
use pgcapture_engine::cluster::Replica;

use crate::{sources::connection, units::Size};

/// Makes the reader of rows; it connects when it is asked. A larger row than `row_max` is an error,
/// as it is for the source's agent.
#[must_use]
pub fn reader(row_max: Size) -> PostgresReader {
    let limits = ReadLimits {
        row_bytes_max: row_max.as_len(),
        ..ReadLimits::default()
    };
    PostgresReader::new(Arc::new(Login), limits)
}

#[derive(Clone, Copy, Debug)]
struct Login;

impl ReplicaConfigs for Login {
    fn config(&self, replica: &Replica) -> Result<postgres::Config, String> {
        let config = connection(&replica.url, None, replica.password.as_ref());
        config.map_err(|error| error.to_string())
    }
}
