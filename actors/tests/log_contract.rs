//! The contract of a change log: every backend passes the same checks.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

#[path = "log_support/checks.rs"]
mod checks;
#[path = "log_support/rows.rs"]
mod rows;

use std::sync::Arc;

use pgcapture_actors::log::{
    ChangeLog,
    embedded::{EmbeddedLog, EmbeddedLogOptions},
    memory::{MemoryLog, MemoryLogOptions},
};

macro_rules! contract {
    ($backend:ident, $make:expr) => {
        mod $backend {
            use super::*;

            contract!(@each $make;
                batches_are_read_in_the_order_of_acceptance
                flush_returns_the_tail_of_what_was_accepted
                an_older_epoch_is_refused
                a_newer_epoch_fences_the_writer_before
                the_same_epoch_opened_again_fences_the_writer_before
                a_batch_that_does_not_follow_is_refused
                a_batch_without_entries_makes_its_resume_lsn_durable
                a_reader_at_the_tail_waits_for_the_next_batch
                a_dropped_call_of_next_loses_nothing
                a_reader_starts_where_it_is_told
                many_readers_see_the_same_entries
                the_order_survives_a_change_of_epoch
                a_log_started_anew_refuses_what_was_before
                readers_of_a_log_started_anew_are_told_or_go_on
                a_log_is_started_anew_only_ahead_and_by_its_writer
            );
        }
    };
    (@each $make:expr; $($check:ident)*) => {
        $(
            #[tokio::test]
            async fn $check() {
                let (log, _keep) = $make;
                checks::$check(log).await;
            }
        )*
    };
}

fn memory() -> (Arc<dyn ChangeLog>, ()) {
    (MemoryLog::new(MemoryLogOptions::default()), ())
}

contract!(in_memory, memory());

fn embedded() -> (Arc<dyn ChangeLog>, tempfile::TempDir) {
    embedded_with(EmbeddedLogOptions {
        segment_bytes: 1 << 20,
        ..EmbeddedLogOptions::default()
    })
}

/// Without a cache everything is read from the files.
fn embedded_from_files() -> (Arc<dyn ChangeLog>, tempfile::TempDir) {
    embedded_with(EmbeddedLogOptions {
        segment_bytes: 64 << 10,
        tail_cache_bytes: 0,
        ..EmbeddedLogOptions::default()
    })
}

fn embedded_with(options: EmbeddedLogOptions) -> (Arc<dyn ChangeLog>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(directory.path(), options).unwrap();
    (log, directory)
}

contract!(in_segments, embedded());
contract!(in_segments_without_cache, embedded_from_files());
